"""Logs: old ones go, those in use are emptied where they stand, so that who writes them still can."""

import re
from collections.abc import Iterator

from calotype.guest.guest import Guest, Stat, Tree, glob, strays, walk
from calotype.guest.steps.step import Concern, SysprepStep

_LOGS = "/var/log"
_ROTATED = re.compile(r".*(\.\d+|\.old|-\d{8}(-\d+)?|\.(gz|xz|bz2|zst|lz4|zip|asl|journal~?))")
#: Directories of which nothing stays.
_WHOLE = ("/var/log/journal/*", "/var/log/installer", "/var/log/sa/*", "/var/log/sysstat/*")
#: State that logging keeps elsewhere.
_ELSEWHERE = (
    "/var/lib/rsyslog/*",
    "/var/lib/fail2ban/*",
    "/var/account/pacct*",
    "/var/lib/lastlog/*",
    "/var/lib/wtmpdb/*",
)


def perform(guest: Guest) -> None:
    """Remove and empty."""
    if strays(guest, _LOGS):
        return
    for pattern in (*_WHOLE, *_ELSEWHERE):
        for path in list(glob(guest, pattern)):
            guest.remove(path)
    for path, found in list(_files(guest)):
        if not found.is_file or _ROTATED.fullmatch(path):
            guest.remove(path)
        else:
            guest.truncate(path)


def check(guest: Tree) -> list[str]:
    """Logs with content."""
    if wrong := strays(guest, _LOGS):
        return [f"{_LOGS} leads to {wrong}"]
    kept = (path for pattern in (*_WHOLE, *_ELSEWHERE) for path in glob(guest, pattern))
    left = [f"{path} is there" for path in kept]
    return left + [f"{path} is not empty" for path, _found in _files(guest)]


def _files(guest: Tree) -> Iterator[tuple[str, Stat]]:
    """Logs that hold something, or are old; links are not followed."""
    for path, found in walk(guest, _LOGS):
        if found.is_dir or found.is_link:
            continue
        if found.size or (found.is_file and _ROTATED.fullmatch(path)):
            yield path, found


STEP = SysprepStep(
    name="logs",
    heading="Logs, the journal, and records of logins",
    order=400,
    concern=Concern.TRACE,
    perform=perform,
    check=check,
)
