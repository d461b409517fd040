"""The tree of files of an NTFS file system, to look at: a :class:`~calotype.guest.guest.Tree`.

Names are found whatever their case, as Windows finds them; what differs in case alone is found by its exact
name. Junctions and symbolic links are shown as links and lead nowhere: nothing of Windows itself lies
behind one.
"""

import stat

from calotype.disk.base import Disk, read
from calotype.errors import GuestError
from calotype.guest.guest import READ_LIMIT, Stat
from calotype.guest.ntfs import ROOT, Content, Ntfs, Record

_LINKS = (0xA0000003, 0xA000000C)  # the tags of junctions and symbolic links
_MAX_DEPTH = 64
_KEPT = 1 << 17  # names that are remembered
_LARGEST = 1 << 36  # bytes of a file that is looked through
#: What hiberfil.sys begins with while a memory image waits in it; Windows wipes it when it resumes.
_ASLEEP = (b"hibr", b"HIBR")


class NtfsTree:
    """A tree in an NTFS file system."""

    def __init__(self, fs: Ntfs) -> None:
        self.fs = fs
        self._names: dict[int, dict[str, int]] = {}
        self._folded: dict[int, dict[str, str]] = {}

    @classmethod
    def on_disk(cls, disk: Disk, offset: int, size: int) -> "NtfsTree":
        """The file system of ``size`` bytes at ``offset`` of a disk.

        Raises:
            GuestError: there is none that can be read.
        """
        return cls(Ntfs(lambda at, length: read(disk, offset + at, length), size))

    def stat(self, path: str) -> Stat | None:
        """What stands at a path; a junction there is not followed."""
        found = self._find(path)
        if found is None:
            return None
        record = found[1]
        if self._is_link(record):
            return Stat(stat.S_IFLNK | 0o777, 0, 0, 0, record.links)
        if record.is_dir:
            return Stat(stat.S_IFDIR | 0o755, 0, 0, 0, record.links)
        return Stat(stat.S_IFREG | 0o644, 0, 0, self.fs.size_of(record), record.links)

    def list(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        found = self._find(path)
        if found is None or not found[1].is_dir or self._is_link(found[1]):
            return []
        return sorted(self._entries(found[1]))

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes | None:
        """The first ``limit`` bytes of a regular file."""
        content = self.open(path)
        return None if content is None else content.read(0, limit)

    def open(self, path: str) -> Content | None:
        """A regular file's content, to be read anywhere; None where there is none."""
        found = self._find(path)
        if found is None or found[1].is_dir or self._is_link(found[1]):
            return None
        return self.fs.data(found[1])

    def real(self, path: str) -> str | None:
        """The path as its names are written, where something is there."""
        found = self._find(path)
        return None if found is None else found[0]

    def is_blank(self, path: str, keep: int) -> bool:
        """Whether a file's content is zero from byte ``keep`` on."""
        content = self.open(path)
        if content is None:
            return True
        if content.size > _LARGEST:
            raise GuestError("a file is too big to be looked through")
        return all(not any(content.read(at, 1 << 20)) for at in range(keep, content.size, 1 << 20))

    # The state of the volume

    def unclean(self) -> str:
        """Why the volume may lack its newest changes; empty when it was left clean."""
        return self.fs.unclean()

    def hibernated(self) -> bool:
        """Whether Windows sleeps in ``hiberfil.sys``: hibernated, or shut down for a fast start."""
        return (self.read("/hiberfil.sys", 4) or b"") in _ASLEEP

    # Names

    def _find(self, path: str) -> tuple[str, Record] | None:
        """(path as written, record) of what stands at a path."""
        record = self.fs.record(ROOT)
        written = ""
        names = [name for name in path.split("/") if name not in ("", ".")]
        if len(names) > _MAX_DEPTH or ".." in names:
            return None
        for name in names:
            if not record.is_dir or self._is_link(record):
                return None
            entries = self._entries(record)
            if name not in entries:
                found = self._folded[record.number].get(_fold(name))
                if found is None:
                    return None
                name = found  # noqa: PLW2901 (as it is written from here on)
            written += f"/{name}"
            record = self.fs.record(entries[name])
        return written or "/", record

    def _entries(self, directory: Record) -> dict[str, int]:
        known = self._names.get(directory.number)
        if known is None:
            if sum(map(len, self._names.values())) >= _KEPT:
                self._names.clear()
                self._folded.clear()
            known = {entry.name: entry.record for entry in self.fs.entries(directory)}
            self._names[directory.number] = known
            self._folded[directory.number] = {
                _fold(name): name for name in sorted(known, reverse=True)
            }
        return known

    def _is_link(self, record: Record) -> bool:
        return self.fs.reparse(record) in _LINKS


def _fold(name: str) -> str:
    """A name as NTFS compares it: each character in its capital, where that is one character."""
    return "".join(big if len(big := sign.upper()) == 1 else sign for sign in name)
