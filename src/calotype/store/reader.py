"""Reading back: frames by the pack, leaves by the digest, and an Index as a Disk.

Nothing is handed out before its digest was compared: what comes from a store may be damaged or hostile.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from calotype.disk.base import Extent
from calotype.errors import InvalidInput, NotFound, StoreDamaged
from calotype.store.codec import decode
from calotype.store.digest import Bytes32, Domain, Ints, as_rows
from calotype.store.index import Leaf, Root
from calotype.store.lookup import LOW, SHIFT
from calotype.store.objects import ReadableStore, read_again
from calotype.store.pack import Kind, Pack
from calotype.store.packset import PackSet

_CACHE = 32 << 20  # raw bytes of frames that are kept
_ROWS = 1 << 18  # of parsed leaves that a disk keeps; about 100 bytes each
_NEAR = 64 << 10  # frames closer than this are read together
_TOGETHER = 4 << 20  # stored bytes read at once
_TRIES = 10  # lookups for bytes whose pack vanishes each time before they are read
_HINT = "run `calotype store check` to see which images are touched"

FrameKey = tuple[int, int]  # pack number, frame number


class FrameReader:
    """Reads, decompresses and verifies frames, and keeps the last ones. Safe for several threads."""

    def __init__(
        self, objects: ReadableStore, packs: PackSet, domain: Domain, *, cache: int = _CACHE
    ) -> None:
        self._objects = objects
        self._packs = packs
        self._domain = domain
        self._lock = threading.Lock()
        self._cache: OrderedDict[FrameKey, bytes] = OrderedDict()
        self._room = cache

    def frames(self, keys: Sequence[FrameKey]) -> dict[FrameKey, bytes]:
        """The raw bytes of these frames, every chunk in them verified.

        Raises:
            StoreDamaged: a frame does not hold what its pack's footer says.
            NotFound: a pack is gone; it is forgotten, so that the next lookup finds another one.
        """
        found: dict[FrameKey, bytes] = {}
        with self._lock:
            for key in keys:
                if (data := self._cache.get(key)) is not None:
                    self._cache.move_to_end(key)
                    found[key] = data
        absent = sorted({key for key in keys if key not in found})
        for group in self._together(absent):
            found.update(self._load(group))
        return found

    def _together(self, keys: Sequence[FrameKey]) -> Iterator[list[FrameKey]]:
        """Runs of frames that lie near each other in one pack."""
        group: list[FrameKey] = []
        start = end = 0
        for key in keys:
            pack = self._packs.pack(key[0])
            first = int(pack.frame_offset[key[1]])
            last = first + int(pack.frame_stored[key[1]])
            near = group and group[0][0] == key[0] and first - end <= _NEAR
            if group and not (near and last - start <= _TOGETHER):
                yield group
                group = []
            if not group:
                start = first
            group.append(key)
            end = last
        if group:
            yield group

    def _load(self, group: list[FrameKey]) -> dict[FrameKey, bytes]:
        pack = self._packs.pack(group[0][0])
        start = int(pack.frame_offset[group[0][1]])
        last = group[-1][1]
        end = int(pack.frame_offset[last]) + int(pack.frame_stored[last])
        try:
            try:
                found = self._read(self._objects, pack, group, start, end)
            except StoreDamaged:
                found = self._read(read_again(self._objects, pack.key), pack, group, start, end)
        except NotFound:
            self._packs.forget([pack.key])
            raise
        with self._lock:
            for key, data in found.items():
                if key not in self._cache:
                    self._cache[key] = data
                    self._room -= len(data)
            while self._room < 0:
                self._room += len(self._cache.popitem(last=False)[1])
        return found

    def _read(
        self, objects: ReadableStore, pack: Pack, group: list[FrameKey], start: int, end: int
    ) -> dict[FrameKey, bytes]:
        stored = memoryview(objects.get_range(pack.key, start, end - start))
        found: dict[FrameKey, bytes] = {}
        for key in group:
            at = int(pack.frame_offset[key[1]]) - start
            piece = stored[at : at + int(pack.frame_stored[key[1]])]
            found[key] = raw_frame(pack, key[1], piece, self._domain)
        return found


def raw_frame(pack: Pack, number: int, stored: memoryview, domain: Domain) -> bytes:
    """Frame ``number`` of a pack, decompressed; each chunk in it is verified.

    Raises:
        StoreDamaged: these are not its bytes.
    """
    try:
        raw = decode(stored, int(pack.frame_codec[number]), int(pack.frame_raw[number]))
    except StoreDamaged as error:
        raise _damaged(pack, number, error.message) from None
    chunks = pack.chunks_of(number)
    ends = list(itertools.accumulate(pack.lengths[chunks].tolist(), initial=0))
    digests = domain.digests(memoryview(raw), itertools.pairwise(ends))
    if b"".join(digests) != pack.digests[chunks].tobytes():
        raise _damaged(pack, number, "a chunk does not match its digest")
    return raw


def _vanishing(what: str) -> StoreDamaged:
    return StoreDamaged(f"{what} is in packs that vanish as they are read", hint=_HINT)


def _damaged(pack: Pack, number: int, what: str) -> StoreDamaged:
    return StoreDamaged(
        f"frame {number} of {pack.key}: {what}",
        hint=_HINT,
    )


@dataclass(frozen=True, eq=False, slots=True)
class Placed:
    """A leaf whose chunks were looked up: one element for each row."""

    leaf: Leaf
    pack: Ints  # pack number
    frame: Ints  # frame number
    start: Ints  # of the row's bytes in the raw frame


class LeafReader:
    """Reads the leaves of one Index, and finds their chunks. Safe for several threads."""

    def __init__(
        self,
        objects: ReadableStore,
        packs: PackSet,
        domain: Domain,
        root: Root,
        *,
        refresh: bool = True,
    ) -> None:
        self._packs = packs
        self._domain = domain
        self._root = root
        self._refresh = refresh
        self._frames = FrameReader(objects, packs, domain, cache=0)
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, Placed] = OrderedDict()
        self._cached = 0  # rows

    def leaf(self, region: int) -> Leaf | None:
        """The leaf of a region; None when it is all zero.

        Raises:
            StoreDamaged: it is missing, or not what its digest says.
        """
        digest = self._root.leaves.get(region)
        if digest is None:
            return None
        return self.parse(region, digest)

    def parse(self, region: int, digest: bytes) -> Leaf:
        """Read the leaf ``digest`` as that of ``region``."""
        for _ in range(_TRIES):
            number, pack, chunk = self._packs.locate(self.place(digest))
            key = (number, int(pack.chunk_frame[chunk]))
            with suppress(NotFound):  # prune moved it meanwhile
                raw = self._frames.frames([key])[key]
                break
        else:
            raise _vanishing(f"the leaf {digest.hex()}")
        start = int(pack.chunk_offset[chunk])
        span = min(self._root.region, self._root.size - region * self._root.region)
        return Leaf.decode(raw[start : start + int(pack.lengths[chunk])], span)

    def place(self, digest: bytes) -> int:
        """Where the leaf ``digest`` is.

        Raises:
            StoreDamaged: it is missing.
        """
        place = int(self._find(Kind.LEAF, as_rows([digest]))[0])
        if place < 0:
            raise StoreDamaged(f"the leaf {digest.hex()} is missing from the store", hint=_HINT)
        return place

    def placed(self, region: int) -> Placed | None:
        """The leaf of a region with the place of every row's bytes."""
        with self._lock:
            if region in self._cache:
                self._cache.move_to_end(region)
                return self._cache[region]
        leaf = self.leaf(region)
        return self.place_again(region, leaf) if leaf is not None else None

    def place_again(self, region: int, leaf: Leaf) -> Placed:
        """Look up where the rows of a region's leaf are now."""
        placed = self._place(region, leaf)
        with self._lock:
            if (old := self._cache.pop(region, None)) is not None:
                self._cached -= len(old.pack)
            self._cache[region] = placed
            self._cached += len(placed.pack)
            while self._cached > _ROWS and len(self._cache) > 1:
                self._cached -= len(self._cache.popitem(last=False)[1].pack)
        return placed

    def find(self, leaf: Leaf) -> Ints:
        """Where each chunk of the leaf is; -1 for what is missing."""
        return self._find(Kind.DATA, leaf.digests)

    def places(self, leaf: Leaf) -> Ints:
        """Where each chunk of the leaf is.

        Raises:
            StoreDamaged: some are missing.
        """
        places = self.find(leaf)
        if (places < 0).any():
            count = int((places < 0).sum())
            raise StoreDamaged(f"{count} chunks are missing from the store", hint=_HINT)
        return places

    def _find(self, kind: Kind, digests: Bytes32) -> Ints:
        if self._refresh:
            self._packs.ready()
        places = self._packs.find(kind, self._domain.name, digests)
        if self._refresh and (places < 0).any():  # another process may have added packs since
            self._packs.refresh()
            places = self._packs.find(kind, self._domain.name, digests)
        if self._refresh and (places < 0).any():  # or the lookup's cache is wrong
            self._packs.recover()
            places = self._packs.find(kind, self._domain.name, digests)
        return places

    def _place(self, region: int, leaf: Leaf) -> Placed:
        places = self.places(leaf)
        frame = np.empty_like(places)
        start = np.empty_like(places)
        sizes = np.empty_like(places)
        for _number, pack, here, chunks in self._packs.by_pack(places):
            frame[here] = pack.chunk_frame[chunks]
            start[here] = pack.chunk_offset[chunks]
            sizes[here] = pack.lengths[chunks]
        if (sizes != leaf.sizes).any():
            raise StoreDamaged(f"region {region} names chunks of other sizes than the packs hold")
        return Placed(
            leaf, places[leaf.chunk] >> 32, frame[leaf.chunk], start[leaf.chunk] + leaf.skip
        )


