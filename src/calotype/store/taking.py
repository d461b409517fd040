"""Taking a disk in: the leaves of its regions, made by several threads."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from calotype.disk.base import Disk, Extent
from calotype.errors import InvalidInput
from calotype.progress import Progress
from calotype.store.capture import BLOCK, RegionCapture
from calotype.store.chunking import Chunking, Cutter
from calotype.store.index import Leaf, Root
from calotype.store.ingest import RegionIngest
from calotype.store.intake import Counts, Intake, Worker
from calotype.store.reader import LeafReader
from calotype.store.source import Source, block_runs, data_runs
from calotype.store.workers import spread

LeafMaker = Callable[[int], Leaf | None]  # region number -> its leaf
Leaves = dict[int, bytes]  # region number -> the digest of its leaf


class Base(NamedTuple):
    """The Index that a disk is a change of."""

    root: Root
    leaves: LeafReader


@dataclass(frozen=True, slots=True)
class Taking:
    """One disk on its way in through one intake."""

    disk: Disk
    chunking: Chunking
    intake: Intake
    progress: Progress

    def whole(self) -> tuple[Leaves, Counts]:
        """The leaves of all regions that are not all zero; everything is read."""
        source = Source(self.disk, data_runs(self.disk))
        cutter = Cutter(source, self.chunking)
        source.begin()

        def maker(worker: Worker) -> LeafMaker:
            ingest = RegionIngest(source, cutter, self.chunking, worker)
            return lambda region: ingest.leaf(*self._span(region))

        return self._leaves(source, source.runs.spans(self.chunking.region), maker)

    def changes(self, changed: Iterable[Extent], base: Base | None) -> tuple[Leaves, Counts]:
        """The leaves of all regions that are not all zero; what is not ``changed`` is the base's, or zero.

        Raises:
            InvalidInput: ``changed`` or the size do not fit, or the base is of another domain.
        """
        dirty, data = block_runs(changed, self.disk.size, BLOCK)
        source = Source(self.disk, data)
        if base is not None:
            self._require_fit(base.root)

        def maker(worker: Worker) -> LeafMaker:
            capture = RegionCapture(source, dirty, self.chunking.grid, worker)

            def leaf(region: int) -> Leaf | None:
                before = base.leaves.leaf(region) if base is not None else None
                return capture.leaf(*self._span(region), before)

            return leaf

        regions = dirty.spans(self.chunking.region)
        fresh, counts = self._leaves(source, regions, maker)
        rewritten = set(regions)
        old = base.root.leaves.items() if base is not None else ()
        return {r: d for r, d in old if r not in rewritten} | fresh, counts

    def _require_fit(self, base: Root) -> None:
        if base.size > self.disk.size or base.region != self.chunking.region:
            raise InvalidInput("a disk cannot be smaller than the base that it is a change of")
        if base.domain != self.intake.domain.name:
            raise InvalidInput("the base belongs to another dedup domain")

    def _leaves(
        self, source: Source, regions: Sequence[int], maker: Callable[[Worker], LeafMaker]
    ) -> tuple[Leaves, Counts]:
        found: Leaves = {}
        counts = Counts()
        lock = threading.Lock()

        def work(next_region: Callable[[], int | None]) -> None:
            worker = Worker(self.intake)
            leaf_of = maker(worker)
            while (region := next_region()) is not None:
                leaf = leaf_of(region)
                digest = self.intake.leaf(leaf.encode()) if leaf is not None else None
                starts, ends = source.runs.within(*self._span(region))
                with lock:
                    if digest is not None:
                        found[region] = digest
                    report(int((ends - starts).sum()))
            worker.finish()
            with lock:
                counts.add(worker.counts)

        with self.progress.phase("storing", source.runs.total) as report:
            spread(regions, work)
        return found, counts

    def _span(self, region: int) -> tuple[int, int]:
        width = self.chunking.region
        return region * width, min((region + 1) * width, self.disk.size)
