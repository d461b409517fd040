"""A partial base: the raw file of an Index that is read while it is being filled from the store.

What is fetched is verified, written into the file, and served from there. A map says which rows of the
Index are in the file; it is written only after their bytes are synced. What a map of an earlier process
says is a claim: every chunk that it names is hashed again before it is used, and fetched when it is not
what it should be. So a base that a crash left behind is continued, and not trusted.
"""

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from calotype.disk.base import Extent
from calotype.disk.durable import write_private
from calotype.errors import InvalidInput, NotFound, StoreDamaged
from calotype.store.digest import Domain, Ints
from calotype.store.index import Leaf, Root, root_id
from calotype.store.reader import FrameKey, FrameReader, IndexDisk, LeafReader, Placed

Bools = npt.NDArray[np.bool_]

_HEAD = struct.Struct("<8s32sI")
_PART = struct.Struct("<II")
_MAGIC = b"CALOMAP\x01"
_SEAL = 32
_MAX_MAP = 256 << 20
_REGIONS = 64  # of which the places of all rows are kept in memory
_BATCH = 64  # frames that are fetched at once
_WINDOW = 8 << 20  # bytes that are read at once to verify them
_TRIES = 5  # times that a pack may vanish before it counts as damage


@dataclass(frozen=True, eq=False, slots=True)
class _Region:
    """A region's rows, and by the frame that they are in."""

    placed: Placed
    key: Ints  # of each row: pack number and frame number
    order: Ints  # the rows sorted by key
    sorted: Ints  # their keys

    @classmethod
    def of(cls, placed: Placed) -> "_Region":
        key = (placed.pack << 32) | placed.frame
        order = np.argsort(key, kind="stable")
        return cls(placed, key, order, key[order])

    def rows(self, key: int) -> Ints:
        """The rows whose bytes are in a frame, ascending."""
        low, high = np.searchsorted(self.sorted, [key, key + 1])
        return self.order[low:high]


