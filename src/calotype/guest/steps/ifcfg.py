"""Network scripts of Red Hat (ifcfg) and SUSE (wicked): each card asks for its address by DHCP again."""

import re
from collections.abc import Iterator

from calotype.guest.accounts import edit_lines
from calotype.guest.guest import Guest, Tree, glob, lines
from calotype.guest.steps.step import RHEL, SUSE, Concern, SysprepStep

_PROFILES = ("/etc/sysconfig/network-scripts/ifcfg-*", "/etc/sysconfig/network/ifcfg-*")
_REMOVE = (
    "/etc/sysconfig/network-scripts/keys-*",
    "/etc/sysconfig/network-scripts/route-*",
    "/etc/sysconfig/network-scripts/route6-*",
    "/etc/sysconfig/network-scripts/rule-*",
    "/etc/sysconfig/network/ifroute-*",
    "/etc/sysconfig/network/ifrule-*",
    "/etc/sysconfig/network/routes",
)
#: What makes a profile that of one card of one machine.
_BOUND = re.compile(
    r"\s*(HWADDR|MACADDR|LLADDR|UUID|IPADDR\d*|IPV6ADDR\w*|NETMASK\d*|PREFIX(LEN)?\d*|NETWORK|BROADCAST"
    r"|GATEWAY\d*|IPV6_DEFAULTGW|DNS\d+|DOMAIN|DHCP_HOSTNAME|DHCP_CLIENT_ID|REMOTE_IPADDR|NAME"
    r"|WIRELESS_(WPA_PSK|KEY_?\d*|WPA_PASSWORD|ESSID))=(?!\s*$|''|\"\").*",
    re.IGNORECASE,
)
_STATIC = re.compile(r"\s*BOOTPROTO=[\"']?(none|static)[\"']?\s*", re.IGNORECASE)
_LOOPBACK = re.compile(r".*/ifcfg-lo(\.rpm\w+)?")


def perform(guest: Guest) -> None:
    """Free the profiles of addresses and cards."""
    for path in list(_routes(guest)):
        guest.remove(path)
    for path in list(_profiles(guest)):
        if any(map(_BOUND.fullmatch, lines(guest, path))):
            edit_lines(guest, path, _freed)


def check(guest: Tree) -> list[str]:
    """What binds a card or an address."""
    left = [f"{path} is there" for path in _routes(guest)]
    for path in _profiles(guest):
        bound = [line for line in lines(guest, path) if _BOUND.fullmatch(line)]
        left += [f"{path} sets {line.partition('=')[0].strip()}" for line in bound[:1]]
    return left


def _freed(line: str) -> str | None:
    if _BOUND.fullmatch(line):
        return None
    return "BOOTPROTO=dhcp" if _STATIC.fullmatch(line) else line


def _profiles(guest: Tree) -> Iterator[str]:
    for pattern in _PROFILES:
        yield from (path for path in glob(guest, pattern) if not _LOOPBACK.fullmatch(path))


def _routes(guest: Tree) -> Iterator[str]:
    for pattern in _REMOVE:
        yield from glob(guest, pattern)


STEP = SysprepStep(
    name="ifcfg",
    heading="Network scripts (ifcfg, wicked) with addresses, cards or passwords",
    order=372,
    concern=Concern.IDENTITY,
    perform=perform,
    check=check,
    distributions=RHEL | SUSE,
)
