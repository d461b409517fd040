"""What images take, what they share, what deleting one would free, and what nobody needs.

Every distinct leaf is read once, in the order of the packs. Memory: about 13 bytes for each chunk of the
store, and 4 for each chunk that a distinct leaf names.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calotype.errors import StoreDamaged
from calotype.store.digest import Domain, Ints
from calotype.store.index import Root
from calotype.store.objects import ReadableStore
from calotype.store.pack import Kind
from calotype.store.packset import PackSet
from calotype.store.scan import Walk, Walked

Numbers = npt.NDArray[np.uint32]

_SHIFT = 32  # a place is a pack's number, then the chunk's number in that pack
_LOW = (1 << _SHIFT) - 1
_NOBODY, _SEVERAL = -1, -2  # who needs a chunk, when it is not one Index alone


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
    """The Indexes asked about, together; sizes in bytes.

    What the packs take is what is ``referenced``, ``dead``, ``duplicate``, and their footers.
    """

    indexes: tuple[IndexStats, ...]
    logical: int  # sum of the disks' virtual sizes
    data: int  # sum of what is not zero in them
    chunks: int  # distinct chunks and leaves that they need
    raw: int  # of those chunks, before compression
    referenced: int  # of those chunks, compressed
    dead: int  # of chunks that none of them needs, compressed: what prune can free
    duplicate: int  # of second copies of chunks, compressed: that too
    stored: int  # of all packs of the store
    packs: int
    condemned: int  # of packs on their way out
    condemned_packs: int


class Counter:
    """Counts who needs which chunk. Chunks are numbered through all packs of the set."""

    def __init__(self, objects: ReadableStore, packs: PackSet) -> None:
        self._objects = objects
        self._packs = packs
        self._keys: list[str] = []
        sizes, shares, raws = [0], [np.zeros(0, np.float32)], [np.zeros(0, np.uint32)]
        self._stored = 0
        for pack in packs.packs:
            self._keys.append(pack.key)
            self._stored += pack.size
            sizes.append(len(pack.lengths))
            if pack.size:
                shares.append(pack.chunk_stored.astype(np.float32))
                raws.append(pack.lengths)
        self._first = np.cumsum(sizes)
        self._share = np.concatenate(shares)
        self._raw = np.concatenate(raws)
        self._owner = np.full(len(self._share), _NOBODY, dtype=np.int32)
        self._leaves: dict[bytes, tuple[Numbers, int]] = {}  # chunks, bytes of data

    def total(
        self,
        indexes: Sequence[tuple[str, Root]],
        domain: Callable[[str], Domain],
        condemned: Mapping[str, int],
    ) -> StoreStats:
        """Statistics over these Indexes; one that is named twice shares all with itself.

        ``condemned`` are packs on their way out, and their sizes.

        Raises:
            NotFound: a pack vanished meanwhile.
            StoreDamaged: a leaf or chunk is missing or damaged.
        """
        for name in {root.domain for _index, root in indexes}:
            roots = {index: root for index, root in indexes if root.domain == name}
            for walked in Walk(self._objects, self._packs, domain(name), roots):
                self._leaf(walked)
        listed = [(index, root, *self._of(i, root)) for i, (index, root) in enumerate(indexes)]
        alone = self._owner >= 0
        unique = np.bincount(self._owner[alone], self._share[alone], minlength=len(listed))
        rows = [
            IndexStats(
                index=index,
                logical=root.size,
                data=data,
                stored=stored,
                unique=round(float(own)),
                shared=stored - round(float(own)),
            )
            for (index, root, stored, data), own in zip(listed, unique, strict=True)
        ]
        needed = self._owner != _NOBODY
        copies = self._copies()
        return StoreStats(
            indexes=tuple(rows),
            logical=sum(r.logical for r in rows),
            data=sum(r.data for r in rows),
            chunks=int(needed.sum()),
            raw=int(self._raw[needed].sum(dtype=np.int64)),
            referenced=self._sum(needed),
            dead=self._sum(~needed & ~copies),
            duplicate=self._sum(~needed & copies),
            stored=self._stored,
            packs=int((np.diff(self._first) > 0).sum()),
            condemned=sum(condemned.values()),
            condemned_packs=len(condemned),
        )

    def _sum(self, which: npt.NDArray[np.bool_]) -> int:
        return round(float(self._share[which].sum(dtype=np.float64)))

    def _leaf(self, walked: Walked) -> None:
        """Remember which chunks a leaf names."""
        if walked.leaf is None:
            raise StoreDamaged(
                f"Index {walked.indexes[0]}: {walked.problem}", hint="run `calotype store check`"
            )
        places = self._packs.find(Kind.DATA, walked.domain.name, walked.leaf.digests)
        if (places < 0).any():
            raise StoreDamaged(
                f"Index {walked.indexes[0]} names chunks that are missing from the store",
                hint="run `calotype store check`",
            )
        chunks = self._numbers(np.append(places, walked.place)).astype(np.uint32)
        self._leaves[walked.digest] = chunks, int(walked.leaf.length.sum())

    def _numbers(self, places: Ints) -> Ints:
        numbers: Ints = self._first[places >> _SHIFT] + (places & _LOW)
        return numbers

    def _of(self, number: int, root: Root) -> tuple[int, int]:
        """Note what an Index needs: its stored bytes, were it alone, and its bytes of data."""
        leaves = [self._leaves[digest] for digest in root.leaves.values()]
        chunks = np.unique(np.concatenate([np.zeros(0, np.uint32), *(c for c, _data in leaves)]))
        owner = self._owner[chunks]
        self._owner[chunks] = np.where(owner == _NOBODY, number, _SEVERAL)
        return round(float(self._share[chunks].sum(dtype=np.float64))), sum(d for _c, d in leaves)

    def _copies(self) -> npt.NDArray[np.bool_]:
        """Which chunks are found in another pack than this one."""
        copies = np.zeros(len(self._owner), dtype=bool)
        for number, pack in enumerate(self._packs.packs):
            first, last = int(self._first[number]), int(self._first[number + 1])
            if len(pack.lengths) != last - first:
                continue  # it vanished
            found = self._packs.find(pack.kind, pack.domain, pack.digests)
            copies[first:last] = self._numbers(found) != np.arange(first, last)
        return copies
