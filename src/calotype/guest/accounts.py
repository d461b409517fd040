"""The account files: who is a person, and who is part of the system."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from calotype.guest.guest import Guest, Tree, lines, whole

#: The user ids that distributions give to people.
PEOPLE = range(1000, 60000)
#: Ids beyond those that systems give out by themselves, up to what old ones call nobody.
_BEYOND = range(65536, (1 << 32) - 2)


#: A number as the C library reads it.
_NUMBER = re.compile(r"\s*\+?([0-9]{1,20})")


@dataclass(frozen=True, slots=True)
class Account:
    """A row of ``/etc/passwd``."""

    name: str
    uid: int
    gid: int
    home: str

    @property
    def is_person(self) -> bool:
        """Whether a human being, or provisioning, made it."""
        return is_person(self.uid)


def is_person(uid: int) -> bool:
    """Whether an id is a person's: of this machine, or (above 65,535) of a directory service."""
    return uid in PEOPLE or uid in _BEYOND


def accounts(guest: Tree) -> list[Account]:
    """The rows of ``/etc/passwd`` that make sense to the guest: the C library is not strict."""
    found = []
    for line in lines(guest, "/etc/passwd"):
        fields = [*line.split(":"), "", "", ""]
        ids = [_NUMBER.fullmatch(field) for field in fields[2:4]]
        if len(fields) >= 7 and ids[0] and ids[1]:
            found.append(Account(fields[0].strip(), int(ids[0][1]), int(ids[1][1]), fields[5]))
    return found


def homes(guest: Tree) -> list[str]:
    """The homes of all accounts, and root's, sorted."""
    found = {
        account.home.rstrip("/") for account in accounts(guest) if account.home.startswith("/")
    }
    return sorted({*found, "/root"} - {"", "/nonexistent", "/dev/null"})


def rows(guest: Tree, path: str) -> list[list[str]]:
    """The rows of a file of fields between colons, comments and included directories left out."""
    return [line.split(":") for line in lines(guest, path) if line and line[0] not in "#+-"]


def edit_lines(guest: Guest, path: str, change: Callable[[str], str | None]) -> None:
    """Pass each line of a file through ``change`` (None drops it); written only when one differs."""
    content = whole(guest, path)
    if content is None:
        return
    before = re.findall(r"[^\n]*\n|[^\n]+", content.decode("utf-8", "surrogateescape"))
    after = []
    for line in before:
        changed = change(line.rstrip("\r\n"))
        if changed is not None:
            after.append(changed + line[len(line.rstrip("\r\n")) :])
    if after != before:
        guest.write(path, "".join(after).encode("utf-8", "surrogateescape"))


def rebuild(guest: Guest) -> None:
    """Make FreeBSD's databases anew from its ``master.passwd``; elsewhere the files are all there is."""
    if guest.stat("/etc/master.passwd") is not None:
        guest.execute(("pwd_mkdb", "-p", "/etc/master.passwd"))


def edit_rows(guest: Guest, path: str, change: Callable[[list[str]], Iterable[str] | None]) -> None:
    """As :func:`edit_lines` for rows of fields; comments and NIS rows stay as they are."""

    def line(text: str) -> str | None:
        if not text or text[0] in "#+-":
            return text
        fields = change(text.split(":"))
        return None if fields is None else ":".join(fields)

    edit_lines(guest, path, line)
