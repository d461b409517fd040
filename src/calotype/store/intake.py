"""Where ingest workers hand in chunks: hash them, look them up, keep the unknown ones in packs."""

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from calotype.store.codec import FrameBuilder, encode
from calotype.store.digest import Bytes32, Domain, as_rows
from calotype.store.objects import ObjectStore
from calotype.store.pack import Kind, Pack
from calotype.store.packset import PackSet
from calotype.store.packwriter import PackWriter

_FIRST = 32 << 20  # stored bytes of an ingest's first pack


@dataclass(slots=True)
class Counts:
    """What a worker did; all but ``chunks`` and ``new_chunks`` in bytes."""

    bytes_read: int = 0
    chunks: int = 0
    new_chunks: int = 0
    new_bytes: int = 0

    def add(self, other: "Counts") -> None:
        """Add another worker's counts."""
        self.bytes_read += other.bytes_read
        self.chunks += other.chunks
        self.new_chunks += other.new_chunks
        self.new_bytes += other.new_bytes


class Intake:
    """One ingest's way into the packs, shared by its workers.

    ``meet`` is called with the keys of packs in which known chunks were found for the first time in this
    ingest, before the ingest relies on them; it returns those that must not be used. The packs that the
    ingest seals itself are not among them.
    """

    def __init__(
        self,
        objects: ObjectStore,
        packs: PackSet,
        domain: Domain,
        *,
        meet: Callable[[Sequence[str]], Collection[str]] | None = None,
    ) -> None:
        self.domain = domain
        self._packs = packs
        self._meet = meet
        self._meeting = threading.Lock()
        self._used: set[str] = set()
        self._refused: set[str] = set()
        self._claimed: dict[Kind, set[bytes]] = {kind: set() for kind in Kind}
        self._lock = threading.Lock()
        self.writers = {
            kind: PackWriter(objects, kind, domain.name, self._sealed, first=_FIRST)
            for kind in Kind
        }

    @property
    def stored_bytes(self) -> int:
        """What was appended to packs so far, compressed."""
        return sum(w.stored_bytes for w in self.writers.values())

    @property
    def used(self) -> frozenset[str]:
        """The keys of the packs that this ingest relies on so far: met, or sealed by itself."""
        return frozenset(self._used)

    def claim(self, kind: Kind, digests: Sequence[bytes]) -> list[int]:
        """Which of these chunks nobody has yet: they are the caller's to store now."""
        rows = as_rows(digests)
        generation = self._packs.generation
        unknown = self.unknown(kind, rows)
        if not unknown:
            return []
        mine: list[int] = []
        claimed = self._claimed[kind]
        with self._lock:
            if self._packs.generation != generation:
                # A pack was sealed meanwhile: what it holds is no longer among the claims.
                unknown = self.unknown(kind, rows)
            for i in unknown:
                if digests[i] not in claimed:
                    claimed.add(digests[i])
                    mine.append(i)
        return mine

    def unknown(self, kind: Kind, rows: Bytes32) -> list[int]:
        """Which of these chunks no usable pack has; this ingest relies on the others from now on."""
        places = self._packs.find(kind, self.domain.name, rows)
        while not self._usable(self._packs.keys(places[places >= 0])):
            places = self._packs.find(kind, self.domain.name, rows)
        unknown: list[int] = np.flatnonzero(places < 0).tolist()
        return unknown

    def _usable(self, keys: Sequence[str]) -> bool:
        """Whether all these packs may be relied on; those that may not are forgotten."""
        if self._used.issuperset(keys):
            return True
        with self._meeting:
            if self._meet is not None and (new := sorted(set(keys) - self._used - self._refused)):
                self._refused.update(self._meet(new))
            bad = self._refused.intersection(keys)
            self._packs.forget(bad)
            self._used.update(set(keys) - bad)
        return not bad

    def _sealed(self, pack: Pack) -> None:
        with self._lock:
            self._used.add(pack.key)
            self._packs.add(pack)
            raw = pack.digests.tobytes()
            width = pack.digests.shape[1]
            self._claimed[pack.kind].difference_update(
                raw[i : i + width] for i in range(0, len(raw), width)
            )

    def leaf(self, data: bytes) -> bytes:
        """Keep a leaf, and return its digest."""
        digest = self.domain.digest(data)
        if self.claim(Kind.LEAF, [digest]):
            self.writers[Kind.LEAF].append([encode(data, [digest], [len(data)])])
        return digest

    def finish(self) -> None:
        """Make the chunks durable, then the leaves that name them."""
        self.writers[Kind.DATA].finish()
        self.writers[Kind.LEAF].finish()

    def keep(self) -> None:
        """Make the chunks durable that were taken in so far: for an ingest that will be repeated."""
        self.writers[Kind.DATA].finish()

    def abort(self) -> None:
        """Drop what is not sealed."""
        for writer in self.writers.values():
            writer.abort()


class Worker:
    """One thread's part: chunks in, frames out."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._frames = FrameBuilder()
        self.counts = Counts()

    def digests(self, view: memoryview, spans: Iterable[tuple[int, int]]) -> list[bytes]:
        """The digests of the (start, end) spans of ``view``; nothing is stored."""
        return self._intake.domain.digests(view, spans)

    def store(self, view: memoryview, starts: Sequence[int], ends: Sequence[int]) -> Bytes32:
        """Store the chunks ``view[start:end]``; ``view`` may be reused afterwards.

        Returns:
            Their digests, shape (n, 32).
        """
        digests = self.digests(view, zip(starts, ends, strict=True))
        self.counts.chunks += len(digests)
        mine = self._intake.claim(Kind.DATA, digests)
        for i in mine:
            self._frames.add(digests[i], view[starts[i] : ends[i]])
            self.counts.new_bytes += ends[i] - starts[i]
        self.counts.new_chunks += len(mine)
        self._intake.writers[Kind.DATA].append(self._frames.take())
        return as_rows(digests)

    def finish(self) -> None:
        """Hand in the last frame."""
        self._intake.writers[Kind.DATA].append(self._frames.finish())
