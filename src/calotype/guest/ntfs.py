"""Reads an NTFS file system, from its bytes alone and without trust in them.

As :mod:`calotype.guest.ext4` does: what a hostile file system could make endless is bounded, and what
makes no sense raises :class:`~calotype.errors.GuestError`. Contents that NTFS keeps in a form of their own
(compressed, encrypted, or behind a reparse point) are refused and never read as something else.
"""

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from calotype.errors import GuestError

#: Reads ``length`` bytes at ``offset`` of the file system.
ReadAt = Callable[[int, int], bytes]

ROOT = 5
_MFT, _LOG, _VOLUME = 0, 2, 3
_OWN = 16  # the first records describe the file system itself
_STRIDE = 512  # bytes that one fixup protects
_NUMBER = (1 << 48) - 1  # of a reference to a record: its number
_IN_USE, _DIRECTORY = 1, 2
_COMPRESSED, _ENCRYPTED = 0x00FF, 0x4000
_DOS_NAME = 2  # the name space of short names, which repeat long ones
_LAST, _HAS_CHILD = 2, 1  # flags of an index entry
_STANDARD, _LIST, _VOLUME_INFORMATION, _DATA = 0x10, 0x20, 0x70, 0x80
_INDEX_ROOT, _INDEX_ALLOCATION, _REPARSE = 0x90, 0xA0, 0xC0
_END = 0xFFFFFFFF
_I30 = "$I30"  # the index of names
_DIRTY = 1
_MAX_RUNS = 1 << 17  # of one attribute
_MAX_ATTRIBUTES = 2048  # of one file, in all its records
_MAX_LIST = 1 << 20  # bytes of an attribute list
_MAX_NODES = 1 << 14  # index blocks of one directory
_MAX_NAMES = 1 << 18  # of one directory
_KEPT = 512  # records that are remembered


class Run(NamedTuple):
    """Clusters in a row; ``physical`` is None for a hole."""

    logical: int
    physical: int | None
    clusters: int


class Entry(NamedTuple):
    """A name in a directory, and the record of the file."""

    name: str
    record: int


