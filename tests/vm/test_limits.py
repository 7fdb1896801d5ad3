"""Limits on cgroup v2: what the container reads in its own /sys/fs/cgroup is what was asked."""

from __future__ import annotations

from tests.vm.conftest import CGROUPS, Machine, cgroup, unit_property, wait_for

MIB = 1 << 20


def test_limits_are_the_files_of_the_container(machine: Machine) -> None:
    wanted = {
        "memory.max": str(64 * MIB), "memory.swap.max": str(32 * MIB),
        "memory.low": str(16 * MIB), "pids.max": "50", "cpu.max": "50000 100000",
        "cpu.weight": "59", "cpuset.cpus": "0", "cpuset.cpus.effective": "0"}
    # a weight of block devices is there only where the kernel's io.cost or BFQ is
    weighted = (CGROUPS / "system.slice" / "io.weight").exists()
    if weighted:
        wanted["io.weight"] = "default 2930"
    done = machine.carrel(
        "run", "--rm", "--network", "none", "-m", "64m", "--memory-swap", "96m",
        "--memory-reservation", "16m", "--pids-limit", "50", "--cpus", "0.5", "--cpu-shares",
        "512", "--cpuset-cpus", "0", *(("--blkio-weight", "300") if weighted else ()), "busybox",
        "sh", "-c", "cd /sys/fs/cgroup; cat /proc/self/cgroup; for f in "
        f"{' '.join(wanted)}; do echo $f=$(cat $f); done")
    lines = done.stdout.splitlines()
    assert lines[0] == "0::/"  # a cgroup namespace of its own
    assert lines[1:] == [f"{name}={value}" for name, value in wanted.items()], done.stderr


def test_the_hierarchy_is_read_only_inside(machine: Machine) -> None:
    code, text = machine.run("sh", "-c", "mkdir /sys/fs/cgroup/x")
    assert code != 0
    assert "Read-only file system" in text


def test_devices(machine: Machine) -> None:
    """The eBPF program of the group: listed is allowed, mknod of another is not enough."""
    code, text = machine.run(
        "sh", "-c", "head -c 4 /dev/disk | wc -c; mknod /tmp/d b 254 16; head -c 4 /tmp/d",
        host={"Devices": [{"PathOnHost": "/dev/vda", "PathInContainer": "/dev/disk",
                           "CgroupPermissions": "r"}]})
    assert text.startswith("4\n")
    assert "Operation not permitted" in text
    assert code != 0


def test_out_of_memory(machine: Machine) -> None:
    ident = machine.start("sh", "-c", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done",
                          host={"Memory": 24 * MIB, "MemorySwap": 24 * MIB})
    assert machine.call("POST", f"/containers/{ident}/wait")["StatusCode"] == 137
    assert machine.inspect(ident)["State"]["OOMKilled"] is True


def test_pause_update_stats_top(machine: Machine) -> None:
    ident = machine.start("sh", "-c", "while :; do echo x; sleep 1; done",
                          host={"Memory": 64 * MIB, "PidsLimit": 30})
    group = cgroup(ident)
    machine.call("POST", f"/containers/{ident}/pause")
    assert machine.inspect(ident)["State"]["Status"] == "paused"
    assert "frozen 1" in (group / "cgroup.events").read_text()
    machine.call("POST", f"/containers/{ident}/unpause")
    assert "frozen 0" in (group / "cgroup.events").read_text()
    machine.call("POST", f"/containers/{ident}/update",
                 {"Memory": 80 * MIB, "MemorySwap": 160 * MIB, "PidsLimit": 20,
                  "NanoCpus": 700_000_000})
    assert (group / "memory.max").read_text().strip() == str(80 * MIB)
    assert (group / "memory.swap.max").read_text().strip() == str(80 * MIB)
    assert (group / "pids.max").read_text().strip() == "20"
    assert (group / "cpu.max").read_text().strip() == "70000 100000"
    _stats(machine, ident)
    titles = machine.call("GET", f"/containers/{ident}/top")["Titles"]
    assert "PID" in titles
    row = machine.carrel("stats", "--no-stream", "--format",
                         "{{.MemUsage}} {{.PIDs}}", ident).stdout
    assert " / 80MiB " in row


def _stats(machine: Machine, ident: str) -> None:
    """The shape that clients know from Docker on cgroup v2."""
    shown = machine.call("GET", f"/containers/{ident}/stats?stream=0")
    memory = shown["memory_stats"]
    assert memory["limit"] == 80 * MIB
    assert 0 < memory["usage"] < 80 * MIB
    assert {"anon", "file", "inactive_file", "pgfault", "slab"} <= set(memory["stats"])
    assert "max_usage" not in memory
    assert shown["pids_stats"]["limit"] == 20
    assert 1 <= shown["pids_stats"]["current"] <= 20
    cpu = shown["cpu_stats"]
    assert cpu["cpu_usage"]["total_usage"] > shown["precpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert "percpu_usage" not in cpu["cpu_usage"]
    assert cpu["online_cpus"] == 2
    assert shown["preread"] < shown["read"]


def test_the_group_is_gone_with_the_container(machine: Machine) -> None:
    ident = machine.start("sleep", "1000")
    assert cgroup(ident).is_dir()
    machine.call("POST", f"/containers/{ident}/kill")
    wait_for(lambda: machine.inspect(ident)["State"]["Status"] == "exited")
    machine.remove(ident)
    wait_for(lambda: not cgroup(ident).exists())


def test_containers_are_not_in_the_groups_of_the_service(machine: Machine) -> None:
    """systemd kills what is in a unit's group when it stops the unit."""
    ident = machine.start("sleep", "1000")
    pid = machine.inspect(ident)["State"]["Pid"]
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
        assert file.read().strip() == f"0::/carrel/{ident}"
    assert unit_property("carrel", "Delegate") == "yes"


def test_info(machine: Machine) -> None:
    info = machine.call("GET", "/info")
    assert info["CgroupVersion"] == "2"
    assert info["CgroupDriver"] == "cgroupfs"
    assert [o for o in info["SecurityOptions"] if not o.startswith("name=seccomp")] == [
        "name=apparmor", "name=cgroupns"]
    for name in ("MemoryLimit", "SwapLimit", "CpuCfsPeriod", "CpuCfsQuota", "CPUShares", "CPUSet",
                 "PidsLimit"):
        assert info[name] is True, name
    # v2 has no such thing, and Docker says nothing about that
    assert info["OomKillDisable"] is False
    assert not [w for w in info["Warnings"] if "limit" in w or "io." in w or "oom" in w]
