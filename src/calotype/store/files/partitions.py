"""Where a disk's partitions are: GPT, MBR with its logical partitions, or none at all."""

import struct
from collections.abc import Iterator

from calotype.store.files.volume import Reader, Segment

_GPT = struct.Struct("<8s4sIIIQQQQ16sQII")
_MAX_ENTRIES = 1024
_MAX_LOGICAL = 64
_EXTENDED = {0x05, 0x0F, 0x85}
_PROTECTIVE = 0xEE


def partitions(disk: Reader) -> list[Segment]:
    """The partitions, ascending and apart; none when the disk has no table."""
    if disk.size < 4096:
        return []
    apart: list[Segment] = []
    done = 0
    for start, length in sorted(_table(disk)):
        if start >= done and length > 0 and start + length <= disk.size:
            apart.append(Segment(start, length))
            done = start + length
    return apart


def _table(disk: Reader) -> Iterator[tuple[int, int]]:
    boot = disk.read(0, 512)
    for sector in (512, 4096):
        if sector * 2 <= disk.size:
            entries = list(_gpt(disk, sector))
            if entries:
                yield from entries
                return
    if boot[510:512] == b"\x55\xaa":
        yield from _mbr(disk, boot)


def _gpt(disk: Reader, sector: int) -> Iterator[tuple[int, int]]:
    fields = _GPT.unpack(disk.read(sector, _GPT.size))
    magic, at, count, size = fields[0], fields[10] * sector, fields[11], fields[12]
    if magic != b"EFI PART" or not 128 <= size <= 1024 or count > _MAX_ENTRIES:
        return
    if at + count * size > disk.size:
        return
    table = disk.read(at, count * size)
    for entry in range(0, len(table), size):
        kind, first, last = table[entry : entry + 16], *struct.unpack_from("<QQ", table, entry + 32)
        if any(kind) and first <= last:
            yield first * sector, (last - first + 1) * sector


def _mbr(disk: Reader, boot: bytes) -> Iterator[tuple[int, int]]:
    for kind, start, count in _entries(boot):
        if kind in _EXTENDED:
            yield from _logical(disk, start)
        elif kind not in (0, _PROTECTIVE):
            yield start * 512, count * 512


def _logical(disk: Reader, extended: int) -> Iterator[tuple[int, int]]:
    at = extended
    for _ in range(_MAX_LOGICAL):
        if (at + 1) * 512 > disk.size:
            return
        record = disk.read(at * 512, 512)
        if record[510:512] != b"\x55\xaa":
            return
        first, following, *_rest = _entries(record)
        if first[0]:
            yield (at + first[1]) * 512, first[2] * 512
        if following[0] not in _EXTENDED or not following[1]:
            return
        at = extended + following[1]


def _entries(sector: bytes) -> list[tuple[int, int, int]]:
    """The four (kind, first sector, sectors) of a boot record."""
    entries = []
    for at in range(446, 510, 16):
        start, count = struct.unpack_from("<II", sector, at + 8)
        entries.append((sector[at + 4], start, count))
    return entries
