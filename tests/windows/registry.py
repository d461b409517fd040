"""Writes registry hives and transaction logs, as Windows would leave them (hivex reads them too)."""

import struct
from collections.abc import Mapping, Sequence

from calotype.guest.hive_log import marvin32

NONE = 0xFFFFFFFF
PAGE = 4096
TIME = 132_000_000_000_000_000
Data = int | str | bytes | list[str]
#: Values by name, by the path of their key.
Keys = Mapping[str, Mapping[str, Data]]

_SECURITY = bytes.fromhex(
    "010004801400000024000000000000003400000001020000000000052000000020020000"
    "0102000000000005200000002002000002001c0001000000000214003f000f0001010000"
    "0000000512000000"
)


class _Writer:
    def __init__(self) -> None:
        self.cells = bytearray()

    def cell(self, content: bytes) -> int:
        """Put content into a cell of its own; where it is."""
        at = 32 + len(self.cells)
        size = 4 + len(content)
        size += -size % 8
        self.cells += struct.pack("<i", -size) + content.ljust(size - 4, b"\0")
        return at

    def value(self, name: str, data: Data) -> int:
        kind, raw = _raw(data)
        encoded = name.encode("latin-1")
        size, place = len(raw), 0
        if len(raw) <= 4:
            size |= 0x80000000
            place = int.from_bytes(raw.ljust(4, b"\0"), "little")
        elif len(raw) > 16344:
            parts = [self.cell(raw[at : at + 16344]) for at in range(0, len(raw), 16344)]
            segments = self.cell(struct.pack(f"<{len(parts)}I", *parts))
            place = self.cell(struct.pack("<2sHI", b"db", len(parts), segments))
        else:
            place = self.cell(raw.ljust(128, b"\0"))  # room for another text of its kind
        head = struct.pack("<2sHIIIHH", b"vk", len(encoded), size, place, kind, 1, 0)
        return self.cell(head + encoded)

    def key(self, name: str, tree: "_Tree", *, root: bool = False) -> int:
        inner = [(child, self.key(child, tree.keys[child])) for child in sorted(tree.keys)]
        values = [self.value(*item) for item in tree.values.items()]
        value_list = self.cell(struct.pack(f"<{len(values)}I", *values)) if values else NONE
        encoded = name.encode("latin-1")
        head = struct.pack(
            "<2sHQIIIIIIIIII5IHH",
            *(b"nk", 0x2C if root else 0x20, TIME, 0, 32, len(inner), 0),
            *(self.names(inner), NONE, len(values), value_list, self.security, NONE),
            *(0, 0, 0, 0, 0, len(encoded), 0),
        )
        return self.cell(head + encoded)

    def names(self, inner: list[tuple[str, int]]) -> int:
        if not inner:
            return NONE
        if len(inner) > 500:
            parts = [
                self.cell(
                    struct.pack("<2sH", b"li", len(part))
                    + b"".join(struct.pack("<I", at) for _, at in part)
                )
                for part in (inner[at : at + 400] for at in range(0, len(inner), 400))
            ]
            return self.cell(struct.pack(f"<2sH{len(parts)}I", b"ri", len(parts), *parts))
        rows = b"".join(struct.pack("<II", at, _hash(name)) for name, at in inner)
        return self.cell(struct.pack("<2sH", b"lh", len(inner)) + rows)

    security = 0


class _Tree:
    def __init__(self) -> None:
        self.keys: dict[str, _Tree] = {}
        self.values: dict[str, Data] = {}


def _hash(name: str) -> int:
    found = 0
    for sign in name.upper():
        found = (found * 37 + ord(sign)) & NONE
    return found


def _raw(data: Data) -> tuple[int, bytes]:
    match data:
        case int():
            return 4, struct.pack("<I", data)
        case str():
            return 1, (data + "\0").encode("utf-16-le")
        case bytes():
            return 3, data
        case _:
            return 7, "".join(text + "\0" for text in [*data, ""]).encode("utf-16-le")


def hive(keys: Keys, *, first: int = 1, second: int = 1) -> bytes:
    """A hive with these keys; it is dirty when ``first`` and ``second`` differ."""
    tree = _Tree()
    for path, values in keys.items():
        place = tree
        for name in filter(None, path.split("\\")):
            place = place.keys.setdefault(name, _Tree())
        place.values.update(values)
    writer = _Writer()
    writer.security = 32
    assert writer.cell(struct.pack("<2sH4I", b"sk", 0, 32, 32, 1, len(_SECURITY)) + _SECURITY) == 32
    root = writer.key("ROOT", tree, root=True)
    used = 32 + len(writer.cells)
    bins = used + 8 + -(used + 8) % PAGE
    head = struct.pack("<4sIIQQI", b"hbin", 0, bins, 0, TIME, 0)
    free = struct.pack("<i", bins - used).ljust(bins - used, b"\0")
    return header(first, second, root, bins) + head + bytes(writer.cells) + free


def header(first: int, second: int, root: int, bins: int, kind: int = 0) -> bytes:
    """The first page of a hive; of a log, with kind 6."""
    raw = struct.pack("<4sIIQIIIIIII", b"regf", first, second, TIME, 1, 5, kind, 1, root, bins, 1)
    raw = raw.ljust(508, b"\0")
    checksum = 0
    for word in struct.unpack("<127I", raw):
        checksum ^= word
    checksum = {0: 1, NONE: NONE - 1}.get(checksum, checksum)
    return (raw + struct.pack("<I", checksum)).ljust(PAGE, b"\0")


def entry(sequence: int, bins: int, pages: Mapping[int, bytes]) -> bytes:
    """An entry of a log with these pages (by offset among the cells)."""
    places = b"".join(struct.pack("<II", at, len(data)) for at, data in pages.items())
    body = places + b"".join(pages.values())
    size = 40 + len(body)
    size += -size % 512
    body = body.ljust(size - 40, b"\0")
    head = struct.pack("<4s5I", b"HvLE", size, 0, sequence, bins, len(pages))
    head += struct.pack("<Q", marvin32(body))
    return head + struct.pack("<Q", marvin32(head)) + body


def log(first: int, entries: Sequence[bytes], root: int, bins: int) -> bytes:
    """A log file that begins with the number ``first``."""
    return header(first, first, root, bins, kind=6)[:512] + b"".join(entries)


def change(old: bytes, new: bytes) -> dict[int, bytes]:
    """The pages in which two hives of one size differ."""
    assert len(old) == len(new)
    return {
        at - PAGE: new[at : at + PAGE]
        for at in range(PAGE, len(new), PAGE)
        if old[at : at + PAGE] != new[at : at + PAGE]
    }