@dataclass(frozen=True, slots=True)
class Attribute:
    """A part of an attribute: ``value`` when it stands in the record, else runs from ``first`` on."""

    kind: int
    name: str
    flags: int
    value: bytes | None
    first: int  # cluster of the attribute
    size: int  # bytes; right in the part that begins at cluster 0
    valid: int  # bytes that were ever written; zeros follow
    mapping: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the master file table."""

    number: int
    base: int  # the number of the file's first record; its own, or 0 for itself
    is_dir: bool
    links: int
    attributes: tuple[Attribute, ...]


class Content:
    """The bytes of one attribute, to be read anywhere."""

    def __init__(self, fs: "Ntfs", parts: list[Attribute]) -> None:
        self._fs = fs
        first = parts[0]
        self._value = first.value
        self._runs: list[Run] = []
        self.size = first.size
        self._valid = first.size
        if first.value is None:
            if any(part.flags & (_COMPRESSED | _ENCRYPTED) for part in parts):
                what = "encrypted" if first.flags & _ENCRYPTED else "compressed"
                raise GuestError(f"a file that is needed is {what} by NTFS, which cannot be read")
            self._valid = min(first.valid, first.size)
            self._runs = fs.runs(parts)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from ``offset`` on, ``length`` of them unless the end comes first."""
        length = max(0, min(length, self.size - offset))
        if self._value is not None:
            return self._value[offset : offset + length]
        cluster = self._fs.cluster
        content = bytearray(length)
        end = min(offset + length, self._valid)
        covered = 0
        for run in self._from(offset // cluster):
            start = max(offset, run.logical * cluster)
            stop = min(end, (run.logical + run.clusters) * cluster)
            if start >= stop:
                break
            covered += stop - start
            if run.physical is not None:
                at = run.physical * cluster + start - run.logical * cluster
                content[start - offset : stop - offset] = self._fs.read_at(at, stop - start)
        if covered < end - offset:
            raise GuestError("a file has fewer clusters than bytes")
        return bytes(content)

    def _from(self, cluster: int) -> Iterator[Run]:
        first = bisect_right(self._runs, cluster, key=lambda run: run.logical) - 1
        for index in range(max(first, 0), len(self._runs)):
            yield self._runs[index]


class Ntfs:
    """A file system of at most ``size`` bytes, read through ``read_at``.

    Raises:
        GuestError: there is none, or one that cannot be read.
    """

    def __init__(self, read_at: ReadAt, size: int) -> None:
        raw = read_at(0, 512) if size >= 4096 else bytes(512)
        oem, sector, per_cluster = struct.unpack_from("<8sHB", raw, 3)
        sectors, table = struct.unpack_from("<qq", raw, 40)
        per_record, per_index = struct.unpack_from("<b3xb", raw, 64)
        if oem != b"NTFS    " or sector not in (512, 1024, 2048, 4096):
            raise GuestError("there is no NTFS file system")
        # More than 128 sectors are written as a negative power of two.
        self.cluster = sector * (
            per_cluster if per_cluster <= 128 else 1 << min(256 - per_cluster, 32)
        )
        self._record = _structure_size(per_record, self.cluster)
        self._index = _structure_size(per_index, self.cluster)
        self.size = sectors * sector
        sane = (
            self.cluster in {512 << n for n in range(13)}
            and self._record in (512, 1024, 2048, 4096)
            and self._index in {512 << n for n in range(8)}
            and 0 < self.size <= size
            and 0 < table < self.size // self.cluster
        )
        if not sane:
            raise GuestError("the boot sector of the NTFS file system makes no sense")
        self._read_at = read_at
        self._records: dict[int, Record] = {}
        self._table: Content | None = None
        self._load_table(table)

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes of the file system.

        Raises:
            GuestError: they lie outside of it.
        """
        if offset < 0 or offset + length > self.size:
            raise GuestError("the NTFS file system points outside itself")
        return self._read_at(offset, length)

    def _load_table(self, first: int) -> None:
        """The table's own record names its runs; those of more records, when it is in many pieces."""
        raw = self.read_at(first * self.cluster, self._record)
        own = self._parse(_MFT, _repaired(raw, b"FILE", self._record))
        parts = _parts(own.attributes, _DATA, "")
        if not parts:
            raise GuestError("the master file table has no data")
        self._table = Content(self, parts)
        for reference in self._listed(own):
            if reference != _MFT:
                more = _parts(self._one(reference).attributes, _DATA, "")
                known = {part.first for part in parts}
                parts += [part for part in more if part.first not in known]
                parts.sort(key=lambda part: part.first)
                self._table = Content(self, parts)
        self._records.clear()

    # Records

    def record(self, number: int) -> Record:
        """A file's record, with the attributes of the records that belong to it.

        Raises:
            GuestError: there is no file of that number.
        """
        known = self._records.get(number)
        if known is not None:
            return known
        record = self._one(number)
        if record.base:
            raise GuestError(f"record {number} of NTFS is a part of another file")
        attributes = list(record.attributes)
        for reference in self._listed(record):
            if reference == number:
                continue
            part = self._one(reference)
            if part.base != number:
                raise GuestError(f"record {reference} of NTFS does not belong to file {number}")
            attributes += part.attributes
            if len(attributes) > _MAX_ATTRIBUTES:
                raise GuestError(f"file {number} of NTFS has too many attributes")
        whole = Record(number, 0, record.is_dir, record.links, tuple(attributes))
        if len(self._records) >= _KEPT:
            self._records.clear()
        self._records[number] = whole
        return whole

    def _one(self, number: int) -> Record:
        assert self._table is not None  # noqa: S101 (set before any record but the first; for the type checker)
        raw = self._table.read(number * self._record, self._record)
        if len(raw) < self._record:
            raise GuestError(f"there is no record {number} in the NTFS file system")
        return self._parse(number, _repaired(raw, b"FILE", self._record))

    def _parse(self, number: int, raw: bytes) -> Record:
        links, at, flags, used = struct.unpack_from("<HHHI", raw, 18)
        (base,) = struct.unpack_from("<Q", raw, 32)
        if not flags & _IN_USE:
            raise GuestError(f"record {number} of NTFS is not in use")
        attributes = tuple(_attributes(raw[: min(used, len(raw))], at))
        return Record(number, base & _NUMBER, bool(flags & _DIRECTORY), links, attributes)

    def _listed(self, record: Record) -> list[int]:
        """The records that hold the other attributes of a file, in order."""
        parts = _parts(record.attributes, _LIST, "")
        if not parts:
            return []
        raw = Content(self, parts).read(0, _MAX_LIST)
        found: dict[int, None] = {}
        at = 0
        while at + 26 <= len(raw):
            (length,) = struct.unpack_from("<H", raw, at + 4)
            (reference,) = struct.unpack_from("<Q", raw, at + 16)
            if length < 26:
                break
            found[reference & _NUMBER] = None
            at += length
        if len(found) > _MAX_ATTRIBUTES:
            raise GuestError(f"file {record.number} of NTFS is in too many pieces")
        return list(found)

    # Contents

    def content(self, record: Record, kind: int = _DATA, name: str = "") -> Content | None:
        """An attribute's bytes; None where the file has no such attribute."""
        parts = _parts(record.attributes, kind, name)
        return Content(self, parts) if parts else None

    def data(self, record: Record) -> Content:
        """A file's content.

        Raises:
            GuestError: it is kept in a form that cannot be read, or there is none.
        """
        if self.reparse(record) is not None:
            raise GuestError("a file that is needed lies behind a reparse point (CompactOS, …)")
        content = self.content(record)
        if content is None:
            raise GuestError(f"file {record.number} of NTFS has no data")
        return content

    @staticmethod
    def size_of(record: Record) -> int:
        """The size of a file's content in bytes, also of one that cannot be read."""
        parts = _parts(record.attributes, _DATA, "")
        return parts[0].size if parts else 0

    def reparse(self, record: Record) -> int | None:
        """The tag of a file's reparse point."""
        content = self.content(record, _REPARSE)
        raw = content.read(0, 4) if content is not None else b""
        return int.from_bytes(raw, "little") if len(raw) == 4 else None

    def runs(self, parts: list[Attribute]) -> list[Run]:
        """Where the clusters of an attribute lie, in order."""
        found: list[Run] = []
        expected = 0
        for part in sorted(parts, key=lambda part: part.first):
            if part.value is not None or part.first != expected:
                raise GuestError("the pieces of a file do not fit together")
            for run in _decode(part.mapping, part.first):
                if run.physical is not None and (
                    run.physical < 0 or (run.physical + run.clusters) * self.cluster > self.size
                ):
                    raise GuestError("a file points outside the NTFS file system")
                found.append(run)
                expected = run.logical + run.clusters
                if len(found) > _MAX_RUNS:
                    raise GuestError("a file is in too many pieces")
        return found

    # Directories

    def entries(self, directory: Record) -> Iterator[Entry]:
        """The names in a directory, short names left out; in no order."""
        root = self.content(directory, _INDEX_ROOT, _I30)
        if root is None:
            raise GuestError(f"directory {directory.number} of NTFS has no index")
        raw = root.read(0, self._record)
        blocks = self.content(directory, _INDEX_ALLOCATION, _I30)
        waiting = [raw[16:]]
        seen: set[int] = set()
        names = 0
        while waiting:
            for entry, child in _index_entries(waiting.pop()):
                if child is not None and child not in seen:
                    seen.add(child)
                    if blocks is None or len(seen) > _MAX_NODES:
                        raise GuestError(f"directory {directory.number} of NTFS makes no sense")
                    waiting.append(self._index_node(blocks, child))
                if entry is not None:
                    names += 1
                    if names > _MAX_NAMES:
                        raise GuestError(f"directory {directory.number} has too many names")
                    yield entry

    def _index_node(self, blocks: Content, number: int) -> bytes:
        # Blocks are counted in clusters, or in 512 bytes where a cluster is bigger than a block.
        unit = self.cluster if self.cluster <= self._index else _STRIDE
        raw = blocks.read(number * unit, self._index)
        if len(raw) < self._index:
            raise GuestError("an index of NTFS points outside itself")
        return _repaired(raw, b"INDX", self._index)[24:]

    # The state of the volume

    def unclean(self) -> str:
        """Why the volume may lack its newest changes; empty when it was left clean."""
        information = self.content(self.record(_VOLUME), _VOLUME_INFORMATION)
        raw = information.read(0, 12) if information is not None else b""
        if len(raw) < 12 or struct.unpack_from("<H", raw, 10)[0] & _DIRTY:
            return "the volume is marked dirty"
        log = self.content(self.record(_LOG))
        if log is None or not _log_is_closed(log):
            return "its journal was not closed"
        return ""


def _structure_size(field: int, cluster: int) -> int:
    """Of records and index blocks: in clusters, or as a negative power of two in bytes."""
    return cluster * field if field > 0 else 1 << min(-field, 32)


def _repaired(raw: bytes, magic: bytes, size: int) -> bytes:
    """Undo the fixups of a structure: the last two bytes of each 512 stand in its head."""
    at, count = struct.unpack_from("<HH", raw, 4)
    if raw[:4] != magic or count != size // _STRIDE + 1 or at + 2 * count > _STRIDE - 2:
        raise GuestError(f"a structure of NTFS ({magic.decode()}) makes no sense")
    whole = bytearray(raw)
    number = raw[at : at + 2]
    for stride in range(1, count):
        end = stride * _STRIDE
        if raw[end - 2 : end] != number:
            raise GuestError(f"a structure of NTFS ({magic.decode()}) was written in part only")
        whole[end - 2 : end] = raw[at + 2 * stride : at + 2 * stride + 2]
    return bytes(whole)


def _attributes(raw: bytes, at: int) -> Iterator[Attribute]:
    while at + 16 <= len(raw):
        kind, length, long, name_length, name_at, flags = struct.unpack_from("<IIBBHH", raw, at)
        if kind == _END:
            return
        body = raw[at : at + length]
        least = 64 if long else 24
        if long > 1 or length < least or len(body) < length or name_at + 2 * name_length > length:
            raise GuestError("an attribute of NTFS makes no sense")
        name = body[name_at : name_at + 2 * name_length].decode("utf-16-le", "replace")
        if long:
            (first,) = struct.unpack_from("<Q", body, 16)
            (runs_at,) = struct.unpack_from("<H", body, 32)
            size, valid = struct.unpack_from("<QQ", body, 48)
            if size > 1 << 62 or first > 1 << 48:
                raise GuestError("an attribute of NTFS makes no sense")
            yield Attribute(kind, name, flags, None, first, size, valid, body[runs_at:])
        else:
            size, value_at = struct.unpack_from("<IH", body, 16)
            if value_at + size > length:
                raise GuestError("an attribute of NTFS makes no sense")
            value = body[value_at : value_at + size]
            yield Attribute(kind, name, flags, value, 0, size, size, b"")
        at += length


def _parts(attributes: tuple[Attribute, ...], kind: int, name: str) -> list[Attribute]:
    """The parts of one attribute, in order; it begins at cluster 0, or there is none."""
    found = [part for part in attributes if part.kind == kind and part.name == name]
    found.sort(key=lambda part: part.first)
    if found and found[0].first != 0:
        raise GuestError("a piece of a file is missing")
    return found


def _decode(mapping: bytes, logical: int) -> Iterator[Run]:
    """A list of runs: a byte with the sizes of two numbers, a length and a distance from the run before."""
    at = physical = 0
    while at < len(mapping) and mapping[at]:
        wide, far = mapping[at] & 15, mapping[at] >> 4
        length = int.from_bytes(mapping[at + 1 : at + 1 + wide], "little")
        end = at + 1 + wide + far
        if not 0 < wide <= 8 or far > 8 or end > len(mapping) or not 0 < length < 1 << 48:
            raise GuestError("a list of runs of NTFS makes no sense")
        physical += int.from_bytes(mapping[at + 1 + wide : end], "little", signed=True)
        yield Run(logical, physical if far else None, length)
        logical += length
        at = end


def _index_entries(node: bytes) -> Iterator[tuple[Entry | None, int | None]]:
    """Of each entry of an index's node: its name (the last one has none), and its child node."""
    if len(node) < 16:
        raise GuestError("an index of NTFS makes no sense")
    at, used = struct.unpack_from("<II", node)
    end = min(used, len(node))
    while at + 16 <= end:
        reference, length, key, flags = struct.unpack_from("<QHHH", node, at)
        if length < 16 or at + length > end or 16 + key > length:
            raise GuestError("an index of NTFS makes no sense")
        child = None
        if flags & _HAS_CHILD:
            if length < 24:
                raise GuestError("an index of NTFS makes no sense")
            (child,) = struct.unpack_from("<Q", node, at + length - 8)
        entry = None
        if not flags & _LAST:
            entry = _name(node[at + 16 : at + 16 + key], reference & _NUMBER)
        yield entry, child
        if flags & _LAST:
            return
        at += length
    raise GuestError("an index of NTFS has no end")


def _name(key: bytes, record: int) -> Entry | None:
    """The name in a $FILE_NAME; None for a short one."""
    if len(key) < 66 or len(key) < 66 + 2 * key[64]:
        raise GuestError("a name in NTFS makes no sense")
    if key[65] == _DOS_NAME:
        return None
    name = key[66 : 66 + 2 * key[64]].decode("utf-16-le", "replace")
    if record < _OWN:  # the root lists itself, and what describes the file system
        return None
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise GuestError("a directory of NTFS holds an impossible name")
    return Entry(name, record)


def _log_is_closed(log: Content) -> bool:
    """Whether no change waits in the journal: it is empty, or its newest restart area says so."""
    newest: tuple[int, bool] | None = None
    for at in (0, 4096):
        page = log.read(at, 4096)
        if len(page) < 4096:
            break
        if page == b"\xff" * 4096:
            continue
        try:
            page = _repaired(page, b"RSTR", 4096)
            (area,) = struct.unpack_from("<H", page, 24)
            current, _clients, _free, in_use, flags = struct.unpack_from("<QHHHH", page, area)
        except (GuestError, struct.error):
            return False
        closed = in_use == 0xFFFF or bool(flags & 2)
        if newest is None or current > newest[0]:
            newest = current, closed
    return newest is None or newest[1]
