"""All packs of a store, and where each chunk is.

A lookup takes a whole window's digests at once. It finds their 64-bit prefixes in a few sorted tables (see
:mod:`calotype.store.lookup`), and then compares the full digests with the packs' footers, of which only the
last ones used are in memory. When a chunk is in several packs, any one of them is taken.
"""

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from calotype.errors import NotFound, StoreDamaged
from calotype.store import lookup
from calotype.store.digest import Bytes32, Ints
from calotype.store.footers import Footers
from calotype.store.lookup import LOW, SHIFT, Group, Table
from calotype.store.objects import ReadableStore, Stored
from calotype.store.pack import PREFIX, Kind, Pack
from calotype.store.workers import spread

log = logging.getLogger("calotype.store")

_ROWS, _PACKS = 1 << 16, 32  # of a table that is worth a file
_BATCH = 32  # footers that are read before their tables are made
_READERS = 8  # threads that read footers


class _Numbered:
    """A table, and the number that each of its packs has in this process; -1 for those not in use.

    ``found`` says that it is (in part) from a file that was found.
    """

    def __init__(self, table: Table, numbers: Ints, *, found: bool = False) -> None:
        self.table = table
        self.numbers = numbers
        self.found = found

    @property
    def rows(self) -> int:
        return len(self.table)


