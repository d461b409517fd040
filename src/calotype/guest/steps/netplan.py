"""Netplan's files that fix addresses or cards, or hold a password. cloud-init writes new ones.

Where no cloud-init will, one that asks for an address by DHCP takes their place.
"""

import re
from collections.abc import Iterator

from calotype.guest.guest import Guest, Tree, glob, text
from calotype.guest.steps.step import DEBIAN, Concern, SysprepStep

_FILES = "/etc/netplan/*"
_BOUND = re.compile(
    r"^[^#\n]*\b(macaddress|addresses|password|key|auth|access-points)\s*:",
    re.MULTILINE | re.IGNORECASE,
)
_INSTALLER = re.compile(r".*(installer|cloud-init|NM-[0-9a-f-]{36}).*")
_ANY_CARD = b"""network:
  version: 2
  ethernets:
    any:
      match: {name: "e*"}
      dhcp4: true
"""
_CLOUD_INIT = ("/usr/bin/cloud-init", "/usr/local/bin/cloud-init")


def perform(guest: Guest) -> None:
    """Remove them."""
    bound = list(_files(guest))
    for path in bound:
        guest.remove(path)
    if bound and not list(glob(guest, _FILES)) and not any(map(guest.stat, _CLOUD_INIT)):
        guest.write("/etc/netplan/01-dhcp.yaml", _ANY_CARD, 0o600)


def check(guest: Tree) -> list[str]:
    """Those that are there."""
    return [f"{path} fixes an address or a card" for path in _files(guest)]


def _files(guest: Tree) -> Iterator[str]:
    for path in glob(guest, _FILES):
        # What cloud-init wrote is another step's.
        mine = not path.startswith("/etc/netplan/50-cloud-init.yaml")
        if mine and (_INSTALLER.fullmatch(path) or _BOUND.search(text(guest, path))):
            yield path


STEP = SysprepStep(
    name="netplan",
    heading="Netplan files with addresses, cards or passwords",
    order=374,
    concern=Concern.IDENTITY,
    perform=perform,
    check=check,
    distributions=DEBIAN,
)
