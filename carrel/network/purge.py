"""Take off what an engine that is no longer there has left: ``python -m carrel.network.purge``.

Bridges with the engine's alias, its nftables table, its namespaces. Containers that still run lose
their network.
"""

from __future__ import annotations

import contextlib
import os
import sys

from carrel.kernel import netns, rtnetlink
from carrel.network import bridge, rules
from carrel.network.nsthread import Kernel


def owner(exec_root: str) -> str:
    """The alias of an engine's bridges."""
    return f"carrel network of {exec_root.rstrip('/')}"


def purge(exec_root: str) -> list[str]:
    """What was taken off, as lines for a person."""
    done = []
    kernel = Kernel()
    try:
        folder = f"{exec_root}/netns"
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(folder):
                netns.unbind(f"{folder}/{name}")
                done.append(f"network namespace {name}")
        for link in rtnetlink.links(kernel.route):
            if link.kind == "bridge" and link.alias == owner(exec_root):
                bridge.remove(kernel, link.name, link.alias)
                done.append(f"bridge {link.name}")
        table = rules.table_name(exec_root)
        try:
            kernel.ruleset.run(f"delete table inet {table}\n")
            done.append(f"nftables table inet {table}")
        except OSError:
            pass  # there is none
    finally:
        kernel.close()
    return done


def main() -> int:
    exec_root = sys.argv[1] if len(sys.argv) > 1 else rules.DEFAULT_EXEC_ROOT
    for line in purge(exec_root):
        print(f"removed {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
