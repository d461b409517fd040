"""Everything in a guest's tree of files, and a way to tell whether two contents are the same.

A manifest is made once for each guest. Where the file system can be read in bulk that takes a second for a
hundred thousand names (:mod:`calotype.guest.ext4_manifest`); any other :class:`Tree` is walked name by name.
"""

import stat
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from calotype.errors import GuestError
from calotype.guest.guest import Tree, walk

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Names in one guest; more than any system has.
MOST_NAMES = 4_000_000
#: Characters of all their paths; a system has some ten million.
MOST_CHARACTERS = 256 << 20
_CELL = 64 << 10


class Entry(NamedTuple):
    """What one name stands for; ``mtime`` (seconds) and ``inode`` are 0 where they are not known.

    ``target`` is where a symbolic link leads. Names with the same ``inode`` are one file.
    """

    mode: int
    uid: int
    gid: int
    size: int
    mtime: int = 0
    target: str = ""
    inode: int = 0

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def kind(self) -> int:
        """The type of file, as in a mode."""
        return stat.S_IFMT(self.mode)


@dataclass(frozen=True, eq=False, slots=True)
class Runs:
    """Where the contents of some files lie on the disk; what no run covers is zero. All in bytes.

    The arrays have one element for each run, by file and then by ``logical``. ``file`` is the place in the
    list that was asked for; ``known`` (one element for each file) says whose runs could be told.
    """

    file: Ints
    logical: Ints
    start: Ints
    length: Ints
    known: Bools


@dataclass(frozen=True, eq=False, slots=True)
class Spans:
    """Parts of some files: the bytes from ``start`` to ``end`` of ``file``; in order, one element for each.

    ``file`` is the place in the list that was asked for.
    """

    file: Ints
    start: Ints
    end: Ints

    def by_file(self) -> dict[int, list[tuple[int, int]]]:
        """(start, end) of the parts of each file that has any."""
        found: dict[int, list[tuple[int, int]]] = {}
        rows = zip(self.file.tolist(), self.start.tolist(), self.end.tolist(), strict=True)
        for file, start, end in rows:
            found.setdefault(file, []).append((start, end))
        return found


class Manifest(Protocol):
    """All names of a guest.

    Raises:
        GuestError: from any method, when the guest cannot be read.
    """

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Absolute path -> what it stands for; without the root itself."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What could not be read."""
        ...

    def runs(self, paths: Sequence[str]) -> Runs:
        """Where the contents of regular files lie."""
        ...

    def read(self, paths: Sequence[str], limit: int) -> dict[str, bytes]:
        """The contents of many small files; a file of more than ``limit`` bytes is left out."""
        ...

    def digests(self, paths: Sequence[str], parts: Spans | None = None) -> dict[str, bytes]:
        """A digest of each regular file's content: equal for equal bytes, however they are laid out.

        With ``parts``, of a file that has some there only these bytes (or more) are read.
        """
        ...


class ContentHash:
    """The digest of a content that comes in ascending pieces; zeros that are left out change nothing."""

    def __init__(self, size: int) -> None:
        self._state = blake3(struct.pack("<Q", size))
        self._cell = 0
        self._bytes = bytearray()

    def add(self, offset: int, data: bytes | memoryview) -> None:
        """Take in the bytes at ``offset``."""
        view = memoryview(data)
        while view:
            cell, at = divmod(offset, _CELL)
            piece = view[: _CELL - at]
            if cell != self._cell:
                self._flush()
                self._cell = cell
            self._bytes += bytes(max(0, at - len(self._bytes)))
            self._bytes[at : at + len(piece)] = piece
            offset += len(piece)
            view = view[len(piece) :]

    def digest(self) -> bytes:
        """The digest of all that was added."""
        self._flush()
        return self._state.digest()

    def _flush(self) -> None:
        # Without the zeros at its end a cell is the same, whether they were on the disk or not.
        if used := self._bytes.rstrip(b"\0"):
            self._state.update(struct.pack("<QQ", self._cell, len(used)))
            self._state.update(used)
        self._bytes = bytearray()


@dataclass(slots=True)
class TreeManifest:
    """The manifest of any tree, name by name; contents are read whole, up to ``limit`` bytes each."""

    tree: Tree
    limit: int = 1 << 30
    entries: dict[str, Entry] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        room = MOST_CHARACTERS
        for path, found in walk(self.tree, "/"):
            target = (self.tree.real(path) or "") if found.is_link else ""
            size = found.size if found.is_file else 0
            self.entries[path] = Entry(found.mode, found.uid, found.gid, size, target=target)
            room -= len(path)
            if room < 0 or len(self.entries) > MOST_NAMES:
                raise GuestError("the guest has more names, or longer ones, than any system")

    def runs(self, paths: Sequence[str]) -> Runs:
        """Nothing is known of where contents lie."""
        none = np.zeros(0, dtype=np.int64)
        return Runs(none, none, none, none, np.zeros(len(paths), dtype=np.bool_))

    def read(self, paths: Sequence[str], limit: int) -> dict[str, bytes]:
        """The contents of many small files."""
        return dict(self._contents(paths, limit))

    def digests(self, paths: Sequence[str], parts: Spans | None = None) -> dict[str, bytes]:
        """A digest of each regular file's content, all of it."""
        del parts  # only known where runs are
        found = {}
        for path, data in self._contents(paths, self.limit):
            state = ContentHash(len(data))
            state.add(0, data)
            found[path] = state.digest()
        return found

    def _contents(self, paths: Sequence[str], limit: int) -> Iterable[tuple[str, bytes]]:
        for path in paths:
            entry = self.entries.get(path)
            if entry is not None and entry.is_file and entry.size <= limit:
                data = self.tree.read(path, limit)
                if data is not None:
                    yield path, data
