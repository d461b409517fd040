"""Mark: which chunks live roots need, as a bitmap for each pack.

All chunks of one kind and domain stand in one table sorted by digest, so copies of a chunk in several packs
stand side by side. Marks outlive the table: when packs are added, it is built again and the marks stay.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calotype.errors import Conflict, NotFound, StoreDamaged
from calotype.store.digest import Bytes32, Domain, Ints, as_rows
from calotype.store.index import Leaf, Root
from calotype.store.objects import ReadableStore
from calotype.store.pack import Kind, Pack
from calotype.store.scan import read, stretches, verified

Bits = npt.NDArray[np.bool_]  # one for each chunk of a pack
_SHIFT = 32  # a place is a pack's number, then the chunk's number in that pack
_LOW = (1 << _SHIFT) - 1
_SLICE = 1 << 18  # rows of a table that are looked at together


class _Group(NamedTuple):
    kind: Kind
    domain: str


@dataclass(frozen=True, eq=False, slots=True)
class _Table:
    """Chunks sorted by digest; ``first`` is True where a digest differs from the one before."""

    prefix: npt.NDArray[np.uint64]
    place: Ints
    first: Bits


class Marks:
    """What is live in the packs of one store."""

    def __init__(self, objects: ReadableStore, domain: Callable[[str], Domain]) -> None:
        self._objects = objects
        self._domain = domain
        self._live: dict[str, Bits] = {}  # by pack key; of equal chunks at least one is marked
        self._packs: Sequence[Pack] = ()
        self._tables: dict[_Group, _Table] = {}

    def learn(self, packs: Iterable[Pack]) -> None:
        """Take these as the packs that there are. Marks in packs that were known before stay."""
        self._packs = sorted(packs, key=lambda p: p.key)
        groups: dict[_Group, list[int]] = {}
        for number, pack in enumerate(self._packs):
            groups.setdefault(_Group(pack.kind, pack.domain), []).append(number)
            if pack.key not in self._live:
                self._live[pack.key] = np.zeros(len(pack.lengths), dtype=bool)
        self._tables = {group: self._table(numbers) for group, numbers in groups.items()}

    def _table(self, numbers: Sequence[int]) -> _Table:
        packs = [self._packs[n] for n in numbers]
        prefix = np.concatenate([_prefixes(p.digests) for p in packs])
        place = np.concatenate(
            [
                np.arange(len(p.lengths), dtype=np.int64) | (n << _SHIFT)
                for n, p in zip(numbers, packs, strict=True)
            ]
        )
        order = np.argsort(prefix, kind="stable")
        prefix, place = prefix[order], place[order]
        alike = np.flatnonzero(prefix[1:] == prefix[:-1])
        digests = self._digests(np.concatenate([place[alike], place[alike + 1]]))
        same = (digests[: len(alike)] == digests[len(alike) :]).all(axis=1)
        if not same.all():  # two digests with equal beginnings: sort by all bytes
            words = np.ascontiguousarray(self._digests(place)).view("<u8")
            order = np.lexsort(words.T[::-1])
            place, words = place[order], words[order]
            same = (words[alike] == words[alike + 1]).all(axis=1)
        first = np.ones(len(place), dtype=bool)
        first[alike[same] + 1] = False
        return _Table(prefix, place, first)

    def _digests(self, places: Ints) -> Bytes32:
        found = np.empty((len(places), 32), dtype=np.uint8)
        for number, here in _by_pack(places):
            found[here] = self._packs[number].digests[places[here] & _LOW]
        return found

    def _find(self, group: _Group, digests: Bytes32) -> Ints:
        """The place of the first copy of each digest; -1 where no pack has it."""
        found = np.full(len(digests), -1, dtype=np.int64)
        table = self._tables.get(group)
        if table is None:
            return found
        wanted = _prefixes(digests)
        at = np.searchsorted(table.prefix, wanted)
        still = np.arange(len(wanted))
        # Equal prefixes stand side by side: step through them until the digest is right.
        while len(still):
            still = still[at[still] < len(table.prefix)]
            still = still[table.prefix[at[still]] == wanted[still]]
            places = table.place[at[still]]
            right = (self._digests(places) == digests[still]).all(axis=1)
            found[still[right]] = places[right]
            still = still[~right]
            at[still] += 1
        return found

    def _set(self, places: Ints) -> Bits:
        """Mark places; which of them were marked before."""
        before = np.empty(len(places), dtype=bool)
        for number, here in _by_pack(places):
            bits = self._live[self._packs[number].key]
            chunks = places[here] & _LOW
            before[here] = bits[chunks]
            bits[chunks] = True
        return before

    def mark(self, index: str, root: Root) -> None:
        """Mark all that an Index needs.

        Raises:
            Conflict: something that it needs is missing or damaged, so nobody knows what it needs.
        """
        try:
            self._mark(root)
        except (StoreDamaged, NotFound) as error:
            raise Conflict(
                f"nothing is pruned while Index {index} is not whole: {error.message}",
                hint="run `calotype store check`; repair the store, or delete that image",
            ) from error

    def _mark(self, root: Root) -> None:
        digests = as_rows(list(root.leaves.values()))
        places = self._find(_Group(Kind.LEAF, root.domain), digests)
        if (places < 0).any():
            raise StoreDamaged(f"{int((places < 0).sum())} leaves are missing")
        places = np.unique(places)
        fresh = places[~self._set(places)]
        for number, here in _by_pack(fresh):
            self._leaves(self._packs[number], fresh[here] & _LOW, root)

    def _leaves(self, pack: Pack, chunks: Ints, root: Root) -> None:
        """Mark what these leaves name."""
        domain = self._domain(pack.domain)
        by_frame: dict[int, list[int]] = {}
        for chunk in chunks.tolist():
            by_frame.setdefault(int(pack.chunk_frame[chunk]), []).append(chunk)
        for stretch in stretches(pack, np.array(sorted(by_frame))):
            for number, stored in read(self._objects, stretch):
                raw = verified(pack, number, stored, domain)
                for chunk in by_frame[number]:
                    start = int(pack.chunk_offset[chunk])
                    data = raw[start : start + int(pack.lengths[chunk])]
                    self._names(Leaf.decode(data, root.region), pack.domain)

    def _names(self, leaf: Leaf, domain: str) -> None:
        places = self._find(_Group(Kind.DATA, domain), leaf.digests)
        if (places < 0).any():
            raise StoreDamaged(f"{int((places < 0).sum())} chunks are missing")
        self._set(places)

    def kept(self, rank: Callable[[Pack, float], tuple[object, ...]]) -> Mapping[str, Bits]:
        """Which chunks each pack must keep: of each live chunk one copy, in the pack of lowest rank.

        ``rank`` gets a pack and the share of its stored bytes that is live (copies count in each pack).
        """
        kept = {p.key: np.zeros(len(p.lengths), dtype=bool) for p in self._packs}
        ranks = self._ranks(rank)
        for table in self._tables.values():
            for copies in self._copies(table):
                best = np.lexsort((ranks[copies.place >> _SHIFT], copies.chunk))
                chunk = copies.chunk[best]
                first = np.ones(len(chunk), dtype=bool)
                first[1:] = chunk[1:] != chunk[:-1]
                places = copies.place[best][first]
                for number, here in _by_pack(places):
                    kept[self._packs[number].key][places[here] & _LOW] = True
        return kept

    def _ranks(self, rank: Callable[[Pack, float], tuple[object, ...]]) -> Ints:
        """The place of each pack in the order of ranks."""
        live = [np.zeros(len(p.lengths), dtype=bool) for p in self._packs]
        for table in self._tables.values():
            for copies in self._copies(table):
                for number, here in _by_pack(copies.place):
                    live[number][copies.place[here] & _LOW] = True
        order = sorted(
            range(len(self._packs)),
            key=lambda n: rank(self._packs[n], share(self._packs[n], live[n])),
        )
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = np.arange(len(order))
        return ranks

    def _copies(self, table: _Table) -> "Iterator[_Copies]":
        """All copies of live chunks, a bounded number at a time, those of one chunk together."""
        start = 0
        while start < len(table.place):
            end = min(start + _SLICE, len(table.place))
            while end < len(table.place) and not table.first[end]:
                end += 1
            place, first = table.place[start:end], table.first[start:end]
            marked = np.empty(len(place), dtype=bool)
            for number, here in _by_pack(place):
                marked[here] = self._live[self._packs[number].key][place[here] & _LOW]
            chunk = np.cumsum(first) - 1
            some = np.flatnonzero(np.logical_or.reduceat(marked, np.flatnonzero(first))[chunk])
            yield _Copies(chunk[some], place[some])
            start = end


@dataclass(frozen=True, eq=False, slots=True)
class _Copies:
    """Copies of live chunks: which chunk (a number in this part of the table), and where."""

    chunk: Ints
    place: Ints


def taken(pack: Pack, chunks: Bits) -> int:
    """What these chunks take in a pack, in bytes: their share of what their frames take."""
    raw = np.add.reduceat(np.where(chunks, pack.lengths, 0).astype(np.int64), pack.frame_first)
    return round(float((raw * (pack.frame_stored / pack.frame_raw)).sum()))


def share(pack: Pack, chunks: Bits) -> float:
    """How much of what a pack's chunks take these take, from 0 to 1."""
    return taken(pack, chunks) / int(pack.frame_stored.sum(dtype=np.int64))


def _by_pack(places: Ints) -> Iterator[tuple[int, Ints]]:
    """Pack numbers, and the positions in ``places`` that are of each."""
    numbers = places >> _SHIFT
    order = np.argsort(numbers, kind="stable")
    cuts = np.flatnonzero(np.diff(numbers[order])) + 1
    for here in np.split(order, cuts):
        if len(here):
            yield int(numbers[here[0]]), here


def _prefixes(digests: Bytes32) -> npt.NDArray[np.uint64]:
    prefixes = np.ascontiguousarray(digests[:, :8]).view("<u8").reshape(-1)
    return prefixes.astype(np.uint64, copy=False)
