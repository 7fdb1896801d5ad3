"""``containerd-shim-carrel-v1``: the program that containerd starts (runtime v2)."""

from __future__ import annotations

import os
import sys

from carrel import cold
from carrel.errdefs import CarrelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from carrel.shim.birth import Config
    from carrel.shim.sockets import Socket
    from carrel.shim.wire import Message

NAME = "io.containerd.carrel.v1"
USAGE = """usage: containerd-shim-carrel-v1 [flags] start | delete | zygote

Started by containerd (or carrel-containerd) for one container; not by hand.

  -namespace NAME        namespace that owns the container
  -id ID                 id of the container
  -bundle PATH           path of the bundle, if it is not the working directory
  -address ADDRESS       containerd's gRPC address
  -publish-binary PATH   ignored: events go to $TTRPC_ADDRESS
  -socket PATH           where to listen, if not at the usual place
  -debug                 log more
  -info                  print what this runtime is, as protobuf, and leave
  -v                     print the version and leave
"""
_VALUES = ("namespace", "id", "bundle", "address", "publish-binary", "socket", "debug-socket")
_SWITCHES = ("debug", "v", "version", "info", "h", "help")
STDIN_MAX = 10 << 20


class UsageError(Exception):
    pass


class Flags:
    """Go's flag syntax: ``-name value``, ``--name=value``, ``-switch``."""

    def __init__(self, arguments: list[str]) -> None:
        self.values = dict.fromkeys(_VALUES, "")
        self.switches: set[str] = set()
        self.action = ""
        rest = list(arguments)
        while rest and rest[0].startswith("-") and rest[0] != "-":
            word = rest.pop(0)
            if word == "--":
                break
            name, separator, value = word.lstrip("-").partition("=")
            if name in _SWITCHES:
                if not separator or value.lower() in ("1", "t", "true"):
                    self.switches.add(name)
            elif name in _VALUES:
                if not separator:
                    if not rest:
                        raise UsageError(f"flag needs an argument: -{name}")
                    value = rest.pop(0)
                self.values[name] = value
            else:
                raise UsageError(f"flag provided but not defined: -{name}")
        if rest:
            self.action = rest[0]

    def __getitem__(self, name: str) -> str:
        return self.values[name]


def main(arguments: list[str] | None = None) -> int:
    """The program.  Without ``arguments`` it never returns."""
    if arguments is not None:
        return run(arguments)
    cold.end(run(sys.argv[1:]), tell_unwritten)


def tell_unwritten(error: OSError) -> None:
    sys.stderr.write(f"{NAME}: write stdout: {error}\n")


def run(arguments: list[str]) -> int:
    """Do what the arguments say; the exit status."""
    try:
        flags = Flags(arguments)
    except UsageError as error:
        sys.stderr.write(f"{error}\n{USAGE}")
        return 2
    if flags.switches & {"h", "help"}:
        sys.stdout.write(USAGE)
        return 0
    if flags.switches & {"v", "version"}:
        return version()
    try:
        if "info" in flags.switches:
            return info()
        if flags.action == "zygote":
            cold.leave()
            from carrel.kernel import seal
            seal.ensure()
            from carrel.shim import zygote
            return zygote.main()
        if not flags["namespace"]:
            raise UsageError("shim namespace cannot be empty")
        if not flags["id"] or "/" in flags["id"] or flags["id"] in (".", ".."):
            raise UsageError(f"bad id {flags['id']!r}")
        if flags.action == "start":
            return start(flags)
        if flags.action == "delete":
            return delete(flags)
        raise UsageError(f"unknown action {flags.action!r}: start, delete or zygote")
    except (UsageError, CarrelError, OSError, ValueError) as error:
        sys.stderr.write(f"{NAME}: {error}\n")
        return 1


def version() -> int:
    from carrel.shim.service import VERSION
    sys.stdout.write(f"{os.path.basename(sys.argv[0])}:\n  Version:  {VERSION}\n"
                     f"  Python version: {sys.version.split()[0]}\n\n")
    return 0


