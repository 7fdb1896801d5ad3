"""One engine for the tests of a module; each test removes its containers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.stack import Stack, clean, start_stack


@pytest.fixture(scope="module")
def module_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = start_stack(tmp_path_factory.mktemp("engine"))
    yield stack
    clean(stack)


@pytest.fixture
def stack(module_stack: Stack) -> Iterator[Stack]:
    yield module_stack
    ids = module_stack.out("ps", "-aq").split()
    if ids:
        module_stack.docker("rm", "-f", "-v", *ids)
