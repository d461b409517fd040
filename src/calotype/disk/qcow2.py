"""QEMU's qcow2, versions 2 and 3, as in ``docs/interop/qcow2.txt`` of QEMU.

Accepted with reason: *snapshots* (the active tables alone are read), *dirty* (it speaks of reference
counts, which a reader does not use; the mapping tables are always written in order), bitmaps and
lazy reference counts (likewise). Refused: what reads another file, encryption, *corrupt*, and every
feature bit, header extension and reserved bit that is not known here.
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from calotype.disk.layout import RUN, Codec, Kind, Layout, Mapper
from calotype.disk.window import Window
from calotype.errors import DiskRefused

MAGIC: Final = b"QFI\xfb"

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED = (1 << bit for bit in range(5))
_KNOWN: Final = _DIRTY | _COMPRESSION | _EXTENDED

_OFFSET: Final = np.uint64(0x00FF_FFFF_FFFF_FE00)
_L1_RESERVED: Final = np.uint64(0x7F00_0000_0000_01FF)
_L2_RESERVED: Final = np.uint64(0x3F00_0000_0000_01FE)
_PACKED: Final = np.uint64(1 << 62)
_COPIED: Final = np.uint64(1 << 63)

_EXTENSIONS: Final = {
    0xE2792ACA: "backing format",
    0x6803F857: "feature names",
    0x23852875: "bitmaps",
}
_BATCH: Final = 1 << 20  # bytes of tables at a time

Words = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    version: int
    cluster: int  # bytes
    size: int
    l1_offset: int
    l1_entries: int
    zstd: bool
    extended: bool

    @property
    def per_table(self) -> int:
        """Clusters that one L2 table maps."""
        return self.cluster // (16 if self.extended else 8)


def parse(window: Window, *, overlay: bool = False) -> Layout:
    """The map of a qcow2 image.

    Args:
        window: the file. The file of a *running* VM must never be given: its tables are in memory.
        overlay: the file is our own overlay: clusters that it lacks become ``BACKING`` runs, and the
            name of a backing file in the header is ignored.

    Raises:
        DiskRefused: it reads another file, is encrypted, damaged, or not understood.
    """
    header = _header(window, overlay=overlay)
    mapper = Mapper(header.size, gap=Kind.BACKING if overlay else Kind.ZERO)
    indexes, tables = _l1(window, header)
    step = max(1, _BATCH // (16 if header.extended else 1) // header.cluster)
    for first in range(0, len(indexes), step):
        batch = slice(first, first + step)
        words = window.gather(tables[batch], header.cluster).reshape(-1).view(">u8")
        base = indexes[batch] * header.per_table
        numbers = (base[:, None] + np.arange(header.per_table)).reshape(-1)
        if header.extended:
            _map_subclusters(mapper, header, numbers, words.astype(np.uint64))
        else:
            _map_clusters(mapper, header, numbers, words.astype(np.uint64))
    codec = Codec.ZSTD if header.zstd else Codec.DEFLATE
    return Layout(
        format="qcow2",
        variant=f"version {header.version}",
        size=header.size,
        runs=mapper.runs(window.size, overhang=header.cluster - 1),
        codec=codec,
        unit=header.cluster,
    )


def _header(window: Window, *, overlay: bool) -> _Header:
    raw = window.read(0, min(window.size, 112)).ljust(112, b"\0")
    magic, version, backing, _length, bits, size, crypt = struct.unpack_from(">4sIQIIQI", raw, 0)
    l1_entries, l1_offset = struct.unpack_from(">IQ", raw, 36)
    incompatible, autoclear, length, compression = 0, 0, 72, 0
    if magic != MAGIC or version not in {2, 3}:
        raise DiskRefused(f"qcow2 version {version} is not known", hint=_CONVERT)
    if version == 3:
        incompatible, _compatible, autoclear = struct.unpack_from(">QQQ", raw, 72)
        (length,) = struct.unpack_from(">I", raw, 100)
        compression = raw[104] if length > 104 else 0
        if not 104 <= length <= 4096 or length % 8:
            raise DiskRefused(f"a qcow2 header of {length} bytes is not known", hint=_CONVERT)
    if backing and not overlay:
        raise DiskRefused(
            "this qcow2 has a backing file: a part of its content is in another file",
            hint="merge the two where both are: qemu-img convert -O qcow2 IN OUT",
        )
    if crypt:
        raise DiskRefused("this qcow2 is encrypted", hint="decrypt it first with qemu-img convert")
    _features(incompatible, compression)
    if autoclear & ~1:  # bit 0: bitmaps; bit 1: the data are in another file
        raise DiskRefused(f"qcow2 autoclear bits {autoclear:#x} are not known", hint=_CONVERT)
    if not 9 <= bits <= 21 or (incompatible & _EXTENDED and bits < 14):
        raise DiskRefused(f"a qcow2 cluster size of 2^{bits} bytes is not known", hint=_CONVERT)
    if size == 0 or size % 512:
        raise DiskRefused(
            f"the qcow2 states a size of {size} bytes, not whole sectors", hint=_CONVERT
        )
    _extensions(window, length, min(1 << bits, window.size, backing or window.size))
    return _Header(
        version=version,
        cluster=1 << bits,
        size=size,
        l1_offset=l1_offset,
        l1_entries=l1_entries,
        zstd=compression == 1,
        extended=bool(incompatible & _EXTENDED),
    )


_CONVERT: Final = "convert it with qemu-img convert -O qcow2"


def _features(incompatible: int, compression: int) -> None:
    if incompatible & _DATA_FILE:
        raise DiskRefused(
            "this qcow2 keeps its data in another file",
            hint="convert it where both are: qemu-img convert -O qcow2 IN OUT",
        )
    if incompatible & _CORRUPT:
        raise DiskRefused(
            "this qcow2 is marked corrupt", hint="repair a copy of it: qemu-img check -r all"
        )
    if unknown := incompatible & ~_KNOWN:
        raise DiskRefused(f"qcow2 feature bits {unknown:#x} are not known", hint=_CONVERT)
    if compression != (1 if incompatible & _COMPRESSION else 0):
        raise DiskRefused(f"qcow2 compression type {compression} is not known", hint=_CONVERT)


def _extensions(window: Window, position: int, end: int) -> None:
    """Walk the header extensions up to the end mark, and refuse those that are not known."""
    while position + 8 <= end:
        kind, length = struct.unpack(">II", window.read(position, 8))
        if kind == 0:
            return
        if kind not in _EXTENSIONS:
            known = {0x44415441: " (data in another file)", 0x0537BE77: " (encryption)"}
            raise DiskRefused(
                f"the qcow2 header extension {kind:#010x}{known.get(kind, '')} is not accepted",
                hint=_CONVERT,
            )
        position += 8 + -(-length // 8) * 8
    if position > end:
        raise DiskRefused("the qcow2 header extensions leave the header", hint="fetch it again")


def _l1(window: Window, header: _Header) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indexes of the L1 entries in use, and the file offsets of their L2 tables."""
    needed = -(-header.size // (header.per_table * header.cluster))
    if header.l1_entries < needed:
        raise DiskRefused(
            f"the qcow2's L1 table has {header.l1_entries} entries where the disk needs {needed}",
            hint="the file is damaged: fetch it again",
        )
    if header.l1_offset % header.cluster or header.l1_offset == 0:
        raise DiskRefused("the qcow2's L1 table is not aligned", hint="fetch it again")
    if needed * 8 > window.size:
        raise DiskRefused("the qcow2's L1 table is larger than the file", hint="fetch it again")
    entries = np.frombuffer(window.read(header.l1_offset, needed * 8), ">u8").astype(np.uint64)
    tables = (entries & _OFFSET).astype(np.int64)
    if np.any(entries & _L1_RESERVED) or np.any(tables % header.cluster):
        raise DiskRefused("the qcow2's L1 table is damaged", hint="run qemu-img check")
    indexes = np.flatnonzero(tables)
    tables = tables[indexes]
    if len(np.unique(tables)) != len(tables):
        raise DiskRefused(
            "two parts of the qcow2 share one L2 table", hint="run qemu-img check -r all on a copy"
        )
    return indexes, tables


def _map_clusters(
    mapper: Mapper, header: _Header, numbers: NDArray[np.int64], words: Words
) -> None:
    used = np.flatnonzero(words & ~_COPIED)
    words, numbers = words[used], numbers[used]
    packed = (words & _PACKED) != 0
    zero = ~packed & ((words & np.uint64(1)) != 0)
    if header.version == 2 and np.any(zero):
        raise DiskRefused("a qcow2 of version 2 has zero clusters", hint="run qemu-img check")
    starts = _hosts(header, words, packed)
    kinds = np.where(packed, Kind.COMPRESSED, np.where(zero, Kind.ZERO, Kind.DATA)).astype(np.uint8)
    starts[zero] = 0
    lengths = _unpack_descriptors(header, words, packed, starts)
    mapper.add(numbers * header.cluster, header.cluster, kinds, starts, lengths)


def _hosts(header: _Header, words: Words, packed: NDArray[np.bool_]) -> NDArray[np.int64]:
    plain = words[~packed]
    hosts = (words & _OFFSET).astype(np.int64)
    if np.any(plain & _L2_RESERVED) or np.any(hosts[~packed] % header.cluster):
        raise DiskRefused("an L2 table of the qcow2 is damaged", hint="run qemu-img check")
    return hosts


def _unpack_descriptors(
    header: _Header, words: Words, packed: NDArray[np.bool_], starts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Set ``starts`` of compressed clusters; return how many bytes each may take."""
    shift = np.uint64(62 - (header.cluster.bit_length() - 1 - 8))
    place = (words[packed] & ((np.uint64(1) << shift) - np.uint64(1))).astype(np.int64)
    sectors = ((words[packed] & ~(_PACKED | _COPIED)) >> shift).astype(np.int64) + 1
    starts[packed] = place
    lengths = np.zeros(len(words), dtype=np.int64)
    lengths[packed] = sectors * 512 - place % 512
    return lengths


def _map_subclusters(
    mapper: Mapper, header: _Header, numbers: NDArray[np.int64], words: Words
) -> None:
    """Extended L2 entries: 32 parts of a cluster, each allocated, zero or absent."""
    entries, bitmaps = words[0::2], words[1::2]
    used = np.flatnonzero((entries & ~_COPIED) | bitmaps)
    entries, bitmaps, numbers = entries[used], bitmaps[used], numbers[used]
    packed = (entries & _PACKED) != 0
    here, zero = bitmaps & np.uint64(0xFFFFFFFF), bitmaps >> np.uint64(32)
    hosts = _hosts(header, entries, packed)
    wrong = (here & zero) != 0
    wrong |= packed & (bitmaps != 0)
    wrong |= ~packed & (((entries & np.uint64(1)) != 0) | ((hosts == 0) & (here != 0)))
    if np.any(wrong):
        raise DiskRefused("an extended L2 entry of the qcow2 is damaged", hint="run qemu-img check")
    lengths = _unpack_descriptors(header, entries, packed, hosts)
    grid = _parts(header, numbers, hosts, here, zero)
    # A compressed cluster has no parts: it stands as one run in the place of its first.
    first = grid[packed, 0]
    first["kind"], first["length"] = Kind.COMPRESSED, header.cluster
    first["start"], first["packed"] = hosts[packed], lengths[packed]
    grid[packed, 0] = first
    mapper.put(grid[grid["length"] > 0])


def _parts(
    header: _Header, numbers: NDArray[np.int64], hosts: NDArray[np.int64], here: Words, zero: Words
) -> NDArray[np.void]:
    """The 32 parts of each cluster as runs of shape ``(clusters, 32)``; absent ones have length 0."""
    part = header.cluster // 32
    bit, place = np.arange(32, dtype=np.uint64), np.arange(32) * part
    data = ((here[:, None] >> bit) & np.uint64(1)) != 0
    nothing = ((zero[:, None] >> bit) & np.uint64(1)) != 0
    grid = np.zeros((len(numbers), 32), dtype=RUN)
    grid["offset"] = numbers[:, None] * header.cluster + place
    grid["length"] = np.where(data | nothing, part, 0)
    grid["kind"] = np.where(data, Kind.DATA, Kind.ZERO)
    grid["start"] = np.where(data, hosts[:, None] + place, 0)
    return grid
