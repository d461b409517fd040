"""Whole stores with few reads: many frames of a pack at once, and every leaf of many Indexes once."""

import errno
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from blake3 import blake3

from calotype.errors import NotFound, StoreDamaged
from calotype.store.digest import Domain, Ints, as_rows
from calotype.store.index import Leaf, Root
from calotype.store.objects import ReadableStore
from calotype.store.pack import Kind, Pack
from calotype.store.packset import PackSet
from calotype.store.reader import raw_frame

TOGETHER = 4 << 20  # stored bytes read at once
NEAR = 256 << 10  # frames closer than this are read together: less than what a request costs
_ROTTEN = {
    errno.EIO,
    errno.EBADMSG,
    errno.EUCLEAN,
}  # what kernels say of blocks that they cannot read


class Stretch(NamedTuple):
    """Frames of one pack that are read at once."""

    pack: Pack
    frames: Ints  # ascending
    start: int  # of the bytes in the pack
    end: int

    @property
    def size(self) -> int:
        """Bytes that are read."""
        return self.end - self.start


def stretches(pack: Pack, frames: Ints | None = None, *, near: int = NEAR) -> Iterator[Stretch]:
    """These frames of a pack (all, without ``frames``) in reads of about 4 MiB; always the same ones.

    Frames less than ``near`` bytes apart are read together with what lies between them.
    """
    if frames is None:
        frames = np.arange(len(pack.frame_stored))
    starts = pack.frame_offset[frames]
    ends = starts + pack.frame_stored[frames]
    gaps = np.flatnonzero(starts[1:] - ends[:-1] > near) + 1
    first = 0
    while first < len(frames):
        fits = int(np.searchsorted(ends, starts[first] + TOGETHER, side="right"))
        gap = int(np.searchsorted(gaps, first, side="right"))
        last = min(max(first + 1, fits), int(gaps[gap]) if gap < len(gaps) else len(frames))
        yield Stretch(pack, frames[first:last], int(starts[first]), int(ends[last - 1]))
        first = last


def read(objects: ReadableStore, stretch: Stretch) -> Iterator[tuple[int, memoryview]]:
    """The stored bytes of each frame, by its number; nothing is verified yet.

    Raises:
        NotFound: the pack is gone.
        StoreDamaged: the pack is shorter than its footer says.
    """
    pack = stretch.pack
    data = memoryview(objects.get_range(pack.key, stretch.start, stretch.size))
    for number in stretch.frames.tolist():
        at = int(pack.frame_offset[number]) - stretch.start
        yield number, data[at : at + int(pack.frame_stored[number])]


def read_each(objects: ReadableStore, stretch: Stretch) -> Iterator[tuple[int, memoryview | None]]:
    """As :func:`read`, with None for a frame that the store or its disk cannot read.

    Raises:
        NotFound: the pack is gone.
    """
    try:
        yield from read(objects, stretch)
    except (StoreDamaged, OSError) as error:  # the one request of read(): nothing was handed out
        if isinstance(error, OSError):
            rotten(error)
        if len(stretch.frames) == 1:
            yield int(stretch.frames[0]), None
            return
        for number in stretch.frames:
            for one in stretches(stretch.pack, np.array([number])):
                yield from read_each(objects, one)


def verified(pack: Pack, number: int, stored: memoryview, domain: Domain | None) -> bytes:
    """A frame's raw bytes, after its checksum and each chunk's digest matched.

    Without ``domain``, whose key nobody has, only the checksum is compared and nothing is returned.

    Raises:
        StoreDamaged: these are not its bytes.
    """
    if blake3(stored).digest() != pack.frame_checksum[number].tobytes():
        raise StoreDamaged(f"frame {number} of {pack.key}: does not match its checksum")
    return raw_frame(pack, number, stored, domain) if domain is not None else b""


def pack_of(packs: PackSet, number: int) -> Pack:
    """The pack of this number."""
    _number, pack, _chunk = packs.locate(number << 32)
    return pack


