"""What is on a disk: partition table, partitions, their file systems, and where the OS lives."""

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from calotype.disk.base import Disk, read
from calotype.errors import GuestError
from calotype.guest.offline import ExtGuest

_GPT = struct.Struct("<8s4sIIIQQQQ16sQII")
_MAX_ENTRIES = 1024
_MAX_LOGICAL = 64
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE

ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
BIOS_BOOT = "21686148-6449-6e6f-744e-656564454649"


class Filesystem(StrEnum):
    """What a partition begins with, as far as we know its kind."""

    EXT = "ext4"
    XFS = "xfs"
    BTRFS = "btrfs"
    NTFS = "ntfs"
    FAT = "vfat"
    SWAP = "swap"
    LVM = "LVM"
    LUKS = "LUKS"
    RAID = "Linux RAID"
    UFS = "UFS"
    BITLOCKER = "BitLocker"


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition; ``number`` 0 is the whole disk without a table. Offset and size in bytes.

    ``kind`` is the type: a GUID in small letters (GPT), or two hexadecimal digits (MBR).
    """

    number: int
    offset: int
    size: int
    kind: str
    filesystem: Filesystem | None


@dataclass(frozen=True, slots=True)
class DiskMap:
    """A disk's table ("gpt", "mbr" or None) and its partitions in the table's order."""

    table: str | None
    partitions: tuple[Partition, ...]
    boot_code: bool  # whether the first sector holds a program

    def kinds(self) -> set[str]:
        """The types of all partitions."""
        return {partition.kind for partition in self.partitions}


def survey(disk: Disk) -> DiskMap:
    """Look at a disk's partition table and at the beginning of each partition."""
    first = _at(disk, 0, 512)
    signed = first[510:512] == b"\x55\xaa"
    boot_code = signed and any(first[:440])
    table, entries = _table(disk, first) if signed else (None, [])
    partitions = tuple(
        Partition(number, offset, size, kind, recognise(disk, offset, size))
        for number, offset, size, kind in entries
        if offset > 0 and size > 0 and offset + size <= disk.size
    )
    whole = recognise(disk, 0, disk.size)
    if not partitions and whole is not None:
        return DiskMap(None, (Partition(0, 0, disk.size, "", whole),), boot_code)
    return DiskMap(table, partitions, boot_code)


def recognise(disk: Disk, offset: int, size: int) -> Filesystem | None:
    """The file system (or the container of some) in a part of a disk."""
    head = _at(disk, offset, min(size, 1 << 17))
    signs = {
        Filesystem.EXT: head[1080:1082] == b"\x53\xef",
        Filesystem.XFS: head[:4] == b"XFSB",
        Filesystem.BTRFS: head[0x10040:0x10048] == b"_BHRfS_M",
        Filesystem.BITLOCKER: head[3:11] == b"-FVE-FS-",
        Filesystem.NTFS: head[3:11] == b"NTFS    ",
        Filesystem.FAT: head[54:58] == b"FAT1" or head[82:87] == b"FAT32",
        Filesystem.SWAP: head[4086:4096] in (b"SWAPSPACE2", b"SWAP-SPACE"),
        Filesystem.LVM: any(head[at : at + 8] == b"LABELONE" for at in range(0, 2048, 512)),
        Filesystem.LUKS: head[:6] == b"LUKS\xba\xbe",
        Filesystem.RAID: any(head[at : at + 4] == b"\xfc\x4e\x2b\xa9" for at in (0, 4096)),
        Filesystem.UFS: head[65536 + 1372 : 65536 + 1376] == b"\x19\x01\x54\x19",
    }
    return next((name for name, found in signs.items() if found), None)


def roots(disk: Disk, found: DiskMap) -> Iterator[tuple[Partition, ExtGuest]]:
    """The partitions that hold the root of an operating system that can be looked at."""
    for partition in found.partitions:
        if partition.filesystem is not Filesystem.EXT:
            continue
        try:
            guest = ExtGuest.on_disk(disk, partition.offset, partition.size)
            names = set(guest.list("/"))
        except GuestError:
            continue
        release = any(
            guest.stat(path) is not None for path in ("/etc/os-release", "/usr/lib/os-release")
        )
        if {"etc", "usr"} <= names and (release or guest.stat("/etc/passwd") is not None):
            yield partition, guest


