"""What a guest's operating system is to us: a tree of files that can be looked at and changed.

Paths are absolute, with names as :func:`os.fsdecode` gives them (bytes that are no UTF-8 survive).
Symbolic links are followed inside the guest's own tree and never out of it. Offline, in the running
guest and in a throw-away boot are three implementations of the one protocol.
"""

import fnmatch
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from calotype.errors import GuestError

#: As much of a file as is read unless more is asked for.
READ_LIMIT = 16 << 20
#: What is at the top of a system, and never a place of logs or homes; "" is the root itself.
SYSTEM = {
    "",
    "bin",
    "boot",
    "dev",
    "etc",
    "lib",
    "lib64",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "usr",
}
_LONGEST_PATH = 4096  # as in the kernel
_MOST_NAMES = 5_000_000


@dataclass(frozen=True, slots=True)
class Stat:
    """What is known of a name; ``size`` in bytes."""

    mode: int
    uid: int
    gid: int
    size: int
    links: int

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)


class Action(StrEnum):
    """What was done to a path."""

    REMOVED = "removed"
    EMPTIED = "emptied"
    WRITTEN = "written"
    BLANKED = "blanked"


class Edit(NamedTuple):
    """One change of the guest."""

    action: Action
    path: str


class Tree(Protocol):
    """A guest's tree of files, to look at. What is not there is ``None`` or empty, never an error.

    Raises:
        GuestError: from any method, when the guest cannot be read.
    """

    def stat(self, path: str) -> Stat | None:
        """What stands at a path; a symbolic link there is not followed."""
        ...

    def list(self, path: str) -> list[str]:
        """The names in a directory, sorted; links to directories are followed."""
        ...

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes | None:
        """The first ``limit`` bytes of a regular file; links are followed."""
        ...

    def real(self, path: str) -> str | None:
        """The path without symbolic links, where something is there."""
        ...

    def is_blank(self, path: str, keep: int) -> bool:
        """Whether a file's content is zero from byte ``keep`` on."""
        ...


class Guest(Tree, Protocol):
    """A guest's tree of files that can be changed.

    Raises:
        GuestError: from any method, when the guest cannot be changed.
    """

    @property
    def edits(self) -> list[Edit]:
        """What was changed so far, in order."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file, a link (not its target) or a whole directory."""
        ...

    def truncate(self, path: str) -> None:
        """Empty a regular file, or a directory, which stays as it is otherwise."""
        ...

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a regular file; one that is there keeps its mode and owner, a new one is root's.

        A link is followed; the directory must be there.
        """
        ...

    def blank(self, path: str, keep: int) -> None:
        """Overwrite a file's content, but for the first ``keep`` bytes, with zeros in place."""
        ...

    def execute(self, argv: Sequence[str]) -> bool:
        """Run a program of the guest's own; false where the guest does not live, or has none of that name.

        Its failure is an error; what it changes is not in :attr:`edits`.
        """
        ...


def is_dir(guest: Tree, path: str) -> bool:
    """Whether a directory stands at a path itself."""
    found = guest.stat(path)
    return found is not None and found.is_dir


def whole(guest: Tree, path: str) -> bytes | None:
    """All of a file that is looked at as a whole.

    Raises:
        GuestError: it is larger than such files are; a part of it would be taken for all.
    """
    content = guest.read(path, READ_LIMIT + 1)
    if content is not None and len(content) > READ_LIMIT:
        raise GuestError(f"{path} is larger than {READ_LIMIT >> 20} MiB")
    return content


def strays(guest: Tree, path: str) -> str:
    """Where a directory leads that steps clear out, if that is a part of the system; else nothing.

    ``/var/log`` may be a link to ``/data/log``; nobody means a link to ``/etc``.
    """
    real = guest.real(path)
    if real is None or real == path or real.startswith("/usr/home"):
        return ""
    return real if real.strip("/").split("/")[0] in SYSTEM else ""


def text(guest: Tree, path: str) -> str:
    """A file as text (any bytes survive); nothing when it is not there.

    Raises:
        GuestError: it is larger than such files are.
    """
    return (whole(guest, path) or b"").decode("utf-8", "surrogateescape")


def lines(guest: Tree, path: str) -> list[str]:
    """The lines of a text file: a form feed, say, ends a line for Python, and not for the guest."""
    *ended, last = text(guest, path).split("\n")
    return [line.removesuffix("\r") for line in (*ended, *filter(None, [last]))]


def join(directory: str, name: str) -> str:
    """A name in a directory as a path."""
    return f"{directory.rstrip('/')}/{name}"


def walk(guest: Tree, path: str) -> Iterator[tuple[str, Stat]]:
    """Everything below a directory, each directory before what is in it; links are not followed.

    Raises:
        GuestError: the tree is deeper than any program reaches, or has more names than can be looked at.
    """
    pending = [(path, iter(guest.list(path)))]
    seen = 0
    while pending:
        directory, names = pending[-1]
        name = next(names, None)
        if name is None:
            pending.pop()
            continue
        seen += 1
        if seen > _MOST_NAMES:
            raise GuestError(f"{path} has more than {_MOST_NAMES} names")
        inner = join(directory, name)
        found = guest.stat(inner)
        if found is None:
            continue
        yield inner, found
        if found.is_dir:
            if len(inner) > _LONGEST_PATH:
                raise GuestError(f"{inner[:64]}… is deeper than any program reaches")
            pending.append((inner, iter(guest.list(inner))))


def glob(guest: Tree, pattern: str) -> Iterator[str]:
    """The paths that match a pattern, in order; ``*`` stays inside one name, dots are nothing special.

    Directories on the way may be links; what matches at the end is not followed.
    """
    *heads, last = pattern.strip("/").split("/")
    bases = [""]
    for head in heads:
        bases = [
            join(base, name)
            for base in bases
            for name in (_matching(guest, base, head) if _is_magic(head) else [head])
        ]
    for base in bases:
        if _is_magic(last):
            yield from (join(base, name) for name in _matching(guest, base, last))
        elif guest.stat(join(base, last)) is not None:
            yield join(base, last)


def _is_magic(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _matching(guest: Tree, base: str, pattern: str) -> list[str]:
    return [n for n in guest.list(base or "/") if fnmatch.fnmatchcase(n, pattern)]
