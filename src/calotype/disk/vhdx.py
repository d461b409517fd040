"""Hyper-V's VHDX, as in Microsoft's specification MS-VHDX.

Refused: a log that waits to be replayed, a parent, and every required region, metadata item or block
state that is not known here. Both headers are read and the newer valid one counts; the two region
tables must be equal.
"""

import struct
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import numpy as np

from calotype.disk.crc32c import crc32c
from calotype.disk.layout import Kind, Layout, Mapper
from calotype.disk.window import Window
from calotype.errors import DiskRefused

MAGIC: Final = b"vhdxfile"

_KIB: Final = 1 << 10
_MIB: Final = 1 << 20

_BAT: Final = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
_METADATA: Final = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")

_PARAMETERS: Final = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_SIZE: Final = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_DISK_ID: Final = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
_LOGICAL: Final = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
_PHYSICAL: Final = UUID("cda348c7-445d-4471-9cc9-e9885251c556")
_PARENT: Final = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")

_ITEM_LENGTHS: Final = {_PARAMETERS: 8, _SIZE: 8, _DISK_ID: 16, _LOGICAL: 4, _PHYSICAL: 4}

#: States of a payload block: absent, undefined, zero and unmapped ones read as zeros.
_EMPTY_STATES: Final = (0, 1, 2, 3)
_PRESENT, _PARTIAL = 6, 7

_AGAIN: Final = "the file is truncated or damaged: fetch it again and compare its checksum"
_CONVERT: Final = "convert it where it was made: qemu-img convert -O qcow2 IN OUT"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Metadata:
    """What the metadata region says. Sizes in bytes."""

    block: int
    size: int
    sector: int
    fixed: bool


def parse(window: Window) -> Layout:
    """The map of a fixed or dynamic VHDX.

    Raises:
        DiskRefused: it has a parent or a dirty log, is damaged, or not understood.
    """
    if window.size < _MIB:
        raise DiskRefused("the file is too short for a VHDX", hint=_AGAIN)
    _check_header(window)
    regions = _regions(window)
    metadata = _metadata(window, *regions[_METADATA])
    return Layout(
        format="vhdx",
        variant="fixed" if metadata.fixed else "dynamic",
        size=metadata.size,
        runs=_blocks(window, metadata, *regions[_BAT]).runs(window.size),
    )


def _check_header(window: Window) -> None:
    found = [window.read(place, 4 * _KIB) for place in (64 * _KIB, 128 * _KIB)]
    valid = [raw for raw in found if raw[:4] == b"head" and _sum_is_right(raw)]
    if not valid:
        raise DiskRefused("neither header of the VHDX is valid", hint=_AGAIN)
    header = max(valid, key=lambda raw: int.from_bytes(raw[8:16], "little"))
    log_version, version = struct.unpack_from("<HH", header, 64)
    if version != 1 or log_version != 0:
        raise DiskRefused(f"VHDX version {version} (log {log_version}) is not known", hint=_CONVERT)
    if any(header[48:64]):
        raise DiskRefused(
            "the VHDX was not closed cleanly: its log waits to be replayed",
            hint="attach it once where it was made (Hyper-V), or run qemu-img check -r all on a copy",
        )


def _sum_is_right(raw: bytes) -> bool:
    stated = int.from_bytes(raw[4:8], "little")
    return crc32c(raw[:4] + bytes(4) + raw[8:]) == stated


def _regions(window: Window) -> dict[UUID, tuple[int, int]]:
    """File offset and length of the block table and of the metadata."""
    raw = window.read(192 * _KIB, 64 * _KIB)
    if raw[:4] != b"regi" or not _sum_is_right(raw):
        raise DiskRefused("the region table of the VHDX is damaged", hint=_AGAIN)
    if window.read(256 * _KIB, 64 * _KIB) != raw:
        raise DiskRefused("the two region tables of the VHDX differ", hint=_AGAIN)
    (count,) = struct.unpack_from("<I", raw, 8)
    regions: dict[UUID, tuple[int, int]] = {}
    for index in range(_count(count)):
        guid, offset, length, required = struct.unpack_from("<16sQII", raw, 16 + index * 32)
        region = UUID(bytes_le=guid)
        if region in {_BAT, _METADATA} and region not in regions:
            regions[region] = (offset, length)
        elif region in regions or required & 1:
            raise DiskRefused(
                f"the VHDX region {region} is not known or stands twice", hint=_CONVERT
            )
        if offset % _MIB or length % _MIB or offset < _MIB or offset + length > window.size:
            raise DiskRefused("a region of the VHDX lies outside the file", hint=_AGAIN)
    if len(regions) != 2:
        raise DiskRefused("the VHDX lacks its block table or its metadata", hint=_AGAIN)
    return regions


