"""Histories in the homes of root and of system accounts (a database's, a web server's)."""

from collections.abc import Iterator

from calotype.guest.accounts import homes
from calotype.guest.guest import Guest, Tree, glob, join
from calotype.guest.steps.step import Concern, SysprepStep

_PATTERNS = (".*_history", ".lesshst", ".viminfo", ".wget-hsts", ".sudo_as_admin_successful")


def perform(guest: Guest) -> None:
    """Remove them."""
    for path in list(_histories(guest)):
        guest.remove(path)


def check(guest: Tree) -> list[str]:
    """Those that are there."""
    return [f"{path} is there" for path in _histories(guest)]


def _histories(guest: Tree) -> Iterator[str]:
    for home in (*homes(guest), "/etc/skel", "/"):
        for pattern in _PATTERNS:
            yield from glob(guest, join(home, pattern))


STEP = SysprepStep(
    name="histories",
    heading="Command histories of all accounts",
    order=180,
    concern=Concern.TRACE,
    perform=perform,
    check=check,
)
