"""nftables by raw netlink and by the library, read back with `nft`."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator

import pytest

from carrel.kernel import nftables
from carrel.network import rules

TABLE = "carrel_nfttest"
pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leak_check")]


def listing(*what: str) -> str:
    return subprocess.run(["nft", "list", *what], capture_output=True, text=True,
                          check=True).stdout


@pytest.fixture
def ruleset() -> Iterator[nftables.Ruleset]:
    one = nftables.Ruleset()
    one.run(rules.base(TABLE, [], []))
    yield one
    one.run(rules.remove_table(TABLE))
    one.close()


def test_elements(ruleset: nftables.Ruleset) -> None:
    ports = [nftables.Port("tcp", "", 8080, "172.30.0.2", 80),
             nftables.Port("udp", "127.0.0.1", 5353, "172.30.0.3", 53),
             nftables.Port("tcp", "", 8080, "fd00::2", 80)]
    with nftables.open_socket() as socket:
        nftables.transaction(socket, [nftables.add_port(TABLE, p) for p in ports])
        text = listing("table", "inet", TABLE)
        assert "tcp . 8080 : 172.30.0.2 . 80" in text
        assert "udp . 127.0.0.1 . 5353 : 172.30.0.3 . 53" in text
        assert "tcp . 8080 : fd00::2 . 80" in text
        # all or nothing: the second does not exist, so the first stays
        with pytest.raises(OSError) as caught:
            nftables.transaction(socket, [
                nftables.delete_port(TABLE, ports[0]),
                nftables.delete_port(TABLE, nftables.Port("tcp", "", 1, "172.30.0.2", 80))])
        assert caught.value.errno == errno.ENOENT
        assert "172.30.0.2 . 80" in listing("map", "inet", TABLE, "ports4")
        nftables.transaction(socket, [nftables.delete_port(TABLE, p) for p in ports])
    assert "172.30.0" not in listing("table", "inet", TABLE)


def test_library_reports_errors_and_recovers(ruleset: nftables.Ruleset) -> None:
    with pytest.raises(OSError, match="nftables refused the rules"):
        ruleset.run("add rule inet nosuchtable nosuchchain accept")
    ruleset.run(f"add set inet {TABLE} extra {{ type ipv4_addr; }}")
    ruleset.close()
    assert "extra" in ruleset.run(f"list table inet {TABLE}")


def test_networks_come_and_go(ruleset: nftables.Ruleset) -> None:
    empty = listing("table", "inet", TABLE)
    plain = rules.BridgeRules(bridge="br0", subnets4=("10.1.0.0/24",), subnets6=("fd00::/64",))
    island = rules.BridgeRules(bridge="br1", subnets4=("10.2.0.0/24",), internal=True, icc=False)
    for both in (plain, island):
        ruleset.run(rules.add_bridge(TABLE, both))
    ruleset.run(rules.leave(TABLE, [plain, island]))
    text = listing("table", "inet", TABLE)
    assert 'ip saddr 10.1.0.0/24 oifname != "br0" masquerade' in text
    assert 'oifname != "br1" drop' in text and "10.2.0.0/24 oifname" not in text
    ruleset.run(rules.leave(TABLE, []))
    for both in (plain, island):
        ruleset.run(rules.remove_bridge(TABLE, both))
    assert listing("table", "inet", TABLE) == empty
    # the same in one text, as at the start of the daemon
    ruleset.run(rules.base(TABLE, [plain, island], [("ports4", "tcp . 1 : 10.1.0.2 . 2")]))
    assert "tcp . 1 : 10.1.0.2 . 2" in listing("table", "inet", TABLE)


def test_redirection(ruleset: nftables.Ruleset) -> None:
    with nftables.open_socket() as socket:
        for replace in (False, True):
            nftables.transaction(socket, nftables.redirect_output(
                TABLE, "127.0.0.11", 53, {"udp": 4001, "tcp": 4002}, replace=replace))
        try:
            text = listing("table", "ip", TABLE)
            assert text.count("dnat to 127.0.0.11:4001") == 1
            assert "ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:4002" in text
        finally:
            subprocess.run(["nft", "delete", "table", "ip", TABLE], check=True)
