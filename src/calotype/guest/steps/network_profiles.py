"""Configuration bound to one network card, and stored connections with their secrets."""

import re
from collections.abc import Iterator
from functools import partial

from calotype.guest.accounts import edit_lines
from calotype.guest.guest import Guest, Tree, glob, lines
from calotype.guest.steps.step import Concern, SysprepStep

_REMOVE = (
    "/etc/udev/rules.d/*persistent-net*.rules",
    "/etc/udev/rules.d/*persistent-cd*.rules",
    "/etc/sysconfig/hwconf",
)
#: Lines that name a card by its address: (files, beginnings without spaces, small letters).
_BOUND = (
    ("/etc/udev/rules.d/*.rules", "attr{address}=="),
    ("/etc/network/interfaces", "hwaddress"),
    ("/etc/network/interfaces.d/*", "hwaddress"),
    ("/etc/systemd/network/*", "macaddress="),
    ("/etc/systemd/network/*", "permanentmacaddress="),
)
_KEYFILES = "/etc/NetworkManager/system-connections/*"
#: All that a keyfile of NetworkManager for "any wired card, by DHCP" says; another is some machine's own.
_GENERIC = re.compile(
    r"""\s*(\#.*|;.*|\[(connection|ethernet|802-3-ethernet|ipv4|ipv6|proxy)\]
    |(id|uuid|interface-name|autoconnect(-priority)?|multi-connect|timestamp)\s*=.*
    |type\s*=\s*(ethernet|802-3-ethernet)|method\s*=\s*(auto|ignore|disabled|dhcp)
    |addr-gen-mode\s*=.*|may-fail\s*=.*|dhcp-timeout\s*=.*)?\s*""",
    re.VERBOSE,
)


def perform(guest: Guest) -> None:
    """Remove profiles and bindings."""
    for path in list(_profiles(guest)):
        guest.remove(path)
    for pattern, sign in _BOUND:
        for path in list(glob(guest, pattern)):
            edit_lines(guest, path, partial(_unless_bound, sign))


def check(guest: Tree) -> list[str]:
    """Profiles and bindings that are there."""
    left = [f"{path} is there" for path in _profiles(guest)]
    for pattern, sign in _BOUND:
        for path in glob(guest, pattern):
            bound = any(_binds(line, sign) for line in lines(guest, path))
            left += [f"{path} names a card by its address"] if bound else []
    return left


def _profiles(guest: Tree) -> Iterator[str]:
    for pattern in _REMOVE:
        # A link to /dev/null is an administrator's, and switches a rule off.
        yield from (path for path in glob(guest, pattern) if not _is_link(guest, path))
    for path in glob(guest, _KEYFILES):
        cloud = path.rpartition("/")[2].startswith("cloud-init-")  # another step's
        if not cloud and not all(map(_GENERIC.fullmatch, lines(guest, path))):
            yield path


def _is_link(guest: Tree, path: str) -> bool:
    found = guest.stat(path)
    return found is not None and found.is_link


def _unless_bound(sign: str, line: str) -> str | None:
    return None if _binds(line, sign) else line


def _binds(line: str, sign: str) -> bool:
    packed = "".join(line.split()).lower()
    return not packed.startswith("#") and sign in packed


STEP = SysprepStep(
    name="network-profiles",
    heading="Rules bound to a network card, and stored connections",
    order=380,
    concern=Concern.IDENTITY,
    perform=perform,
    check=check,
)