def start(flags: Flags) -> int:
    """Listen, leave a daemon behind, print the address."""
    from carrel.shim.birth import Config, open_listener, socket_path
    bundle = os.path.abspath(flags["bundle"] or os.getcwd())
    params = bootstrap_params(read_stdin(), flags)
    directory = params["socket_dir"] if params is not None else ""
    address = flags["address"] or os.environ.get("GRPC_ADDRESS", "")
    path = flags["socket"] or socket_path(address, flags["namespace"], flags["id"], directory)
    publish = os.environ.get("TTRPC_ADDRESS", "")
    if params is not None and params["containerd_ttrpc_address"]:
        publish = params["containerd_ttrpc_address"]
    config = Config(flags["namespace"], flags["id"], bundle, path, publish,
                    "debug" in flags.switches)
    listener = open_listener(config)
    try:
        detach(config, listener)
    except BaseException:
        os.unlink(path)
        raise
    if params is not None:
        from carrel.shim.schema import SCHEMAS
        from carrel.shim.wire import encode
        answer = encode(SCHEMAS["BootstrapResult"],
                        {"version": 3, "address": config.address, "protocol": "ttrpc"})
        sys.stdout.buffer.write(answer)
    elif os.environ.get("MAX_SHIM_VERSION", "").isdigit() \
            and int(os.environ["MAX_SHIM_VERSION"]) >= 3:
        from carrel.oci import json
        sys.stdout.write(json.dumps(
            {"version": 3, "address": config.address, "protocol": "ttrpc"}))
    else:
        # the plain address is understood by every containerd since 1.2; newer
        # ones take it as task API version 2, which they still speak
        sys.stdout.write(config.address)
    sys.stdout.flush()
    return 0


def detach(config: Config, listener: Socket) -> None:
    """Fork twice; the grandchild serves and belongs to nobody."""
    from carrel.shim import birth
    sys.stdout.flush()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if status:
            raise OSError(f"the shim's first child failed with status {status}")
        listener.close()
        return
    code = 1
    try:
        birth.leave_parent(listener.fileno())
        os.chdir(config.bundle)
        pid = os.fork()
        if pid:
            _note_pid(pid)  # before anybody is answered
            code = 0
            return
        birth.adjust_oom_score()
        get_ready()
        from carrel.shim import daemon
        daemon.ignore_signals()
        daemon.serve(config, listener)
        code = 0
    finally:
        os._exit(code)


def _note_pid(pid: int) -> None:
    from carrel.shim.birth import write_file
    try:
        write_file("shim.pid", str(pid))
    except OSError:
        os.kill(pid, 9)
        raise


def get_ready() -> None:
    """Import all that a start needs while containerd reads the address and connects."""
    from carrel.kernel import cgroup, seccomp  # noqa: F401
    from carrel.runtime import cgroupfs, childplan  # noqa: F401
    from carrel.shim import daemon, inprocess  # noqa: F401
    cgroup.layout()
    cold.leave()


def read_stdin() -> bytes:
    if os.isatty(0):
        return b""
    with os.fdopen(os.dup(0), "rb") as stdin:
        return stdin.read(STDIN_MAX)


def bootstrap_params(data: bytes, flags: Flags) -> Message | None:
    """containerd 2.3 and later say everything on stdin; before, it held only an Any."""
    if not data:
        return None
    from carrel.shim.schema import SCHEMAS
    from carrel.shim.wire import WireError, decode
    try:
        params = decode(SCHEMAS["BootstrapParams"], data)
    except WireError:
        return None
    if params["instance_id"] != flags["id"] or params["namespace"] != flags["namespace"]:
        return None
    return params


def delete(flags: Flags) -> int:
    """After a dead shim: kill what it left, unmount, tell how it ended."""
    from carrel.shim.cleanup import clean_up
    bundle = os.path.abspath(flags["bundle"] or os.getcwd())
    sys.stdout.buffer.write(clean_up(flags["namespace"], flags["id"], bundle))
    sys.stdout.flush()
    return 0


def info() -> int:
    """What containerd 2.x asks before it uses special features."""
    from carrel.shim.schema import SCHEMAS
    from carrel.shim.service import VERSION, runtime_options
    from carrel.shim.wire import decode, encode
    given = decode(SCHEMAS["Any"], read_stdin())
    options = runtime_options(given)
    message = {"name": NAME, "version": {"version": VERSION},
               "options": given if given["type_url"] else None}
    features = runtime_features(options["binary_name"])
    if features:
        message["features"] = {
            "type_url": "types.containerd.io/opencontainers/runtime-spec/1/features/Features",
            "value": features}
    sys.stdout.buffer.write(encode(SCHEMAS["RuntimeInfo"], message))
    sys.stdout.flush()
    return 0


def runtime_features(binary: str) -> bytes:
    """The runtime's features document; empty if it knows no such command."""
    if not binary:
        from carrel.oci import json
        from carrel.runtime.features import features
        return json.dumps(features()).encode()
    from carrel.shim.command import find_program
    from carrel.shim.stdio import spawn
    path = find_program(binary)
    output = os.memfd_create("features", os.MFD_CLOEXEC)
    try:
        pid = spawn(path, [path, "features"], dict(os.environ), {1: output})
        _, status = os.waitpid(pid, 0)
        return b"" if status else os.pread(output, 1 << 20, 0)
    finally:
        os.close(output)