class PartialBase:
    """The raw file ``data`` in ``directory``, and its ``map``; a :class:`calotype.disk.base.Disk`.

    Reading fetches what is not there yet, each frame once however many threads want it. One process at a
    time may hold a directory (the caller's care).
    A map that is damaged, or of another Index, counts as none.
    """

    def __init__(
        self, root: Root, leaves: LeafReader, frames: FrameReader, domain: Domain, directory: Path
    ) -> None:
        self._root = root
        self._leaves = leaves
        self._frames = frames
        self._domain = domain
        self._directory = directory
        self._disk = IndexDisk(root, leaves, frames)
        self._changed = threading.Condition()  # guards all that follows
        self._regions: OrderedDict[int, _Region] = OrderedDict()
        self._rows: dict[int, Bools] = {}  # of each region begun: which rows are there
        self._complete: dict[int, int] = {}  # region -> how many rows it has
        self._busy: set[tuple[int, int]] = set()  # region and frame that a thread fetches
        self._loading: set[int] = set()
        self._unsaved = False
        self._saving = threading.Lock()
        self.fetched = 0  # raw bytes of frames
        self._claims = _read_map(directory / "map", root)
        self._fd = os.open(
            directory / "data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        if not self._claims or self._strays():
            self._claims = {}
            os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, root.size)

    @property
    def size(self) -> int:
        """The virtual size in bytes."""
        return self._root.size

    @property
    def regions(self) -> Sequence[int]:
        """The numbers of the regions that are not all zero."""
        return sorted(self._root.leaves)

    @property
    def whole(self) -> bool:
        """Whether every byte is in the file."""
        return len(self._complete) == len(self._root.leaves)

    def extents(self) -> Iterator[Extent]:
        """Data where the Index has rows, zero elsewhere; they cover ``[0, size)``."""
        return self._disk.extents()

    def ready(self, offset: int, length: int) -> bool:
        """Whether these bytes can be read without the store."""
        for number, first, last in self._split(offset, length):
            if number in self._complete:
                continue
            with self._changed:
                region, rows = self._regions.get(number), self._rows.get(number)
            if region is None or rows is None:
                return False
            low, high = _within(region.placed.leaf, first, last)
            if not rows[low:high].all():
                return False
        return True

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes at ``offset``, fetched where they are not there yet.

        Raises:
            InvalidInput: the bytes lie outside the disk.
            StoreDamaged: the store does not hold them any more; other errors: it cannot be reached.
        """
        if offset < 0 or offset + len(buffer) > self.size:
            raise InvalidInput("a read lies outside the disk")
        self.fetch(offset, len(buffer))
        done = 0
        while done < len(buffer):
            count = os.preadv(self._fd, [buffer[done:]], offset + done)
            if not count:
                raise StoreDamaged("the base is shorter than its disk")
            done += count

    def fetch(self, offset: int, length: int) -> None:
        """Bring these bytes into the file."""
        for number, first, last in self._split(offset, length):
            if number not in self._complete:
                self._fetch(number, first, last)

    def fetch_all(self, runs: Sequence[Extent]) -> None:
        """Bring several runs into the file, with few reads of the store where they lie near each other."""
        regions: dict[int, list[tuple[int, int]]] = {}
        for run in runs:
            for number, first, last in self._split(run.offset, run.length):
                regions.setdefault(number, []).append((first, last))
        for number, spans in regions.items():
            while number not in self._complete:
                region = self._region(number)
                missing = [self._missing(number, region, first, last) for first, last in spans]
                keys = np.unique(np.concatenate(missing))
                if not len(keys):
                    break
                self._bring(number, region, keys[:_BATCH])

    def fill(self, number: int, pause: Callable[[], None]) -> None:
        """Bring a whole region into the file; ``pause`` is called before each batch of frames."""
        while number not in self._complete:
            region = self._region(number)
            missing = self._missing(number, region, 0, self._root.region)
            if len(missing):
                pause()
                self._bring(number, region, missing[:_BATCH])

    def save(self) -> None:
        """Sync what is in the file, then write the map that says so."""
        with self._saving:
            self._save()

    def _save(self) -> None:
        with self._changed:
            if not self._unsaved:
                return
            self._unsaved = False
            known = {number: np.ones(count, np.bool_) for number, count in self._complete.items()}
            known |= {number: rows.copy() for number, rows in self._rows.items()}
            known |= {n: rows for n, rows in self._claims.items() if n not in known}
        self._sync()
        _write_map(self._directory / "map", self._root, known)

    def finish(self) -> None:
        """Sync the file.

        Raises:
            InvalidInput: it is not whole.
        """
        if not self.whole:
            raise InvalidInput("the base is not whole")
        self._sync()

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError:
            # The kernel reports a lost write once: nobody knows any more what is on the disk.
            (self._directory / "map").unlink(missing_ok=True)
            raise

    # Regions

    def _strays(self) -> bool:
        """Whether there is something in a region that should be all zero."""
        width, at = self._root.region, 0
        with suppress(OSError):  # no more data
            while (at := os.lseek(self._fd, at, os.SEEK_DATA)) < self.size:
                number = at // width
                end = min((number + 1) * width, self.size)
                if number not in self._root.leaves and self._holds(at, end):
                    return True
                at = end
        return False

    def _split(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """The regions with data that a run touches: number, first and last byte in the region."""
        width = self._root.region
        for number in range(offset // width, -(-(offset + length) // width)):
            if number in self._root.leaves:
                base = number * width
                yield number, max(offset - base, 0), min(offset + length - base, width)

    def _region(self, number: int) -> _Region:
        """A region's rows; at the first time what an earlier process left of them is verified."""
        with self._changed:
            while number in self._loading:
                self._changed.wait()
            if (known := self._regions.get(number)) is not None:
                self._regions.move_to_end(number)
                return known
            self._loading.add(number)
        try:
            placed = self._leaves.placed(number)
            if placed is None:  # the root says that there is a leaf
                raise StoreDamaged(f"region {number} has no leaf")
            region = _Region.of(placed)
            rows = None
            if number not in self._rows and number not in self._complete:
                rows = self._verified(number, placed.leaf)
            with self._changed:
                self._keep(number, region, rows)
        finally:
            with self._changed:
                self._loading.discard(number)
                self._changed.notify_all()
        return region

    def _keep(self, number: int, region: _Region, rows: Bools | None) -> None:
        self._regions[number] = region
        while len(self._regions) > _REGIONS:
            self._regions.popitem(last=False)
        if rows is not None:
            self._rows[number] = rows
            self._claims.pop(number, None)
            self._close_if_complete(number)

    def _close_if_complete(self, number: int) -> None:
        if (rows := self._rows.get(number)) is not None and rows.all():
            self._complete[number] = len(self._rows.pop(number))
            self._regions.pop(number, None)

    def _verified(self, number: int, leaf: Leaf) -> Bools:
        """Which of the rows that the map claims are in the file."""
        present = np.zeros(len(leaf.offset), dtype=np.bool_)
        claims = self._claims.get(number)
        if claims is None or len(claims) != len(present):
            return present
        # A piece of a chunk has no digest of its own, so it is fetched again.
        sound = claims & (leaf.skip == 0) & (leaf.length == leaf.sizes[leaf.chunk])
        some: list[int] = []
        for row in np.flatnonzero(sound).tolist():
            if some and int(leaf.end[row] - leaf.offset[some[0]]) > _WINDOW:
                present[some] = self._sound(number, leaf, np.array(some))
                some = []
            some.append(row)
        if some:
            present[some] = self._sound(number, leaf, np.array(some))
        self._clear_gaps(number, leaf)
        return present

    def _clear_gaps(self, number: int, leaf: Leaf) -> None:
        """Write zeros where no row is and something else stands."""
        base = number * self._root.region
        span = min(self._root.region, self.size - base)
        starts = np.concatenate([[0], leaf.end])
        ends = np.concatenate([leaf.offset, [span]])
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            for at in range(base + start, base + end, _WINDOW):
                last = min(at + _WINDOW, base + end)
                if self._holds(at, last):
                    os.pwrite(self._fd, bytes(last - at), at)

    def _holds(self, start: int, end: int) -> bool:
        """Whether any of these bytes of the file is not zero."""
        data = os.pread(self._fd, end - start, start)
        return bool(np.frombuffer(data, dtype=np.uint8).any())

    def _sound(self, number: int, leaf: Leaf, rows: Ints) -> Bools:
        """Which of these rows, that lie near each other, have the bytes of their chunks."""
        first, last = int(leaf.offset[rows[0]]), int(leaf.end[rows[-1]])
        data = os.pread(self._fd, last - first, number * self._root.region + first)
        starts, ends = leaf.offset[rows] - first, leaf.end[rows] - first
        if len(data) < last - first:
            return np.zeros(len(rows), dtype=np.bool_)
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        found = b"".join(self._domain.digests(memoryview(data), spans))
        wanted = leaf.digests[leaf.chunk[rows]]
        same = np.frombuffer(found, dtype=np.uint8).reshape(wanted.shape) == wanted
        return np.asarray(same.all(axis=1))

    # Fetching

    def _fetch(self, number: int, first: int, last: int) -> None:
        while True:
            region = self._region(number)
            missing = self._missing(number, region, first, last)
            if not len(missing):
                return
            self._bring(number, region, missing)

    def _missing(self, number: int, region: _Region, first: int, last: int) -> Ints:
        """The frames of the rows in ``[first, last)`` that are not there yet."""
        with self._changed:
            rows = self._rows.get(number)
            if rows is None:  # complete
                return np.zeros(0, dtype=np.int64)
            low, high = _within(region.placed.leaf, first, last)
            return np.unique(region.key[low:high][~rows[low:high]])

    def _bring(self, number: int, region: _Region, keys: Ints) -> None:
        """Fetch these frames, or wait for the threads that do."""
        wanted = {(number, key) for key in keys.tolist()}
        with self._changed:
            if wanted <= self._busy:
                self._changed.wait_for(lambda: not wanted <= self._busy)
                return
            rows = self._rows.get(number)
            if rows is None:
                return
            # Another thread may have brought some since the caller looked.
            mine = {(n, k) for n, k in wanted - self._busy if not rows[region.rows(k)].all()}
            self._busy |= mine
        try:
            own = sorted(key for _, key in mine)
            for at in range(0, len(own), _BATCH):
                self._load(number, region, own[at : at + _BATCH])
        finally:
            with self._changed:
                self._busy -= mine
                self._changed.notify_all()

    def _load(self, number: int, region: _Region, keys: list[int]) -> None:
        pairs: list[FrameKey] = [(key >> 32, key & 0xFFFFFFFF) for key in keys]
        try:
            frames = self._frames.frames(pairs)
        except NotFound:  # prune moved them meanwhile: look again where they are
            self._look_again(number, region)
            return
        for key, pair in zip(keys, pairs, strict=True):
            rows = region.rows(key)
            self._write(number, region.placed, rows, memoryview(frames[pair]))
            with self._changed:
                self.fetched += len(frames[pair])
                if (present := self._rows.get(number)) is not None:
                    present[rows] = True
                    self._unsaved = True
                    self._close_if_complete(number)

    def _look_again(self, number: int, region: _Region) -> None:
        placed = self._leaves.place_again(number, region.placed.leaf)
        with self._changed:
            self._regions[number] = _Region.of(placed)

    def _write(self, number: int, placed: Placed, rows: Ints, frame: memoryview) -> None:
        """Write rows of one frame to the file, those that touch in both together."""
        offset, end, start = placed.leaf.offset[rows], placed.leaf.end[rows], placed.start[rows]
        apart = (offset[1:] != end[:-1]) | (start[1:] - start[:-1] != end[:-1] - offset[:-1])
        cuts = np.flatnonzero(apart) + 1
        heads = np.concatenate([[0], cuts])
        tails = np.concatenate([cuts - 1, [len(rows) - 1]])
        base = number * self._root.region
        runs = zip(offset[heads].tolist(), end[tails].tolist(), start[heads].tolist(), strict=True)
        for first, last, at in runs:
            piece = frame[at : at + last - first]
            while piece:
                count = os.pwrite(self._fd, piece, base + last - len(piece))
                piece = piece[count:]


