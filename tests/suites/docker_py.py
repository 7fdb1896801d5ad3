"""docker-py's integration suite against carreld: ``scripts/docker-py-suite``.

Stand-ins from busybox replace the images of the Hub, and a docker-registry on
loopback serves ``library/*`` as the registry mirror for the pull tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from tests import images
from tests.e2e.engine import Stack, peers

NAMES = ("busybox:latest", "busybox:uclibc", "alpine:latest", "alpine:3.10", "alpine:3.14",
         "hello-world:latest")
REGISTRY = "127.0.0.1:5123"


def _stand_in(command: list[str]) -> images.Image:
    """busybox with what the suite expects of alpine."""
    passwd = ("root:x:0:0:root:/root:/bin/sh\npostgres:x:70:70::/var/lib/postgresql:/bin/sh\n"
              "nobody:x:65534:65534:nobody:/:/bin/false\n")
    files = images.layer({
        "etc/motd": f"started with {command}\n".encode(),  # each kind has a layer of its own
        "etc/passwd": passwd.encode(), "etc/group": b"root:x:0:\npostgres:x:70:\n",
        "var/opt": None, "var/lib/postgresql": None, "usr/bin": None,
        "hello.txt": b"Hello from Docker!\n"})
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return images.Image([*images.busybox().layers, files], {"Cmd": command, "Env": [path]})


def _start_registry(work: Path) -> subprocess.Popen[bytes]:
    config = work / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem: {{rootdirectory: {work / 'registry'}}}\n"
        f"http: {{addr: '{REGISTRY}'}}\n")
    log = (work / "registry.log").open("wb")
    process = subprocess.Popen([str(peers("sid") / "usr/bin/docker-registry"), "serve",
                                str(config)], stdout=log, stderr=log)
    for _ in range(100):
        try:
            urllib.request.urlopen(f"http://{REGISTRY}/v2/", timeout=2).close()
            return process
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the registry does not start")


def main() -> int:
    checkout = Path(sys.argv[1]).resolve()
    rest = sys.argv[2:]
    expected: set[str] = set()
    if rest and rest[0].endswith(".txt"):
        expected = set(Path(rest.pop(0)).read_text().split("\n")) - {""}
    work = Path(tempfile.mkdtemp(prefix="docker-py-suite-"))
    # the suite leaves this behind, and trips over it the next time
    shutil.rmtree(checkout / "contexts", ignore_errors=True)
    registry = _start_registry(work)
    stack = Stack(work, "--registry-mirror", f"http://{REGISTRY}")
    stack.start()
    # one of the suite's tests loses DOCKER_HOST for all after it, which then use the usual
    # socket; /run is the sandbox's own
    Path("/run/docker.sock").unlink(missing_ok=True)
    Path("/run/docker.sock").symlink_to(stack.host.removeprefix("unix://"))
    try:
        cli = stack.cli(str(peers("sid") / "usr/bin/docker"))
        archive = work / "images.tar"
        images.docker_archive(archive, {
            name: _stand_in(["/bin/cat", "/hello.txt"] if "hello" in name else ["/bin/sh"])
            for name in NAMES})
        cli.ok("load", "-i", str(archive))
        for name in NAMES:
            cli.ok("tag", name, f"{REGISTRY}/library/{name}")
            pushed = cli.run("push", "-q", f"{REGISTRY}/library/{name}")
            if pushed.code:
                print(f"push of {name}: {pushed.err}")
            cli.run("rmi", f"{REGISTRY}/library/{name}")
        environment = {**os.environ, "DOCKER_HOST": stack.host, "HOME": str(work),
                       "DOCKER_TEST_API_VERSION": "1.45", "PYTHONPATH": str(checkout)}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *([] if any("tests/" in r for r in rest)
                                          else ["tests/integration"]), "-q", "-rA", "--timeout=90",
             "-p", "no:cacheprovider", "-p", "no:asyncio", "--rootdir", str(checkout), *rest],
            cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        (work.parent / "docker-py-suite.log").write_text(done.stdout)
        passed = {m.split("[")[0] for m in re.findall(r"^PASSED (\S+)", done.stdout, re.M)}
        print(done.stdout[-1500:])
        print(f"passed: {len(passed)}")
        if expected:
            missing = sorted(expected - passed)
            print(f"of the {len(expected)} that Docker passes: {len(expected) - len(missing)}")
            print("\n".join(f"  not here: {name}" for name in missing))
    finally:
        (work.parent / "docker-py-suite-engine.log").write_text(stack.log())
        if stack.process is not None and stack.process.poll() is not None:
            print(f"the engine ended by itself: {stack.log()[-3000:]}")
        else:
            stack.stop()
        registry.terminate()
        registry.wait(10)
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
