"""Reads the tables of an SQLite database, from its bytes alone and without trust in them.

SQLite itself runs what a file's schema says (views, triggers, generated columns); here nothing is run: a
table's B-tree is walked, no page twice, so that the work is bounded by the file's length. What a write-ahead
log committed is seen.
"""

import re
import struct
from collections.abc import Iterator
from itertools import pairwise

from calotype.errors import GuestError

Value = int | float | str | bytes | None

_MAGIC = b"SQLite format 3\0"
_WAL_MAGIC = (0x377F0682, 0x377F0683)
_LEAF, _INTERIOR = 0x0D, 0x05
_MAX_DEPTH = 20
_MAX_COLUMNS = 2000
_ENCODINGS = {1: "utf-8", 2: "utf-16-le", 3: "utf-16-be"}
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


class Database:
    """The database in ``data``, with what ``wal`` committed since.

    Raises:
        GuestError: it is none, or damaged.
    """

    def __init__(self, data: bytes, wal: bytes = b"") -> None:
        if len(data) < 512 or data[:16] != _MAGIC:
            raise GuestError("there is no SQLite database")
        (size,) = struct.unpack_from(">H", data, 16)
        self._page_size = 65536 if size == 1 else size
        self._usable = self._page_size - data[20]
        if self._page_size not in {1 << n for n in range(9, 17)} or self._usable < 480:
            raise GuestError("the database's header makes no sense")
        self._data = data
        self._newer = dict(_committed(wal, self._page_size))
        self._encoding = _ENCODINGS.get(struct.unpack_from(">I", self._page(1), 56)[0], "utf-8")
        self._seen: set[int] = set()
        self._tables = dict(self._schema())

    def rows(self, table: str) -> Iterator[tuple[int, dict[str, Value]]]:
        """(rowid, column -> value) of a table; nothing when there is no such table.

        Raises:
            GuestError: the table is damaged.
        """
        if table not in self._tables:
            return
        root, columns = self._tables[table]
        self._seen = set()
        for rowid, payload in self._cells(root, 0):
            yield rowid, dict(zip(columns, self._record(payload), strict=False))

    def _schema(self) -> Iterator[tuple[str, tuple[int, list[str]]]]:
        for _, payload in self._cells(1, 0):
            kind, name, _, root, sql = (self._record(payload) + [None] * 5)[:5]
            if kind == "table" and isinstance(root, int) and isinstance(sql, str):
                yield str(name), (root, _columns(sql))

    def _page(self, number: int) -> bytes:
        start = (number - 1) * self._page_size
        page = self._newer.get(number) or self._data[start : start + self._page_size]
        if number < 1 or len(page) != self._page_size:
            raise GuestError("a page of the database is missing")
        return page

    def _once(self, number: int) -> bytes:
        if number in self._seen:
            raise GuestError("a page of the database is used twice")
        self._seen.add(number)
        return self._page(number)

    def _cells(self, number: int, depth: int) -> Iterator[tuple[int, bytes]]:
        """(rowid, payload) below a page, in order."""
        page = self._once(number)
        head = 100 if number == 1 else 0
        kind, _, count = struct.unpack_from(">BHH", page, head)
        width = {_LEAF: 8, _INTERIOR: 12}.get(kind)
        if width is None or depth > _MAX_DEPTH or head + width + 2 * count > len(page):
            raise GuestError("a page of the database makes no sense")
        for at in struct.unpack_from(f">{count}H", page, head + width):
            if at + 4 > len(page):
                raise GuestError("a cell of the database lies outside its page")
            if kind == _INTERIOR:
                yield from self._cells(struct.unpack_from(">I", page, at)[0], depth + 1)
            else:
                size, at = _varint(page, at)  # noqa: PLW2901 (reads on)
                rowid, at = _varint(page, at)  # noqa: PLW2901
                yield rowid, self._payload(page, at, size)
        if kind == _INTERIOR:
            yield from self._cells(struct.unpack_from(">I", page, head + 8)[0], depth + 1)

    def _payload(self, page: bytes, at: int, size: int) -> bytes:
        usable = self._usable
        if size > len(self._data) + len(self._newer) * self._page_size:
            raise GuestError("a row of the database is larger than the database")
        local = size
        if size > usable - 35:
            least = (usable - 12) * 32 // 255 - 23
            local = least + (size - least) % (usable - 4)
            local = local if local <= usable - 35 else least
        parts = [page[at : at + local]]
        missing = size - len(parts[0])
        following = int.from_bytes(page[at + local : at + local + 4], "big") if size > local else 0
        while missing > 0 and following:
            more = self._once(following)
            parts.append(more[4 : min(usable, 4 + missing)])
            missing -= len(parts[-1])
            following = int.from_bytes(more[:4], "big")
        if missing > 0:
            raise GuestError("a row of the database ends too early")
        return b"".join(parts)

    def _record(self, payload: bytes) -> list[Value]:
        head, at = _varint(payload, 0)
        kinds: list[int] = []
        while at < min(head, len(payload)) and len(kinds) < _MAX_COLUMNS:
            kind, at = _varint(payload, at)
            kinds.append(kind)
        values: list[Value] = []
        at = head
        for kind in kinds:
            value, at = self._value(payload, kind, at)
            values.append(value)
        return values

    def _value(self, payload: bytes, kind: int, at: int) -> tuple[Value, int]:
        if kind in (0, 8, 9):
            return {0: None, 8: 0, 9: 1}[kind], at
        if kind == 7:
            raw = payload[at : at + 8].ljust(8, b"\0")
            return float(struct.unpack(">d", raw)[0]), at + 8
        if kind in _INTEGERS:
            end = at + _INTEGERS[kind]
            return int.from_bytes(payload[at:end], "big", signed=True), end
        end = at + max(0, (kind - 12) // 2)
        raw = payload[at:end]
        return (raw.decode(self._encoding, "replace") if kind % 2 else raw), end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of up to nine bytes, and where it ends."""
    value = 0
    for index, byte in enumerate(data[at : at + 9]):
        if index == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            return value, at + index + 1
    raise GuestError("a number of the database ends too early")


def _columns(sql: str) -> list[str]:
    """The names of the columns, from the statement that made the table."""
    body = sql.partition("(")[2].rpartition(")")[0][:65536]
    depth, start, marks = 0, 0, []
    for at, sign in enumerate(body):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            marks.append((start, at))
            start = at + 1
    marks.append((start, len(body)))
    words = (re.match(r"""\s*["'`\[]?(\w+)""", body[first:last]) for first, last in marks)
    return [word[1] for word in words if word]


def _committed(wal: bytes, page_size: int) -> Iterator[tuple[int, bytes]]:
    """(number, content) of the pages in a write-ahead log, up to its last commit."""
    if len(wal) < 32 or struct.unpack_from(">I", wal)[0] not in _WAL_MAGIC:
        return
    if struct.unpack_from(">I", wal, 8)[0] != page_size:
        return
    salt = wal[16:24]
    frames: list[tuple[int, int]] = []
    commits = [0]
    for at in range(32, len(wal) - page_size - 23, 24 + page_size):
        number, size = struct.unpack_from(">II", wal, at)
        if wal[at + 8 : at + 16] != salt:  # left over from an earlier round
            break
        frames.append((number, at + 24))
        if size:
            commits.append(len(frames))
    for first, last in pairwise(commits):
        for number, at in frames[first:last]:
            yield number, wal[at : at + page_size]
