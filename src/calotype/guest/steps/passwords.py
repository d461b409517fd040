"""Passwords of the accounts that stay, root's first: locked."""

import re

from calotype.guest.accounts import edit_rows, rebuild, rows
from calotype.guest.guest import Guest, Tree, lines
from calotype.guest.steps.step import Concern, SysprepStep

_FILES = ("/etc/passwd", "/etc/shadow", "/etc/gshadow", "/etc/master.passwd")
#: Files that keep passwords of old, each emptied.
_STORES = ("/etc/security/opasswd", "/var/cache/debconf/passwords.dat")

_ANSWER = re.compile(r"Value: *\S.*")  # debconf lists its questions even where nobody answered


def perform(guest: Guest) -> None:
    """Lock every password."""
    for path in _FILES:
        edit_rows(guest, path, lambda row: [row[0], "*", *row[2:]] if _opens(row) else row)
    rebuild(guest)
    for path in _STORES:
        if guest.read(path, 1):
            guest.truncate(path)


def check(guest: Tree) -> list[str]:
    """Accounts with a password, or with none at all."""
    left = [
        f"{path} has a password of {row[0]}"
        for path in _FILES
        for row in rows(guest, path)
        if _opens(row)
    ]
    if guest.read(_STORES[0], 1):
        left.append(f"{_STORES[0]} is not empty")
    answers = [line for line in lines(guest, _STORES[1]) if _ANSWER.fullmatch(line)]
    return left + [f"{_STORES[1]} has an answer" for _ in answers[:1]]


def _opens(row: list[str]) -> bool:
    """Whether the second field is a hash (a locked one is still a hash) or lets anybody in."""
    if len(row) < 4:
        return False
    secret = row[1]
    empty_in_shadow = not secret and len(row) > 7
    return empty_in_shadow or len(secret.lstrip("!*x")) > 1


STEP = SysprepStep(
    name="passwords",
    heading="Passwords of root and of system accounts (locked)",
    order=120,
    concern=Concern.CREDENTIAL,
    perform=perform,
    check=check,
)