def find_root(disk: Disk, found: DiskMap) -> tuple[Partition, ExtGuest]:
    """The partition with the operating system, and its tree.

    Raises:
        GuestError: there is none, several, or one on a file system that cannot be looked at yet.
    """
    candidates = list(roots(disk, found))
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        numbers = ", ".join(str(partition.number) for partition, _ in candidates)
        raise GuestError(f"several partitions hold an operating system ({numbers})")
    kinds = {p.filesystem for p in found.partitions if p.filesystem}
    if Filesystem.NTFS in kinds or Filesystem.BITLOCKER in kinds:
        raise GuestError(
            "its file systems are those of Windows, and no Linux is on it",
            hint="a Windows generalizes itself: sysprep /generalize /oobe /shutdown /mode:vm in the VM",
        )
    others = sorted(kinds - {Filesystem.FAT, Filesystem.SWAP, Filesystem.EXT})
    if others:
        raise GuestError(
            f"the disk holds {', '.join(others)}, which cannot be looked into yet",
            hint="only operating systems on ext4 can be",
        )
    raise GuestError("no operating system was found on the disk")


def _table(disk: Disk, first: bytes) -> tuple[str | None, list[tuple[int, int, int, str]]]:
    for sector in (512, 4096):
        entries = list(_gpt(disk, sector))
        if entries:
            return "gpt", entries
    entries = list(_mbr(disk, first))
    # A file system's own boot sector ends like a partition table, but holds no sane entries.
    return ("mbr", entries) if entries else (None, [])


def _gpt(disk: Disk, sector: int) -> Iterator[tuple[int, int, int, str]]:
    fields = _GPT.unpack(_at(disk, sector, _GPT.size))
    magic, at, count, size = fields[0], fields[10] * sector, fields[11], fields[12]
    if magic != b"EFI PART" or not 128 <= size <= 1024 or count > _MAX_ENTRIES:
        return
    table = _at(disk, at, count * size)
    for number in range(count):
        entry = table[number * size : (number + 1) * size]
        first, last = struct.unpack_from("<QQ", entry, 32)
        if any(entry[:16]) and first <= last:
            kind = str(uuid.UUID(bytes_le=entry[:16]))
            yield number + 1, first * sector, (last - first + 1) * sector, kind


def _mbr(disk: Disk, first: bytes) -> Iterator[tuple[int, int, int, str]]:
    for number, (flag, kind, start, count) in enumerate(_records(first), 1):
        if flag not in (0, 0x80):
            return
        if kind in _EXTENDED:
            yield from _logical(disk, start)
        elif kind not in (0, _PROTECTIVE):
            yield number, start * 512, count * 512, f"{kind:02x}"


def _logical(disk: Disk, extended: int) -> Iterator[tuple[int, int, int, str]]:
    at = extended
    for number in range(5, 5 + _MAX_LOGICAL):
        sector = _at(disk, at * 512, 512)
        (_, kind, start, count), (_, following, further, _count), *_rest = _records(sector)
        if sector[510:512] != b"\x55\xaa":
            return
        if kind:
            yield number, (at + start) * 512, count * 512, f"{kind:02x}"
        if following not in _EXTENDED or not further:
            return
        at = extended + further


def _records(sector: bytes) -> list[tuple[int, int, int, int]]:
    """The four (flag, type, first sector, sectors) of a boot record."""
    return [
        (sector[at], sector[at + 4], *struct.unpack_from("<II", sector, at + 8))
        for at in range(446, 510, 16)
    ]


def _at(disk: Disk, offset: int, length: int) -> bytes:
    """Bytes of a disk, zeros past its end."""
    inside = max(0, min(length, disk.size - offset))
    return read(disk, offset, inside).ljust(length, b"\0") if inside else bytes(length)
