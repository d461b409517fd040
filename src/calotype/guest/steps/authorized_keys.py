"""Keys that open system accounts: whoever holds the other half could log in to every clone."""

from collections.abc import Iterator

from calotype.guest.accounts import homes
from calotype.guest.guest import Guest, Tree, glob, join
from calotype.guest.steps.step import Concern, SysprepStep

_NAMES = (".ssh/authorized_keys*", ".rhosts", ".shosts", ".k5login")
_CENTRAL = ("/etc/ssh/authorized_keys*", "/etc/dropbear/authorized_keys", "/etc/hosts.equiv")


def perform(guest: Guest) -> None:
    """Remove them."""
    for path in list(_keys(guest)):
        guest.remove(path)


def check(guest: Tree) -> list[str]:
    """Those that hold something."""
    return [f"{path} is there" for path in _keys(guest) if _holds(guest, path)]


def _keys(guest: Tree) -> Iterator[str]:
    for home in homes(guest):
        for name in _NAMES:
            if home != "/root":  # root's own directory goes as a whole
                yield from glob(guest, join(home, name))
    for pattern in _CENTRAL:
        yield from glob(guest, pattern)


def _holds(guest: Tree, path: str) -> bool:
    found = guest.stat(path)
    return found is not None and (bool(found.size) if found.is_file else bool(guest.list(path)))


STEP = SysprepStep(
    name="authorized-keys",
    heading="SSH keys that open system accounts",
    order=150,
    concern=Concern.CREDENTIAL,
    perform=perform,
    check=check,
)