class IndexDisk:
    """The disk that an Index describes; a :class:`calotype.disk.base.Disk`."""

    def __init__(self, root: Root, leaves: LeafReader, frames: FrameReader) -> None:
        self._root = root
        self._leaves = leaves
        self._frames = frames

    @property
    def size(self) -> int:
        """The virtual size in bytes."""
        return self._root.size

    def extents(self) -> Iterator[Extent]:
        """Data where the Index has rows, zero elsewhere; they cover ``[0, size)``."""
        done = start = 0  # [start, done) is data that was not reported yet
        for region in sorted(self._root.leaves):
            leaf = self._leaves.leaf(region)
            if leaf is None:
                continue
            base = region * self._root.region
            for first, last in _joined(leaf):
                if base + first > done:
                    if done > start:
                        yield Extent(start, done - start, zero=False)
                    yield Extent(done, base + first - done, zero=True)
                    start = base + first
                done = base + last
        if done > start:
            yield Extent(start, done - start, zero=False)
        if done < self.size:
            yield Extent(done, self.size - done, zero=True)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes at ``offset``.

        Raises:
            InvalidInput: the bytes lie outside the disk.
            StoreDamaged: the store does not hold them any more.
        """
        end = offset + len(buffer)
        if offset < 0 or end > self.size:
            raise InvalidInput("a read lies outside the disk")
        width = self._root.region
        for region in range(offset // width, -(-end // width)):
            first, last = max(offset, region * width), min(end, (region + 1) * width)
            self._read(region, first - region * width, buffer[first - offset : last - offset])

    def _read(self, region: int, offset: int, buffer: memoryview) -> None:
        target = np.frombuffer(buffer, dtype=np.uint8)
        placed = self._leaves.placed(region)
        done = 0
        for first, view in self._pieces(region, placed, offset, offset + len(buffer)):
            at = first - offset
            target[done:at] = 0
            done = at + len(view)
            buffer[at:done] = view
        target[done:] = 0

    @property
    def regions(self) -> Sequence[int]:
        """The numbers of the regions that are not all zero."""
        return sorted(self._root.leaves)

    def span(self, number: int) -> tuple[int, int]:
        """Where a region starts and ends on the disk."""
        width = self._root.region
        return number * width, min((number + 1) * width, self.size)

    def region(self, number: int) -> Iterator[tuple[int, memoryview]]:
        """The data of a region in order: where on the disk, and the bytes."""
        base = number * self._root.region
        placed = self._leaves.placed(number)
        for offset, view in self._pieces(number, placed, 0, self._root.region):
            yield base + offset, view

    def _pieces(
        self, region: int, placed: Placed | None, start: int, end: int
    ) -> Iterator[tuple[int, memoryview]]:
        """The data of a region in ``[start, end)``: where in the region, and the bytes."""
        if placed is None:
            return
        leaf = placed.leaf
        low = int(np.searchsorted(leaf.end, start, side="right"))
        high = int(np.searchsorted(leaf.offset, end, side="left"))
        for some in _batches(placed, low, high):
            placed, frames = self._frames_of(region, placed, some)
            runs = _runs_of(placed, some)
            keys = zip(
                placed.pack[runs.first].tolist(), placed.frame[runs.first].tolist(), strict=True
            )
            columns = (runs.offset, runs.end, runs.start)
            for key, first, last, at in zip(keys, *(c.tolist() for c in columns), strict=True):
                low_cut, high_cut = max(first, start), min(last, end)
                data = memoryview(frames[key])
                yield low_cut, data[at + low_cut - first : at + high_cut - first]

    def _frames_of(
        self, region: int, placed: Placed, some: slice
    ) -> tuple[Placed, dict[FrameKey, bytes]]:
        """The frames of these rows, looked up again when prune moved them meanwhile."""
        for _ in range(_TRIES):
            wanted = np.unique((placed.pack[some] << SHIFT) | placed.frame[some])
            keys = list(zip((wanted >> SHIFT).tolist(), (wanted & LOW).tolist(), strict=True))
            try:
                return placed, self._frames.frames(keys)
            except NotFound:
                placed = self._leaves.place_again(region, placed.leaf)
        raise _vanishing(f"region {region}")

    def close(self) -> None:
        """Nothing is held open."""


class _RowRuns(NamedTuple):
    """Rows that follow each other both on the disk and in their frame, as one."""

    first: Ints  # the number of the first row
    offset: Ints  # in the region
    end: Ints
    start: Ints  # in the raw frame


def _runs_of(placed: Placed, some: slice) -> _RowRuns:
    leaf = placed.leaf
    offset, end, start = leaf.offset[some], leaf.end[some], placed.start[some]
    frame, pack = placed.frame[some], placed.pack[some]
    apart = (offset[1:] != end[:-1]) | (start[1:] - start[:-1] != end[:-1] - offset[:-1])
    apart |= (frame[1:] != frame[:-1]) | (pack[1:] != pack[:-1])
    cuts = np.flatnonzero(apart) + 1
    heads = np.concatenate([[0], cuts])
    tails = np.concatenate([cuts - 1, [len(offset) - 1]])
    return _RowRuns(heads + some.start, offset[heads], end[tails], start[heads])


_FRAMES_AT_ONCE = 32


def _batches(placed: Placed, low: int, high: int) -> Iterator[slice]:
    """Runs of rows that need at most a bounded number of frames."""
    if high - low <= _FRAMES_AT_ONCE:
        if low < high:
            yield slice(low, high)
        return
    frame, pack = placed.frame[low:high], placed.pack[low:high]
    changes = np.cumsum((frame[1:] != frame[:-1]) | (pack[1:] != pack[:-1]))
    marks = np.arange(_FRAMES_AT_ONCE, int(changes[-1]) + 1, _FRAMES_AT_ONCE)
    cuts = [low, *(np.searchsorted(changes, marks) + low + 1).tolist(), high]
    for first, last in itertools.pairwise(cuts):
        if first < last:
            yield slice(first, last)


def _joined(leaf: Leaf) -> Iterator[tuple[int, int]]:
    """The leaf's rows as (start, end), those that touch joined."""
    apart = np.flatnonzero(leaf.offset[1:] != leaf.end[:-1]) + 1
    starts = leaf.offset[np.concatenate([[0], apart])]
    ends = leaf.end[np.concatenate([apart - 1, [len(leaf.offset) - 1]])]
    yield from zip(starts.tolist(), ends.tolist(), strict=True)
