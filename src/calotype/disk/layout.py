"""Where each byte of a virtual disk lies in its file, and the one disk that reads by such a map."""

import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple, Self

import numpy as np
import zstandard
from numpy.typing import NDArray

from calotype.disk.base import Disk, Extent
from calotype.disk.window import Window
from calotype.errors import DiskRefused

#: A map may have this many runs (32 bytes each): 256 GiB of compressed 64 KiB clusters.
MAX_RUNS: Final = 1 << 22

_CACHE_BYTES: Final = 16 << 20

Offsets = NDArray[np.int64]


class Kind(IntEnum):
    """What a run of the virtual disk holds."""

    ZERO = 0
    DATA = 1
    COMPRESSED = 2
    BACKING = 3  # only in our own overlays: what lies beneath


class Codec(StrEnum):
    """How the compressed runs of a layout are packed."""

    NONE = "none"
    DEFLATE = "deflate"  # qcow2: raw, with a window of 4 KiB
    ZSTD = "zstd"  # qcow2: one frame
    GRAIN = "grain"  # VMDK: a marker (LBA, length), then zlib


#: One run: ``length`` bytes of the disk at ``offset`` lie at ``start`` of the file. A compressed run is
#: one cluster, packed into at most ``packed`` bytes.
RUN: Final = np.dtype(
    [("offset", "i8"), ("length", "i8"), ("start", "i8"), ("packed", "i4"), ("kind", "u1")],
    align=True,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layout:
    """A parsed image: ``runs`` (dtype ``RUN``) are sorted, coalesced and cover ``[0, size)``.

    ``unit``: bytes that one compressed run unpacks to, even where the end of the disk cuts it short.
    """

    format: str
    variant: str
    size: int
    runs: NDArray[np.void]
    codec: Codec = Codec.NONE
    unit: int = 0

    @property
    def mapped(self) -> int:
        """Bytes of the disk that the file holds (all but zeros and what lies beneath)."""
        kinds = self.runs["kind"]
        held = (kinds == Kind.DATA) | (kinds == Kind.COMPRESSED)
        return int(self.runs["length"][held].sum())


class Mapper:
    """Builds a layout's runs from batches of equally long units in ascending order."""

    def __init__(self, size: int, *, gap: Kind = Kind.ZERO) -> None:
        self._size = size
        self._gap = gap
        self._batches: list[NDArray[np.void]] = []
        self._count = 0

    def add(
        self,
        offsets: Offsets,
        length: int | Offsets,
        kinds: NDArray[np.uint8] | Kind,
        starts: Offsets,
        packed: Offsets | None = None,
    ) -> None:
        """Add units: disk offsets, their length, kinds, places in the file, packed lengths."""
        batch = np.zeros(len(offsets), dtype=RUN)
        batch["offset"], batch["length"], batch["kind"] = offsets, length, kinds
        batch["start"] = starts
        if packed is not None:
            batch["packed"] = packed
        self.put(batch)

    def put(self, batch: NDArray[np.void]) -> None:
        """Add runs (dtype :data:`RUN`) in ascending order.

        Raises:
            DiskRefused: the disk is in more pieces than :data:`MAX_RUNS`.
        """
        batch = _coalesce(_cut(batch, self._size))
        self._batches.append(batch)
        self._count += len(batch)
        if self._count > MAX_RUNS:
            raise DiskRefused(
                f"the disk is in more than {MAX_RUNS} pieces",
                hint="convert it first: qemu-img convert -O raw",
            )

    def runs(self, file_size: int, *, overhang: int = 0) -> NDArray[np.void]:
        """All runs, gaps filled; data must lie inside the file, and no byte of it twice.

        Args:
            file_size: bytes of the file.
            overhang: how far the last data may reach over the file's end (it reads as zeros there,
                as some writers do not pad their last cluster).

        Raises:
            DiskRefused: data outside the file, or two parts of the disk on the same bytes.
        """
        runs = np.concatenate([np.zeros(0, dtype=RUN), *self._batches])
        self._batches.clear()
        _exclusive(runs)
        runs = _trim(runs, file_size, overhang)
        return _fill(_coalesce(runs), self._size, self._gap)


def _cut(runs: NDArray[np.void], size: int) -> NDArray[np.void]:
    runs = runs[runs["offset"] < size]
    runs["length"] = np.minimum(runs["length"], size - runs["offset"])
    return runs


def _coalesce(runs: NDArray[np.void]) -> NDArray[np.void]:
    if len(runs) < 2:
        return runs
    before, after = runs[:-1], runs[1:]
    kind = after["kind"]
    joined = (before["offset"] + before["length"] == after["offset"]) & (before["kind"] == kind)
    joined &= (kind != Kind.DATA) | (before["start"] + before["length"] == after["start"])
    joined &= kind != Kind.COMPRESSED
    if not joined.any():
        return runs
    first = np.flatnonzero(np.concatenate(([True], ~joined)))
    merged: NDArray[np.void] = runs[first]
    merged["length"] = np.add.reduceat(runs["length"], first)
    return merged


def _exclusive(runs: NDArray[np.void]) -> None:
    """Refuse shared bytes: they let a small file unfold without bound."""
    data = runs["kind"] == Kind.DATA
    starts, lengths = runs["start"][data], runs["length"][data]
    order = np.argsort(starts)
    starts, ends = starts[order], (starts + lengths)[order]
    packed = np.sort(runs["start"][runs["kind"] == Kind.COMPRESSED])
    if np.any(starts[1:] < ends[:-1]) or np.any(packed[1:] == packed[:-1]):
        raise DiskRefused(
            "two parts of the disk lie on the same bytes of the file",
            hint="the file is damaged or was made to deceive; qemu-img check names the places",
        )


def _trim(runs: NDArray[np.void], file_size: int, overhang: int) -> NDArray[np.void]:
    packed = runs["kind"] == Kind.COMPRESSED
    over = (runs["kind"] == Kind.DATA) & (runs["start"] + runs["length"] > file_size)
    outside = (packed | over) & (runs["start"] >= file_size)
    beyond = over & (runs["start"] + runs["length"] > file_size + overhang)
    if np.any(runs["start"] < 0) or np.any(outside | beyond):
        raise DiskRefused(
            "its tables point outside the file",
            hint="the file is truncated or damaged: fetch it again and compare its checksum",
        )
    runs["length"][over] = file_size - runs["start"][over]  # the gap after it reads as zeros
    return runs


def _fill(runs: NDArray[np.void], size: int, gap: Kind) -> NDArray[np.void]:
    ends = np.concatenate(([0], runs["offset"] + runs["length"]))
    begins = np.concatenate((runs["offset"], [size]))
    holes = np.flatnonzero(begins > ends)
    if not len(holes):
        return runs
    fill = np.zeros(len(holes), dtype=RUN)
    fill["offset"], fill["length"], fill["kind"] = ends[holes], (begins - ends)[holes], gap
    return _coalesce(np.insert(runs, holes, fill))


class MappedDisk:
    """A disk read through its layout: no parser runs after the gate, nothing but the window is read.

    Args:
        layout: the map.
        window: the file that the map speaks of; the disk owns and closes it.
        backing: what lies beneath the ``BACKING`` runs of an overlay (not closed with the disk).
    """

    def __init__(self, layout: Layout, window: Window, *, backing: Disk | None = None) -> None:
        self.layout = layout
        self._window = window
        self._backing = backing
        self._offsets = np.ascontiguousarray(layout.runs["offset"])
        self._unpacked: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """The virtual size in bytes."""
        return self.layout.size

    def extents(self) -> Iterator[Extent]:
        """Runs that cover ``[0, size)``; neighbours differ in ``zero``."""
        zero = self.layout.runs["kind"] == Kind.ZERO
        if self._backing is None:
            zero |= self.layout.runs["kind"] == Kind.BACKING
        first = np.flatnonzero(np.concatenate(([True], zero[1:] != zero[:-1])))
        offsets = [*self.layout.runs["offset"][first].tolist(), self.size]
        for offset, end, nothing in zip(offsets[:-1], offsets[1:], zero[first], strict=True):
            yield Extent(offset, end - offset, bool(nothing))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes at ``offset``.

        Raises:
            DiskRefused: a compressed cluster is damaged.
            ValueError: the bytes are not all inside the disk.
        """
        end = offset + len(buffer)
        if offset < 0 or end > self.size:
            raise ValueError(f"bytes {offset} to {end} of a disk of {self.size}")
        first = int(self._offsets.searchsorted(offset, "right")) - 1
        last = int(self._offsets.searchsorted(end))
        for run in map(_Run._make, self.layout.runs[first:last].tolist()):
            begin = max(offset, run.offset)
            part = buffer[begin - offset : min(end, run.offset + run.length) - offset]
            self._read_run(run, begin - run.offset, part)

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        self._window.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_run(self, run: "_Run", skip: int, part: memoryview) -> None:
        if run.kind == Kind.DATA:
            self._window.read_into(run.start + skip, part)
        elif run.kind == Kind.COMPRESSED:
            part[:] = self._unpack(run)[skip : skip + len(part)]
        elif run.kind == Kind.BACKING and self._backing is not None:
            _read_beneath(self._backing, run.offset + skip, part)
        else:
            part[:] = bytes(len(part))

    def _unpack(self, run: "_Run") -> bytes:
        with self._lock:
            if (known := self._unpacked.get(run.offset)) is not None:
                self._unpacked.move_to_end(run.offset)
                return known
        raw = self._window.read(run.start, min(run.packed, self._window.size - run.start))
        try:
            data = _UNPACK[self.layout.codec](raw, self.layout.unit, run)
        except (zlib.error, zstandard.ZstdError, ValueError) as error:
            raise DiskRefused(
                f"the compressed cluster of byte {run.offset} is damaged ({error})",
                hint="fetch the file again and compare its checksum",
            ) from None
        with self._lock:
            self._unpacked[run.offset] = data
            while len(self._unpacked) * self.layout.unit > _CACHE_BYTES:
                self._unpacked.popitem(last=False)
        return data


class _Run(NamedTuple):
    """A row of ``RUN`` as plain integers."""

    offset: int
    length: int
    start: int
    packed: int
    kind: int


def _read_beneath(backing: Disk, offset: int, part: memoryview) -> None:
    inside = max(0, min(len(part), backing.size - offset))
    if inside:
        backing.read_into(offset, part[:inside])
    part[inside:] = bytes(len(part) - inside)


def _deflate(raw: bytes, unit: int, _run: _Run) -> bytes:
    return _whole(zlib.decompressobj(-12).decompress(raw, unit), unit)


def _zstd(raw: bytes, unit: int, _run: _Run) -> bytes:
    stated = zstandard.get_frame_parameters(raw).content_size
    if stated not in {unit, zstandard.CONTENTSIZE_UNKNOWN}:
        raise ValueError(f"it states {stated} bytes instead of {unit}")  # and would allocate them
    return _whole(zstandard.ZstdDecompressor().decompress(raw, max_output_size=unit), unit)


def _grain(raw: bytes, unit: int, run: _Run) -> bytes:
    sector, length = int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:12], "little")
    if sector * 512 != run.offset or not 0 < length <= len(raw) - 12:
        raise ValueError("its marker belongs to another grain")
    stream = zlib.decompressobj()
    data = stream.decompress(raw[12 : 12 + length], unit)
    if stream.decompress(stream.unconsumed_tail, 1) or not stream.eof:
        raise ValueError("it does not end with the grain")
    return _whole(data, min(unit, max(run.length, len(data))))  # the disk's last grain may be short


def _whole(data: bytes, unit: int) -> bytes:
    if len(data) != unit:
        raise ValueError(f"it unpacks to {len(data)} bytes instead of {unit}")
    return data


_UNPACK = {Codec.DEFLATE: _deflate, Codec.ZSTD: _zstd, Codec.GRAIN: _grain}
