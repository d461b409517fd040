"""Numbers under which distributors count this machine: anonymous, and one for every clone alike."""

from calotype.guest.accounts import edit_lines
from calotype.guest.guest import Guest, Tree, glob, lines
from calotype.guest.steps.step import Concern, SysprepStep

_FILES = (
    "/var/lib/whoopsie/whoopsie-id",
    "/var/lib/zypp/AnonymousUniqueId",
    "/var/lib/yum/uuid",
    "/var/lib/dbus/machine-id.bak",
    "/etc/hostid",  # of FreeBSD, and of ZFS
)
_POPCON = "/etc/popularity-contest.conf"


def perform(guest: Guest) -> None:
    """Forget the numbers."""
    for path in _FILES:
        guest.remove(path)
    edit_lines(guest, _POPCON, lambda line: None if _counts(line) else line)


def check(guest: Tree) -> list[str]:
    """Numbers that are there."""
    left = [f"{path} is there" for pattern in _FILES for path in glob(guest, pattern)]
    return left + [f"{_POPCON} has a number" for line in lines(guest, _POPCON) if _counts(line)]


def _counts(line: str) -> bool:
    return line.strip().startswith("MY_HOSTID=")


STEP = SysprepStep(
    name="anonymous-ids",
    heading="Numbers under which distributors count the machine",
    order=530,
    concern=Concern.IDENTITY,
    perform=perform,
    check=check,
)
