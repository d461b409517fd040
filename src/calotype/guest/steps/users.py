"""The people: their accounts, homes, mail, crontabs, and every list that names them."""

from collections.abc import Iterator

from calotype.guest.accounts import (
    PEOPLE,
    Account,
    accounts,
    edit_lines,
    edit_rows,
    is_person,
    rebuild,
    rows,
)
from calotype.guest.guest import SYSTEM, Guest, Tree, glob, join, strays, walk
from calotype.guest.steps.step import Concern, SysprepStep

#: Directories whose files are named after their user.
_BY_NAME = (
    "/var/mail/*",
    "/var/spool/mail/*",
    "/var/spool/cron/crontabs/*",
    "/var/spool/cron/tabs/*",
    "/var/spool/cron/*",
    "/var/lib/systemd/linger/*",
    "/var/lib/AccountsService/users/*",
    "/var/lib/AccountsService/icons/*",
    "/var/lib/sudo/lectured/*",
    "/var/lib/sudo/ts/*",
    "/var/db/sudo/lectured/*",
    "/var/cron/tabs/*",
    "/var/lib/systemd/home/*",
)
#: Directories of files that belong to whoever they run for.
_BY_OWNER = (
    "/home/*",
    "/usr/home/*",
    "/var/spool/cron/atjobs/*",
    "/var/spool/at/*",
    "/var/spool/atjobs/*",
)
_RULES = ("/etc/sudoers", "/etc/sudoers.d/*", "/etc/doas.conf", "/etc/doas.d/*")
#: Where services keep their data, also under accounts that have people's numbers.
_DATA = {"srv", "var"}
#: Directories in the spool of cron itself.
_NOT_NAMES = {"atjobs", "atspool", "crontabs", "tabs", "lastrun"}


def perform(guest: Guest) -> None:
    """Remove every person."""
    everyone = accounts(guest)
    staying = {account.name for account in everyone if not account.is_person}
    leaving = [account for account in everyone if account.is_person]
    for path in _belongings(guest, staying, leaving):
        guest.remove(path)
    for account in leaving:
        if _may_go(guest, account, everyone):
            _leave(guest, account.home)
    _rows(guest, staying, {account.name for account in leaving})
    for pattern in _RULES:
        for path in list(glob(guest, pattern)):
            edit_lines(guest, path, lambda line: None if _rule_of(line, leaving) else line)
    rebuild(guest)


def _leave(guest: Guest, home: str) -> None:
    """Remove a home; of one among the data of services, what is personal."""
    if (guest.real(home) or home).split("/")[1] not in _DATA:
        guest.remove(home)
        return
    for name in guest.list(home):
        if name.startswith("."):
            guest.remove(join(home, name))


def check(guest: Tree) -> list[str]:
    """Accounts of people, rows and files of accounts that are no more."""
    everyone = accounts(guest)
    staying = {account.name for account in everyone if not account.is_person}
    leaving = [account for account in everyone if account.is_person]
    left = [f"/etc/passwd has the account {account.name}" for account in leaving]
    left += [f"/home leads to {wrong}" for wrong in [strays(guest, "/home")] if wrong]
    for path in ("/etc/shadow", "/etc/master.passwd", "/etc/subuid", "/etc/subgid"):
        left += [f"{path} has a row of {r[0]}" for r in rows(guest, path) if _gone(r[0], staying)]
    for path in ("/etc/group", "/etc/gshadow"):
        for row in rows(guest, path):
            named = {name for part in _members(row) for name in part.split(",") if name}
            left += [f"{path} names {name}" for name in sorted(named - staying)]
    return left + [f"{path} is there" for path in _belongings(guest, staying, leaving)]


def _rows(guest: Guest, staying: set[str], leaving: set[str]) -> None:
    """Drop the rows of those who leave, and of accounts that are no more already."""

    def kept(row: list[str]) -> list[str] | None:
        return None if _gone(row[0], staying) else row

    def group(row: list[str]) -> list[str] | None:
        if row[0] in leaving:
            return None
        members = _members(row)
        stay = [",".join(n for n in part.split(",") if n in staying) for part in members]
        return row[: len(row) - len(members)] + stay

    for path in ("/etc/passwd", "/etc/shadow", "/etc/master.passwd", "/etc/subuid", "/etc/subgid"):
        edit_rows(guest, path, kept)
    for path in ("/etc/group", "/etc/gshadow"):
        edit_rows(guest, path, group)


def _members(row: list[str]) -> list[str]:
    """The fields of a group's row that list names: its members, in gshadow also its administrators."""
    return row[3:] if len(row) == 4 and row[2].isdecimal() else row[2:]


def _gone(name: str, staying: set[str]) -> bool:
    return name not in staying and not (name.isdecimal() and int(name) not in PEOPLE)


def _belongings(guest: Tree, staying: set[str], leaving: list[Account]) -> Iterator[str]:
    """The files of people, and of those who are no more."""
    seen = set()
    names = {account.name for account in leaving}
    homes = {a.home for a in accounts(guest) if a.name in staying}
    for pattern in _BY_NAME:
        for path in glob(guest, pattern):
            name = path.rpartition("/")[2]
            real = guest.real(path) or path
            if name not in staying | _NOT_NAMES and real not in seen:
                seen.add(real)
                yield path
    for pattern in _BY_OWNER:
        for path in glob(guest, pattern) if not strays(guest, pattern.rpartition("/")[0]) else ():
            if path.rpartition("/")[2] in names or _is_of_people(guest, path, homes):
                yield path


def _is_of_people(guest: Tree, path: str, homes: set[str]) -> bool:
    """Whether a file, or anything in a directory that is no staying account's home, is a person's."""
    found = guest.stat(path)
    if found is None or path in homes:
        return False
    inside = walk(guest, path) if found.is_dir else ()
    return is_person(found.uid) or any(is_person(inner.uid) for _, inner in inside)


def _may_go(guest: Tree, account: Account, everyone: list[Account]) -> bool:
    """Whether a home outside /home is the account's own, and no part of the system."""
    real = guest.real(account.home) if account.home.startswith("/") else None
    found = guest.stat(account.home) if real else None
    if real is None or found is None or found.uid != account.uid or real.count("/") < 2:
        return False
    others = (guest.real(a.home) or a.home for a in everyone if not a.is_person and a.home != "/")
    inside = any(join(other, "").startswith(join(real, "")) for other in others)
    return real.split("/")[1] not in SYSTEM and not inside


def _rule_of(line: str, leaving: list[Account]) -> bool:
    words = line.split()
    first = (
        words[-1:] if words[:1] == ["permit"] else words[:1]
    )  # doas names the user after the options
    return any(first in ([account.name], [f"#{account.uid}"]) for account in leaving)


STEP = SysprepStep(
    name="users",
    heading="Users made by provisioning and other people, with their homes, mail and crontabs",
    order=100,
    concern=Concern.CREDENTIAL,
    perform=perform,
    check=check,
)
