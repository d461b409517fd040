"""Transaction logs of registry hives: what was decided but not yet written into the hive.

Windows since 8.1 writes changes into ``NAME.LOG1`` and ``NAME.LOG2`` first, as numbered entries with
hashes, and into the hive within the hour or at shutdown. A hive whose two sequence numbers differ lacks
changes: those of the entries whose numbers are not below its second one, and follow without a gap. The
logs of older systems hold a map of dirty sectors instead; they are told of and not applied.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

_PAGE = 4096
_SECTOR = 512
_MASK = 0xFFFFFFFF
_SEED = 0x82EF4D887A4E55C5
_HEAD = 40  # bytes of an entry before its list of pages
_MAX_LOG = 32 << 20
_MAX_BINS = 2 << 30  # bytes: the registry's own limit


@dataclass(frozen=True, slots=True)
class Header:
    """What a hive, or a log, begins with.

    ``root`` is the offset of the first key, ``bins`` the size of all cells.
    """

    first: int
    second: int
    kind: int
    root: int
    bins: int
    whole: bool  # the checksum is right

    @classmethod
    def parse(cls, raw: bytes) -> "Header | None":
        """The header that these bytes hold; None where there is none."""
        if len(raw) < 512 or raw[:4] != b"regf":
            return None
        first, second = struct.unpack_from("<II", raw, 4)
        kind, _form, root, bins = struct.unpack_from("<IIII", raw, 28)
        checksum = 0
        for word in struct.unpack_from("<127I", raw):
            checksum ^= word
        checksum = {0: 1, _MASK: _MASK - 1}.get(checksum, checksum)
        if bins > _MAX_BINS:
            return None
        right = checksum == int.from_bytes(raw[508:512], "little")
        return cls(first, second, kind, root, bins, right)

    @property
    def is_dirty(self) -> bool:
        """Whether the hive was written in part."""
        return self.first != self.second or not self.whole


@dataclass(frozen=True, slots=True)
class Mended:
    """Pages of a hive (by number) that its logs hold; ``problem`` says why there may be more."""

    header: Header
    pages: dict[int, bytes] = field(default_factory=dict)
    changes: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Entry:
    sequence: int
    bins: int
    pages: list[tuple[int, bytes]]  # offset among the cells, bytes


def recover(header: Header, logs: Sequence[bytes]) -> Mended:
    """What the logs of a dirty hive hold.

    Args:
        header: the hive's own.
        logs: the contents of the log files; empty ones, and those of older systems, are passed over.
    """
    found = [(head, raw) for raw in logs if (head := Header.parse(raw[:512])) and head.whole]
    found.sort(key=lambda log: log[0].second)
    # Without its own checksum the hive's header says nothing: the logs' is a copy from before.
    least = header.second if header.whole else 0
    result = header if header.whole else (found[0][0] if found else header)
    pages: dict[int, bytes] = {}
    changes = expected = 0
    for _head, raw in found:
        for entry in _entries(raw[:_MAX_LOG]):
            if changes and entry.sequence != expected:
                break
            if entry.sequence < least:
                continue
            for offset, data in entry.pages:
                for at in range(0, len(data), _PAGE):
                    pages[(offset + at) // _PAGE] = data[at : at + _PAGE]
            result = replace(result, bins=entry.bins)
            expected = entry.sequence + 1
            changes += 1
    if changes:
        return Mended(result, pages, changes)
    return Mended(
        result, problem="it was written in part, and no transaction log of it can be applied"
    )


def _entries(raw: bytes) -> Iterator[_Entry]:
    """The entries of a log that are whole, up to the first that is not."""
    at = _SECTOR
    while at + _HEAD <= len(raw) and raw[at : at + 4] == b"HvLE":
        size, _flags, sequence, bins, count, hash_1, hash_2 = struct.unpack_from(
            "<5IQQ", raw, at + 4
        )
        end = at + size
        if size % _SECTOR or size < _SECTOR or end > len(raw) or bins > _MAX_BINS:
            return
        body = raw[at:end]
        if marvin32(body[:32]) != hash_2 or marvin32(body[_HEAD:]) != hash_1:
            return
        pages = _pages(body, count)
        if pages is None:
            return
        yield _Entry(sequence, bins, pages)
        at = end


def _pages(body: bytes, count: int) -> list[tuple[int, bytes]] | None:
    data = _HEAD + 8 * count
    if data > len(body):
        return None
    pages = []
    for offset, length in struct.iter_unpack("<II", body[_HEAD:data]):
        if offset % _PAGE or length % _PAGE or data + length > len(body):
            return None
        pages.append((offset, body[data : data + length]))
        data += length
    return pages


def marvin32(data: bytes, seed: int = _SEED) -> int:
    """The hash of log entries (Microsoft's Marvin32), 64 bits."""
    low, high = seed & _MASK, seed >> 32
    tail = len(data) & 3
    words = struct.unpack_from(f"<{len(data) // 4}I", data)
    last = int.from_bytes(data[len(data) - tail :] + b"\x80", "little")
    for word in (*words, last, 0):
        low = (low + word) & _MASK
        high ^= low
        low = ((low << 20 | low >> 12) + high) & _MASK
        high = (high << 9 | high >> 23) & _MASK ^ low
        low = ((low << 27 | low >> 5) + high) & _MASK
        high = (high << 19 | high >> 13) & _MASK
    return high << 32 | low
