"""GUID partition tables, written into a disk image in place."""

import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

SECTOR = 512
_ENTRIES = 128
_TABLE = _ENTRIES * 128 // SECTOR  # sectors of one copy of the table

LINUX_ROOT = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")  # x86-64
BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
EFI_SYSTEM = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """One entry; ``start`` and ``length`` in bytes, whole sectors."""

    number: int
    start: int
    length: int
    kind: uuid.UUID
    guid: uuid.UUID
    name: str = ""


def tables(size: int, disk: uuid.UUID, parts: Sequence[Partition]) -> tuple[bytes, bytes]:
    """The disk's first sectors (protective MBR, header, table) and its last (table, header).

    Args:
        size: the disk's size in bytes, whole sectors.
        disk: the disk's GUID.
        parts: the partitions; they neither overlap nor reach into the tables.

    Raises:
        ValueError: a partition does not fit, or two overlap.
    """
    sectors = size // SECTOR
    first, last = 2 + _TABLE, sectors - 2 - _TABLE
    _check(parts, first, last)
    table = bytearray(_ENTRIES * 128)
    for part in parts:
        begin = part.start // SECTOR
        end = begin + part.length // SECTOR - 1
        entry = struct.pack(
            "<16s16sQQQ72s",
            part.kind.bytes_le,
            part.guid.bytes_le,
            begin,
            end,
            0,
            part.name.encode("utf-16-le"),
        )
        table[(part.number - 1) * 128 : part.number * 128] = entry
    usable = (first, last)
    front = _header(disk, bytes(table), here=1, other=sectors - 1, usable=usable, at=2)
    start = sectors - 1 - _TABLE
    back = _header(disk, bytes(table), here=sectors - 1, other=1, usable=usable, at=start)
    return _mbr(sectors) + front + bytes(table), bytes(table) + back


def write(file: BinaryIO, size: int, disk: uuid.UUID, parts: Sequence[Partition]) -> None:
    """Write both copies of the table into an open disk image of ``size`` bytes."""
    head, tail = tables(size, disk, parts)
    file.seek(0)
    file.write(head)
    file.seek(size - len(tail))
    file.write(tail)


def _check(parts: Sequence[Partition], first: int, last: int) -> None:
    free = first * SECTOR
    for part in sorted(parts, key=lambda p: p.start):
        end = part.start + part.length
        if part.start % SECTOR or part.length % SECTOR or part.length <= 0:
            raise ValueError(f"partition {part.number} is not made of whole sectors")
        if part.start < free or end > (last + 1) * SECTOR:
            raise ValueError(f"partition {part.number} does not fit")
        if not 1 <= part.number <= _ENTRIES:
            raise ValueError(f"there is no partition number {part.number}")
        free = end
    if len({part.number for part in parts}) != len(parts):
        raise ValueError("two partitions have one number")


def _mbr(sectors: int) -> bytes:
    mbr = bytearray(SECTOR)
    entry = (0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF))
    struct.pack_into("<B3sB3sII", mbr, 446, *entry)
    mbr[510:] = b"\x55\xaa"
    return bytes(mbr)


def _header(
    disk: uuid.UUID, table: bytes, *, here: int, other: int, usable: tuple[int, int], at: int
) -> bytes:
    def pack(crc: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART",
            0x10000,
            92,
            crc,
            0,
            here,
            other,
            *usable,
            disk.bytes_le,
            at,
            _ENTRIES,
            128,
            zlib.crc32(table),
        )

    return pack(zlib.crc32(pack(0))).ljust(SECTOR, b"\0")
