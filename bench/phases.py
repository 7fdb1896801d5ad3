"""Where the time of one ``docker run --rm`` goes: the API calls that the docker CLI makes,
made by a bare client on raw sockets, each timed.

    scripts/sandbox .venv/bin/python -m bench.phases SOCKET [--network none] [--runs 30]
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import time


class Connection:
    """One HTTP/1.1 connection, kept alive."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.buffer = b""

    def send(self, method: str, path: str, body: object = None, upgrade: bool = False) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        extra = "Connection: Upgrade\r\nUpgrade: tcp\r\n" if upgrade else ""
        self.socket.sendall(
            f"{method} /v1.47{path} HTTP/1.1\r\nHost: x\r\n{extra}"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode() + data)

    def head(self) -> tuple[int, str]:
        while b"\r\n\r\n" not in self.buffer:
            more = self.socket.recv(65536)
            if not more:
                raise EOFError(self.buffer)
            self.buffer += more
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        text = head.decode()
        return int(text.split()[1]), text.lower()

    def answer(self) -> tuple[int, bytes]:
        status, head = self.head()
        return status, self.body(head)

    def body(self, head: str) -> bytes:
        if "content-length:" in head:
            length = int(head.split("content-length:")[1].split()[0])
            while len(self.buffer) < length:
                self.buffer += self.socket.recv(65536)
            body, self.buffer = self.buffer[:length], self.buffer[length:]
            return body
        if "chunked" not in head:
            return b""
        body = b""
        while True:
            while b"\r\n" not in self.buffer:
                self.buffer += self.socket.recv(65536)
            size, _, rest = self.buffer.partition(b"\r\n")
            length = int(size, 16)
            while len(rest) < length + 2:
                rest += self.socket.recv(65536)
            body, self.buffer = body + rest[:length], rest[length + 2:]
            if not length:
                return body

    def drain(self) -> bytes:
        data = self.buffer
        while more := self.socket.recv(65536):
            data += more
        return data

    def close(self) -> None:
        self.socket.close()


def one(path: str, network: str, times: dict[str, list[float]]) -> None:
    """One container: create, attach, wait, start, until removed."""
    last = begin = time.perf_counter()

    def mark(what: str) -> None:
        nonlocal last
        now = time.perf_counter()
        times.setdefault(what, []).append((now - last) * 1000)
        last = now

    main, attach, wait = Connection(path), Connection(path), Connection(path)
    main.send("POST", "/containers/create", {
        "Image": "busybox", "Cmd": ["true"], "AttachStdout": True, "AttachStderr": True,
        "HostConfig": {"NetworkMode": network, "AutoRemove": True}})
    status, body = main.answer()
    if status != 201:
        raise SystemExit(body.decode())
    name = json.loads(body)["Id"]
    mark("create")
    attach.send("POST", f"/containers/{name}/attach?stdout=1&stderr=1&stream=1", upgrade=True)
    attach.head()
    mark("attach")
    wait.send("POST", f"/containers/{name}/wait?condition=removed")
    status, head = wait.head()
    mark("wait (headers)")
    main.send("POST", f"/containers/{name}/start")
    status, body = main.answer()
    if status != 204:
        raise SystemExit(body.decode())
    mark("start")
    attach.drain()
    mark("output ends")
    wait.body(head)
    mark("removed")
    times.setdefault("whole", []).append((time.perf_counter() - begin) * 1000)
    for connection in (main, attach, wait):
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.phases")
    parser.add_argument("socket")
    parser.add_argument("--network", default="bridge")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--idle", type=float, default=0.05)
    options = parser.parse_args()
    times: dict[str, list[float]] = {}
    for n in range(options.runs + 3):
        if n == 3:
            times.clear()
        one(options.socket, options.network, times)
        time.sleep(options.idle)
    for what, values in times.items():
        values.sort()
        print(f"{what:16} {statistics.median(values):7.2f} ms   "
              f"p90 {values[int(len(values) * 0.9)]:7.2f}")


if __name__ == "__main__":
    main()