@dataclass(frozen=True, eq=False, slots=True)
class Walked:
    """A distinct leaf, and the Indexes that have it; ``leaf`` is None when it cannot be read.

    ``whole`` says that its bytes are right, so that a problem is what they say.
    """

    digest: bytes
    domain: Domain
    indexes: Sequence[str]
    place: int  # -1: no pack has it
    leaf: Leaf | None
    problem: str = ""
    whole: bool = False


class Walk:
    """Every distinct leaf of some Indexes of one domain, read once, in the order of the packs."""

    def __init__(
        self,
        objects: ReadableStore,
        packs: PackSet,
        domain: Domain,
        roots: Mapping[str, Root],
        *,
        only: Collection[bytes] | None = None,
    ) -> None:
        """With ``only`` the leaves of these digests alone."""
        self._objects = objects
        self._packs = packs
        self._domain = domain
        self._users: dict[bytes, list[tuple[str, int]]] = {}  # Index, bytes of its region
        for index, root in roots.items():
            for number, digest in root.leaves.items():
                if only is not None and digest not in only:
                    continue
                span = min(root.region, root.size - number * root.region)
                self._users.setdefault(digest, []).append((index, span))

    def __iter__(self) -> Iterator[Walked]:
        """The leaves; those that are missing or damaged too.

        Raises:
            NotFound: a pack vanished, and is forgotten; another walk may find its leaves elsewhere.
        """
        digests = list(self._users)
        places = self._packs.find(Kind.LEAF, self._domain.name, as_rows(digests))
        for i in np.flatnonzero(places < 0).tolist():
            yield self._walked(digests[i], -1, None, "a leaf is missing")
        order = np.argsort(places, kind="stable")
        order = order[places[order] >= 0]
        for _number, pack, here, chunks in self._packs.by_pack(places[order]):
            mine = order[here]
            by_frame: dict[int, list[tuple[int, int]]] = {}
            for i, chunk in zip(mine.tolist(), chunks.tolist(), strict=True):
                by_frame.setdefault(int(pack.chunk_frame[chunk]), []).append((i, chunk))
            for stretch in stretches(pack, np.array(sorted(by_frame))):
                for number, stored in self._read(stretch):
                    raw, problem = self._raw(pack, number, stored)
                    for i, chunk in by_frame[number]:
                        start = int(pack.chunk_offset[chunk])
                        data = raw[start : start + int(pack.lengths[chunk])]
                        if problem:
                            yield self._walked(digests[i], int(places[i]), None, problem)
                        else:
                            yield from self._parsed(digests[i], int(places[i]), data)

    def _read(self, stretch: Stretch) -> Iterator[tuple[int, memoryview | None]]:
        try:
            yield from read_each(self._objects, stretch)
        except NotFound:
            self._packs.forget([stretch.pack.key])
            raise

    def _raw(self, pack: Pack, number: int, stored: memoryview | None) -> tuple[bytes, str]:
        if stored is None:
            return b"", "cannot be read"
        try:
            return verified(pack, number, stored, self._domain), ""
        except StoreDamaged as error:
            return b"", error.message

    def _parsed(self, digest: bytes, place: int, data: bytes) -> Iterator[Walked]:
        users = self._users[digest]
        try:
            leaf = Leaf.decode(data, max(span for _index, span in users))
        except StoreDamaged as error:
            yield self._walked(digest, place, None, error.message, whole=True)
            return
        end = int(leaf.end[-1])
        fits = sorted({index for index, span in users if end <= span})
        if fits:
            yield Walked(digest, self._domain, fits, place, leaf, whole=True)
        if beyond := sorted({index for index, span in users if end > span}):
            problem = "has a leaf that reaches beyond its disk"
            yield Walked(digest, self._domain, beyond, place, None, problem, whole=True)

    def _walked(
        self, digest: bytes, place: int, leaf: Leaf | None, problem: str, *, whole: bool = False
    ) -> Walked:
        indexes = sorted({index for index, _span in self._users[digest]})
        return Walked(digest, self._domain, indexes, place, leaf, problem, whole)


def rotten(error: OSError) -> StoreDamaged:
    """The damage that this error of a device or file system means.

    Raises:
        OSError: it means something else: ``error`` itself.
    """
    if error.errno not in _ROTTEN:
        raise error
    return StoreDamaged(f"cannot be read ({error.strerror})")