class PackSet:
    """The packs that this process knows; safe to use from several threads at once.

    Args:
        objects: the store.
        lookup_in: a directory for tables, which makes opening fast and memory bounded; it may be
            removed at any time when nobody uses it. None: everything is in memory.
        keep_footers: keep footers in that directory as well: for stores that are far away.
    """

    def __init__(
        self,
        objects: ReadableStore,
        lookup_in: Path | None = None,
        *,
        keep_footers: bool = False,
    ) -> None:
        self._objects = objects
        self._directory = lookup_in
        kept = lookup_in / "footers" if lookup_in is not None and keep_footers else None
        for directory in (lookup_in, kept):
            if directory is not None:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._footers = Footers(objects, kept)
        self._lock = threading.RLock()
        self._names: list[Stored] = []  # by number
        self._live: dict[str, int] = {}  # key -> number
        self._bad: set[Stored] = set()  # packs without a usable footer, as far as was told
        self._tables: dict[Group, tuple[_Numbered, ...]] = {}
        self._loaded = False
        self.generation = 0  # grows whenever a lookup may answer otherwise than before

    @property
    def packs(self) -> Sequence[Pack]:
        """The packs by number, read as they are asked for; what was forgotten is empty."""
        return _Packs(self, len(self._names))

    def pack(self, number: int) -> Pack:
        """A pack's footer.

        Raises:
            NotFound: it was deleted.
            StoreDamaged: it is not readable (any more).
        """
        return self._footers.get(self._names[number])

    def pack_or_gone(self, number: int) -> Pack:
        """A pack's footer; an empty one when the pack is no longer in use."""
        name = self._names[number]
        if self._live.get(name.key) == number:
            with contextlib.suppress(NotFound):
                return self._footers.get(name)
        return Pack.gone(name.key)

    # -- which packs there are

    def refresh(self) -> None:
        """Learn the packs that were added since, and forget those that were deleted.

        A damaged pack is left out: its chunks count as missing, and the next ingest that needs one writes
        it anew.
        """
        with self._lock:
            listed = list(self._objects.list(PREFIX))
            self.forget(self._live.keys() - {s.key for s in listed})
            fresh = {s.key: s for s in listed if s.key not in self._live}
            if not self._loaded:
                self._load_tables(fresh)
                self._footers.prune([s.key for s in listed])
            self._learn(list(fresh.values()))
            self._loaded = True

    def ready(self) -> None:
        """Learn the packs once, when this is the first need."""
        with self._lock:
            if not self._loaded:
                self.refresh()

    def add(self, pack: Pack) -> None:
        """Learn a pack that was just sealed."""
        with self._lock:
            if pack.key not in self._live:
                self._footers.add(pack)
                self._add([pack])

    def forget(self, keys: Collection[str]) -> None:
        """Drop packs that were deleted, or must not be used; harmless when they are not known.

        A later :meth:`refresh` learns those again that are still listed.
        """
        with self._lock:
            known = [key for key in keys if key in self._live]
            if not known:
                return
            gone = np.array([self._live.pop(key) for key in known], dtype=np.int64)
            self._footers.drop(known)
            for tables in self._tables.values():
                for numbered in tables:
                    hit = np.isin(numbered.numbers, gone)
                    if hit.any():
                        numbered.numbers = np.where(hit, -1, numbered.numbers)
            self.generation += 1

    def recover(self) -> None:
        """Trust no table that was found as a file: make all of them again from the packs' footers."""
        with self._lock:
            if any(n.found for n in itertools.chain.from_iterable(self._tables.values())):
                self._rebuild()

    def _rebuild(self) -> None:
        for numbered in itertools.chain.from_iterable(self._tables.values()):
            _remove(numbered.table)
        self._tables = {}
        self._live.clear()
        self._loaded = False
        self.refresh()

    def _load_tables(self, fresh: dict[str, Stored]) -> None:
        """Use the tables of the lookup directory; the packs that they cover leave ``fresh``."""
        if self._directory is None:
            return
        for table in lookup.load(self._directory):
            here = [fresh.get(p.key) == Stored(p.key, p.size) for p in table.packs]
            if not any(here):
                _remove(table)
                continue
            numbers = np.full(len(here), -1, dtype=np.int64)
            for place in np.flatnonzero(here).tolist():
                numbers[place] = self._number(fresh.pop(table.packs[place].key))
            self._put([*self._tables.get(table.group, ()), _Numbered(table, numbers, found=True)])
        self.generation += 1

    def _learn(self, fresh: Sequence[Stored]) -> None:
        """Read these packs' footers, and add those that are whole."""
        for first in range(0, len(fresh), _BATCH):
            some = [s for s in fresh[first : first + _BATCH] if s.key not in self._live]
            self._add(sorted(self._read(some), key=lambda p: p.id))

    def _read(self, some: Sequence[Stored]) -> list[Pack]:
        found: list[Pack] = []

        def work(next_pack: Callable[[], Stored | None]) -> None:
            while (stored := next_pack()) is not None:
                with contextlib.suppress(NotFound):
                    try:
                        found.append(self._footers.get(stored))
                    except StoreDamaged as error:
                        if stored not in self._bad:
                            log.warning("%s", error.message)
                        self._bad.add(stored)

        if some:
            spread(some, work, min(len(some), _READERS))
        return found

    def _add(self, fresh: Sequence[Pack]) -> None:
        groups: dict[Group, list[Pack]] = {}
        for pack in fresh:
            groups.setdefault(Group(pack.kind, pack.domain), []).append(pack)
        try:
            for group, packs in groups.items():
                numbers = [self._number(Stored(p.key, p.size)) for p in packs]
                table = lookup.table_of(group, packs)
                self._settle(_Numbered(table, np.array(numbers, dtype=np.int64)))
        except ValueError as error:
            log.warning("%s", error)
            self._rebuild()
        if fresh:
            self.generation += 1

    def _number(self, stored: Stored) -> int:
        self._live[stored.key] = len(self._names)
        self._names.append(stored)
        return self._live[stored.key]

    def _put(self, tables: Sequence[_Numbered]) -> None:
        group = tables[0].table.group
        self._tables[group] = tuple(sorted(tables, key=lambda t: t.rows, reverse=True))

    def _settle(self, fresh: _Numbered) -> None:
        """Add a table, merged with all that are not much larger, so that they stay few."""
        tables = list(self._tables.get(fresh.table.group, ()))
        parts, rows = [fresh], fresh.rows
        while tables and tables[-1].rows < 2 * rows:
            rows += tables[-1].rows
            parts.append(tables.pop())
        merged = self._merged(parts)
        self._put([*tables, *merged])
        for part in parts:
            if part not in merged:
                _remove(part.table)

    def _merged(self, parts: Sequence[_Numbered]) -> Sequence[_Numbered]:
        """The parts as one table, in a file when that is worth it; as they are where it fails."""
        live = [p.numbers >= 0 for p in parts]
        numbers = np.concatenate([p.numbers[some] for p, some in zip(parts, live, strict=True)])
        large = sum(p.rows for p in parts) >= _ROWS or len(numbers) >= _PACKS
        saved = self._directory is not None and large
        if len(parts) == 1 and not saved:
            return parts
        try:
            table = lookup.merge([p.table for p in parts], live, self._directory if saved else None)
        except OSError as error:  # a full disk: the cache can wait
            log.warning("cannot write to %s: %s", self._directory, error.strerror)
            return parts
        return [_Numbered(table, numbers, found=any(p.found for p in parts))]

    # -- where chunks are

    def find(self, kind: Kind, domain: str, digests: Bytes32) -> Ints:
        """The place of each digest's chunk; -1 where no pack has it."""
        found = np.full(len(digests), -1, dtype=np.int64)
        wanted = lookup.prefixes(digests)
        for numbered in self._tables.get(Group(kind, domain), ()):
            absent = np.flatnonzero(found < 0)
            if not len(absent):
                break
            which, places = numbered.table.candidates(wanted[absent])
            rows = absent[which]
            places = _renumbered(places, numbered.numbers)
            right = self._equal(places, digests[rows])
            found[rows[right]] = places[right]
        return found

    def _equal(self, places: Ints, digests: Bytes32) -> npt.NDArray[np.bool_]:
        """Which of the places hold the chunks of these digests."""
        equal = np.zeros(len(places), dtype=bool)
        for number, here in _by_number(places):
            if number < 0:
                continue
            try:
                stored = self.pack(number).digests
            except (NotFound, StoreDamaged) as error:
                log.warning("%s", error.message)
                self.forget([self._names[number].key])
                continue
            chunks = places[here] & LOW
            inside = chunks < len(stored)
            some = here[inside]
            equal[some] = (stored[chunks[inside]] == digests[some]).all(axis=1)
        return equal

    def locate(self, place: int) -> tuple[int, Pack, int]:
        """The pack's number, the pack, and the chunk's number in it."""
        return place >> SHIFT, self.pack(place >> SHIFT), place & LOW

    def keys(self, places: Ints) -> list[str]:
        """The keys of the packs that these places lie in."""
        return [self._names[n].key for n in np.unique(places >> SHIFT).tolist()]

    def by_pack(self, places: Ints) -> list[tuple[int, Pack, Ints, Ints]]:
        """Places grouped by pack: (pack number, pack, positions in ``places``, chunk numbers)."""
        return [(n, self.pack(n), here, places[here] & LOW) for n, here in _by_number(places)]


