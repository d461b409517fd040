"""All packs of a store, and where each chunk is: sorted arrays of digest prefixes.

A lookup takes a whole segment's digests at once. Prefixes are 64 bits, so a hit is certain only after the
full digest was compared. When a chunk is in several packs, the first of those known by then, in the order
of their ids, is taken: the same one every time.
"""

import logging
import threading
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calotype.errors import NotFound, StoreDamaged
from calotype.store.digest import Bytes32, Ints
from calotype.store.objects import ReadableStore
from calotype.store.pack import PREFIX, Kind, Pack, load

log = logging.getLogger("calotype.store")

_MANY = 8  # tables of one group before they are merged
_SHIFT = 32  # a place is a pack's number, then the chunk's number in that pack
_LOW = (1 << _SHIFT) - 1


class _Table(NamedTuple):
    prefix: npt.NDArray[np.uint64]  # sorted
    place: Ints


class PackSet:
    """The packs that this process knows; safe to use from several threads at once."""

    def __init__(self, objects: ReadableStore) -> None:
        self._objects = objects
        self._lock = threading.RLock()
        self._packs: list[Pack] = []
        self._known: set[str] = set()
        self._gone: set[int] = set()  # numbers of packs that were forgotten
        self._tables: dict[tuple[Kind, str], tuple[_Table, ...]] = {}
        self._loaded = False
        self.generation = 0  # grows whenever a lookup may answer otherwise than before

    @property
    def packs(self) -> Sequence[Pack]:
        """The packs by number; what was forgotten is empty."""
        if not self._gone:
            return self._packs
        return [p.emptied() if n in self._gone else p for n, p in enumerate(self._packs)]

    def refresh(self) -> None:
        """Learn the packs that were added since.

        A damaged pack is left out: its chunks count as missing, and the next ingest that needs one writes
        it anew.
        """
        with self._lock:
            fresh: list[Pack] = []
            for stored in self._objects.list(PREFIX):
                if stored.key in self._known:
                    continue
                try:
                    fresh.append(load(self._objects, stored.key, stored.size))
                except NotFound:
                    continue
                except StoreDamaged as error:
                    log.warning("%s", error.message)
            self._add(fresh)
            self._loaded = True

    def ready(self) -> None:
        """Learn the packs once, when this is the first need."""
        with self._lock:
            if not self._loaded:
                self.refresh()

    def add(self, pack: Pack) -> None:
        """Learn a pack that was just sealed."""
        with self._lock:
            if pack.key not in self._known:
                self._add([pack])

    def forget(self, keys: Collection[str]) -> None:
        """Drop packs that were deleted, or must not be used; harmless when they are not known.

        A later :meth:`refresh` learns those again that are still listed.
        """
        with self._lock:
            if not self._known.intersection(keys):
                return
            self._known.difference_update(keys)
            self._gone.update(n for n, p in enumerate(self._packs) if p.key in keys)
            gone = np.array(sorted(self._gone), dtype=np.int64)
            for group, tables in self._tables.items():
                self._tables[group] = tuple(_without(table, gone) for table in tables)
            self.generation += 1

    def _add(self, fresh: Sequence[Pack]) -> None:
        groups: dict[tuple[Kind, str], list[_Table]] = {}
        for pack in sorted(fresh, key=lambda p: p.id):
            number = len(self._packs)
            self._packs.append(pack)
            self._known.add(pack.key)
            place = np.arange(len(pack.lengths), dtype=np.int64) | (number << _SHIFT)
            table = _Table(_prefixes(pack.digests), place)
            groups.setdefault((pack.kind, pack.domain), []).append(table)
        for group, tables in groups.items():
            old = self._tables.get(group, ())
            added = (*old, _merge(tables))
            self._tables[group] = added if len(added) <= _MANY else (_merge(added),)
        self.generation += 1

    def find(self, kind: Kind, domain: str, digests: Bytes32) -> Ints:
        """The place of each digest's chunk; -1 where no pack has it."""
        found = np.full(len(digests), -1, dtype=np.int64)
        wanted = _prefixes(digests)
        for table in self._tables.get((kind, domain), ()):
            absent = np.flatnonzero(found < 0)
            if not len(absent):
                break
            found[absent] = self._find(table, wanted[absent], digests[absent])
        return found

    def _find(self, table: _Table, wanted: npt.NDArray[np.uint64], digests: Bytes32) -> Ints:
        found = np.full(len(wanted), -1, dtype=np.int64)
        at = np.searchsorted(table.prefix, wanted)
        still = np.arange(len(wanted))
        # Equal prefixes stand side by side: step through them until the digest is right.
        while len(still):
            near = at[still]
            same = near < len(table.prefix)
            same[same] = table.prefix[near[same]] == wanted[still[same]]
            still = still[same]
            places = table.place[at[still]]
            right = self._equal(places, digests[still])
            found[still[right]] = places[right]
            still = still[~right]
            at[still] += 1
        return found

    def _equal(self, places: Ints, digests: Bytes32) -> npt.NDArray[np.bool_]:
        equal = np.zeros(len(places), dtype=bool)
        numbers = places >> _SHIFT
        for number in np.unique(numbers):
            here = np.flatnonzero(numbers == number)
            stored = self._packs[number].digests[places[here] & _LOW]
            equal[here] = (stored == digests[here]).all(axis=1)
        return equal

    def locate(self, place: int) -> tuple[int, Pack, int]:
        """The pack's number, the pack, and the chunk's number in it."""
        return place >> _SHIFT, self._packs[place >> _SHIFT], place & _LOW

    def keys(self, places: Ints) -> list[str]:
        """The keys of the packs that these places lie in."""
        return [self._packs[n].key for n in np.unique(places >> _SHIFT).tolist()]

    def by_pack(self, places: Ints) -> list[tuple[int, Pack, Ints, Ints]]:
        """Places grouped by pack: (pack number, pack, positions in ``places``, chunk numbers)."""
        numbers = places >> _SHIFT
        groups = []
        for number in np.unique(numbers):
            here = np.flatnonzero(numbers == number)
            groups.append((int(number), self._packs[number], here, places[here] & _LOW))
        return groups


def _prefixes(digests: Bytes32) -> npt.NDArray[np.uint64]:
    prefixes = np.ascontiguousarray(digests[:, :8]).view("<u8").reshape(-1)
    return prefixes.astype(np.uint64, copy=False)


def _without(table: _Table, gone: Ints) -> _Table:
    kept = ~np.isin(table.place >> _SHIFT, gone)
    return _Table(table.prefix[kept], table.place[kept])


def _merge(tables: Sequence[_Table]) -> _Table:
    prefix = np.concatenate([t.prefix for t in tables])
    place = np.concatenate([t.place for t in tables])
    order = np.argsort(prefix, kind="stable")
    return _Table(prefix[order], place[order])
