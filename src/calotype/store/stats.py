"""What images take, what they share, and what deleting one would free."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from calotype.store.digest import Ints
from calotype.store.index import Root
from calotype.store.packset import PackSet
from calotype.store.reader import LeafReader


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexStats:
    """One Index among those asked about; sizes in bytes."""

    index: str
    logical: int  # the disk's virtual size
    data: int  # of it, not zero as the store sees it
    stored: int  # compressed, were it alone
    unique: int  # of that, what no other one needs: what deleting it would free
    shared: int  # the rest


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreStats:
    """The Indexes asked about, together; sizes in bytes."""

    indexes: tuple[IndexStats, ...]
    logical: int  # sum of the disks' virtual sizes
    data: int  # sum of what is not zero in them
    chunks: int  # distinct chunks that they need
    raw: int  # of those chunks, before compression
    referenced: int  # of those chunks, compressed
    stored: int  # of all packs of the store
    packs: int


class Counter:
    """Counts which chunks each Index needs."""

    def __init__(self, packs: PackSet) -> None:
        self._packs = packs
        lengths = [len(p.lengths) for p in packs.packs]
        self._first = np.cumsum([0, *lengths])
        self._seen: dict[bytes, Ints] = {}

    def of(self, root: Root, leaves: LeafReader) -> tuple[Ints, int]:
        """The numbers of the chunks that an Index needs (each once), and its bytes of data."""
        parts: list[Ints] = [np.zeros(0, dtype=np.int64)]
        data = 0
        for region, digest in root.leaves.items():
            leaf = leaves.parse(region, digest)
            data += int(leaf.length.sum())
            if digest not in self._seen:
                places = np.concatenate([leaves.places(leaf), [leaves.place(digest)]])
                self._seen[digest] = self._first[places >> 32] + (places & 0xFFFFFFFF)
            parts.append(self._seen[digest])
        return np.unique(np.concatenate(parts)), data

    def total(self, indexes: Iterable[tuple[str, Root, LeafReader]]) -> StoreStats:
        """Statistics over these Indexes; one that is named twice shares all with itself."""
        listed = [(index, root, *self.of(root, leaves)) for index, root, leaves in indexes]
        packs = self._packs.packs
        uses = np.zeros(int(self._first[-1]), dtype=np.int64)
        for _index, _root, chunks, _data in listed:
            uses[chunks] += 1
        stored = _joined([p.chunk_stored for p in packs])
        raw = _joined([p.lengths.astype(np.float64) for p in packs])
        rows = []
        for index, root, chunks, data in listed:
            alone = round(float(stored[chunks].sum()))
            unique = round(float(stored[chunks[uses[chunks] == 1]].sum()))
            rows.append(
                IndexStats(
                    index=index,
                    logical=root.size,
                    data=data,
                    stored=alone,
                    unique=unique,
                    shared=alone - unique,
                )
            )
        return StoreStats(
            indexes=tuple(rows),
            logical=sum(r.logical for r in rows),
            data=sum(r.data for r in rows),
            chunks=int((uses > 0).sum()),
            raw=round(float(raw[uses > 0].sum())),
            referenced=round(float(stored[uses > 0].sum())),
            stored=sum(p.size for p in packs),
            packs=len(packs),
        )


def _joined(
    parts: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]],
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return np.concatenate([np.zeros(0), *parts])
