"""Virtual PC's and Hyper-V's VHD, fixed and dynamic, as in Microsoft's specification 1.0.

The sector bitmaps of a dynamic disk are not read: like QEMU, and unlike a differencing disk, a block
that is there is there as a whole.
"""

import struct
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from calotype.disk.layout import Kind, Layout, Mapper
from calotype.disk.raw import plain
from calotype.disk.window import Window
from calotype.errors import DiskRefused

#: Whose word counts for a VHD's size: the footer's Current Size (Azure) or its geometry (Virtual PC).
SizeRule = Literal["current", "geometry"]

COOKIE: Final = b"conectix"
FOOTER: Final = 512
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4

#: C/H/S of every disk too big for a geometry: it says nothing about the size.
_MAX_GEOMETRY: Final = 65535 * 16 * 255 * 512
_AGAIN: Final = "the file is truncated or damaged: fetch it again and compare its checksum"
_UNALLOCATED: Final = 0xFFFFFFFF
#: Writers whose geometry is a formality, so that QEMU too goes by the Current Size.
_SIZED_CREATORS: Final = (b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS")


@dataclass(frozen=True, kw_only=True, slots=True)
class Footer:
    """The fields of a hard-disk footer that decide what the disk is. Sizes in bytes."""

    kind: int
    current_size: int
    geometry_size: int
    creator: bytes
    data_offset: int
    unique_id: bytes

    def size(self, rule: SizeRule) -> int:
        """The virtual size by ``rule``; "geometry" makes the exceptions that QEMU makes."""
        sized = self.creator in _SIZED_CREATORS or self.geometry_size == _MAX_GEOMETRY
        return self.current_size if rule == "current" or sized else self.geometry_size


def parse_footer(raw: bytes) -> Footer:
    """Read a footer of 512 bytes.

    Raises:
        DiskRefused: it is damaged, or of a kind that is not accepted.
    """
    cookie, _features, version, data_offset = struct.unpack_from(">8sIIQ", raw, 0)
    creator, _original, current = raw[28:32], *struct.unpack_from(">QQ", raw, 40)
    cylinders, heads, sectors, kind, checksum = struct.unpack_from(">HBBII", raw, 56)
    if cookie != COOKIE:
        raise DiskRefused("the VHD has no footer", hint="the file is truncated: fetch it again")
    if checksum != checksum_of(raw, 64):
        raise DiskRefused("the checksum of the VHD's footer is wrong", hint="fetch it again")
    if version >> 16 != 1:
        raise DiskRefused(
            f"VHD version {version:#x} is not known", hint="convert it to a fixed VHD"
        )
    if kind == DIFFERENCING:
        raise DiskRefused(
            "this is a differencing VHD: half of its content is in a parent file",
            hint="merge it with its parent first (Hyper-V: Convert-VHD, VirtualBox: clonemedium)",
        )
    if kind not in {FIXED, DYNAMIC}:
        raise DiskRefused(f"VHD type {kind} is not known", hint="convert it to a fixed VHD")
    return Footer(
        kind=kind,
        current_size=current,
        geometry_size=cylinders * heads * sectors * 512,
        creator=creator,
        data_offset=data_offset,
        unique_id=raw[68:84],
    )


def checksum_of(raw: bytes, place: int) -> int:
    """The one's complement of the sum of all bytes but the four of the checksum at ``place``."""
    return ~(sum(raw) - sum(raw[place : place + 4])) & 0xFFFFFFFF


def parse(window: Window, *, size_rule: SizeRule = "current") -> Layout:
    """The map of a fixed or dynamic VHD.

    Raises:
        DiskRefused: it is differencing, truncated, damaged, or not understood.
    """
    if window.size < 2 * FOOTER:
        raise DiskRefused("the file is too short for a VHD", hint="fetch it again")
    head = window.read(0, FOOTER)
    if not head.startswith(COOKIE):
        footer = parse_footer(window.read(window.size - FOOTER, FOOTER))
        return _fixed(window, footer, _size(footer, size_rule))
    copy = parse_footer(head)
    if copy.kind != DYNAMIC:
        raise DiskRefused("the VHD says that it is fixed, but begins as a dynamic one", hint=_AGAIN)
    layout = _dynamic(window, copy, _size(copy, size_rule))
    if parse_footer(window.read(window.size - FOOTER, FOOTER)) != copy:
        raise DiskRefused(
            "the two footers of the VHD differ",
            hint="repair it where it was made, or convert it to a fixed VHD there",
        )
    return layout


def _size(footer: Footer, rule: SizeRule) -> int:
    size = footer.size(rule)
    if size == 0 or size % 512:
        raise DiskRefused(f"the VHD states a size of {size} bytes, not whole sectors", hint=_AGAIN)
    return size


def _fixed(window: Window, footer: Footer, size: int) -> Layout:
    if footer.kind != FIXED:
        raise DiskRefused(
            "the VHD says that it is dynamic, but lacks its beginning", hint="fetch it again"
        )
    if window.size != footer.current_size + FOOTER or size > footer.current_size:
        raise DiskRefused(
            f"a fixed VHD of {footer.current_size} bytes must be a file of "
            f"{footer.current_size + FOOTER} bytes, and this one has {window.size}",
            hint="the file is truncated or was changed: fetch it again",
        )
    return plain(window, size, "vhd", "fixed")


def _dynamic(window: Window, footer: Footer, size: int) -> Layout:
    table, entries, block = _dynamic_header(window, footer.data_offset)
    needed = -(-size // block)
    if entries < needed:
        raise DiskRefused(
            f"the VHD's table has {entries} entries where the disk needs {needed}",
            hint="the file is damaged: fetch it again",
        )
    bat = np.frombuffer(window.read(table, entries * 4), dtype=">u4")[:needed].astype(np.int64)
    bitmap = -(-block // (512 * 8 * 512)) * 512
    present = np.flatnonzero(bat != _UNALLOCATED)
    starts = bat[present] * 512 + bitmap
    if np.any(starts + block > window.size - FOOTER):
        raise DiskRefused(
            "a block of the VHD lies outside the file", hint="the file is truncated: fetch it again"
        )
    mapper = Mapper(size)
    mapper.add(present * block, block, Kind.DATA, starts)
    return Layout(
        format="vhd", variant="dynamic", size=size, runs=mapper.runs(window.size - FOOTER)
    )


def _dynamic_header(window: Window, place: int) -> tuple[int, int, int]:
    """Where the block table lies, how many entries it has, and the block size in bytes."""
    head = window.read(place, 40)
    cookie, _next, table, version, entries, block, checksum = struct.unpack(">8sQQIIII", head)
    if cookie != b"cxsparse" or version >> 16 != 1:
        raise DiskRefused("the VHD's dynamic header is not understood", hint="fetch it again")
    if entries * 4 > window.size:
        raise DiskRefused(
            f"the VHD's table of {entries} entries is larger than the file", hint=_AGAIN
        )
    if checksum != checksum_of(window.read(place, 1024), 36):
        raise DiskRefused(
            "the checksum of the VHD's dynamic header is wrong", hint="fetch it again"
        )
    if block < 512 or block & (block - 1) or block > 1 << 28:
        raise DiskRefused(
            f"a VHD block size of {block} bytes is not known", hint="convert it to a fixed VHD"
        )
    return table, entries, block