def _within(leaf: Leaf, first: int, last: int) -> tuple[int, int]:
    """The rows of a leaf that touch ``[first, last)``."""
    low = int(np.searchsorted(leaf.end, first, side="right"))
    return low, max(low, int(np.searchsorted(leaf.offset, last, side="left")))


def _write_map(path: Path, root: Root, known: dict[int, Bools]) -> None:
    head = _HEAD.pack(_MAGIC, bytes.fromhex(root_id(root.encode())), len(known))
    parts = [head]
    for number in sorted(known):
        parts.append(_PART.pack(number, len(known[number])))
        parts.append(np.packbits(known[number]).tobytes())
    body = b"".join(parts)
    write_private(path, body + blake3(body).digest())


def _read_map(path: Path, root: Root) -> dict[int, Bools]:
    """What the map claims, by region; nothing when there is none, or it is damaged."""
    with suppress(OSError):
        if path.stat().st_size <= _MAX_MAP:
            data = path.read_bytes()
            body, seal = data[:-_SEAL], data[-_SEAL:]
            if len(body) >= _HEAD.size and blake3(body).digest() == seal:
                return _claims(body, root)
    return {}


def _claims(body: bytes, root: Root) -> dict[int, Bools]:
    magic, of, count = _HEAD.unpack_from(body)
    if magic != _MAGIC or of.hex() != root_id(root.encode()):
        return {}
    claims: dict[int, Bools] = {}
    at = _HEAD.size
    for _ in range(count):
        if at + _PART.size > len(body):
            return {}
        number, rows = _PART.unpack_from(body, at)
        at += _PART.size
        packed = np.frombuffer(body[at : at + -(-rows // 8)], dtype=np.uint8)
        if len(packed) * 8 < rows or number not in root.leaves:
            return {}
        claims[number] = np.unpackbits(packed, count=rows).astype(np.bool_)
        at += -(-rows // 8)
    return claims
