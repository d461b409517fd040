"""Check: does every byte of the store match its checksum, and is everything there that an Index names?

Every object is covered: config and domains by their seals, a pack's header by being constant, its frames by
checksums and digests, its footer by its name, leaves by their digests, roots by their names.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from blake3 import blake3

from calotype.errors import CalotypeError, InvalidInput, NotFound, StoreDamaged
from calotype.progress import Progress
from calotype.store import parameters
from calotype.store.digest import Domain
from calotype.store.index import PREFIX, Root, root_id
from calotype.store.objects import ReadableStore, Stored
from calotype.store.pack import HEADER, Pack, load
from calotype.store.pack import PREFIX as PACKS
from calotype.store.packset import PackSet
from calotype.store.reader import LeafReader, raw_frame
from calotype.store.workers import spread

_TOGETHER = 4 << 20  # stored bytes read at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """An object that is not what it should be, and the Indexes that need it."""

    key: str
    problem: str
    indexes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """What a check looked at, and what it found."""

    indexes: int
    packs: int
    chunks: int
    bytes_read: int  # of packs' frames
    damage: tuple[Damage, ...]
    leftovers: tuple[str, ...]  # unfinished or foreign objects: no damage

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not self.damage

    @property
    def touched(self) -> tuple[str, ...]:
        """The Indexes that cannot be read in full."""
        return tuple(sorted({index for d in self.damage for index in d.indexes}))


@dataclass(slots=True)
class _Finding:
    problem: str
    indexes: set[str] = field(default_factory=set)


class Checker:
    """One check of one store."""

    def __init__(self, objects: ReadableStore, progress: Progress, *, read_data: bool) -> None:
        self._objects = objects
        self._progress = progress
        self._read_data = read_data
        self._found: dict[str, _Finding] = {}
        self._domains: dict[str, Domain] = {}
        self._packs = PackSet(objects)
        self._unreadable: set[str] = set()  # packs without a usable footer
        self._bad: set[tuple[str, int]] = set()  # (pack key, frame)
        self._lock = threading.Lock()
        self._bytes = 0

    def run(self, leftovers: Sequence[str]) -> CheckReport:
        """Check everything; damage is reported, never raised."""
        # Roots are listed before packs: what an ingest adds meanwhile is then not missed.
        roots = list(self._objects.list(PREFIX))
        others = [s.key for s in self._objects.list() if not self._known(s.key)]
        self._parameters()
        self._load(list(self._objects.list(PACKS)))
        if self._read_data:
            self._frames()
        for stored in roots:
            self._index(stored.key)
        return CheckReport(
            indexes=len(roots),
            packs=len(self._packs.packs),
            chunks=sum(len(p.lengths) for p in self._packs.packs),
            bytes_read=self._bytes,
            damage=tuple(
                Damage(key=key, problem=f.problem, indexes=tuple(sorted(f.indexes)))
                for key, f in sorted(self._found.items())
            ),
            leftovers=(*leftovers, *others),
        )

    @staticmethod
    def _known(key: str) -> bool:
        return key == parameters.CONFIG or key.startswith((parameters.DOMAINS, PACKS, PREFIX))

    def _note(self, key: str, problem: str) -> _Finding:
        with self._lock:
            return self._found.setdefault(key, _Finding(problem))

    def _parameters(self) -> None:
        try:
            parameters.read(self._objects)
        except CalotypeError as error:
            self._note(parameters.CONFIG, error.message)
        for stored in self._objects.list(parameters.DOMAINS):
            name = stored.key.removeprefix(parameters.DOMAINS)
            try:
                self._domains[name] = parameters.domain(self._objects, name)
            except CalotypeError as error:
                self._note(stored.key, error.message)

    def _load(self, packs: Sequence[Stored]) -> None:
        loaded: list[Pack] = []
        for stored in packs:
            try:
                loaded.append(load(self._objects, stored.key, stored.size))
            except NotFound:
                continue
            except (StoreDamaged, InvalidInput) as error:
                self._note(stored.key, error.message.removeprefix(f"{stored.key} "))
                self._unreadable.add(stored.key)
        for pack in sorted(loaded, key=lambda p: p.id):
            self._packs.add(pack)

    def _frames(self) -> None:
        total = sum(p.size for p in self._packs.packs)
        with self._progress.phase("Check", total) as report:

            def work(next_pack: Callable[[], Pack | None]) -> None:
                while (pack := next_pack()) is not None:
                    self._pack(pack)
                    with self._lock:
                        report(pack.size)

            spread(self._packs.packs, work)

    def _pack(self, pack: Pack) -> None:
        domain = self._domains.get(pack.domain)
        if domain is None:
            self._note(pack.key, f"is of the dedup domain {pack.domain}, which is not readable")
        try:
            if self._objects.get_range(pack.key, 0, len(HEADER)) != HEADER:
                self._note(pack.key, "does not start as a pack does")
            for first, last in _groups(pack):
                start = int(pack.frame_offset[first])
                end = int(pack.frame_offset[last - 1]) + int(pack.frame_stored[last - 1])
                data = memoryview(self._objects.get_range(pack.key, start, end - start))
                for number in range(first, last):
                    at = int(pack.frame_offset[number]) - start
                    piece = data[at : at + int(pack.frame_stored[number])]
                    self._frame(pack, number, piece, domain)
                with self._lock:
                    self._bytes += end - start
        except (NotFound, StoreDamaged) as error:
            self._note(pack.key, error.message)
            self._bad.update((pack.key, n) for n in range(len(pack.frame_raw)))

    def _frame(self, pack: Pack, number: int, stored: memoryview, domain: Domain | None) -> None:
        try:
            if blake3(stored).digest() != pack.frame_checksum[number].tobytes():
                raise StoreDamaged("does not match its checksum")  # noqa: TRY301 - one way to report
            if domain is not None:
                raw_frame(pack, number, stored, domain)
        except StoreDamaged as error:
            self._note(pack.key, f"frame {number}: {error.message}")
            self._bad.add((pack.key, number))

    def _index(self, key: str) -> None:
        index = key.removeprefix(PREFIX)
        try:
            data = self._objects.get(key)
        except NotFound:
            return  # deleted meanwhile
        try:
            if root_id(data) != index:
                raise StoreDamaged("does not match its id")  # noqa: TRY301 - one way to report
            root = Root.decode(data)
        except StoreDamaged as error:
            self._note(key, error.message).indexes.add(index)
            return
        domain = self._domains.get(root.domain)
        if domain is None:
            name = parameters.DOMAINS + root.domain
            self._note(name, "is missing").indexes.add(index)
            return
        leaves = LeafReader(self._objects, self._packs, domain, root, refresh=False)
        missing = 0
        for region, digest in root.leaves.items():
            missing += self._leaf(leaves, region, digest, index)
        if missing:
            self._note(key, f"needs {missing} chunks that no readable pack holds").indexes.add(
                index
            )
            for pack in self._unreadable:
                self._found[pack].indexes.add(index)

    def _leaf(self, leaves: LeafReader, region: int, digest: bytes, index: str) -> int:
        """Name the Index at all damage that this leaf meets; how many chunks are missing."""
        try:
            _number, pack, chunk = self._packs.locate(leaves.place(digest))
        except StoreDamaged:
            return 1
        self._touch([(pack.key, int(pack.chunk_frame[chunk]))], index)
        try:
            leaf = leaves.parse(region, digest)
        except (StoreDamaged, NotFound) as error:
            self._note(pack.key, error.message).indexes.add(index)
            return 0
        places = leaves.find(leaf)
        for _number, data, here, chunks in self._packs.by_pack(places[places >= 0]):
            frames = np.unique(data.chunk_frame[chunks]).tolist()
            self._touch([(data.key, frame) for frame in frames], index)
            if (data.lengths[chunks] != leaf.sizes[places >= 0][here]).any():
                self._note(PREFIX + index, "names chunks of other sizes").indexes.add(index)
        return int((places < 0).sum())

    def _touch(self, frames: Sequence[tuple[str, int]], index: str) -> None:
        if self._bad:
            for key, frame in frames:
                if (key, frame) in self._bad:
                    self._found[key].indexes.add(index)


def _groups(pack: Pack) -> Iterator[tuple[int, int]]:
    """Runs of frames ``[first, last)`` that are read at once."""
    first = 0
    while first < len(pack.frame_stored):
        end = int(pack.frame_offset[first]) + _TOGETHER
        last = max(first + 1, int(np.searchsorted(pack.frame_offset, end, side="right")) - 1)
        yield first, last
        first = last
