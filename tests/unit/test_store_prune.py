"""What a prune does: it frees, it moves, it refuses, and what is needed reads back."""

import random
import threading
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.disks import BytesDisk

from calotype.catalog import Catalog
from calotype.disk.base import Extent, read
from calotype.errors import Conflict, InvalidInput, NotFound
from calotype.store import DirectoryStore, MemoryStore, Repository
from calotype.store import lease as lease_module
from calotype.store import repack as repack_module
from calotype.store.chunking import Chunking
from calotype.store.ledger import MemoryLedger, PackState
from calotype.store.mark import Marks
from calotype.store.pack import PREFIX as PACKS
from calotype.store.pack import Kind, Pack, load
from calotype.store.roots import BINDING

MIB = 1 << 20
NOW = timedelta(0)


def noise(seed, size=MIB):
    return random.Random(seed).randbytes(size)


def text(seed: int, size: int = MIB) -> bytes:
    """What compresses, and better so with patience."""
    chance = random.Random(seed)
    words = [chance.randbytes(chance.randint(3, 9)) for _ in range(3000)]
    return b" ".join(chance.choices(words, k=size // 4))[:size]


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def objects():
    return MemoryStore()


@pytest.fixture
def ledger(clock):
    return MemoryLedger(clock)


@pytest.fixture
def repository(objects, ledger):
    return Repository.create(objects, ledger, chunking=Chunking(region=MIB))


def packs_of(objects: MemoryStore) -> list[Pack]:
    return [load(objects, s.key, s.size) for s in objects.list(PACKS)]


def whole(repository, index):
    disk = repository.open(index)
    return read(disk, 0, disk.size)


def put(repository, data):
    return repository.ingest(BytesDisk(data)).index


# -- what it frees


def test_what_no_image_needs_is_condemned_and_goes_after_the_grace(repository, objects, clock):
    kept = put(repository, noise(1))
    gone = put(repository, noise(2))
    repository.delete_index(gone)
    first = repository.prune(grace=timedelta(minutes=10))
    assert (first.condemned, first.deleted, first.waiting) == (2, 0, 2)
    assert first.waiting_bytes > MIB
    clock.now += 599
    assert repository.prune(grace=timedelta(minutes=10)).deleted == 0
    clock.now += 1
    third = repository.prune(grace=timedelta(minutes=10))
    assert (third.deleted, third.waiting) == (2, 0)
    assert third.freed == first.waiting_bytes
    assert sum(p.size for p in packs_of(objects)) < MIB * 1.1
    assert whole(Repository(objects), kept) == noise(1)
    assert repository.prune(grace=NOW).condemned == 0


def test_a_rehearsal_changes_nothing_and_says_what_would_happen(repository, objects, ledger):
    put(repository, noise(1) + noise(2))
    both = put(repository, noise(1) + noise(3))
    repository.delete_index(both)
    before = [(s.key, s.size) for s in objects.list()]
    report = repository.prune(grace=NOW, dry_run=True)
    assert report.dry_run
    assert report.condemned == 2  # the second disk's chunks and its leaves
    assert report.waiting_bytes > MIB
    assert [(s.key, s.size) for s in objects.list()] == before
    assert ledger.packs() == {}


def test_what_is_half_needed_moves_and_the_rest_goes(repository, objects):
    put(repository, noise(1) + noise(2) + noise(3))
    kept = put(repository, noise(3))
    repository.delete_index(next(i for i in repository.indexes() if i != kept))
    report = repository.prune(grace=NOW)
    assert report.repacked >= 1
    assert MIB <= report.moved < MIB * 1.1
    assert report.needed < MIB * 1.1
    assert sum(p.size for p in packs_of(objects)) < MIB * 1.1
    assert whole(Repository(objects), kept) == noise(3)
    assert Repository(objects).check().ok
    again = repository.prune(grace=NOW)
    assert (again.repacked, again.deleted) == (0, 0)


def test_what_is_mostly_needed_stays_where_it_is(repository):
    put(repository, noise(1) + noise(2) + noise(3))
    kept = put(repository, noise(2) + noise(3))
    repository.delete_index(next(i for i in repository.indexes() if i != kept))
    report = repository.prune(grace=NOW)
    assert report.repacked <= 1  # the pack of leaves
    assert report.moved < 64 << 10
    assert repository.prune(grace=NOW, share=0.8).moved >= 2 * MIB


def test_of_several_copies_of_a_chunk_one_stays(objects, clock):
    ledger = MemoryLedger(clock)
    repository = Repository.create(objects, ledger, chunking=Chunking(region=MIB))
    blind = Repository(objects, ledger)
    blind._packs.refresh = lambda: None  # type: ignore[method-assign] # it sees no packs
    blind._packs.ready = lambda: None  # type: ignore[method-assign]
    index = put(repository, noise(1))
    assert put(blind, noise(1)) == index
    assert len(packs_of(objects)) == 4
    report = repository.prune(grace=NOW)
    assert report.deleted == 2
    assert len(packs_of(objects)) == 2
    assert whole(Repository(objects), index) == noise(1)


def test_small_packs_are_put_together_when_there_are_many(repository, objects):
    indexes = [put(repository, noise(n, 100_000)) for n in range(repack_module.MANY)]
    report = repository.prune(grace=NOW)
    assert report.repacked == 2 * repack_module.MANY
    assert sorted(p.kind for p in packs_of(objects)) == [Kind.DATA, Kind.LEAF]
    fresh = Repository(objects)
    assert [whole(fresh, i) for i in indexes] == [noise(n, 100_000) for n in range(len(indexes))]


def test_whole_frames_move_as_they_are_and_a_level_compresses_them_anew(repository, objects):
    index = put(repository, text(1))
    before = sum(p.size for p in packs_of(objects))
    frames = {c.tobytes() for p in packs_of(objects) for c in p.frame_checksum}
    repository.prune(grace=NOW, share=2)
    assert {c.tobytes() for p in packs_of(objects) for c in p.frame_checksum} == frames
    repository.prune(grace=NOW, share=2, level=19)
    assert sum(p.size for p in packs_of(objects)) < 0.98 * before
    assert {p.level for p in packs_of(objects)} == {19}
    assert whole(Repository(objects), index) == text(1)
    with pytest.raises(InvalidInput):
        repository.prune(level=23)


def test_bytes_that_are_not_right_any_more_do_not_move(repository, objects):
    put(repository, noise(1) + noise(2) + noise(3))
    kept = put(repository, noise(3))
    repository.delete_index(next(i for i in repository.indexes() if i != kept))
    (pack,) = (p for p in packs_of(objects) if p.kind is Kind.DATA)
    data = bytearray(objects.get(pack.key))
    placed = repository._leaf_reader(repository._root(kept)).placed(0)
    data[int(pack.frame_offset[placed.frame[0]]) + 50] ^= 1
    objects.put(pack.key, data)
    report = repository.prune(grace=NOW)
    assert any("checksum" in problem for problem in report.unreadable)
    assert pack.key in {p.key for p in packs_of(objects)}
    assert repository.check().touched == (kept,)


def test_a_pack_without_a_footer_is_left_alone(repository, objects):
    kept, gone = put(repository, noise(1)), put(repository, noise(2))
    repository.delete_index(gone)
    broken = next(
        p for p in packs_of(objects) if p.kind is Kind.DATA and _holds(repository, p, noise(2))
    )
    objects.put(broken.key, objects.get(broken.key)[:-1] + b"x")
    report = repository.prune(grace=NOW)
    assert any(broken.key in problem for problem in report.unreadable)
    assert objects.size(broken.key)
    assert whole(Repository(objects), kept) == noise(1)


def _holds(repository, pack, data):
    domain = repository._domain("default")
    first = int(pack.lengths[0])
    return domain.digest(data[:first]) == pack.digests[0].tobytes()


def test_domains_do_not_mix(repository, objects):
    repository.add_domain("other")
    mine = put(repository, noise(1))
    other = repository.ingest(BytesDisk(noise(1)), domain="other").index
    repository.delete_index(mine)
    assert repository.prune(grace=NOW).deleted == 2
    assert {p.domain for p in packs_of(objects)} == {"other"}
    assert whole(Repository(objects), other) == noise(1)


def test_captures_keep_what_they_took_from_a_base_that_is_gone(repository, objects):
    data = bytearray(noise(1, 3 * MIB))
    base = put(repository, bytes(data))
    data[MIB : MIB + 4096] = noise(9, 4096)
    changed = [Extent(MIB, 4096, zero=False)]
    index = repository.ingest(BytesDisk(bytes(data)), base=base, changed=changed).index
    repository.delete_index(base)
    repository.prune(grace=NOW)
    repository.prune(grace=NOW)
    assert whole(Repository(objects), index) == bytes(data)
    with pytest.raises(NotFound):
        repository.ingest(BytesDisk(bytes(data)), base=base, changed=changed)


def test_boot_profiles_go_with_their_images(repository, objects):
    index = put(repository, noise(1))
    put(repository, noise(2))
    objects.put(f"profiles/{index}", b"1")
    objects.put("profiles/" + "0" * 64, b"2")
    repository.prune(grace=NOW)
    assert [s.key for s in objects.list("profiles/")] == [f"profiles/{index}"]


# -- when it refuses


def test_without_a_ledger_nothing_is_pruned(objects):
    with pytest.raises(Conflict, match="ledger"):
        Repository.create(objects).prune()


def test_a_store_without_an_image_is_emptied_only_when_told_so(repository, objects):
    repository.delete_index(put(repository, noise(1)))
    with pytest.raises(Conflict, match="any image"):
        repository.prune(grace=NOW)
    with pytest.raises(Conflict, match="any image"):
        repository.prune(grace=NOW, dry_run=True)
    assert repository.prune(grace=NOW, empty=True).deleted == 2
    assert packs_of(objects) == []
    assert repository.prune(grace=NOW).deleted == 0  # nothing there, nothing to refuse


@pytest.mark.parametrize("kind", Kind)
def test_while_an_image_is_not_whole_nothing_is_pruned(repository, objects, kind):
    index = put(repository, noise(1))
    repository.delete_index(put(repository, noise(2)))
    needed = {p.key for p in packs_of(objects) if p.kind is kind}
    repository.prune(grace=timedelta(days=1))
    (key,) = needed - repository._ledger.packs().keys()
    data = objects.get(key)
    objects.delete(key)
    with pytest.raises(Conflict, match=index) as error:
        repository.prune(grace=NOW)
    assert error.value.hint
    assert len(packs_of(objects)) == 3
    objects.put(key, data)
    assert repository.prune(grace=NOW).deleted == 2


def test_a_damaged_leaf_stops_the_prune(repository, objects):
    index = put(repository, noise(1))
    (leaves,) = (p for p in packs_of(objects) if p.kind is Kind.LEAF)
    data = bytearray(objects.get(leaves.key))
    data[60] ^= 1
    objects.put(leaves.key, data)
    with pytest.raises(Conflict, match=index):
        repository.prune(grace=NOW)


@pytest.mark.parametrize("how", [{"grace": timedelta(-1)}, {"share": -1}, {"share": 3}])
def test_policies_without_sense_are_refused(repository, how):
    with pytest.raises(InvalidInput):
        repository.prune(**how)


# -- whose store it is


def test_two_installations_do_not_change_one_store(repository, objects, clock):
    index = put(repository, noise(1))
    other = Repository(objects, MemoryLedger(clock))
    for change in (
        lambda: put(other, noise(2)),
        lambda: other.delete_index(index),
        lambda: other.prune(grace=NOW),
        lambda: put(Repository(objects), noise(2)),
        lambda: Repository(objects).delete_index(index),
    ):
        with pytest.raises(Conflict) as error:
            change()
        assert error.value.hint
    assert whole(other, index) == noise(1)
    assert repository.indexes() == [index]


def test_one_installation_has_one_store(repository, ledger):
    put(repository, noise(1))
    with pytest.raises(Conflict, match="another store"):
        put(Repository.create(MemoryStore(), ledger), noise(1))


def test_a_store_whose_catalogue_is_lost_is_adopted(repository, objects, clock):
    kept, gone = put(repository, noise(1)), put(repository, noise(2))
    again = Repository(objects, MemoryLedger(clock))
    assert sorted(again.adopt()) == sorted([kept, gone])
    again.delete_index(gone)
    assert again.prune(grace=NOW).deleted == 2
    assert whole(again, kept) == noise(1)
    late = Repository(objects, repository._ledger)
    with pytest.raises(Conflict):
        put(late, noise(3))
    with pytest.raises(Conflict):
        Repository(objects).adopt()


def test_a_store_that_was_made_without_a_ledger_gets_one(objects, ledger):
    old = Repository.create(objects, chunking=Chunking(region=MIB))
    index = put(old, noise(1))
    assert BINDING not in [s.key for s in objects.list()]
    repository = Repository(objects, ledger)
    repository.delete_index(put(repository, noise(2)))
    assert ledger.root(index) is not None
    assert repository.prune(grace=NOW).deleted == 2
    assert whole(repository, index) == noise(1)


# -- roots


def test_the_object_of_a_live_root_is_put_back(repository, objects):
    index = put(repository, noise(1))
    objects.delete(f"indexes/{index}")
    assert repository.indexes() == [index]
    assert whole(repository, index) == noise(1)  # whoever misses it puts it back
    assert objects.size(f"indexes/{index}")
    objects.delete(f"indexes/{index}")
    assert repository.prune(grace=NOW).restored == (index,)
    assert whole(Repository(objects), index) == noise(1)


def test_a_damaged_root_is_replaced_by_the_ledgers_copy(repository, objects):
    index = put(repository, noise(1))
    objects.put(f"indexes/{index}", b"damaged")
    assert whole(repository, index) == noise(1)
    assert Repository(objects).check().ok


def test_the_object_of_a_removed_root_is_dropped(repository, objects):
    put(repository, noise(1))
    gone = put(repository, noise(2))
    data = objects.get(f"indexes/{gone}")
    repository.delete_index(gone)
    objects.put(f"indexes/{gone}", data)  # as an ingest does that was stopped before it wrote it
    assert gone not in repository.indexes()
    repository.prune(grace=NOW)
    assert [s.key for s in objects.list("indexes/")] == [
        f"indexes/{i}" for i in repository.indexes()
    ]


def test_a_deleted_image_can_come_back(repository, objects):
    put(repository, noise(1))
    index = put(repository, noise(2))
    for grace in (timedelta(days=1), NOW):
        repository.delete_index(index)
        repository.prune(grace=grace)
        assert put(repository, noise(2)) == index
        assert whole(Repository(objects), index) == noise(2)
    assert repository.prune(grace=NOW).deleted == 0


# -- leases


def test_an_ingest_whose_lease_was_lost_begins_again(repository, ledger, clock, objects):
    put(repository, noise(1))

    class Slow(BytesDisk):
        slept = False

        def read_into(self, offset, buffer):
            if not Slow.slept and offset >= MIB // 2:
                Slow.slept = True
                clock.now += 1e6
                assert Repository(objects, ledger).prune(grace=NOW).indexes == 1
            super().read_into(offset, buffer)

    index = repository.ingest(Slow(noise(2, 2 * MIB))).index
    assert Slow.slept
    assert whole(Repository(objects), index) == noise(2, 2 * MIB)


def test_an_ingest_that_always_loses_its_lease_says_so(repository, ledger):
    commit = ledger.commit

    def too_late(operation, root, data):
        ledger.end(operation)
        commit(operation, root, data)

    ledger.commit = too_late
    with pytest.raises(Conflict, match="lease") as error:
        put(repository, noise(1))
    assert error.value.hint
    assert repository.indexes() == []


def test_a_lease_is_renewed_while_the_work_goes_on(ledger, monkeypatch):
    renewed = threading.Event()
    monkeypatch.setattr(ledger, "renew", lambda *_: renewed.set())
    with lease_module.leased(ledger, seconds=0.01):
        assert renewed.wait(30)
    assert ledger.ripe(0) == {}
    assert not [t for t in threading.enumerate() if t.name == "calotype-lease"]


def test_a_failed_ingest_holds_nothing_up(repository, ledger):
    class Broken(BytesDisk):
        def read_into(self, _offset, _buffer):
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        repository.ingest(Broken(noise(1)))
    assert ledger._operations == {}


# -- with the real parts


@contextmanager
def installed(path):
    catalog = Catalog(path / "catalog.db")
    repository = Repository.open_or_create(DirectoryStore(path / "store"), catalog.ledger)
    try:
        yield repository
    finally:
        repository.close()
        catalog.close()


def test_a_directory_and_a_catalogue(tmp_path):
    with installed(tmp_path) as repository:
        kept, gone = put(repository, noise(1)), put(repository, noise(2))
        repository.delete_index(gone)
        assert repository.prune(grace=timedelta(hours=1)).condemned == 2
    with installed(tmp_path) as repository:
        assert put(repository, noise(2)) == gone  # reprieved
        assert repository.prune(grace=NOW).deleted == 0
        repository.delete_index(gone)
        assert repository.prune(grace=NOW).deleted == 2
        assert whole(repository, kept) == noise(1)
        assert repository.check().ok
    assert len(list((tmp_path / "store" / "packs").iterdir())) == 2


def test_ingests_and_prunes_of_threads_at_once(tmp_path):
    with installed(tmp_path) as repository:
        errors: list[BaseException] = []
        put(repository, noise(99, 200_000))

        def uploads(seed):
            try:
                for n in range(4):
                    index = put(repository, noise(seed, 300_000) + noise(n, 300_000))
                    if n < 3:
                        repository.delete_index(index)
            except Exception as error:  # noqa: BLE001 - shown below
                errors.append(error)

        def prunes():
            try:
                for _ in range(4):
                    repository.prune(grace=NOW)
            except Exception as error:  # noqa: BLE001 - shown below
                errors.append(error)

        threads = [threading.Thread(target=uploads, args=(seed,)) for seed in (10, 20)]
        threads.append(threading.Thread(target=prunes))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert repository.check().ok
        repository.prune(grace=NOW)
        repository.prune(grace=NOW)
        assert len(repository.indexes()) == 3
    with installed(tmp_path) as repository:
        assert repository.check().ok
        assert repository.prune(grace=NOW).waiting == 0


# -- marks


def _pack(name, digests):
    count = len(digests)
    return Pack(
        id=name,
        kind=Kind.DATA,
        domain="default",
        level=0,
        size=10_000,
        foot=b"",
        digests=np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32),
        lengths=np.full(count, 100, dtype=np.uint32),
        frame_stored=np.array([100 * count], dtype=np.uint32),
        frame_raw=np.array([100 * count], dtype=np.uint32),
        frame_chunks=np.array([count], dtype=np.uint32),
        frame_codec=np.zeros(1, dtype=np.uint8),
        frame_checksum=np.zeros((1, 32), dtype=np.uint8),
    )


# Digests of few different beginnings and ends, so that they clash in their first 64 bits and otherwise.
DIGESTS = st.builds(
    lambda head, tail: bytes([head]) * 8 + bytes(16) + bytes([tail]) * 8,
    st.integers(0, 2),
    st.integers(0, 3),
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.lists(DIGESTS, min_size=1, max_size=6, unique=True), min_size=1, max_size=5),
    st.sets(DIGESTS),
)
def test_each_live_chunk_is_kept_once_and_in_the_best_pack(contents, live):
    packs = [_pack(f"{n:064x}", digests) for n, digests in enumerate(contents)]
    marks = Marks(MemoryStore(), lambda _name: None)  # type: ignore[arg-type,return-value]
    marks.learn(packs[:1])
    marks.learn(packs)
    group = next(iter(marks._tables))
    wanted = np.frombuffer(b"".join(sorted(live)), dtype=np.uint8).reshape(-1, 32)
    places = marks._find(group, wanted)
    held = {digest for digests in contents for digest in digests}
    assert [bool(p >= 0) for p in places] == [d in held for d in sorted(live)]
    marks._set(places[places >= 0])
    marks.learn(packs)  # marks outlive the tables
    kept = marks.kept(lambda pack, _share: (pack.key,))
    found = [
        (digest, number)
        for number, (pack, digests) in enumerate(zip(packs, contents, strict=True))
        for digest, bit in zip(digests, kept[pack.key], strict=True)
        if bit
    ]
    best = {d: min(n for n, some in enumerate(contents) if d in some) for d in live & held}
    assert sorted(found) == sorted(best.items())


def test_states_are_said_in_words():
    assert [state.value for state in PackState] == ["condemned", "deleting", "deleted"]
