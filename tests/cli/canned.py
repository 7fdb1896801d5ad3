"""What the fake engine answers: a small world that does not change, except that it ages."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from typing import Any

from .fakeengine import Answer, Request

HOUR = 3600
FULL = "0123456789abcdef" * 4
IMAGE_ID = "sha256:" + "fedcba98" * 8
NETWORK_ID = "aa11" * 16


def ago(seconds: int) -> int:
    return int(time.time()) - seconds


def containers() -> list[dict[str, Any]]:
    return [
        {"Id": FULL, "Names": ["/web", "/other/alias"], "Image": "nginx:1.27", "ImageID": IMAGE_ID,
         "Command": "nginx -g 'daemon off;' --very-long", "Created": ago(2 * HOUR + 60),
         "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                   {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                   {"PrivatePort": 443, "Type": "tcp"}, {"PrivatePort": 444, "Type": "tcp"},
                   {"IP": "127.0.0.1", "PrivatePort": 53, "PublicPort": 53, "Type": "udp"},
                   {"IP": "127.0.0.1", "PrivatePort": 54, "PublicPort": 54, "Type": "udp"}],
         "Labels": {"b": "2", "a": "1<&>"}, "State": "running",
         "Status": "Up 2 hours (healthy)", "SizeRw": 1234567, "SizeRootFs": 98765432,
         "HostConfig": {"NetworkMode": "bridge"},
         "NetworkSettings": {"Networks": {"bridge": {"NetworkID": NETWORK_ID}}},
         "Mounts": [{"Type": "volume", "Name": "a-volume-with-a-long-name", "Source": "/v",
                     "Destination": "/data", "Driver": "local"},
                    {"Type": "bind", "Source": "/etc", "Destination": "/x"}]},
        {"Id": FULL[::-1], "Names": ["/quick"], "Image": IMAGE_ID, "ImageID": IMAGE_ID,
         "Command": "sh \"a\"\tb", "Created": ago(65), "Ports": [], "Labels": {},
         "State": "exited", "Status": "Exited (0) 1 minute ago", "HostConfig": {},
         "NetworkSettings": {"Networks": {}}, "Mounts": []},
    ]


def images() -> list[dict[str, Any]]:
    return [
        {"Id": IMAGE_ID, "ParentId": "", "RepoTags": ["nginx:1.27", "localhost:5000/web:latest"],
         "RepoDigests": ["nginx@sha256:" + "a" * 64], "Created": ago(26 * HOUR),
         "Size": 187654321, "SharedSize": -1, "Containers": -1, "Labels": None},
        {"Id": "sha256:" + "0f" * 32, "ParentId": "", "RepoTags": [], "RepoDigests": [],
         "Created": ago(40 * 24 * HOUR), "Size": 999, "SharedSize": -1, "Containers": -1,
         "Labels": {"a": "b"}},
        {"Id": "sha256:" + "1e" * 32, "ParentId": "", "RepoTags": [],
         "RepoDigests": ["alpine@sha256:" + "b" * 64], "Created": ago(900 * 24 * HOUR),
         "Size": 7654321, "SharedSize": -1, "Containers": -1, "Labels": None},
    ]


def inspected() -> dict[str, Any]:
    return {
        "Id": FULL, "Created": "2026-11-24T07:24:58.123456789Z", "Path": "nginx",
        "Args": ["-g", "daemon off;"],
        "State": {"Status": "running", "Running": True, "Paused": False, "Restarting": False,
                  "OOMKilled": False, "Dead": False, "Pid": 42, "ExitCode": 0, "Error": "",
                  "StartedAt": "2026-11-24T07:24:59Z", "FinishedAt": "0001-01-01T00:00:00Z"},
        "Image": IMAGE_ID, "Name": "/web", "RestartCount": 0, "Driver": "overlay2",
        "Platform": "linux", "ExecIDs": None,
        "HostConfig": {"Binds": None, "NetworkMode": "bridge", "Memory": 67108864,
                       "AutoRemove": False, "PidsLimit": None, "Links": None,
                       "CpuShares": 1234567890123},
        "Mounts": [{"Type": "bind", "Source": "/etc", "Destination": "/x", "RW": True}],
        "Config": {"Hostname": "web", "Tty": False, "OpenStdin": False, "Env": ["A=1", "B=<2>"],
                   "Cmd": ["nginx"], "Image": "nginx", "Labels": {"a.b": "c"},
                   "Entrypoint": None, "Volumes": None},
        "NetworkSettings": {"Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"},
                                                 {"HostIp": "::", "HostPort": "8080"}],
                                      "443/tcp": None, "9/udp": [{"HostIp": "1.2.3.4",
                                                                  "HostPort": "10"}]},
                            "Networks": {"bridge": {"IPAddress": "172.17.0.2",
                                                    "Gateway": "172.17.0.1"}}},
    }


def stats() -> dict[str, Any]:
    return {
        "name": "/web", "id": FULL, "read": "2026-11-24T07:24:58Z", "os_type": "linux",
        "pids_stats": {"current": 3},
        "blkio_stats": {"io_service_bytes_recursive": [
            {"major": 8, "minor": 0, "op": "Read", "value": 4096},
            {"major": 8, "minor": 0, "op": "Write", "value": 123456}]},
        "num_procs": 0,
        "cpu_stats": {"cpu_usage": {"total_usage": 2000000000}, "online_cpus": 2,
                      "system_cpu_usage": 20000000000},
        "precpu_stats": {"cpu_usage": {"total_usage": 1000000000}, "online_cpus": 2,
                         "system_cpu_usage": 10000000000},
        "memory_stats": {"usage": 104857600, "limit": 1073741824,
                         "stats": {"total_inactive_file": 4857600}},
        "networks": {"eth0": {"rx_bytes": 12345, "tx_bytes": 678}},
    }


def frames(*pairs: tuple[int, bytes]) -> bytes:
    """Output as the engine multiplexes it."""
    return b"".join(bytes([s, 0, 0, 0]) + len(d).to_bytes(4, "big") + d for s, d in pairs)


def _stream(*messages: dict[str, Any]) -> Answer:
    text = "".join(json.dumps(m) + "\r\n" for m in messages)
    return Answer(raw=text.encode())


EVENT = {"Type": "container", "Action": "start", "scope": "local", "time": 1795505098,
         "timeNano": 1795505098123456789,
         "Actor": {"ID": FULL, "Attributes": {"name": "web", "image": "nginx"}}}
NETWORK = {"Name": "net10", "Id": NETWORK_ID, "Created": "2026-11-24T07:24:58.12345Z",
           "Scope": "local", "Driver": "bridge", "EnableIPv4": True, "EnableIPv6": False,
           "Internal": True, "Labels": {"k": "v"}, "IPAM": {"Driver": "default", "Config": []}}
VOLUME = {"CreatedAt": "2026-11-24T07:24:58Z", "Driver": "local", "Labels": {"k": "v"},
          "Mountpoint": "/data/vol10", "Name": "vol10", "Options": None, "Scope": "local"}
GONE = Answer({"message": "No such container: gone"}, 404)

_FIXED: dict[tuple[str, str], Any] = {
    ("GET", "/networks"): [NETWORK, {**NETWORK, "Name": "net9", "Id": "bb22" * 16,
                                     "Labels": {}, "Internal": False}],
    ("GET", "/volumes"): {"Volumes": [VOLUME, {**VOLUME, "Name": "vol9", "Labels": None}],
                          "Warnings": None},
    ("GET", "/networks/net10"): NETWORK,
    ("GET", "/volumes/vol10"): VOLUME,
    ("GET", "/containers/web/top"): {"Titles": ["PID", "USER", "COMMAND"],
                                     "Processes": [["1", "root", "nginx"], ["7", "www", "sh -c"]]},
    ("GET", "/containers/web/changes"): [{"Kind": 0, "Path": "/etc"}, {"Kind": 1, "Path": "/n"},
                                         {"Kind": 2, "Path": "/gone"}],
    ("POST", "/containers/prune"): {"ContainersDeleted": ["a", "b"], "SpaceReclaimed": 1048576},
    ("POST", "/images/prune"): {"ImagesDeleted": [{"Untagged": "x:1"}, {"Deleted": "sha256:1"}],
                                "SpaceReclaimed": 2},
    ("POST", "/networks/prune"): {"NetworksDeleted": ["n1"]},
    ("POST", "/volumes/prune"): {"VolumesDeleted": None, "SpaceReclaimed": 0},
    ("POST", "/build/prune"): {"CachesDeleted": None, "SpaceReclaimed": 0},
    ("POST", "/containers/web/wait"): {"StatusCode": 3},
    ("POST", "/containers/web/update"): {"Warnings": ["a warning"]},
    ("POST", "/containers/web/exec"): {"Id": "e1"},
    ("GET", "/exec/e1/json"): {"ID": "e1", "Running": False, "ExitCode": 6},
    ("POST", "/commit"): {"Id": "sha256:new"},
    ("POST", "/networks/create"): {"Id": NETWORK_ID, "Warning": ""},
    ("POST", "/volumes/create"): VOLUME,
    ("DELETE", "/images/nginx:1.27"): [{"Untagged": "nginx:1.27"}, {"Deleted": IMAGE_ID}],
    ("GET", "/images/nginx/json"): {"Id": IMAGE_ID, "RepoTags": ["nginx:1.27"], "Size": 5},
    ("GET", "/images/search"): [{"star_count": 12, "is_official": True, "name": "nginx",
                                 "is_automated": False, "description": "A server\nof pages " * 4}],
    ("GET", "/info"): {"ID": "x", "Containers": 1, "Plugins": {"Volume": ["local"]},
                       "ServerVersion": "9", "OSType": "linux", "Name": "host"},
    ("GET", "/version"): {"Version": "9.9", "ApiVersion": "1.51", "Os": "linux",
                          "Platform": {"Name": "x"}, "Components": []},
    ("POST", "/containers/create"): {"Id": "a" * 64, "Warnings": []},
}
_EMPTY = frozenset((
    "start", "stop", "kill", "restart", "pause", "unpause", "rename", "tag", "connect",
    "disconnect", "resize"))


def answer(request: Request) -> Answer:
    """The handler of the fake engine."""
    method, path = request.method, request.path
    if "gone" in path:
        return GONE
    fixed = _FIXED.get((method, path))
    if fixed is not None:
        return Answer(fixed, 201 if path.endswith("/create") else 200)
    if method == "GET":
        return _get(request)
    if path == "/exec/e1/start":
        if json.loads(request.body)["Detach"]:
            return Answer(None)
        return Answer(hijack=True, raw=frames((1, b"out\n"), (2, b"err\n")))
    if path == "/images/create":
        return _stream({"status": "Pulling from x", "id": "1"},
                       {"status": "Downloading", "id": "abc",
                        "progressDetail": {"current": 5, "total": 10}},
                       {"status": "Digest: sha256:1"}, {"status": "Status: done"})
    if path.endswith("/push"):
        return _stream({"status": "The push refers to x"},
                       {"error": "denied: no", "errorDetail": {"message": "denied: no"}})
    if path == "/images/load":
        answered = _stream({"stream": "Loaded image: x:1\n"})
        answered.headers["Content-Type"] = "application/json"
        return answered
    if path == "/auth":
        return Answer({"Status": "Login Succeeded", "IdentityToken": ""})
    if path.rsplit("/", 1)[-1] in _EMPTY or method in ("DELETE", "PUT"):
        return Answer(None, 204)
    return Answer({"message": f"page not found: {path}"}, 404)


def _get(request: Request) -> Answer:
    path = request.path
    if path == "/containers/json":
        return Answer(containers())
    if path == "/images/json":
        return Answer(images())
    if path in ("/containers/web/json", f"/containers/{FULL}/json"):
        return Answer(inspected())
    if path == "/images/nginx/history":
        return Answer([{"Id": IMAGE_ID, "Created": ago(26 * HOUR), "Size": 1234,
                        "CreatedBy": "/bin/sh -c #(nop)\tCMD [\"nginx\"] and a long tail of it",
                        "Comment": "c", "Tags": ["nginx:1.27"]},
                       {"Id": "<missing>", "Created": ago(27 * HOUR), "Size": 0,
                        "CreatedBy": "ADD x", "Comment": "", "Tags": None}])
    if path.endswith("/logs"):
        return Answer(raw=frames((1, b"hi\n"), (2, b"err\n"), (1, b"bye\n")))
    if path.endswith("/stats"):
        return Answer(stats())
    if path == "/events":
        return _stream(EVENT, {**EVENT, "timeNano": 0})
    if path.endswith("/archive"):
        return _archive(request)
    return Answer({"message": f"page not found: {path}"}, 404)


def _archive(request: Request) -> Answer:
    stat = {"name": "x", "size": 0, "mode": 1 << 31 | 0o755, "mtime": "2026-11-24T07:24:58Z",
            "linkTarget": ""}
    return Answer(raw=bytes(1024), headers={
        "X-Docker-Container-Path-Stat": b64encode(json.dumps(stat).encode()).decode()})
