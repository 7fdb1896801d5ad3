"""docker compose brings a two-service application up and down; docker-py drives the engine."""

from __future__ import annotations

from pathlib import Path

import docker as dockerpy
import pytest

from tests.e2e.conftest import DOCKER_NEW
from tests.e2e.engine import Stack, peers

APPLICATION = """
services:
  web:
    image: busybox
    command: sh -c "mkdir -p /www && echo composed > /www/index.html && httpd -f -p 80 -h /www"
    healthcheck:
      test: wget -qO- http://127.0.0.1/ >/dev/null
      interval: 200ms
      timeout: 2s
      retries: 30
    volumes: ["data:/data"]
  reader:
    image: busybox
    command: sh -c "wget -qO- http://web/ > /data/answer && sleep 1000"
    depends_on: {web: {condition: service_healthy}}
    volumes: ["data:/data"]
volumes: {data: {}}
"""


def test_two_services_up_and_down(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(APPLICATION)
    compose = stack.cli(str(peers("sid") / "usr/libexec/docker/cli-plugins/docker-compose"))
    project = ["-p", "shop", "-f", str(tmp_path / "compose.yaml")]
    try:
        compose.ok(*project, "up", "-d", "--quiet-pull", timeout=90)
        names = compose.ok(*project, "ps", "--format", "{{.Service}}").split()
        assert sorted(names) == ["reader", "web"]
        answer = compose.ok(*project, "exec", "-T", "reader", "sh", "-c",
                            "until [ -s /data/answer ]; do sleep 0.1; done; cat /data/answer")
        assert answer.strip() == "composed"
    finally:
        compose.run(*project, "down", "-v", "-t", "1", timeout=90)
    cli = stack.cli(DOCKER_NEW[1]())
    assert cli.ok("ps", "-aq") == ""
    assert "shop" not in cli.ok("network", "ls") + cli.ok("volume", "ls")


@pytest.fixture
def client(stack: Stack) -> dockerpy.DockerClient:
    return dockerpy.DockerClient(base_url=stack.host, timeout=30)


def test_docker_py(client: dockerpy.DockerClient) -> None:
    assert client.containers.run("busybox", ["echo", "hi"], remove=True) == b"hi\n"
    container = client.containers.run("busybox", ["sleep", "1000"], detach=True, name="py1")
    try:
        code, output = container.exec_run(["sh", "-c", "echo inside; exit 3"])
        assert (code, output) == (3, b"inside\n")
        assert container.stats(stream=False)["pids_stats"]["current"] == 1
        assert client.images.get("busybox").tags == ["busybox:latest"]
        with pytest.raises(dockerpy.errors.ImageNotFound):
            client.images.get("no-such-image")
        with pytest.raises(dockerpy.errors.NotFound):
            client.containers.get("no-such-container")
    finally:
        container.remove(force=True)