class _Packs(Sequence[Pack]):
    """The packs of a set by number; see :attr:`PackSet.packs`."""

    def __init__(self, packs: PackSet, count: int) -> None:
        self._packs = packs
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Pack: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Pack]: ...
    def __getitem__(self, number: int | slice) -> Pack | Sequence[Pack]:
        if isinstance(number, slice):
            return [self[n] for n in range(self._count)[number]]
        if not 0 <= number < self._count:
            raise IndexError(number)
        return self._packs.pack_or_gone(number)


def _remove(table: Table) -> None:
    """Remove a table's file; the table stays usable."""
    if table.path is not None:
        table.path.unlink(missing_ok=True)


def _renumbered(places: Ints, numbers: Ints) -> Ints:
    """A table's places with the numbers of this process; negative where the pack is not in use."""
    pack = places >> SHIFT
    known = (places >= 0) & (pack < len(numbers))
    number = np.where(known, numbers[np.where(known, pack, 0)], -1)
    renumbered: Ints = np.where(number >= 0, (places & LOW) | number << SHIFT, -1)
    return renumbered


def _by_number(places: Ints) -> Iterator[tuple[int, Ints]]:
    """The positions of the places of each pack."""
    numbers = places >> SHIFT
    for number in np.unique(numbers).tolist():
        yield number, np.flatnonzero(numbers == number)
