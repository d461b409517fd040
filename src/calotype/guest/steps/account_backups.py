"""Old copies of the account files: people and hashes that the current ones no longer have.

Installing a package leaves copies that name nobody: they go too, and are no evidence of anything.
"""

import re
from collections.abc import Iterator

from calotype.guest.accounts import PEOPLE, accounts, rows
from calotype.guest.guest import Guest, Tree, glob, join
from calotype.guest.steps.step import Concern, SysprepStep

_FILES = "passwd|master\\.passwd|shadow|group|gshadow|subuid|subgid|sudoers|opasswd"
# group.conf (of PAM) and sudoers.d are something else.
_COPY = re.compile(rf"\.?({_FILES})([-~]|[-~+.,](?!conf$|d$).+)")
_OF_ACCOUNTS = re.compile(r"\.?(passwd|master\.passwd|shadow|group|gshadow)\b.*")
#: Where distributions and administrators leave them.
_DIRECTORIES = ("/etc", "/etc/security", "/var/backups")
_HASH = re.compile(r"[$_].+")


def perform(guest: Guest) -> None:
    """Remove the copies."""
    for path in list(_copies(guest)):
        guest.remove(path)


def check(guest: Tree) -> list[str]:
    """The copies that name more than the system's own accounts."""
    known = {account.name for account in accounts(guest)} | {"root"}
    return [f"{path} {what}" for path in _copies(guest) if (what := _told(guest, path, known))]


def _told(guest: Tree, path: str, known: set[str]) -> str:
    """What a copy tells, if anything; of a form that we do not know, that it is there."""
    found = guest.stat(path)
    if found is None or not found.is_file or not _OF_ACCOUNTS.fullmatch(path.rpartition("/")[2]):
        return "" if found is not None and found.is_file and not found.size else "is there"
    for row in rows(guest, path):
        if len(row) < 3:
            return "is there"
        if _HASH.match(row[1].lstrip("!*")):
            return f"has a password of {row[0]}"
        if len(row) in (7, 10) and row[2].isdecimal() and int(row[2]) in PEOPLE:
            return f"has the account {row[0]}"
        if len(row) != 4 and row[0] not in known:
            return f"has a row of {row[0]}"
        if len(row) == 4 and (strangers := {*filter(None, row[3].split(","))} - known):
            return f"names {min(strangers)}"
    return ""


def _copies(guest: Tree) -> Iterator[str]:
    for directory in _DIRECTORIES:
        for path in glob(guest, join(directory, "*")):
            found = guest.stat(path)
            if found is not None and not found.is_dir and _COPY.fullmatch(path.rpartition("/")[2]):
                yield path


STEP = SysprepStep(
    name="account-backups",
    heading="Old copies of passwd, shadow, group and their like",
    order=140,
    concern=Concern.CREDENTIAL,
    perform=perform,
    check=check,
)
