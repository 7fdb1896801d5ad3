"""Starting shims and talking to them."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError, Message

from carrel import errdefs
from carrel.containerd import ttrpc
from carrel.containerd.bundle import Bundle, parse_bootstrap, socket_path
from carrel.containerd.zygote import Zygote
from carrel.proto import shim_v2_pb2

log = logging.getLogger(__name__)

#: our own shim, which the zygote forks
CARREL = "io.containerd.carrel.v1"
#: seconds; what can hang is bounded, what a container's hooks may need is generous
START_TIMEOUT, CONNECT_TIMEOUT, CLEANUP_TIMEOUT, SHUTDOWN_TIMEOUT = 30.0, 5.0, 30.0, 3.0


def program_name(runtime: str) -> str:
    """``io.containerd.runc.v2`` -> ``containerd-shim-runc-v2``; "" when it is no runtime name."""
    parts = runtime.split(".")
    if len(parts) < 2 or not all(parts):
        return ""
    return f"containerd-shim-{parts[-2]}-{parts[-1]}"


def find_program(runtime: str) -> str:
    """The shim's program: an absolute path, or by name beside this program or on PATH."""
    if runtime.startswith("/"):
        if not os.access(runtime, os.X_OK):
            raise errdefs.InvalidParameter(f'invalid runtime path "{runtime}": no such program')
        return runtime
    name = program_name(runtime)
    if not name or "/" in runtime:
        raise errdefs.InvalidParameter(
            f'invalid runtime name "{runtime}", correct runtime name should be either format '
            "like `io.containerd.runc.v2` or a full path to the binary")
    own = os.path.dirname(os.path.abspath(sys.argv[0]))
    for directory in [own, *os.get_exec_path()]:
        candidate = os.path.join(directory, name)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    raise errdefs.InvalidParameter(
        f'failed to resolve runtime path: runtime "{runtime}" binary not installed "{name}": '
        "file does not exist")


class Launcher:
    """Starts shims, warm or cold, and cleans up after dead ones."""

    def __init__(self, state: str, address: str, zygote: Zygote | None,
                 debug: bool = False) -> None:
        self._sockets = f"{state}/s"
        self._address = address
        self._zygote = zygote
        self._debug = debug
        self._program = os.path.abspath(sys.argv[0])
        os.makedirs(self._sockets, mode=0o711, exist_ok=True)

    async def start(self, bundle: Bundle, runtime: str, options: bytes) -> tuple[int, str]:
        """Version and address of a shim that listens."""
        if runtime == CARREL and self._zygote is not None:
            try:
                _, address = await self._zygote.fork({
                    "namespace": bundle.namespace, "id": bundle.id, "bundle": bundle.path,
                    # a new name each time: the last shim of this id may not be gone yet,
                    # and removes its socket by name
                    "socket": f"{self._sockets}/{secrets.token_hex(16)}",
                    "publish": f"{self._address}.ttrpc", "debug": self._debug})
                return 3, address
            except errdefs.Unavailable as error:
                log.info("shim of %s is started cold: %s", bundle.id, error)
        return await self._start_cold(bundle, runtime, options)

    async def _start_cold(self, bundle: Bundle, runtime: str, options: bytes) -> tuple[int, str]:
        program = find_program(runtime)
        bundle.write("shim-binary-path", program.encode())
        code, out, err = await self._run(program, bundle, ["start"], options, START_TIMEOUT)
        if code:
            text = (err + out).decode("utf-8", "replace").strip()
            raise errdefs.SystemFailure(
                f"failed to start shim: {text or program}: exit status {code}")
        return parse_bootstrap(out)

    async def cleanup(self, bundle: Bundle, runtime: str) -> shim_v2_pb2.DeleteResponse | None:
        """Run the shim's ``delete``: kills and removes what a dead shim left; None if it fails."""
        try:
            program = bundle.shim_binary() or find_program(runtime or CARREL)
            code, out, err = await self._run(
                program, bundle, ["delete"], b"", CLEANUP_TIMEOUT, ["-bundle", bundle.path])
            if code:
                raise errdefs.SystemFailure(
                    f"{err.decode('utf-8', 'replace').strip()}: exit status {code}")
            if err.strip():
                log.warning("cleaning up after the shim of %s: %s", bundle.id,
                            err.decode("utf-8", "replace").strip())
            return shim_v2_pb2.DeleteResponse.FromString(out)
        except (errdefs.CarrelError, OSError, DecodeError) as error:
            log.error("clean up after the shim of %s: %s", bundle.id, error)
            return None

    async def _run(self, program: str, bundle: Bundle, action: list[str], stdin: bytes,
                   timeout: float, extra: list[str] | None = None) -> tuple[int, bytes, bytes]:
        """Run the shim's program to its end, in a thread: this process never forks itself."""
        import subprocess

        command = [program, "-namespace", bundle.namespace, "-address", self._address,
                   "-publish-binary", self._program, "-id", bundle.id,
                   *(extra or []), *(["-debug"] if self._debug else []), *action]
        environment = {**os.environ, "TTRPC_ADDRESS": f"{self._address}.ttrpc",
                       "GRPC_ADDRESS": self._address, "NAMESPACE": bundle.namespace,
                       "MAX_SHIM_VERSION": "3", "GOMAXPROCS": "2"}
        try:
            done = await asyncio.to_thread(
                subprocess.run, command, input=stdin, capture_output=True, cwd=bundle.path,
                env=environment, timeout=timeout, start_new_session=True)
        except subprocess.TimeoutExpired:
            raise errdefs.DeadlineExceeded(
                f"{program} {action[0]} did not end in {timeout:g} s") from None
        except OSError as error:
            raise errdefs.SystemFailure(f"run {program}: {error}") from error
        return done.returncode, done.stdout, done.stderr


class ShimLog:
    """Reads the FIFO that a cold shim logs to, so that the shim never blocks on it."""

    def __init__(self, bundle: Bundle) -> None:
        self._id = bundle.id
        path = bundle.file("log")
        try:
            os.mkfifo(path, 0o600)
        except FileExistsError:
            pass
        # O_RDWR: no end of file between two writers
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 64 << 10)
        except BlockingIOError:
            return
        for line in data.decode("utf-8", "replace").splitlines():
            log.debug("shim %s: %s", self._id, line)

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class Shim:
    """A connected shim."""

    def __init__(self, bundle: Bundle, version: int, address: str, client: ttrpc.Client) -> None:
        self.bundle = bundle
        self.version = version
        self.address = address
        self.client = client
        self._service = f"containerd.task.v{version}.Task"
        self._metadata = {ttrpc.NAMESPACE_KEY: bundle.namespace}

    @classmethod
    async def connect(cls, bundle: Bundle, version: int, address: str,
                      on_close: Callable[[], None]) -> Shim:
        client = await ttrpc.Client.connect(socket_path(address), on_close, CONNECT_TIMEOUT)
        return cls(bundle, version, address, client)

    async def call(self, method: str, request: Message, response: type[Any],
                   timeout: float | None) -> Any:
        """One call of the Task service; the messages of v2 and v3 are the same."""
        return await self.client.call(self._service, method, request, response, self._metadata,
                                      timeout)

    def close(self) -> None:
        self.client.close()
