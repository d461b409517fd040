"""Check: does every byte of the store match its checksum, and is everything there that an Index names?

Every object is covered: config, domains and other sealed objects by their seals, a pack's header by being
constant, its frames by checksums and digests, its footer by its name, leaves by their digests, roots by
their names. Frames may be sampled; everything else is small and is read each time.
"""

import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np

from calotype.errors import InvalidInput, NotFound, StoreDamaged
from calotype.progress import SILENT, Progress
from calotype.store import parameters, profile
from calotype.store.digest import Bytes32, Domain, as_rows
from calotype.store.index import MAX_SIZE, PREFIX, Root, root_id
from calotype.store.objects import ReadableStore, Stored
from calotype.store.pack import HEADER, Kind, Pack, load
from calotype.store.pack import PREFIX as PACKS
from calotype.store.packset import PackSet
from calotype.store.roots import BINDING
from calotype.store.scan import (
    Stretch,
    Walk,
    Walked,
    pack_of,
    read_each,
    rotten,
    stretches,
    verified,
)
from calotype.store.verified import Verified
from calotype.store.workers import spread

ASIDE = "damaged/"  # packs that repair has moved out of the way
_SAVE_EVERY = 30  # seconds
_STALE = 7 * 86400  # seconds after which an interrupted check is not continued
_BATCH, _READERS = 32, 16  # footers that are read at once, and by how many threads
_TRIES = 10  # walks through the Indexes while packs vanish


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """An object that is not what it should be, and the Indexes that need it."""

    key: str
    problem: str
    indexes: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()  # of a pack whose footer is right


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """What a check looked at, and what it found."""

    indexes: int
    packs: int
    chunks: int
    bytes_read: int  # of packs' frames
    bytes_total: int  # of packs' frames
    oldest: int | None  # when the part of a pack was verified that waits longest; None: never
    damage: tuple[Damage, ...]
    leftovers: tuple[str, ...]  # unfinished, foreign or set aside objects: no damage

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not self.damage

    @property
    def touched(self) -> tuple[str, ...]:
        """The Indexes that cannot be read in full."""
        return tuple(sorted({index for d in self.damage for index in d.indexes}))


class _Listed(NamedTuple):
    """A pack with a usable footer; ``parts`` are the bytes of what is verified, and remembered, at once."""

    key: str
    number: int  # in the set of packs
    parts: tuple[int, ...]

    @property
    def id(self) -> str:
        return self.key.removeprefix(PACKS)


class _Part(NamedTuple):
    pack: _Listed
    number: int

    @property
    def size(self) -> int:
        return self.pack.parts[self.number]


@dataclass(slots=True)
class _Finding:
    problem: str
    indexes: set[str] = field(default_factory=set)
    frames: set[int] = field(default_factory=set)

    def damage(self, key: str) -> Damage:
        more = f" (and {len(self.frames) - 1} more frames)" if len(self.frames) > 1 else ""
        return Damage(
            key=key,
            problem=self.problem + more,
            indexes=tuple(sorted(self.indexes)),
            frames=tuple(sorted(self.frames)),
        )


