"""Chunks from packs into an intake: what copy and repair move.

A frame all of whose chunks are wanted is moved as it is; of others the wanted chunks are compressed anew.
Every chunk is verified before it is handed in, wherever it comes from.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calotype.errors import NotFound, StoreDamaged
from calotype.store.codec import FrameBuilder, decode
from calotype.store.digest import Bytes32, Domain, Ints
from calotype.store.intake import Intake
from calotype.store.objects import Bytes, ReadableStore
from calotype.store.pack import Frame, Kind, Pack
from calotype.store.packset import PackSet
from calotype.store.scan import NEAR, Stretch, pack_of, read_each, stretches, verified
from calotype.store.workers import spread

Mask = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Moved:
    """What was moved; sizes in bytes."""

    chunks: int = 0
    raw: int = 0  # of the chunks
    read: int = 0  # from the source's packs
    frames: int = 0  # moved as they are
    failed: int = 0  # chunks that the source could not give

    def add(self, other: "Moved") -> None:
        """Add another's counts."""
        self.chunks += other.chunks
        self.raw += other.raw
        self.read += other.read
        self.frames += other.frames
        self.failed += other.failed


class Wanted:
    """Which chunks of a source's packs are wanted: one byte for each chunk of the packs concerned."""

    def __init__(self, packs: PackSet) -> None:
        self._packs = packs
        self._masks: dict[Kind, dict[int, Mask]] = {kind: {} for kind in Kind}
        self.vanished = 0  # packs that were deleted after they were marked

    def want(self, kind: Kind, domain: str, digests: Bytes32) -> Mask:
        """Mark these chunks; which of them the source has."""
        places = self._packs.find(kind, domain, digests)
        masks = self._masks[kind]
        for number, pack, _here, chunks in self._packs.by_pack(places[places >= 0]):
            if number not in masks:
                masks[number] = np.zeros(len(pack.lengths), dtype=bool)
            masks[number][chunks] = True
        return places >= 0

    def marked(self, kind: Kind) -> Iterator[tuple[Pack, Mask]]:
        """The packs of a kind with wanted chunks."""
        for number, mask in sorted(self._masks[kind].items()):
            try:
                pack = pack_of(self._packs, number)
            except (NotFound, StoreDamaged):
                self.vanished += 1
                continue
            yield pack, mask


class Mover:
    """Moves chunks from one store's packs into an intake, with several threads."""

    def __init__(
        self,
        source: ReadableStore,
        intake: Intake,
        *,
        near: int = NEAR,
        threads: int | None = None,
    ) -> None:
        self._source = source
        self._intake = intake
        self._near = near
        self._threads = threads
        self._lock = threading.Lock()
        self.moved = Moved()

    @staticmethod
    def size(marked: Iterable[tuple[Pack, Mask]]) -> int:
        """Stored bytes of the frames that hold these chunks: what :meth:`move` reports in all."""
        return sum(int(p.frame_stored[_frames(p, m)].sum(dtype=np.int64)) for p, m in marked)

    def move(
        self, kind: Kind, marked: Iterable[tuple[Pack, Mask]], report: Callable[[int], None]
    ) -> None:
        """Move the marked chunks, of packs of one kind, that the intake does not know by then.

        What the source cannot give, because it is damaged or was deleted, is counted as failed.
        """

        def jobs() -> Iterator[tuple[Stretch, Mask]]:
            for pack, mask in marked:
                for stretch in stretches(pack, _frames(pack, mask), near=self._near):
                    yield stretch, mask

        def work(next_job: Callable[[], tuple[Stretch, Mask] | None]) -> None:
            one = _Carrier(self._source, self._intake, kind)
            while (job := next_job()) is not None:
                one.carry(*job)
                with self._lock:
                    report(int(job[0].pack.frame_stored[job[0].frames].sum(dtype=np.int64)))
            one.finish()
            with self._lock:
                self.moved.add(one.moved)

        spread(jobs(), work, self._threads)


