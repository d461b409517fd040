"""Passwords of the accounts that stay, root's first: locked."""

import re
from functools import partial

from calotype.guest.accounts import edit_rows, rebuild, rows
from calotype.guest.guest import Guest, Tree, lines
from calotype.guest.steps.step import Concern, SysprepStep

_FILES = ("/etc/passwd", "/etc/shadow", "/etc/gshadow", "/etc/master.passwd")
#: Files that keep passwords of old, each emptied.
_STORES = ("/etc/security/opasswd", "/var/cache/debconf/passwords.dat")

_SHORTEST = 13  # characters of a hash, that of DES
_ANSWER = re.compile(r"Value: *\S.*")  # debconf lists its questions even where nobody answered


def perform(guest: Guest) -> None:
    """Lock every password."""
    for path in _FILES:
        edit_rows(guest, path, partial(_locked, path))
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
        if _opens(path, row)
    ]
    if guest.read(_STORES[0], 1):
        left.append(f"{_STORES[0]} is not empty")
    answers = [line for line in lines(guest, _STORES[1]) if _ANSWER.fullmatch(line)]
    return left + [f"{_STORES[1]} has an answer" for _ in answers[:1]]


def _locked(path: str, row: list[str]) -> list[str]:
    return [row[0], "*", *row[2:]] if _opens(path, row) else row


def _opens(path: str, row: list[str]) -> bool:
    """Whether the second field is a hash (a locked one is still a hash) or lets anybody in."""
    if len(row) < 3:
        return False
    secret = row[1].lstrip("!*")
    if not row[1]:  # nobody joins a group without a password by having none
        return path != "/etc/gshadow"
    # Words like "locked" are shorter than any hash.
    return secret.startswith(("$", "_")) or len(secret) >= _SHORTEST


STEP = SysprepStep(
    name="passwords",
    heading="Passwords of root and of system accounts (locked)",
    order=120,
    concern=Concern.CREDENTIAL,
    perform=perform,
    check=check,
)