class Checker:
    """One check of one store; ``memory`` is told what was verified."""

    def __init__(
        self,
        objects: ReadableStore,
        progress: Progress = SILENT,
        *,
        read_data: bool = True,
        sample: float | None = None,
        limit: float | None = None,
        memory: Verified | None = None,
        resume: bool = False,
        expected: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """``expected`` are the Indexes that should be there, besides those that a listing shows."""
        if sample is not None and not 0 < sample <= 1:
            raise InvalidInput("a sample is a share above 0 and up to 1 (100 %)")
        if limit is not None and limit <= 0:
            raise InvalidInput("a time limit is more than 0 seconds")
        self._objects = objects
        self._progress = progress
        self._read_data = read_data
        self._sample = sample
        self._limit = math.inf if limit is None else limit
        self._whole = sample is None and limit is None
        self._memory = memory or Verified()
        self._resume = resume
        self._expected = expected
        self._found: dict[str, _Finding] = {}
        self._rotten: dict[bytes, set[str]] = {}  # chunks in damaged frames -> keys of their packs
        self._domains: dict[str, Domain] = {}
        self._packs = PackSet(objects)
        self._listed: list[_Listed] = []
        self._chunks = 0
        self._known: set[str] = set()  # packs that were looked at
        self._unreadable: set[str] = set()  # packs without a usable footer
        self._lock = threading.Lock()
        self._bytes = 0
        self._oldest: int | None = None
        self._saved = time.monotonic()
        self._missing: dict[str, int] = {}  # chunks and leaves, by Index

    def run(self, leftovers: Sequence[str] = ()) -> CheckReport:
        """Check everything that was asked for; damage is reported, never raised."""
        # Roots are listed before packs: what an ingest adds meanwhile is then not missed.
        expected = self._expected()
        roots = [stored.key for stored in self._objects.list(PREFIX)]
        for index in set(expected) - {key.removeprefix(PREFIX) for key in roots}:
            self._note(PREFIX + index, "is missing").indexes.add(index)
        others = [s.key for s in self._objects.list() if not self._covered(s.key)]
        self._parameters()
        self._load()
        if self._read_data:
            self._data()
        self._indexes(self._roots(roots))
        self._still_there()
        return CheckReport(
            indexes=len(roots),
            packs=len(self._listed),
            chunks=self._chunks,
            bytes_read=self._bytes,
            bytes_total=sum(sum(p.parts) for p in self._listed),
            oldest=self._oldest,
            damage=tuple(f.damage(key) for key, f in sorted(self._found.items())),
            leftovers=(*leftovers, *others),
        )

    def _covered(self, key: str) -> bool:
        """Whether this is an object of the repository; those that stand alone are checked at once."""
        try:
            if key.startswith(profile.PREFIX):
                profile.decode(self._get(key), MAX_SIZE)  # a hint: no Index needs it
            elif key == BINDING:
                parameters.unseal(key, self._get(key))
            else:
                known = (parameters.DOMAINS, PACKS, PREFIX)
                return key == parameters.CONFIG or key.startswith(known)
        except StoreDamaged as error:
            self._note(key, error.message)
        except NotFound:
            pass  # deleted meanwhile
        return True

    def _get(self, key: str) -> bytes:
        try:
            return self._objects.get(key)
        except OSError as error:
            raise rotten(error) from None

    def _note(self, key: str, problem: str) -> _Finding:
        with self._lock:
            return self._found.setdefault(key, _Finding(problem))

    def _parameters(self) -> None:
        try:
            parameters.read(self._objects)
        except (NotFound, StoreDamaged, InvalidInput) as error:
            self._note(parameters.CONFIG, error.message)
        except OSError as error:
            self._note(parameters.CONFIG, rotten(error).message)
        for stored in self._objects.list(parameters.DOMAINS):
            name = stored.key.removeprefix(parameters.DOMAINS)
            try:
                self._domains[name] = parameters.domain(self._objects, name)
            except (NotFound, StoreDamaged, InvalidInput) as error:
                self._note(stored.key, error.message)
            except OSError as error:
                self._note(stored.key, rotten(error).message)

    def _load(self) -> bool:
        """Learn the packs that are listed; whether there are new ones."""
        fresh = [stored for stored in self._objects.list(PACKS) if stored.key not in self._known]
        self._known.update(stored.key for stored in fresh)
        for first in range(0, len(fresh), _BATCH):
            self._learn(fresh[first : first + _BATCH])
        return bool(fresh)

    def _learn(self, fresh: Sequence[Stored]) -> None:
        """Read these packs' footers, and learn those that are usable."""
        found: list[Pack] = []

        def work(next_pack: Callable[[], Stored | None]) -> None:
            while (stored := next_pack()) is not None:
                if pack := self._footer(stored):
                    found.append(pack)

        spread(fresh, work, min(len(fresh), _READERS))
        for pack in sorted(found, key=lambda p: p.id):
            self._packs.add(pack)
            sizes = tuple(stretch.size for stretch in stretches(pack))
            self._listed.append(_Listed(pack.key, len(self._packs.packs) - 1, sizes))
            self._chunks += len(pack.lengths)
            if pack.domain not in self._domains:
                problem = "is missing, and packs of this dedup domain are there"
                self._note(parameters.DOMAINS + pack.domain, problem)

    def _footer(self, stored: Stored) -> Pack | None:
        try:
            return load(self._objects, stored.key, stored.size)
        except NotFound:
            return None  # deleted meanwhile
        except (StoreDamaged, InvalidInput) as error:
            problem = error.message
        except OSError as error:
            problem = rotten(error).message
        self._note(stored.key, problem.removeprefix(f"{stored.key} "))
        self._unreadable.add(stored.key)
        return None

    # Data

    def _data(self) -> None:
        now = int(time.time())
        parts = self._due(now)
        deadline = time.monotonic() + self._limit

        def in_time() -> Iterator[_Part]:
            for part in parts:
                if time.monotonic() >= deadline:
                    return
                yield part

        with self._progress.phase("checking", sum(p.size for p in parts)) as report:

            def work(next_part: Callable[[], _Part | None]) -> None:
                while (part := next_part()) is not None:
                    self._part(part, now)
                    with self._lock:
                        self._bytes += part.size
                        report(part.size)
                        self._save_now_and_then()

            try:
                spread(in_time(), work)
                if self._whole:
                    self._memory.begun = None
            finally:  # an interrupted check keeps what it did
                self._memory.save()
        times = [t for p in self._listed for t in self._memory.times(p.id, len(p.parts))]
        self._oldest = min(times, default=0) or None

    def _due(self, now: int) -> Sequence[_Part]:
        """What is to be read: everything, or of it what was verified longest ago."""
        memory = self._memory
        memory.keep({p.id for p in self._listed})
        due: list[tuple[int, _Part]] = []
        for pack in self._listed:
            for number, when in enumerate(memory.times(pack.id, len(pack.parts))):
                # A time to come was written under a wrong clock.
                due.append((when if when <= now else 0, _Part(pack, number)))
        if self._whole:
            begun = memory.begun if self._resume else None
            if begun is not None and not now - _STALE < begun <= now:
                begun = None
            memory.begun = now if begun is None else begun
            return [part for when, part in due if begun is None or when < begun]
        due.sort(key=lambda d: d[0])
        wanted = sum(part.size for _when, part in due) * (self._sample or 1)
        taken: list[_Part] = []
        size = 0
        for _when, part in due:
            if size >= wanted:
                break
            taken.append(part)
            size += part.size
        return taken

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self._memory.save()
            self._saved = time.monotonic()

    def _part(self, part: _Part, now: int) -> None:
        pack = part.pack
        try:
            stretch = next(islice(stretches(pack_of(self._packs, pack.number)), part.number, None))
            good = self._stretch(stretch) and (part.number > 0 or self._header(pack.key))
        except NotFound:  # pruned meanwhile: what it held is elsewhere, or missed below
            self._packs.forget([pack.key])
            return
        self._memory.note(pack.id, part.number, len(pack.parts), now if good else 0)

    def _header(self, key: str) -> bool:
        try:
            if self._objects.get_range(key, 0, len(HEADER)) == HEADER:
                return True
            problem = "does not start as a pack does"
        except OSError as error:
            problem = rotten(error).message
        self._note(key, problem)
        return False

    def _stretch(self, stretch: Stretch) -> bool:
        """Whether all of its frames are right; those that are not are noted."""
        pack = stretch.pack
        domain = self._domains.get(pack.domain)
        good = True
        for number, stored in read_each(self._objects, stretch):
            problem = ""
            if stored is None:
                problem = f"frame {number}: cannot be read"
            else:
                try:
                    verified(pack, number, stored, domain)
                except StoreDamaged as error:
                    problem = error.message
            if problem:
                self._bad(pack, number, problem)
                good = False
        return good

    def _bad(self, pack: Pack, number: int, problem: str) -> None:
        text = problem.replace(f" of {pack.key}", "")
        finding = self._note(pack.key, text)
        with self._lock:
            finding.frames.add(number)
            for digest in pack.digests[pack.chunks_of(number)]:
                self._rotten.setdefault(digest.tobytes(), set()).add(pack.key)

    # Indexes

    def _roots(self, keys: Sequence[str]) -> dict[str, dict[str, Root]]:
        """The roots by their dedup domains, and then by Index."""
        found: dict[str, dict[str, Root]] = {}
        for key in keys:
            index = key.removeprefix(PREFIX)
            try:
                root = decoded(index, self._get(key))
            except NotFound:
                continue  # deleted meanwhile
            except StoreDamaged as error:
                self._note(key, error.message).indexes.add(index)
                continue
            if root.domain in self._domains:
                found.setdefault(root.domain, {})[index] = root
            else:
                name = parameters.DOMAINS + root.domain
                self._note(name, "is missing").indexes.add(index)
        return found

    def _indexes(self, roots: dict[str, dict[str, Root]]) -> None:
        for _attempt in range(_TRIES):
            self._missing = {}
            try:
                for name, some in roots.items():
                    for walked in Walk(self._objects, self._packs, self._domains[name], some):
                        self._leaf(walked)
            except NotFound:
                self._load()
                continue
            if not self._missing or not self._load():
                break  # else a prune moved what seems to be missing into the new packs
        for index, count in self._missing.items():
            problem = f"needs {count} chunks that no readable pack holds"
            self._note(PREFIX + index, problem).indexes.add(index)
            for key in self._unreadable:
                self._found[key].indexes.add(index)

    def _leaf(self, walked: Walked) -> None:
        """Name the Indexes at all damage that this leaf meets."""
        if walked.place < 0:
            self._miss(walked.indexes, 1)
            return
        if not walked.whole:
            _number, pack, chunk = self._packs.locate(walked.place)
            self._bad(pack, int(pack.chunk_frame[chunk]), walked.problem)
        self._touch(as_rows([walked.digest]), walked.indexes)
        leaf = walked.leaf
        if leaf is None:
            if walked.whole:
                for index in walked.indexes:
                    self._note(PREFIX + index, walked.problem).indexes.add(index)
            return
        places = self._packs.find(Kind.DATA, walked.domain.name, leaf.digests)
        there = places >= 0
        self._miss(walked.indexes, int((~there).sum()))
        self._touch(leaf.digests, walked.indexes)
        for _number, data, here, chunks in self._packs.by_pack(places[there]):
            if (data.lengths[chunks] != leaf.sizes[there][here]).any():
                for index in walked.indexes:
                    self._note(PREFIX + index, "names chunks of other sizes").indexes.add(index)

    def _miss(self, indexes: Sequence[str], count: int) -> None:
        if count:
            for index in indexes:
                self._missing[index] = self._missing.get(index, 0) + count

    def _touch(self, digests: Bytes32, indexes: Sequence[str]) -> None:
        """Name these Indexes at the damaged frames that hold one of these chunks.

        A chunk may have a second copy that is right; nobody knows which one a reader takes.
        """
        if not self._rotten:
            return
        beginnings = np.fromiter((int.from_bytes(d[:8], "little") for d in self._rotten), "<u8")
        hits = np.isin(np.ascontiguousarray(digests[:, :8]).view("<u8").reshape(-1), beginnings)
        for digest in digests[hits]:
            for key in self._rotten.get(digest.tobytes(), ()):
                self._found[key].indexes.update(indexes)

    def _still_there(self) -> None:
        """Indexes that were deleted meanwhile need nothing any more."""
        named = {index for finding in self._found.values() for index in finding.indexes}
        if not named:
            return
        there = {s.key.removeprefix(PREFIX) for s in self._objects.list(PREFIX)}
        there.update(self._expected())
        for key, finding in list(self._found.items()):
            finding.indexes &= there
            if key.startswith(PREFIX) and key.removeprefix(PREFIX) not in there:
                del self._found[key]


def decoded(index: str, data: bytes) -> Root:
    """The root with these bytes, which should be that of ``index``.

    Raises:
        StoreDamaged: they are not.
    """
    if root_id(data) != index:
        raise StoreDamaged("does not match its id")
    return Root.decode(data)