def _has_parent() -> DiskRefused:
    return DiskRefused(
        "this is a differencing VHDX: half of its content is in a parent file",
        hint="merge it with its parent first (Hyper-V: Merge-VHD or Convert-VHD)",
    )


def _count(count: int) -> int:
    if count > 2047:
        raise DiskRefused(f"a VHDX table of {count} entries is not possible", hint=_AGAIN)
    return count


def _metadata(window: Window, start: int, length: int) -> _Metadata:
    table = window.read(start, 64 * _KIB)
    signature, count = struct.unpack_from("<8s2xH", table, 0)
    if signature != b"metadata":
        raise DiskRefused("the metadata of the VHDX is damaged", hint=_AGAIN)
    items: dict[UUID, bytes] = {}
    for index in range(_count(count)):
        guid, offset, size, flags = struct.unpack_from("<16sIII", table, 32 + index * 32)
        item = UUID(bytes_le=guid)
        if item == _PARENT:
            raise _has_parent()
        if item in items or (item not in _ITEM_LENGTHS and flags & 4):
            raise DiskRefused(
                f"the VHDX metadata item {item} is not known or stands twice", hint=_CONVERT
            )
        if item not in _ITEM_LENGTHS:
            continue
        if size != _ITEM_LENGTHS[item] or offset < 64 * _KIB or offset + size > length:
            raise DiskRefused("a metadata item of the VHDX is damaged", hint=_AGAIN)
        items[item] = window.read(start + offset, size)
    if missing := set(_ITEM_LENGTHS) - set(items):
        raise DiskRefused(f"the VHDX lacks {len(missing)} of its metadata items", hint=_AGAIN)
    return _checked(items)


def _checked(items: dict[UUID, bytes]) -> _Metadata:
    block, flags = struct.unpack("<II", items[_PARAMETERS])
    size = int.from_bytes(items[_SIZE], "little")
    sector = int.from_bytes(items[_LOGICAL], "little")
    if flags & 2:
        raise _has_parent()
    if flags & ~3 or not _MIB <= block <= 256 * _MIB or block & (block - 1):
        raise DiskRefused(
            f"VHDX blocks of {block} bytes (flags {flags:#x}) are not known", hint=_CONVERT
        )
    if sector not in {512, 4096}:
        raise DiskRefused(f"VHDX sectors of {sector} bytes are not known", hint=_CONVERT)
    if size == 0 or size % sector or size > 64 << 40:
        raise DiskRefused(
            f"the VHDX states a size of {size} bytes, which is not possible", hint=_AGAIN
        )
    return _Metadata(block=block, size=size, sector=sector, fixed=bool(flags & 1))


def _blocks(window: Window, metadata: _Metadata, start: int, length: int) -> Mapper:
    per_bitmap = (1 << 23) * metadata.sector // metadata.block  # blocks for each sector bitmap
    count = -(-metadata.size // metadata.block)
    entries = count + (count - 1) // per_bitmap
    if entries * 8 > length:
        raise DiskRefused("the block table of the VHDX is too short for its size", hint=_AGAIN)
    table = np.frombuffer(window.read(start, entries * 8), "<u8").astype(np.uint64)
    numbers = np.arange(count)
    table = table[numbers + numbers // per_bitmap]
    states = (table & np.uint64(7)).astype(np.uint8)
    if np.any(states == _PARTIAL):
        raise DiskRefused(
            "a block of the VHDX is only partially present, as in a differencing disk",
            hint="merge it with its parent first (Hyper-V: Merge-VHD or Convert-VHD)",
        )
    if not np.all(np.isin(states, (*_EMPTY_STATES, _PRESENT))):
        raise DiskRefused("a block of the VHDX has a state that is not known", hint=_AGAIN)
    present = np.flatnonzero(states == _PRESENT)
    places = table[present] >> np.uint64(20)
    if np.any(places < 1) or np.any(places >= np.uint64(window.size // _MIB + 1)):
        raise DiskRefused("a block of the VHDX lies outside the file", hint=_AGAIN)
    if np.any(table[present] & np.uint64(0xFFFF8)):
        raise DiskRefused("reserved bits are set in the block table of the VHDX", hint=_AGAIN)
    mapper = Mapper(metadata.size)
    mapper.add(present * metadata.block, metadata.block, Kind.DATA, places.astype(np.int64) * _MIB)
    return mapper
