"""Every container is confined by carrel-default, as Docker confines it by docker-default."""

from __future__ import annotations

from pathlib import Path

import pytest

from carrel.kernel import apparmor
from tests.vm.conftest import LIVE, Machine, journal, wait_for

CURRENT = ("cat", "/proc/self/attr/current")
CONFINED = (0, "carrel-default (enforce)\n")
SHARED_POWERS = {"CapAdd": ["SYS_ADMIN", "SYS_PTRACE"]}


def test_every_process_of_a_container_is_confined(machine: Machine) -> None:
    assert apparmor.loaded("carrel-default")
    ident = machine.start("sleep", "1000")
    assert machine.exec(ident, *CURRENT) == CONFINED
    assert machine.exec(ident, "cat", "/proc/1/attr/current") == CONFINED
    assert machine.exec(ident, *CURRENT, Privileged=True) == CONFINED  # as in Docker
    assert machine.inspect(ident)["AppArmorProfile"] == "carrel-default"


@pytest.mark.parametrize("host", [{"Privileged": True},
                                  {"SecurityOpt": ["apparmor=unconfined"]}],
                         ids=["privileged", "unconfined"])
def test_unconfined_is_asked_for(machine: Machine, host: dict[str, object]) -> None:
    ident = machine.start("sleep", "1000", host=host)
    assert machine.exec(ident, *CURRENT) == (0, "unconfined\n")
    assert machine.inspect(ident)["AppArmorProfile"] == "unconfined"


def test_with_no_new_privileges(machine: Machine) -> None:
    ident = machine.start("sleep", "1000", host={"SecurityOpt": ["no-new-privileges"]})
    assert machine.exec(ident, *CURRENT) == CONFINED


def test_nothing_is_mounted_with_every_capability(machine: Machine) -> None:
    mount = ("sh", "-c", "mkdir /m && mount -t tmpfs none /m && echo mounted")
    code, text = machine.run(*mount, host=SHARED_POWERS)
    assert code != 0
    assert "mounted" not in text
    # the same without the profile: it is what makes the difference
    assert machine.run(*mount, host={**SHARED_POWERS, "SecurityOpt": ["apparmor=unconfined"]}
                       ) == (0, "mounted\n")


#: what a process with all capabilities writes to when nothing is masked or read-only
_WRITES = ("echo 1 > /proc/sys/vm/drop_caches", "echo x > /proc/sysrq-trigger",
           "cat /proc/sys/kernel/hostname > /proc/sys/kernel/hostname",
           "cat /proc/sys/kernel/threads-max > /proc/sys/kernel/threads-max",
           "cat /proc/sys/kernel/sem > /proc/sys/kernel/sem",
           "head -c 1 /proc/kcore", "echo 0 > /sys/kernel/mm/ksm/run",
           "ls /sys/kernel/security/apparmor")
_ALLOWED = ("cat /proc/sys/kernel/shmall > /proc/sys/kernel/shmall",
            "echo 5 > /proc/self/oom_score_adj", "cat /sys/kernel/mm/ksm/run",
            "echo x > /tmp/x", "chown 1 /tmp/x")


def test_proc_and_sys(machine: Machine) -> None:
    """By the profile alone: paths unmasked, sysfs writable, all capabilities."""
    script = "mount() { :; }\n" + "\n".join(
        f"({line}) >/dev/null 2>&1 && echo 'did: {line}'" for line in (*_WRITES, *_ALLOWED))
    host = {"Privileged": True, "SecurityOpt": ["apparmor=carrel-default"]}
    _, text = machine.run("sh", "-c", script + "\ntrue", host=host)
    assert text.splitlines() == [f"did: {line}" for line in _ALLOWED]


def test_signals_and_ptrace_from_outside(machine: Machine) -> None:
    """The host ends and looks at a container; the container's own kill works too."""
    ident = machine.start("sh", "-c", "sleep 1000 & kill $!; wait; echo over; sleep 1000")
    wait_for(lambda: "over" in machine.logs(ident))
    pid = machine.inspect(ident)["State"]["Pid"]
    assert Path(f"/proc/{pid}/environ").read_bytes()
    machine.call("POST", f"/containers/{ident}/stop?t=0")
    assert machine.inspect(ident)["State"]["Status"] == "exited"


def test_a_profile_that_is_not_loaded(machine: Machine) -> None:
    done = machine.carrel("run", "--rm", "--security-opt", "apparmor=missing", "busybox", "true",
                          check=False)
    assert done.returncode == 127  # what Docker's client makes of these words
    assert ("unable to apply apparmor profile: apparmor failed to apply profile: write "
            "/proc/thread-self/attr/apparmor/exec: no such file or directory") in done.stderr


def test_an_unloaded_default_is_loaded_again(machine: Machine) -> None:
    """The distribution's tools unload what is in none of their files."""
    Path("/sys/kernel/security/apparmor/.remove").write_text("carrel-default")
    assert not apparmor.loaded("carrel-default")
    assert machine.run(*CURRENT) == CONFINED


def test_without_the_parser(machine: Machine) -> None:
    """Containers run, unconfined, and nobody can say they were not told."""
    parser = Path("/usr/sbin/apparmor_parser")
    away = parser.rename(parser.with_name("apparmor_parser.away"))
    try:
        machine.restart(LIVE)
        assert machine.run(*CURRENT) == (0, "unconfined\n")
        info = machine.call("GET", "/info")
        assert "name=apparmor" not in info["SecurityOptions"]
        assert [w for w in info["Warnings"] if "apparmor_parser is not installed" in w]
        assert "apparmor_parser is not installed" in journal()
    finally:
        away.rename(parser)
        machine.restart(LIVE)
