"""What the source may not contain: whole classes of holes (P01, P02, P13, P22)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

CARREL = ROOT / "carrel"

#: dotted name of a call, or of a module that is imported -> why never
NEVER = {
    "eval": "runs text", "exec": "runs text", "compile": "runs text", "__import__": "by text",
    "os.system": "a shell", "os.popen": "a shell", "pty.spawn": "a shell",
    "pickle": "runs what it reads", "marshal": "runs what it reads", "shelve": "is pickle",
    "dill": "is pickle", "yaml": "loads objects", "multiprocessing": "pickles",
    "tempfile.mktemp": "a race", "shutil.rmtree": "crosses mounts (P21)",
    "shutil.copytree": "follows links", "shutil.unpack_archive": "escapes", "tarfile": "escapes",
    "zipfile": "escapes",
    "ctypes.util": "find_library runs ldconfig and gcc (P04)", "os.initgroups": "asks NSS",
    "os.removedirs": "climbs", "subprocess.getoutput": "a shell",
    "asyncio.create_subprocess_shell": "a shell",
}
#: file -> names of NEVER that it may have, with the reason
EXCEPTIONS: dict[str, dict[str, str]] = {
    "cli/cmd_copy.py": {"tarfile": "errors and the reader; written by cli/tarsafe"},
    "cli/index.py": {"__import__": "of our own table of commands"},
    "cli/tarmake.py": {"tarfile": "headers that are written"},
    "cli/tarsafe.py": {"tarfile": "headers that are read; files are made by descriptors"},
    "cold.py": {"marshal": "compiled modules beside the programs, as trusted as a .pyc",
                "exec": "of a module, as the import system does"},
    "coldbuild.py": {"marshal": "is written", "compile": "of our own sources",
                     "__import__": "of our own table"},
    "engine/images_build.py": {"tarfile": "headers that are read; nothing is extracted"},
    "engine/viewpack.py": {"tarfile": "headers that are written"},
    "kernel/dbus.py": {"marshal": "a function of that name"},
    "runtime/main.py": {"__import__": "of our own table of commands"},
    **{name: {"marshal": "plain values, between processes of ours, over a socket that nobody "
                         "else has"}
       for name in ("runtime/parcel.py", "shim/rehearse.py", "shim/starter.py",
                    "shim/worker.py")},
}

#: the child runs these: what is opened here may be the container's
CHILD = ("runtime", "shim", "kernel")
#: dotted name -> why not in CHILD
NOT_IN_CHILD = {
    "open": "follows links, blocks on a fifo, decodes", "io.open": "as open",
    "os.makedirs": "follows links", "pathlib": "as open", "pwd": "asks NSS", "grp": "asks NSS",
    "getaddrinfo": "asks NSS", "socket.getaddrinfo": "asks NSS", "gethostbyname": "asks NSS",
    "os.path.expanduser": "asks NSS", "time.localtime": "opens /etc/localtime",
    "time.strftime": "opens /etc/localtime", "locale": "opens the locale archive",
    "traceback": "opens source files (P03)", "linecache": "opens source files (P03)",
    "subprocess": "inherits", "os.execvp": "searches PATH", "os.walk": "follows names",
}
#: file -> {name: why it is right there}: run by the parent on the host's side only
HOST_SIDE = {
    "kernel/seccomp.py": {"os.makedirs": "the cache of filters, root's own folder"},
    "runtime/log.py": {"time.strftime": "of UTC, by the parent"},
    "shim/jsonlog.py": {"time.strftime": "of UTC; the shim never enters a container"},
    "shim/log.py": {"time.strftime": "of UTC; the shim never enters a container"},
    "runtime/launch.py": {"os.makedirs": "the runtime's state folder"},
    "shim/capture.py": {"os.makedirs": "the folder of the attach socket"},
    "shim/birth.py": {"os.makedirs": "the folder of the shim's socket"},
    "shim/stdio.py": {"os.makedirs": "the folder of a log that the caller named"},
}
#: builtin open() of files of the kernel or of the engine, never of a container
OPENS = {
    "kernel/apparmor.py", "kernel/capability.py", "kernel/cgroup.py", "runtime/cli_manage.py",
    "runtime/cli_other.py", "shim/cleanup.py", "shim/command.py", "shim/metrics.py",
    "kernel/title.py",  # /proc/self/stat
    "runtime/mounts.py",  # /proc/self/mountinfo, before the change of root
}
#: files that start programs of the host: by absolute path or argument vector, never a shell
PROGRAMS = {"containerd/shims.py", "containerd/zygote.py", "engine/child.py", "engine/view.py",
            "cli/auth.py", "kernel/apparmor.py", "runtime/cli_other.py", "shim/stdio.py"}


@cache
def sources() -> list[tuple[str, ast.Module]]:
    return [(str(path.relative_to(CARREL)), ast.parse(path.read_text(), str(path)))
            for path in sorted(CARREL.rglob("*.py")) if not path.name.endswith("_pb2.py")]


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def uses(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names of modules that are imported, and of what is called or taken from a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call):
            yield dotted(node.func), node.lineno
        elif isinstance(node, ast.Attribute):
            yield dotted(node), node.lineno


def findings(name: str, tree: ast.Module) -> list[str]:
    found = []
    for used, line in uses(tree):
        if used in NEVER and used not in EXCEPTIONS.get(name, {}):
            found.append(f"{name}:{line}: {used}: {NEVER[used]}")
        if name.startswith(CHILD) and used in NOT_IN_CHILD:
            if used in HOST_SIDE.get(name, {}) or (used == "open" and name in OPENS):
                continue
            found.append(f"{name}:{line}: {used}: {NOT_IN_CHILD[used]}")
        if used.startswith(("subprocess.", "asyncio.create_subprocess", "os.posix_spawn")) \
                and name not in PROGRAMS \
                and used.rpartition(".")[2] not in ("PIPE", "DEVNULL", "TimeoutExpired"):
            found.append(f"{name}:{line}: {used}: programs are started in {sorted(PROGRAMS)} only")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += _arguments(name, node)
    return found


def _arguments(name: str, call: ast.Call) -> list[str]:
    found = []
    for keyword in call.keywords:
        if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant)
                                           and keyword.value.value is False):
            found.append(f"{name}:{call.lineno}: shell=")
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if method == "extractall" or (method == "extract" and name != "cli/cmd_copy.py"):
        found.append(f"{name}:{call.lineno}: {method}")
    if dotted(call.func) == "hashlib.new" and name != "containerd/content.py":
        found.append(f"{name}:{call.lineno}: hashlib.new")  # there: of an allowlist
    # re.match("...$") accepts a newline at the end: fullmatch is meant (E23)
    if dotted(call.func) in ("re.match", "re.search") and call.args \
            and isinstance(call.args[0], ast.Constant) \
            and str(call.args[0].value).endswith("$"):
        found.append(f"{name}:{call.lineno}: {dotted(call.func)} with $")
    return found


def test_the_source_has_none_of_it() -> None:
    found: list[str] = []
    count = 0
    for name, tree in sources():
        count += 1
        found += findings(name, tree)
    assert found == []
    assert count > 250


@pytest.mark.parametrize(("name", "text"), [
    ("cli/x.py", "import pickle"), ("engine/x.py", "eval(text)"),
    ("engine/x.py", "import subprocess\nsubprocess.run(['x'])"),
    ("engine/child.py", "subprocess.run('x', shell=True)"),
    ("containerd/x.py", "import tarfile"), ("containerd/x.py", "tar.extractall(path)"),
    ("engine/x.py", "import shutil\nshutil.rmtree(path)"), ("runtime/x.py", "open(path)"),
    ("runtime/child.py", "open('/etc/passwd')"), ("shim/x.py", "import pwd"),
    ("runtime/x.py", "from pathlib import Path"), ("kernel/x.py", "os.makedirs(path)"),
    ("runtime/x.py", "from socket import getaddrinfo"),
    ("kernel/x.py", "from ctypes.util import find_library"), ("engine/x.py", "hashlib.new(name)"),
    ("engine/x.py", "re.match('[a-z]+$', name)"), ("runtime/x.py", "import traceback")])
def test_the_lint_sees(name: str, text: str) -> None:
    assert findings(name, ast.parse(text))


def test_exceptions_are_still_needed() -> None:
    """An entry that nothing uses any more would let the next one pass unseen."""
    opens, host = set(), set()
    for name, tree in sources():
        for used, _ in uses(tree):
            if used == "open":
                opens.add(name)
            host.add((name, used))
    assert sorted(OPENS - opens) == []
    assert all((f, n) in host for f, names in HOST_SIDE.items() for n in names)


def test_arguments_of_libc_functions_are_declared() -> None:
    """P09: a C function is called through a declared prototype only (kernel/libc.py)."""
    for name, tree in sources():
        for used, line in uses(tree):
            if used in ("ctypes.CDLL", "ctypes.cdll", "ctypes.PyDLL"):
                assert name in ("kernel/seccomp.py", "kernel/seccomp_compile.py",
                                "kernel/nftables.py"), f"{name}:{line}"
            if used.startswith("_ctypes."):
                assert name == "kernel/cdata.py", f"{name}:{line}"


def test_child_modules_name_no_codec_of_the_file_system() -> None:
    """P02: a codec that is not loaded yet would be imported; the built-in ones are not."""
    for name in ("runtime/child.py", "runtime/inside.py", "runtime/mounts.py",
                 "runtime/identity.py", "runtime/report.py", "kernel/paths.py"):
        text = Path(CARREL / name).read_text()
        for codec in ("idna", "utf-16", "latin-1", "punycode", "cp437"):
            assert f'"{codec}"' not in text, name
