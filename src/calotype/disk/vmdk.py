"""VMware's VMDK in one file: monolithicSparse and streamOptimized, as in its specification 5.0.

The embedded descriptor is read by an allow-list: every line must be known, and it may name no file but
its own extent, by a bare name. Where the file holds two grain tables they must be equal, since readers
differ in which one they believe.
"""

import os
import re
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from calotype.disk.layout import Codec, Kind, Layout, Mapper
from calotype.disk.window import Window
from calotype.errors import DiskRefused

MAGIC: Final = b"KDMV"

_SECTOR: Final = 512
_PER_TABLE: Final = 512
_AT_END: Final = (1 << 64) - 1

_NEWLINES, _REDUNDANT, _ZERO_GRAINS, _PACKED, _MARKERS = 1, 2, 4, 1 << 16, 1 << 17
_KNOWN_FLAGS: Final = _NEWLINES | _REDUNDANT | _ZERO_GRAINS | _PACKED | _MARKERS
_BATCH: Final = 2048  # grain tables at a time

_KEYS: Final = {"version", "encoding", "CID", "parentCID", "isNativeSnapshot", "createType"}
_DDB: Final = re.compile(r'ddb\.[A-Za-z0-9_.]+ ?= ?"[^"\\/]*"')
_EXTENT: Final = re.compile(r'(RW|RDONLY) (\d{1,15}) SPARSE "([^"/\\:]{1,255})"')

_AGAIN: Final = "the file is truncated or damaged: fetch it again and compare its checksum"
_CONVERT: Final = "convert it where it was made: qemu-img convert -O qcow2 IN OUT"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """The sparse extent header. ``capacity`` and ``grain`` in bytes, places as byte offsets."""

    version: int
    flags: int
    capacity: int
    grain: int
    descriptor: int
    descriptor_length: int
    redundant: int
    directory: int

    @property
    def packed(self) -> bool:
        return bool(self.flags & _PACKED)


def parse(window: Window) -> Layout:
    """The map of a VMDK that is one sparse extent with its descriptor inside.

    Raises:
        DiskRefused: it names other files, has a parent, is damaged, or not understood.
    """
    header = _header(window.read(0, _SECTOR), window.size)
    variant = _descriptor(window, header)
    if header.packed != (variant == "streamOptimized"):
        raise DiskRefused(f"the VMDK says {variant}, but its header does not", hint=_CONVERT)
    if header.directory == _AT_END * _SECTOR:
        header = _footer(window, header)
    mapper = Mapper(header.capacity)
    _map(window, header, mapper)
    return Layout(
        format="vmdk",
        variant=variant,
        size=header.capacity,
        runs=mapper.runs(window.size, overhang=0 if header.packed else header.grain - 1),
        codec=Codec.GRAIN if header.packed else Codec.NONE,
        unit=header.grain,
    )


def _header(raw: bytes, file_size: int) -> _Header:
    magic, version, flags, capacity, grain, place, length, per_table, redundant, directory = (
        struct.unpack_from("<4sIIQQQQIQQ", raw, 0)
    )
    ends, algorithm = raw[73:77], int.from_bytes(raw[77:79], "little")
    if magic != MAGIC or version not in {1, 2, 3}:
        raise DiskRefused(f"VMDK version {version} is not known", hint=_CONVERT)
    entries = capacity // max(1, grain * per_table)
    if entries * 4 > file_size:
        raise DiskRefused(
            f"the VMDK's grain directory of {entries} entries is larger than the file", hint=_AGAIN
        )
    if unknown := flags & ~_KNOWN_FLAGS:
        raise DiskRefused(f"VMDK flags {unknown:#x} are not known", hint=_CONVERT)
    if flags & _NEWLINES and ends != b"\n \r\n":
        raise DiskRefused(
            "the VMDK was damaged by a transfer as text", hint="transfer it as binary"
        )
    if bool(flags & _PACKED) != bool(flags & _MARKERS) or algorithm != (
        1 if flags & _PACKED else 0
    ):
        raise DiskRefused(f"VMDK compression {algorithm} is not known", hint=_CONVERT)
    if capacity == 0 or capacity > 1 << 46:
        raise DiskRefused(f"the VMDK states a capacity of {capacity} sectors", hint=_CONVERT)
    if not 1 <= grain <= 2048 or grain & (grain - 1) or per_table != _PER_TABLE:
        raise DiskRefused(
            f"VMDK grains of {grain} sectors, {per_table} to a table, are not known", hint=_CONVERT
        )
    return _Header(
        version=version,
        flags=flags,
        capacity=capacity * _SECTOR,
        grain=grain * _SECTOR,
        descriptor=place,
        descriptor_length=length,
        redundant=redundant * _SECTOR,
        directory=directory * _SECTOR,
    )