class _Carrier:
    """One thread's part; it carries packs of one kind in its life."""

    def __init__(self, source: ReadableStore, intake: Intake, kind: Kind) -> None:
        self._source = source
        self._intake = intake
        self._writer = intake.writers[kind]
        self._rest = FrameBuilder()
        self.moved = Moved()

    def carry(self, stretch: Stretch, mask: Mask) -> None:
        """Move the chunks of the mask that these frames hold."""
        pack = stretch.pack
        left = set(stretch.frames.tolist())
        with suppress(NotFound):
            for number, stored in read_each(self._source, stretch):
                left.remove(number)
                self._frame(pack, number, stored, mask)
        self.moved.failed += sum(int(mask[pack.chunks_of(number)].sum()) for number in left)

    def _frame(self, pack: Pack, number: int, stored: memoryview | None, mask: Mask) -> None:
        if stored is None:
            self.moved.failed += int(mask[pack.chunks_of(number)].sum())
            return
        self.moved.read += len(stored)
        try:
            raw = verified(pack, number, stored, self._intake.domain)
        except StoreDamaged:
            self._rescue(pack, number, stored, mask)
        else:
            self._hand_in(pack, number, stored, raw, mask)

    def _hand_in(self, pack: Pack, number: int, stored: memoryview, raw: bytes, mask: Mask) -> None:
        chunks = pack.chunks_of(number)
        digests = [d.tobytes() for d in pack.digests[chunks]]
        lengths: list[int] = pack.lengths[chunks].tolist()
        wanted = np.flatnonzero(mask[chunks]).tolist()
        mine = [wanted[i] for i in self._intake.claim(pack.kind, [digests[w] for w in wanted])]
        if len(mine) < len(digests):
            starts = np.cumsum([0, *lengths]).tolist()
            self._recode(
                pack.kind,
                [(digests[i], memoryview(raw)[starts[i] : starts[i + 1]]) for i in mine],
            )
            return
        self._writer.append([Frame(pack.row(number), bytes(stored))])
        self.moved.frames += 1
        self.moved.chunks += len(digests)
        self.moved.raw += len(raw)

    def _recode(self, kind: Kind, chunks: Sequence[tuple[bytes, Bytes]]) -> None:
        """Compress claimed chunks anew."""
        for digest, data in chunks:
            self._rest.add(digest, data)
            self.moved.chunks += 1
            self.moved.raw += len(data)
            if kind is Kind.LEAF:  # one leaf a frame
                self._writer.append(self._rest.finish())
        self._writer.append(self._rest.take())

    def _rescue(self, pack: Pack, number: int, stored: memoryview, mask: Mask) -> None:
        """Take what is right of a damaged frame."""
        chunks = pack.chunks_of(number)
        good = salvage(pack, number, stored, self._intake.domain)
        wanted = np.flatnonzero(mask[chunks]).tolist()
        found = [(pack.digests[chunks][i].tobytes(), good[i]) for i in wanted if i in good]
        self.moved.failed += len(wanted) - len(found)
        mine = self._intake.claim(pack.kind, [digest for digest, _data in found])
        self._recode(pack.kind, [found[i] for i in mine])

    def finish(self) -> None:
        """Hand in the last frame."""
        self._writer.append(self._rest.finish())


def salvage(pack: Pack, number: int, stored: memoryview, domain: Domain) -> dict[int, bytes]:
    """The chunks of a damaged frame that are right all the same, by their numbers in the frame."""
    try:
        raw = decode(stored, int(pack.frame_codec[number]), int(pack.frame_raw[number]))
    except StoreDamaged:
        return {}
    chunks = pack.chunks_of(number)
    ends = np.cumsum(pack.lengths[chunks], dtype=np.int64).tolist()
    found = {}
    for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        data = raw[start:end]
        if domain.digest(data) == pack.digests[chunks][i].tobytes():
            found[i] = data
    return found


def _frames(pack: Pack, mask: Mask) -> Ints:
    """The frames that hold chunks of the mask, ascending."""
    found: Ints = np.unique(pack.chunk_frame[mask])
    return found
