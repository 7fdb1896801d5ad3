"""The daemon's own ``carrel-containerd``: started, watched, started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys

from carrel import errdefs
from carrel.engine import fork, log
from carrel.engine.config import Config

_READY_SECONDS = 30.0
_STOP_SECONDS = 10.0


class Child:
    """The containerd layer as a process of its own."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._process: asyncio.subprocess.Process | fork.Forked | None = None
        self._ready: socket.socket | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stopping = False
        self._adopted = 0

    def begin(self) -> None:
        """Before there is a loop or a thread; :meth:`start` goes on from there."""
        if serves(self._config.containerd_socket):
            return
        self._ready = self._listen()
        self._process = fork.containerd(self._command(), self._environment())

    async def start(self) -> None:
        """Ready for calls when this returns. One that survived its daemon is adopted."""
        if isinstance(self._process, fork.Forked):
            await self._await_ready(self._process)
            self._watcher = asyncio.ensure_future(self._watch())
            return
        pid = serves(self._config.containerd_socket)
        if pid:
            log.info(f"carrel-containerd of an earlier daemon is still here (pid {pid})")
            self._adopted = pid
            self._watcher = asyncio.ensure_future(self._watch_adopted(pid))
            return
        await self._launch()
        self._watcher = asyncio.ensure_future(self._watch())

    def _command(self) -> list[str]:
        config = self._config
        program = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])),
                               "carrel-containerd")
        if not os.path.exists(program):
            raise errdefs.SystemFailure(f"{program} is missing", hint="make setup")
        return [program, "--address", config.containerd_socket,
                "--root", f"{config.data_root}/containerd",
                "--state", f"{config.exec_root}/containerd", "--log-level",
                "debug" if config.debug else config.log_level,
                "--config", self._write_settings()]

    def _write_settings(self) -> str:
        """What has no flag there: which registries are mirrors, and which speak HTTP."""
        config = self._config
        path = f"{config.exec_root}/containerd.toml"
        # a list of strings is written the same in TOML and in JSON
        text = (f"version = 2\n[registry]\nmirrors = {json.dumps(config.registry_mirrors)}\n"
                f"insecure = {json.dumps(config.insecure_registries)}\n")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    @property
    def _ready_path(self) -> str:
        return f"{self._config.exec_root}/containerd-ready.sock"

    def _environment(self) -> dict[str, str]:
        return {**_environment(), "NOTIFY_SOCKET": self._ready_path}

    def _listen(self) -> socket.socket:
        """Where it will say that it is ready."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._ready_path)
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        ready.bind(self._ready_path)
        return ready

    async def _launch(self) -> None:
        self._ready = self._listen()
        self._process = await asyncio.create_subprocess_exec(
            *self._command(), stdin=asyncio.subprocess.DEVNULL,
            env=self._environment(), start_new_session=True)
        await self._await_ready(self._process)

    async def _await_ready(self, process: asyncio.subprocess.Process | fork.Forked) -> None:
        assert self._ready is not None
        try:
            with self._ready:
                await self._told(process, self._ready)
        finally:
            os.unlink(self._ready_path)

    @staticmethod
    async def _told(process: asyncio.subprocess.Process | fork.Forked,
                    ready: socket.socket) -> None:
        told = asyncio.ensure_future(_ready(ready))
        died = asyncio.ensure_future(process.wait())
        done, pending = await asyncio.wait({told, died}, timeout=_READY_SECONDS,
                                           return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if told in done:
            return
        if died in done:
            raise errdefs.SystemFailure(f"carrel-containerd ended at its start with exit code "
                                        f"{process.returncode}")
        process.terminate()
        raise errdefs.SystemFailure(f"carrel-containerd was not ready in {_READY_SECONDS:.0f} s")

    async def _watch(self) -> None:
        """Bring it back when it dies; a crash loop gets slower, not faster."""
        delay = 0.1
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            if self._process:
                await self._process.wait()
            if self._stopping:
                return
            log.error("carrel-containerd died; starting it again")
            delay = 0.1 if loop.time() - began > 60 else min(delay * 2, 10.0)
            await asyncio.sleep(delay)
            try:
                await self._launch()
            except errdefs.CarrelError as error:
                log.error(f"carrel-containerd: {error}")

    async def _watch_adopted(self, pid: int) -> None:
        await _pid_end(pid)
        if self._stopping:
            return
        self._adopted = 0
        log.error("carrel-containerd died; starting it again")
        try:
            await self._launch()
        except errdefs.CarrelError as error:
            log.error(f"carrel-containerd: {error}")
        await self._watch()

    async def stop(self) -> None:
        self._stopping = True
        if self._adopted:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._adopted, 15)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_pid_end(self._adopted), _STOP_SECONDS)
        elif self._process and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
            except TimeoutError:
                log.warning("carrel-containerd does not stop; killing it")
                self._process.kill()
                await self._process.wait()
        if self._watcher:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    def abandon(self) -> None:
        """It does not outlive a daemon that fails before it can stop it."""
        if isinstance(self._process, fork.Forked):
            self._process.terminate()


def _environment() -> dict[str, str]:
    """What a child may know: no credential, nothing of Python's own."""
    keep = ("PATH", "HOME", "LANG", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy",
            "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "TMPDIR")
    return {k: os.environ[k] for k in keep if k in os.environ}


def serves(path: str) -> int:
    """The pid that serves the socket; 0 when nobody does."""
    import struct

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return 0
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("iII", raw)[0])


async def _pid_end(pid: int) -> None:
    """Until the process is gone, through a pidfd."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(fd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def _ready(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        data = await loop.sock_recv(sock, 4096)
        if b"READY=1" in data.split(b"\n"):
            return
