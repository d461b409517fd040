"""Repack: chunks that are still needed move to new packs, so that the old ones can go.

Moving a chunk changes no leaf and no root. A frame all of whose chunks move is copied as it is, after its
checksum was compared; of another one the chunks that move are verified and compressed anew.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from calotype.errors import NotFound, StoreDamaged
from calotype.store.codec import FrameBuilder
from calotype.store.digest import Domain
from calotype.store.mark import Bits
from calotype.store.mark import share as share_of
from calotype.store.objects import ObjectStore
from calotype.store.pack import Frame, Kind, Pack
from calotype.store.packwriter import PackWriter
from calotype.store.scan import Stretch, read, stretches, verified
from calotype.store.workers import spread

SHARE = 0.6  # packs with less than this share of their bytes in use are repacked
SMALL = 16 << 20  # bytes; packs below this are put together ...
MANY = 8  # ... when there are at least so many of a kind and domain
BEST_LEVEL = 22  # of zstd


def candidates(
    packs: Sequence[Pack], kept: Mapping[str, Bits], share: float, level: int | None = None
) -> list[Pack]:
    """The packs whose kept chunks should move.

    Mostly dead ones; small ones when there are many; with ``level``, those compressed at a lower one.
    """
    used = [p for p in packs if kept[p.key].any()]
    found = {p.key: p for p in used if p.level < (level or 0) or share_of(p, kept[p.key]) < share}
    groups: dict[tuple[Kind, str], list[Pack]] = {}
    for pack in used:
        if pack.size < SMALL:
            groups.setdefault((pack.kind, pack.domain), []).append(pack)
    for small in groups.values():
        if len(small) >= MANY:
            found.update({p.key: p for p in small})
    return [found[key] for key in sorted(found)]


@dataclass(slots=True)
class Repacker:
    """Writes new packs. With ``level`` every frame that moves is compressed anew at that level."""

    objects: ObjectStore
    domain: Callable[[str], Domain]
    level: int | None = None
    made: list[Pack] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)  # what could not be moved stays where it is
    written: int = 0  # bytes of new frames

    def run(
        self, packs: Sequence[Pack], kept: Mapping[str, Bits], report: Callable[[int], None]
    ) -> None:
        """Move the kept chunks of these packs; ``report`` gets stored bytes of the old ones."""
        for kind in Kind:
            for name in sorted({p.domain for p in packs if p.kind is kind}):
                some = [p for p in packs if p.kind is kind and p.domain == name]
                self._together(kind, self.domain(name), some, kept, report)

    def _together(
        self,
        kind: Kind,
        domain: Domain,
        packs: Sequence[Pack],
        kept: Mapping[str, Bits],
        report: Callable[[int], None],
    ) -> None:
        lock = threading.Lock()
        writer = PackWriter(
            self.objects, kind, domain.name, self.made.append, level=self.level or 0
        )

        def jobs() -> Iterator[Stretch]:
            for pack in packs:
                yield from stretches(pack, np.unique(pack.chunk_frame[kept[pack.key]]))

        def work(next_job: Callable[[], Stretch | None]) -> None:
            frames = FrameBuilder() if self.level is None else FrameBuilder(self.level)
            while (stretch := next_job()) is not None:
                self._move(stretch, kept[stretch.pack.key], domain, frames, writer)
                with lock:
                    report(stretch.size)
            writer.append(frames.finish())

        try:
            spread(jobs(), work)
            writer.finish()
        finally:
            writer.abort()
        self.written += writer.stored_bytes

    def _move(
        self,
        stretch: Stretch,
        kept: Bits,
        domain: Domain,
        frames: FrameBuilder,
        writer: PackWriter,
    ) -> None:
        pack = stretch.pack
        try:
            for number, stored in read(self.objects, stretch):
                if self.level is None and kept[pack.chunks_of(number)].all():
                    verified(pack, number, stored, None)
                    writer.append([Frame(pack.row(number), bytes(stored))])
                    continue
                _gather(pack, number, verified(pack, number, stored, domain), kept, frames)
                writer.append(frames.finish() if pack.kind is Kind.LEAF else frames.take())
        except (StoreDamaged, NotFound) as error:
            self.damaged.append(error.message)


def _gather(pack: Pack, number: int, raw: bytes, kept: Bits, frames: FrameBuilder) -> None:
    """Hand the kept chunks of a frame to ``frames``."""
    view = memoryview(raw)
    chunks = pack.chunks_of(number)
    for chunk in range(chunks.start, chunks.stop):
        if kept[chunk]:
            start = int(pack.chunk_offset[chunk])
            data = view[start : start + int(pack.lengths[chunk])]
            frames.add(pack.digests[chunk].tobytes(), data)