def _descriptor(window: Window, header: _Header) -> str:
    """Check the embedded descriptor by an allow-list; return its createType."""
    # Sector 1 is where every writer puts it, and where readers look that ignore the header.
    if header.descriptor != 1 or not 1 <= header.descriptor_length <= 2048:
        raise DiskRefused("the VMDK has no embedded descriptor", hint=_CONVERT)
    raw, _, rest = window.read(_SECTOR, header.descriptor_length * _SECTOR).partition(b"\0")
    # QEMU shortens the text in place when its CID shrinks, and leaves its last bytes behind the NUL.
    if not raw.endswith(rest.strip(b"\0")):
        raise DiskRefused("the VMDK's descriptor goes on after its end", hint=_CONVERT)
    try:
        lines = [line.rstrip(" \r") for line in raw.decode("utf-8").split("\n")]
    except UnicodeDecodeError:
        raise DiskRefused("the VMDK's descriptor is no text", hint=_CONVERT) from None
    if lines[0] != "# Disk DescriptorFile" or "\t" in raw.decode() or b"parentFileNameHint" in raw:
        raise DiskRefused("the VMDK's descriptor is not understood", hint=_CONVERT)
    values: dict[str, str] = {}
    extents = [match for line in lines if (match := _line(line, values))]
    return _values(header, values, extents)


def _line(line: str, values: dict[str, str]) -> re.Match[str] | None:
    """Put a ``key=value`` line into ``values``, or return an extent line; refuse what is unknown."""
    if not line or line.startswith("#") or _DDB.fullmatch(line):
        return None
    if extent := _EXTENT.fullmatch(line):
        return extent
    key, equals, value = line.partition("=")
    key = key.rstrip(" ")
    if not equals or key not in _KEYS or key in values:
        if re.match(r"(RW|RDONLY|NOACCESS)\b", line):
            raise DiskRefused(
                f"the VMDK's descriptor names data elsewhere: {line[:120]!r}", hint=_CONVERT
            )
        raise DiskRefused(
            f"the VMDK's descriptor has an unknown line: {line[:120]!r}", hint=_CONVERT
        )
    values[key] = value.strip(' "')
    return None


def _values(header: _Header, values: dict[str, str], extents: list[re.Match[str]]) -> str:
    kind = values.get("createType")
    if kind not in {"monolithicSparse", "streamOptimized"}:
        raise DiskRefused(
            f"a VMDK of type {kind} is not accepted: only monolithicSparse and streamOptimized",
            hint=_CONVERT,
        )
    if values.get("version") not in {"1", "2", "3"}:
        raise DiskRefused("the version of the VMDK's descriptor is not known", hint=_CONVERT)
    if values.get("parentCID", "").lower() != "ffffffff" or values.get("isNativeSnapshot") == "yes":
        raise DiskRefused(
            "this VMDK is a snapshot: a part of its content is in a parent file",
            hint="consolidate the snapshots where it was made",
        )
    if len(extents) != 1:
        raise DiskRefused(f"the VMDK names {len(extents)} extents instead of one", hint=_CONVERT)
    if int(extents[0][2]) * _SECTOR != header.capacity:
        raise DiskRefused("the VMDK's header and descriptor state different sizes", hint=_CONVERT)
    return kind


