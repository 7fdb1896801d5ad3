"""Bridges, published ports, names: through the real docker CLI."""

from __future__ import annotations

import time
import urllib.request

from tests.e2e.engine import Cli

SERVER = ("mkdir -p /www; echo 'the page' > /www/index.html; httpd -f -p 80 -h /www")


def _get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 30
    while True:
        try:
            with opener.open(url, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_published_port_on_loopback_and_bridge(docker: Cli) -> None:
    docker.ok("run", "-d", "--name", "web", "-p", "18080:80", "busybox", "sh", "-c", SERVER)
    assert _get("http://127.0.0.1:18080/") == "the page\n"
    address = docker.inspect("web")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    assert _get(f"http://{address}/") == "the page\n"
    taken = docker.fails("run", "--rm", "-p", "18080:80", "busybox", "true")
    assert taken.code == 125
    assert "port is already allocated" in taken.err


def test_names_on_a_user_network(docker: Cli) -> None:
    docker.ok("network", "create", "net1")
    docker.ok("run", "-d", "--name", "web", "--network", "net1", "--network-alias", "alias",
              "busybox", "sh", "-c", SERVER)
    for name in ("web", "alias"):
        wget = ("run", "--rm", "--network", "net1", "busybox", "wget", "-qO-", f"http://{name}/")
        deadline = time.monotonic() + 30
        while docker.run(*wget).code and time.monotonic() < deadline:
            pass    # the server is starting
        assert docker.ok(*wget) == "the page\n"
    other = docker.run("run", "--rm", "busybox", "wget", "-T1", "-qO-", "http://web/")
    assert other.code != 0
    refused = docker.fails("network", "rm", "net1")
    assert "active endpoints" in refused.err
    docker.ok("rm", "-f", "web")
    docker.ok("network", "rm", "net1")


def test_connect_and_disconnect(docker: Cli) -> None:
    docker.ok("network", "create", "net2")
    docker.ok("run", "-d", "--name", "c1", "busybox", "sleep", "1000")
    docker.ok("network", "connect", "net2", "c1")
    assert set(docker.inspect("c1")["NetworkSettings"]["Networks"]) == {"bridge", "net2"}
    assert "eth1" in docker.ok("exec", "c1", "ls", "/sys/class/net")
    docker.ok("network", "disconnect", "net2", "c1")
    assert "eth1" not in docker.ok("exec", "c1", "ls", "/sys/class/net")
    docker.ok("rm", "-f", "c1")
    docker.ok("network", "rm", "net2")


def test_shared_namespace(docker: Cli) -> None:
    docker.ok("run", "-d", "--name", "web", "busybox", "sh", "-c", SERVER)
    deadline = time.monotonic() + 30
    while True:
        done = docker.run("run", "--rm", "--network", "container:web", "busybox", "wget", "-qO-",
                          "http://127.0.0.1/")
        if done.code == 0 or time.monotonic() > deadline:
            break
    assert done.out == "the page\n"


def test_host_network(docker: Cli) -> None:
    import os
    here = os.readlink("/proc/self/ns/net")
    assert docker.ok("run", "--rm", "--network", "host", "busybox", "readlink",
                     "/proc/self/ns/net").strip() == here
