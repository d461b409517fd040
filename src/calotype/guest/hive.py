"""Reads a hive of the Windows registry, from its bytes alone and without trust in them.

A hive is a tree of keys with values, in cells. Cells are read as they are needed, so memory does not grow
with the hive; the number of cells that one hive may make us read is bounded. What makes no sense raises
:class:`~calotype.errors.GuestError`.

A hive that was written in part is mended from its transaction logs (:mod:`calotype.guest.hive_log`); when
that cannot be done, :attr:`Hive.stale` says so.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from calotype.errors import GuestError
from calotype.guest.hive_log import Header, recover

#: Reads at most ``length`` bytes at ``offset`` of the hive's file.
ReadAt = Callable[[int, int], bytes]

_BASE = 4096  # where the cells begin
_PAGE = 4096
_NONE = 0xFFFFFFFF
_LATIN = 0x20  # flag of a key: its name has one byte for each character
_RESIDENT = 0x80000000
_SEGMENT = 16344  # bytes of a value's data in one cell
_MAX_DATA = 1 << 20
_MAX_VALUES = 4096  # of one key
_MAX_SUBKEYS = 1 << 17  # of one key
_MAX_CELLS = 1 << 20  # that are read, in all
_MAX_BYTES = 1 << 29  # of these
_MAX_CELL = 1 << 20
_PAGES = 256  # that are remembered

SZ, EXPAND_SZ, BINARY, DWORD, DWORD_BIG, MULTI_SZ, QWORD = 1, 2, 3, 4, 5, 7, 11


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a key; ``data`` as it stands in the hive."""

    name: str
    kind: int
    data: bytes

    @property
    def text(self) -> str:
        """As text, up to the first NUL; empty when it is none."""
        if self.kind not in (SZ, EXPAND_SZ):
            return ""
        return self.data[: len(self.data) & ~1].decode("utf-16-le", "replace").partition("\0")[0]

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of a list."""
        if self.kind != MULTI_SZ:
            return (self.text,) if self.text else ()
        whole = self.data[: len(self.data) & ~1].decode("utf-16-le", "replace")
        return tuple(filter(None, whole.split("\0")))

    @property
    def number(self) -> int | None:
        """As a number; None when it is none."""
        if self.kind in (DWORD, QWORD) and len(self.data) in (4, 8):
            return int.from_bytes(self.data, "little")
        if self.kind == DWORD_BIG and len(self.data) == 4:
            return int.from_bytes(self.data, "big")
        return None


class Key:
    """A key: its values and the keys below it. Names are found whatever their case."""

    def __init__(self, hive: "Hive", offset: int) -> None:
        raw = hive.cell(offset)
        if len(raw) < 76 or raw[:2] != b"nk":
            raise GuestError("a key of the registry makes no sense")
        self._hive = hive
        (flags,) = struct.unpack_from("<H", raw, 2)
        self._count, _, self._list = struct.unpack_from("<III", raw, 20)
        self._values, self._value_list = struct.unpack_from("<II", raw, 36)
        (length,) = struct.unpack_from("<H", raw, 72)
        self.name = _name(raw[76 : 76 + length], latin=bool(flags & _LATIN))

    def keys(self) -> Iterator["Key"]:
        """The keys below this one."""
        if self._count == 0 or self._list == _NONE:
            return
        for number, offset in enumerate(self._hive.listed(self._list)):
            if number >= _MAX_SUBKEYS:
                raise GuestError("a key of the registry has too many others below it")
            yield Key(self._hive, offset)

    def names(self) -> list[str]:
        """The names of the keys below this one."""
        return [key.name for key in self.keys()]

    def key(self, path: str) -> "Key | None":
        """The key at a path (names between backslashes) below this one."""
        found: Key | None = self
        for name in filter(None, path.split("\\")):
            if found is None:
                return None
            found = found.child(name)
        return found

    def child(self, name: str) -> "Key | None":
        """The key of that name directly below this one."""
        wanted = name.upper()
        return next((key for key in self.keys() if key.name.upper() == wanted), None)

    def value(self, name: str) -> Value | None:
        """The value of a name; the empty name is the key's default value."""
        wanted = name.upper()
        return next((value for value in self.values() if value.name.upper() == wanted), None)

    def values(self) -> Iterator[Value]:
        """The key's values."""
        if self._values == 0 or self._value_list == _NONE:
            return
        if self._values > _MAX_VALUES:
            raise GuestError("a key of the registry has too many values")
        raw = self._hive.cell(self._value_list)
        if len(raw) < 4 * self._values:
            raise GuestError("a list of values of the registry makes no sense")
        for offset in struct.unpack_from(f"<{self._values}I", raw):
            yield self._hive.value(offset)


