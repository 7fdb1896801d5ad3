"""The nftables table of one engine, as text. Pure.

One table ``inet carrel`` (another name for another exec-root) holds everything; nothing outside it
is ever touched, and replacing it is one transaction.

* ``guard``: containers must not reach the host's loopback through ``route_localnet``.
* ``publish``: one lookup in a map a packet, however many ports are published.  Reached by packets
  for any address of the host, those from the host itself and from its loopback included.
* ``postrouting``: masquerade what leaves a network, what came from the host's loopback, and a
  container that talks to itself through a published port.
* ``forward``: towards a container go answers, what was published, and neighbours on the same
  bridge; the rest is dropped.  An internal network is an island.
"""

from __future__ import annotations

import hashlib

import msgspec

DEFAULT_EXEC_ROOT = "/run/carrel"
#: the map of published ports by address family; ``_at``: for one address of the host
PORT_MAPS = ("ports4", "ports4_at", "ports6", "ports6_at")


def instance(exec_root: str) -> str:
    """A short name that tells engines on one machine apart; "" for the default one."""
    path = exec_root.rstrip("/")
    return "" if path == DEFAULT_EXEC_ROOT else hashlib.sha256(path.encode()).hexdigest()[:8]


def table_name(exec_root: str) -> str:
    tail = instance(exec_root)
    return f"carrel_{tail}" if tail else "carrel"


class BridgeRules(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules need to know of one network."""

    bridge: str
    subnets4: tuple[str, ...] = ()
    subnets6: tuple[str, ...] = ()
    internal: bool = False
    masquerade4: bool = True
    masquerade6: bool = True
    #: neighbours talk to each other
    icc: bool = True


_BASE = """\
table inet {table} {{
  set bridges {{ type ifname; }}
  map into {{ type ifname : verdict; }}
  map out_of {{ type ifname : verdict; }}
  map rewrite {{ type ifname : verdict; }}
  map ports4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map ports4_at {{ type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; }}
  map ports6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  map ports6_at {{ type inet_proto . ipv6_addr . inet_service : ipv6_addr . inet_service; }}
  chain guard {{
    type filter hook prerouting priority raw; policy accept;
    iifname @bridges ip daddr 127.0.0.0/8 drop
  }}
  chain publish {{
    meta nfproto ipv4 dnat ip to meta l4proto . ip daddr . th dport map @ports4_at
    meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports4
    meta nfproto ipv6 dnat ip6 to meta l4proto . ip6 daddr . th dport map @ports6_at
    meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @ports6
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump publish
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    ip6 daddr ::1 accept comment "cannot leave the loopback: the relay serves it"
    fib daddr type local jump publish
  }}
  chain leave {{
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname vmap @rewrite
    jump leave
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifname @bridges ct state established,related accept
    oifname vmap @into
    iifname vmap @out_of
  }}
}}
"""


def base(table: str, bridges: list[BridgeRules], ports: list[tuple[str, str]]) -> str:
    """The whole table anew, with the published ports as (map, element)."""
    text = f"table inet {table}\ndelete table inet {table}\n" + _BASE.format(table=table)
    for rules in bridges:
        text += add_bridge(table, rules)
    text += leave(table, bridges)
    for name in PORT_MAPS:
        elements = [element for kind, element in ports if kind == name]
        if elements:
            text += f"add element inet {table} {name} {{ {', '.join(elements)} }}\n"
    return text


def add_bridge(table: str, rules: BridgeRules) -> str:
    """Chains and elements of one network. A chain's name holds the bridge's: it finds it again."""
    at = f"inet {table}"
    bridge = rules.bridge
    lines = [f"add chain {at} into-{bridge}", f"add chain {at} rewrite-{bridge}"]
    if not rules.internal:
        lines.append(f"add rule {at} into-{bridge} ct status dnat accept")
    if rules.icc:
        lines.append(f"add rule {at} into-{bridge} iifname \"{bridge}\" accept")
    lines.append(f"add rule {at} into-{bridge} drop")
    lines.append(f"add rule {at} rewrite-{bridge} ip saddr 127.0.0.0/8 masquerade")
    for family, subnets in (("ip", rules.subnets4), ("ip6", rules.subnets6)):
        lines += [f"add rule {at} rewrite-{bridge} ct status dnat {family} saddr {s} masquerade"
                  for s in subnets]
    lines.append(f"add element {at} bridges {{ \"{bridge}\" }}")
    lines.append(f"add element {at} into {{ \"{bridge}\" : goto into-{bridge} }}")
    lines.append(f"add element {at} rewrite {{ \"{bridge}\" : jump rewrite-{bridge} }}")
    if rules.internal:
        lines += [f"add chain {at} out_of-{bridge}",
                  f"add rule {at} out_of-{bridge} oifname != \"{bridge}\" drop",
                  f"add element {at} out_of {{ \"{bridge}\" : goto out_of-{bridge} }}"]
    return "\n".join(lines) + "\n"


def remove_bridge(table: str, rules: BridgeRules) -> str:
    at = f"inet {table}"
    bridge = rules.bridge
    lines = [f"delete element {at} bridges {{ \"{bridge}\" }}"]
    for name in ("into", "rewrite", *(("out_of",) if rules.internal else ())):
        lines += [f"delete element {at} {name} {{ \"{bridge}\" }}",
                  f"delete chain {at} {name}-{bridge}"]
    return "\n".join(lines) + "\n"


def leave(table: str, bridges: list[BridgeRules]) -> str:
    """The masquerading of what leaves, for all networks at once (rules have no names)."""
    at = f"inet {table}"
    lines = [f"flush chain {at} leave"]
    for rules in bridges:
        if rules.internal:
            continue
        for family, wanted, subnets in (("ip", rules.masquerade4, rules.subnets4),
                                        ("ip6", rules.masquerade6, rules.subnets6)):
            lines += [f"add rule {at} leave {family} saddr {s} oifname != \"{rules.bridge}\" "
                      "masquerade" for s in subnets if wanted]
    return "\n".join(lines) + "\n"


def remove_table(table: str) -> str:
    return f"table inet {table}\ndelete table inet {table}\n"
