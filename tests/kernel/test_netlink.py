"""The netlink codec and rtnetlink, against the kernel and against `ip`."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest

from carrel.kernel import netlink, netns, record, rtnetlink, sysctl


def test_attributes_round_trip() -> None:
    data = (netlink.string(3, "eth0") + netlink.u32(4, 1500)
            + netlink.nest(18, netlink.string(1, "veth"), netlink.attr(2, b"\1\2\3")))
    found = netlink.attributes(data)
    assert found[3] == b"eth0\0" and int.from_bytes(found[4], "little") == 1500
    assert netlink.attributes(found[18]) == {1: b"veth\0", 2: b"\1\2\3"}
    assert len(data) % 4 == 0


def test_damaged_attributes_end_the_run() -> None:
    good = netlink.u32(4, 1)
    assert netlink.attributes(good + b"\x03\0\x05\0") == {4: b"\1\0\0\0"}
    assert netlink.attributes(good + b"\xff\0\x05\0abc") == {4: b"\1\0\0\0"}
    assert netlink.attributes(b"\0") == {}


def test_long_attribute_is_refused() -> None:
    with pytest.raises(OverflowError):
        netlink.attr(1, b"x" * 65536)


@pytest.fixture
def socket() -> Any:
    with netlink.Socket() as sock:
        yield sock


@pytest.mark.root
@pytest.mark.usefixtures("leak_check")
class TestKernel:
    def test_links_addresses_and_routes(self, socket: netlink.Socket) -> None:
        socket.request([rtnetlink.add_bridge("nltest0", mac="02:42:0a:63:00:01", mtu=1400)])
        try:
            link = rtnetlink.link(socket, "nltest0")
            assert (link.kind, link.mac, link.mtu, link.up) == (
                "bridge", "02:42:0a:63:00:01", 1400, False)
            socket.request([
                rtnetlink.set_link(link.index, ifname="nltest0", up=True, alias="a test"),
                rtnetlink.add_address(link.index, "10.99.0.1", 24),
                rtnetlink.add_address(link.index, "fd00:99::1", 64),
                rtnetlink.add_route("10.99.0.7", destination="10.98.0.0", prefix=16),
                rtnetlink.add_neighbour(link.index, "10.99.0.7", "02:00:00:00:00:07")])
            text = subprocess.run(["ip", "address", "show", "nltest0"], capture_output=True,
                                  text=True, check=True).stdout
            assert "10.99.0.1/24 brd 10.99.0.255" in text and "fd00:99::1/64" in text
            assert "tentative" not in text
            assert rtnetlink.link(socket, "nltest0").alias == "a test"
            assert ("10.99.0.1", 24) in {(a.address, a.prefix)
                                         for a in rtnetlink.addresses(socket)}
            routes = {(r.destination, r.prefix, r.gateway)
                      for r in rtnetlink.routes(socket, rtnetlink.AF_INET)}
            assert ("10.98.0.0", 16, "10.99.0.7") in routes
            assert ("10.99.0.7", "02:00:00:00:00:07") in {
                (n.address, n.mac) for n in rtnetlink.neighbours(socket)}
        finally:
            socket.request([rtnetlink.delete_link(ifname="nltest0")])
        assert "nltest0" not in {one.name for one in rtnetlink.links(socket)}

    def test_errors_name_the_object_and_the_reason(self, socket: netlink.Socket) -> None:
        with pytest.raises(OSError) as caught:
            rtnetlink.link(socket, "nosuch0")
        assert (caught.value.errno, caught.value.filename) == (errno.ENODEV, "nosuch0")
        with pytest.raises(OSError) as caught:
            socket.request([rtnetlink.set_link(1, ifname="lo", up=True),
                            rtnetlink.add_address(99999, "10.1.1.1", 24),
                            rtnetlink.set_link(1, ifname="lo", up=True)])
        assert caught.value.errno == errno.ENODEV
        assert caught.value.filename == "10.1.1.1/24"
        assert "(" in str(caught.value)  # the kernel's own sentence
        assert caught.value.__notes__ == ["netlink: address add 10.1.1.1/24 dev index 99999"]
        assert rtnetlink.link(socket, "lo").name == "lo"  # the socket is still in step

    def test_many_links_in_one_dump(self, socket: netlink.Socket) -> None:
        names = [f"nlmany{n}" for n in range(40)]
        socket.request([rtnetlink.add_bridge(n) for n in names])
        try:
            assert set(names) <= {one.name for one in rtnetlink.links(socket)}
        finally:
            socket.request([rtnetlink.delete_link(ifname=n) for n in names])

    def test_calls_are_recorded(self, socket: netlink.Socket) -> None:
        recorder = record.start()
        try:
            with record.step("4 network"):
                socket.request([rtnetlink.set_link(1, ifname="lo", up=True)])
                with pytest.raises(OSError):
                    socket.request([rtnetlink.delete_link(ifname="nosuch0")])
        finally:
            record.stop()
        assert [r[:5] for r in recorder.records] == [
            ("4 network", "netlink", ("link set lo up",), 0, 0),
            ("4 network", "netlink", ("link delete nosuch0",), None, errno.ENODEV)]

    def test_veth_is_born_in_another_namespace(self, socket: netlink.Socket) -> None:
        def work() -> None:
            home = netns.current()
            fd = netns.create()
            try:
                inner = netlink.Socket()
                socket.request([rtnetlink.add_veth("nlveth0", "eth0", fd,
                                                   peer_mac="02:00:00:00:00:01", mtu=1300)])
                link = rtnetlink.link(inner, "eth0")
                assert (link.mac, link.mtu) == ("02:00:00:00:00:01", 1300)
                sysctl.write("net/ipv6/conf/eth0/disable_ipv6", "1")
                assert sysctl.read("net/ipv6/conf/eth0/disable_ipv6") == "1"
                netns.enter(home)
                assert not os.path.exists("/proc/sys/net/ipv6/conf/eth0")
                assert rtnetlink.link(socket, "nlveth0").mtu == 1300
                inner.close()
            finally:
                os.close(fd)
                os.close(home)

        _in_thread(work)

    def test_bind_and_unbind(self, tmp_path: Any) -> None:
        path = str(tmp_path / "ns")

        def work() -> None:
            home = netns.current()
            fd = netns.create()
            netns.bind(fd, path)
            with pytest.raises(FileExistsError):
                netns.bind(fd, path)
            wanted = os.fstat(fd)
            assert netns.identity(path) == (wanted.st_dev, wanted.st_ino)
            netns.enter(home)
            os.close(fd)
            os.close(home)

        _in_thread(work)
        netns.unbind(path)
        netns.unbind(path)
        assert not os.path.exists(path) and netns.identity(path) is None
        (tmp_path / "plain").touch()
        assert netns.identity(str(tmp_path / "plain")) is None


def _in_thread(work: Callable[[], None]) -> None:
    """Namespaces are a thread's own: the test's thread must not move."""
    problems: list[BaseException] = []

    def main() -> None:
        try:
            work()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]


def test_stdlib_imports_stay_light() -> None:
    """kernel/ is imported by programs that count every millisecond."""
    code = ("import sys; import carrel.kernel.rtnetlink, carrel.kernel.netns, "
            "carrel.kernel.sysctl; print(sorted(set(sys.modules) & {'socket', 'enum', 're', "
            "'typing', 'ipaddress', 'subprocess', 'asyncio', 'dataclasses', 'logging'}))")
    import sys

    done = subprocess.run([sys.executable, "-I", "-S", "-c",
                           f"import sys; sys.path.insert(0, {os.getcwd()!r}); {code}"],
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
