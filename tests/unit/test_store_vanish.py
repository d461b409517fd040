"""Packs that are deleted while others read or rely on them."""

import random
from collections.abc import Callable, Collection, Sequence

import pytest
from tests.disks import BytesDisk

from calotype.disk.base import read
from calotype.errors import StoreDamaged
from calotype.store import MemoryStore, Repository
from calotype.store.digest import Domain
from calotype.store.intake import Intake, Worker
from calotype.store.pack import PREFIX, Kind
from calotype.store.packset import PackSet

MIB = 1 << 20


def packs_of(store: MemoryStore) -> list[str]:
    return [stored.key for stored in store.list(PREFIX)]


def store_again(store: MemoryStore, data: bytes) -> None:
    """Ingest in another process, as it were: packs of the same chunks under other names."""
    old = {key: store.get(key) for key in packs_of(store)}
    for key in old:
        store.delete(key)
    Repository(store).ingest(BytesDisk(data))
    for key, value in old.items():
        store.put(key, value)


def test_the_id_of_a_deleted_pack_does_not_come_back():
    data = random.Random(1).randbytes(MIB)
    store = MemoryStore()
    index = Repository.create(store).ingest(BytesDisk(data)).index
    first = packs_of(store)
    store_again(store, data)
    assert len(set(packs_of(store))) == 2 * len(first)
    assert Repository(store).indexes() == [index]


@pytest.mark.parametrize("warm", [False, True])
def test_a_reader_goes_on_when_packs_are_moved(warm):
    """What prune does: the same chunks in new packs, then the old ones go."""
    data = random.Random(2).randbytes(3 * MIB)
    store = MemoryStore()
    index = Repository.create(store).ingest(BytesDisk(data)).index
    disk = Repository(store).open(index)
    if warm:
        assert read(disk, 0, 4096) == data[:4096]
    old = packs_of(store)
    store_again(store, data)
    for key in old:
        store.delete(key)
    assert read(disk, 0, disk.size) == data


def test_a_pack_that_vanishes_within_one_read_is_looked_up_again():
    data = random.Random(3).randbytes(32 * MIB)

    class Vanishing(MemoryStore):
        reads = 0

        def get_range(self, key: str, offset: int, length: int) -> bytes:
            found = super().get_range(key, offset, length)
            if self.reads is not None:
                self.reads += 1
                if self.reads == 5:
                    for old in before:
                        self.delete(old)
            return found

    store = Vanishing()
    index = Repository.create(store).ingest(BytesDisk(data)).index
    before = packs_of(store)
    store_again(store, data)
    store.reads = 0
    disk = Repository(store).open(index)
    assert read(disk, 0, disk.size) == data


def test_what_is_really_gone_is_reported_and_nothing_loops():
    data = random.Random(4).randbytes(MIB)
    store = MemoryStore()
    index = Repository.create(store).ingest(BytesDisk(data)).index
    disk = Repository(store).open(index)
    read(disk, 0, 4096)
    for key in packs_of(store):
        store.delete(key)
    with pytest.raises(StoreDamaged, match="missing"):
        read(disk, 0, disk.size)


def test_a_listing_that_shows_deleted_packs_for_ever_ends_too():
    data = random.Random(5).randbytes(MIB)

    class Stale(MemoryStore):
        gone: Collection[str] = ()

        def get_range(self, key: str, offset: int, length: int) -> bytes:
            # The footer is still answered (from some cache), the frames are not.
            if key in self.gone and offset + length < self.size(key):
                self.get("packs/gone")
            return super().get_range(key, offset, length)

    store = Stale()
    index = Repository.create(store).ingest(BytesDisk(data)).index
    disk = Repository(store).open(index)
    store.gone = packs_of(store)
    with pytest.raises(StoreDamaged, match="vanish"):
        read(disk, 0, disk.size)


def intake_of(
    store: MemoryStore, packs: PackSet, meet: Callable[[Sequence[str]], Collection[str]]
) -> Intake:
    packs.refresh()
    return Intake(store, packs, Domain("default", bytes(32)), meet=meet)


def test_an_ingest_asks_once_about_each_pack_and_obeys():
    store = MemoryStore()
    data = random.Random(6).randbytes(MIB)
    starts = list(range(0, MIB, 65536))
    ends = [s + 65536 for s in starts]

    def ingest(meet: Callable[[Sequence[str]], Collection[str]]) -> Worker:
        intake = intake_of(store, PackSet(store), meet)
        worker = Worker(intake)
        for _ in range(2):
            worker.store(memoryview(data), starts, ends)
        worker.finish()
        intake.finish()
        used.append(intake.used)
        return worker

    used: list[frozenset[str]] = []
    asked: list[Sequence[str]] = []

    def meet(keys: Sequence[str]) -> Collection[str]:
        asked.append(keys)
        return refused

    refused: Sequence[str] = []
    assert ingest(meet).counts.new_chunks == 16  # nothing known: nobody is asked
    assert not asked
    (first,) = packs_of(store)
    assert used.pop() == {first}
    assert ingest(meet).counts.new_chunks == 0
    assert asked == [[first]]
    assert used.pop() == {first}

    asked.clear()
    refused = [first]
    assert ingest(meet).counts.new_chunks == 16  # stored anew, in a pack that may be used
    assert asked == [[first]]
    (second,) = set(packs_of(store)) - {first}
    assert used.pop() == {second}

    asked.clear()
    assert ingest(meet).counts.new_chunks == 0  # where one pack is refused the other is found
    assert sorted(key for keys in asked for key in keys) in ([second], sorted([first, second]))
    assert used.pop() == {second}


def test_forgotten_packs_are_found_no_more_and_learnt_again_when_listed():
    store = MemoryStore()
    Repository.create(store).ingest(BytesDisk(random.Random(7).randbytes(MIB)))
    packs = PackSet(store)
    packs.refresh()
    pack = next(p for p in packs.packs if p.kind is Kind.DATA)
    assert (packs.find(Kind.DATA, "default", pack.digests) >= 0).all()
    packs.forget([pack.key, "packs/unknown"])
    assert (packs.find(Kind.DATA, "default", pack.digests) < 0).all()
    assert sum(p.size for p in packs.packs) < pack.size
    packs.refresh()
    assert (packs.find(Kind.DATA, "default", pack.digests) >= 0).all()