class Hive:
    """A hive of ``size`` bytes, read through ``read_at``.

    ``logs`` are its transaction logs, which are asked for when they are needed.

    Attributes:
        stale: why newer values may exist than are seen; empty when there are none.
        recovered: how many changes of the logs were applied.

    Raises:
        GuestError: it is no hive.
    """

    def __init__(self, read_at: ReadAt, size: int, logs: Iterable[bytes] = ()) -> None:
        header = Header.parse(read_at(0, 512))
        if header is None:
            raise GuestError("this is no hive of the Windows registry")
        self._read_at = read_at
        self._pages: dict[int, bytes] = {}
        self._cells = self._read = 0
        self.stale = ""
        self.recovered = 0
        if header.is_dirty:
            mended = recover(header, [*logs])
            self.stale, self.recovered = mended.problem, mended.changes
            self._pages, header = mended.pages, mended.header
        self._size = max(size, _BASE + header.bins) if self._pages else size
        self._page = lru_cache(maxsize=_PAGES)(self._read_page)
        self.root = Key(self, header.root)

    def key(self, path: str) -> Key | None:
        """The key at a path (names between backslashes)."""
        return self.root.key(path)

    def get(self, path: str, name: str) -> Value | None:
        """A value of the key at a path."""
        key = self.key(path)
        return None if key is None else key.value(name)

    def text(self, path: str, name: str) -> str:
        """A value as text; empty where there is none."""
        value = self.get(path, name)
        return "" if value is None else value.text

    def number(self, path: str, name: str) -> int | None:
        """A value as a number; None where there is none."""
        value = self.get(path, name)
        return None if value is None else value.number

    # Cells

    def cell(self, offset: int) -> bytes:
        """The content of a cell that is in use."""
        if offset % 8 or offset == _NONE:
            raise GuestError("a hive of the registry makes no sense")
        head = self._bytes(offset, 4)
        size = -int.from_bytes(head, "little", signed=True)
        if not 8 <= size <= _MAX_CELL:
            raise GuestError("a cell of the registry is not in use, or too big")
        self._cells += 1
        self._read += size
        if self._cells > _MAX_CELLS or self._read > _MAX_BYTES:
            raise GuestError("a hive of the registry is too entangled")
        return self._bytes(offset + 4, size - 4)

    def _bytes(self, offset: int, length: int) -> bytes:
        if _BASE + offset + length > self._size:
            raise GuestError("a hive of the registry points outside itself")
        first, last = offset // _PAGE, (offset + length - 1) // _PAGE
        whole = b"".join(self._page(number) for number in range(first, last + 1))
        found = whole[offset - first * _PAGE :][:length]
        if len(found) < length:
            raise GuestError("a hive of the registry is cut off")
        return found

    def _read_page(self, number: int) -> bytes:
        mended = self._pages.get(number)
        return self._read_at(_BASE + number * _PAGE, _PAGE) if mended is None else mended

    def listed(self, offset: int, depth: int = 2) -> Iterator[int]:
        """The offsets of the keys in a list, which may be a list of lists."""
        raw = self.cell(offset)
        if len(raw) < 4:
            raise GuestError("a list of keys of the registry makes no sense")
        kind, (count,) = raw[:2], struct.unpack_from("<H", raw, 2)
        step = {b"lf": 8, b"lh": 8, b"li": 4, b"ri": 4}.get(kind)
        if step is None or len(raw) < 4 + step * count or depth < 0:
            raise GuestError("a list of keys of the registry makes no sense")
        for at in range(4, 4 + step * count, step):
            (inner,) = struct.unpack_from("<I", raw, at)
            if kind == b"ri":
                yield from self.listed(inner, depth - 1)
            else:
                yield inner

    def value(self, offset: int) -> Value:
        """The value at an offset."""
        raw = self.cell(offset)
        if len(raw) < 20 or raw[:2] != b"vk":
            raise GuestError("a value of the registry makes no sense")
        length, size, data, kind, flags = struct.unpack_from("<HIIIH", raw, 2)
        name = _name(raw[20 : 20 + length], latin=bool(flags & 1))
        if size & _RESIDENT:
            return Value(name, kind, raw[8:12][: size & ~_RESIDENT])
        if size > _MAX_DATA:
            raise GuestError("a value of the registry is too big")
        return Value(name, kind, self._data(data, size) if size else b"")

    def _data(self, offset: int, size: int) -> bytes:
        raw = self.cell(offset)
        if size <= _SEGMENT or raw[:2] != b"db":
            if len(raw) < size:
                raise GuestError("a value of the registry is cut off")
            return raw[:size]
        count, segments = struct.unpack_from("<HI", raw, 2)
        offsets = self.cell(segments)
        if len(offsets) < 4 * count or count * _SEGMENT < size:
            raise GuestError("a value of the registry makes no sense")
        found = bytearray()
        for at in struct.unpack_from(f"<{count}I", offsets):
            found += self.cell(at)[:_SEGMENT]
            if len(found) >= size:
                break
        if len(found) < size:
            raise GuestError("a value of the registry is cut off")
        return bytes(found[:size])


def _name(raw: bytes, *, latin: bool) -> str:
    if latin:
        return raw.decode("latin-1")
    return raw[: len(raw) & ~1].decode("utf-16-le", "replace")