def _footer(window: Window, header: _Header) -> _Header:
    """The header at the end of a stream: it alone knows where the grain directory is."""
    tail = window.read(window.size - 3 * _SECTOR, 3 * _SECTOR)
    if tail[:16] != struct.pack("<QII", 1, 0, 3) or any(tail[1024:]):
        raise DiskRefused("the VMDK stream has no footer", hint=_AGAIN)
    footer = _header(tail[512:1024], window.size)
    same = ("version", "flags", "capacity", "grain", "descriptor", "descriptor_length")
    if any(getattr(footer, name) != getattr(header, name) for name in same):
        raise DiskRefused("the VMDK's footer contradicts its header", hint=_AGAIN)
    if footer.directory == _AT_END * _SECTOR:
        raise DiskRefused("the VMDK's footer does not say where its tables are", hint=_AGAIN)
    return footer


def _map(window: Window, header: _Header, mapper: Mapper) -> None:
    count = -(-header.capacity // (header.grain * _PER_TABLE))
    tables = _directory(window, header.directory, count)
    others = None
    if header.flags & _REDUNDANT and not header.packed:
        others = _directory(window, header.redundant, count)
        if np.any((others == 0) != (tables == 0)):
            raise DiskRefused("the two grain directories of the VMDK differ", hint=_CONVERT)
    indexes = np.flatnonzero(tables)
    if len(np.unique(tables[indexes])) != len(indexes):
        raise DiskRefused("two parts of the VMDK share one grain table", hint=_CONVERT)
    for first in range(0, len(indexes), _BATCH):
        batch = indexes[first : first + _BATCH]
        grains = window.gather(tables[batch], _PER_TABLE * 4)
        if others is not None and not np.array_equal(
            grains, window.gather(others[batch], _PER_TABLE * 4)
        ):
            raise DiskRefused("the two grain tables of the VMDK differ", hint=_CONVERT)
        numbers = (batch[:, None] * _PER_TABLE + np.arange(_PER_TABLE)).reshape(-1)
        _add(header, mapper, numbers, grains.reshape(-1).view("<u4").astype(np.int64))


def _directory(window: Window, place: int, count: int) -> NDArray[np.int64]:
    return np.frombuffer(window.read(place, count * 4), "<u4").astype(np.int64) * _SECTOR


def _add(
    header: _Header,
    mapper: Mapper,
    numbers: NDArray[np.int64],
    sectors: NDArray[np.int64],
) -> None:
    used = np.flatnonzero(sectors)
    numbers, sectors = numbers[used], sectors[used]
    zero = sectors == 1
    if np.any(zero) and not header.flags & _ZERO_GRAINS:
        raise DiskRefused("the VMDK has zero grains, but its header does not say so", hint=_CONVERT)
    offsets, starts = numbers * header.grain, np.where(zero, 0, sectors * _SECTOR)
    if not header.packed:
        kinds = np.where(zero, Kind.ZERO, Kind.DATA).astype(np.uint8)
        mapper.add(offsets, header.grain, kinds, starts)
        return
    kinds = np.where(zero, Kind.ZERO, Kind.COMPRESSED).astype(np.uint8)
    # The true length stands in the marker before each grain; deflate never needs more than this.
    most = np.full(len(used), 2 * header.grain + _SECTOR, dtype=np.int64)
    mapper.add(offsets, header.grain, kinds, starts, most)


def rename_extent(fd: int, name: str) -> None:
    """Make the embedded descriptor of a VMDK that we have just written call its extent ``name``."""
    length = int.from_bytes(os.pread(fd, 8, 36), "little") * _SECTOR
    text = os.pread(fd, length, _SECTOR).partition(b"\0")[0].decode()
    bare = re.sub(r'[\\/:"\x00-\x1f]', "_", name)[:200]
    text = re.sub(r'(?m)^(RW|RDONLY) (\d+) SPARSE ".*"', rf'\1 \2 SPARSE "{bare}"', text)
    raw = text.encode()
    if len(raw) < length:  # else the old name stays, which does no harm
        os.pwrite(fd, raw.ljust(length, b"\0"), _SECTOR)
