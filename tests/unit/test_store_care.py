"""Check in samples, repair, and statistics: what keeps a store for years."""

import errno
import importlib.util
import json
import logging
import random
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tests.disks import BytesDisk

from calotype.disk.base import Extent, read
from calotype.errors import Conflict, InvalidInput, NotFound, StoreDamaged
from calotype.store import DirectoryStore, MemoryStore, ObjectStore, Repository, check, scan
from calotype.store.check import Checker, CheckReport
from calotype.store.chunking import Chunking
from calotype.store.copy import copy
from calotype.store.index import Root, root_id
from calotype.store.ledger import MemoryLedger
from calotype.store.mend import mend_parameters
from calotype.store.pack import Kind, load
from calotype.store.verified import Verified

MIB = 1 << 20
SMALL = Chunking(region=MIB)


def load_campaign() -> ModuleType:
    path = Path(__file__).parents[1] / "campaigns" / "bitrot.py"
    spec = importlib.util.spec_from_file_location("bitrot", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bitrot"] = module
    spec.loader.exec_module(module)
    return module


bitrot = load_campaign()
text, clone = bitrot.text, bitrot.clone

A = random.Random(1).randbytes(MIB) + text(2, MIB)
B = random.Random(1).randbytes(MIB) + text(3, MIB)


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL)


@pytest.fixture(scope="module")
def pair():
    """A store with the images A and B, which share their first half."""
    objects = MemoryStore()
    repository = Repository.create(objects, chunking=SMALL)
    return objects, [repository.ingest(BytesDisk(data)).index for data in (A, B)]


def whole(objects: ObjectStore, index: str) -> bytes:
    disk = Repository(objects).open(index)
    return read(disk, 0, disk.size)


def flip(objects: MemoryStore, key: str, at: int) -> None:
    data = bytearray(objects.get(key))
    data[at] ^= 4
    objects.put(key, bytes(data))


def data_pack(objects: MemoryStore) -> str:
    """The largest data pack."""
    packs = [load(objects, s.key, s.size) for s in objects.list("packs/")]
    return max((p for p in packs if p.kind is Kind.DATA), key=lambda p: p.size).key


# Bit rot


def test_flipped_bits_are_found_named_and_repaired():
    outcomes = list(bitrot.campaign(256, 60, 11))
    assert [o for o in outcomes if not o.good] == []
    assert {o.spot.zone for o in outcomes} == set(bitrot.ZONES)
    assert {o.in_place for o in outcomes} == {True, False}


def test_the_campaign_notices_a_check_that_is_blind(monkeypatch):
    monkeypatch.setattr(check, "verified", lambda *_: b"")
    here = bitrot.build(256, None)
    spots = [s for s in bitrot.spots(here, 20, 3) if s.zone == "frame"]
    assert not any(bitrot.trial(here, spot, here.mirror).good for spot in spots[:2])


# Samples


class Counting(MemoryStore):
    """Counts what is read of packs' frames."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[str, int, int]] = []

    def get_range(self, key, offset, length):
        self.ranges.append((key, offset, length))
        return super().get_range(key, offset, length)


@pytest.fixture
def fine(monkeypatch):
    """Parts of about 32 KiB, so that small stores have many."""
    monkeypatch.setattr(scan, "TOGETHER", 32 << 10)


def total(objects: MemoryStore) -> int:
    packs = [load(objects, s.key, s.size) for s in objects.list("packs/")]
    return sum(int(p.frame_stored.sum()) for p in packs)


def test_ten_nights_of_a_tenth_cover_everything(pair, fine, tmp_path):
    objects, _ = pair
    read_bytes = []
    for night in range(10):
        memory = Verified(tmp_path / "verified")
        report = Repository(objects).check(sample=0.1, memory=memory)
        assert report.ok
        assert report.oldest is None or night > 6  # a night reads whole parts, so a little more
        read_bytes.append(report.bytes_read)
    assert report.oldest is not None
    assert sum(read_bytes) >= total(objects)
    assert max(read_bytes) < 0.25 * total(objects)


def test_a_sample_finds_what_is_damaged_within_ten_nights_and_does_not_forget(pair, fine, tmp_path):
    objects, _ = pair
    broken = clone(objects)
    key = data_pack(broken)
    flip(broken, key, broken.size(key) // 2)
    found = []
    for _ in range(12):
        report = Repository(broken).check(sample=0.1, memory=Verified(tmp_path / "verified"))
        found.append(not report.ok)
    first = found.index(True)
    assert first < 10
    assert all(found[first:])


def test_new_packs_are_verified_first(pair, fine):
    objects, _ = pair
    grown = clone(objects)
    memory = Verified()
    Repository(grown).check(memory=memory)
    Repository(grown).ingest(BytesDisk(random.Random(5).randbytes(100_000)))
    fresh = {s.key.removeprefix("packs/") for s in grown.list("packs/")} - {
        s.key.removeprefix("packs/") for s in objects.list("packs/")
    }
    assert memory.begun is None
    Repository(grown).check(sample=0.1, memory=memory)
    assert all(all(memory.times(pack, len(memory._times[pack]))) for pack in fresh)


def test_a_time_limit_is_kept_and_the_rest_comes_next(pair, fine, monkeypatch):
    objects, _ = pair
    clock = iter(range(10_000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) / 10)
    memory = Verified()
    reports: list[CheckReport] = []
    while not reports or reports[-1].oldest is None:
        reports.append(Repository(objects).check(limit=2.0, memory=memory))
        assert len(reports) < 100
    assert len(reports) > 2
    assert all(0 < r.bytes_read < r.bytes_total for r in reports)


def test_an_interrupted_check_keeps_what_it_did_and_is_continued(pair, fine, tmp_path, monkeypatch):
    objects, _ = pair
    verify = scan.verified
    left = iter(range(20))

    def interrupted(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return verify(*args)

    monkeypatch.setattr(check, "verified", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Repository(objects).check(memory=Verified(tmp_path / "v"))
    monkeypatch.setattr(check, "verified", verify)
    memory = Verified(tmp_path / "v")
    assert memory.begun is not None
    report = Repository(objects).check(memory=memory, resume=True)
    assert 0 < report.bytes_read < report.bytes_total
    assert report.oldest is not None
    # It has ended: the next one to be continued begins anew.
    assert Verified(tmp_path / "v").begun is None
    again = Repository(objects).check(memory=Verified(tmp_path / "v"), resume=True)
    assert again.bytes_read == again.bytes_total


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format":"calotype verified","version":1,"begun":"x","packs":{}}',
        b'{"format":"calotype verified","version":1,"begun":null,"packs":{"a":5}}',
        b'{"format":"calotype verified","version":2}',
    ],
)
def test_a_memory_that_makes_no_sense_counts_as_none(pair, tmp_path, content):
    objects, _ = pair
    (tmp_path / "v").write_bytes(content)
    memory = Verified(tmp_path / "v")
    assert Repository(objects).check(sample=0.5, memory=memory).ok
    assert json.loads((tmp_path / "v").read_bytes())["packs"]


def test_what_was_verified_under_a_wrong_clock_is_verified_again(pair):
    objects, _ = pair
    memory = Verified()
    Repository(objects).check(memory=memory)
    for pack, times in memory._times.items():
        memory._times[pack] = [int(time.time()) + 10**6] * len(times)
    assert Repository(objects).check(sample=1, memory=memory).bytes_read == total(objects)
    assert max(t for times in memory._times.values() for t in times) <= time.time()


def test_an_old_interrupted_check_begins_anew(pair):
    objects, _ = pair
    memory = Verified()
    Repository(objects).check(memory=memory)
    for begun in (time.time() - 8 * 86400, time.time() + 1000):
        memory.begun = int(begun)
        report = Repository(objects).check(memory=memory, resume=True)
        assert report.bytes_read == report.bytes_total


@pytest.mark.parametrize("how", [{"sample": 0}, {"sample": 1.5}, {"limit": 0}])
def test_samples_and_limits_out_of_range_are_refused(pair, how):
    with pytest.raises(InvalidInput):
        Repository(pair[0]).check(**how)


def test_an_index_that_the_ledger_knows_and_the_store_lost_is_missed_and_put_back():
    objects, ledger = MemoryStore(), MemoryLedger()
    repository = Repository.create(objects, ledger, chunking=SMALL)
    index = repository.ingest(BytesDisk(A)).index
    objects.delete("indexes/" + index)
    report = Checker(objects, expected=repository.indexes).run()
    assert [(d.key, d.problem) for d in report.damage] == [("indexes/" + index, "is missing")]
    assert report.touched == (index,)
    assert repository.repair(report=report).restored == ("indexes/" + index,)
    assert repository.check().ok


class Rotten(DirectoryStore):
    """A disk that cannot read some blocks."""

    bad: tuple[str, int] = ("", 0)

    def get_range(self, key, offset, length):
        if key == self.bad[0] and offset <= self.bad[1] < offset + length:
            raise OSError(errno.EIO, "Input/output error")
        return super().get_range(key, offset, length)


def test_blocks_that_the_disk_cannot_read_are_damage_and_are_repaired(pair, tmp_path):
    objects, indexes = pair
    rotten = Rotten(tmp_path)
    for stored in objects.list():
        rotten.put(stored.key, objects.get(stored.key))
    key = data_pack(objects)
    rotten.bad = (key, objects.size(key) // 2)
    report = Repository(rotten).check()
    assert [d.key for d in report.damage] == [key]
    assert len(report.damage[0].frames) == 1
    assert report.touched
    replica = MemoryStore()
    copy(Repository(objects), Repository.replica(Repository(objects), replica))
    done = Repository(rotten).repair(replica, report=report)
    assert done.ok
    assert done.replaced == (key,)
    assert Repository(rotten).check().ok
    for index, data in zip(indexes, (A, B), strict=True):
        assert whole(rotten, index) == data


# Repair


def test_what_both_stores_have_damaged_elsewhere_is_repaired(pair):
    objects, indexes = pair
    broken, source = clone(objects), clone(objects)
    for n, stored in enumerate(objects.list("packs/")):
        flip(broken, stored.key, 20)
        flip(source, stored.key, stored.size - (60 if n % 2 else 3))
    done = Repository(broken).repair(source)
    assert done.ok
    assert Repository(broken).check().ok
    assert [whole(broken, i) for i in indexes] == [A, B]


def test_what_no_store_has_is_named_kept_aside_and_healed_by_an_upload(pair):
    objects, indexes = pair
    broken, source = clone(objects), clone(objects)
    key = data_pack(objects)
    pack = load(objects, key, objects.size(key))
    raw = int(np.flatnonzero((pack.frame_codec == 0) & (pack.frame_chunks > 1))[0])
    at = int(pack.frame_offset[raw])
    for store in (broken, source):
        flip(store, key, at)
    before = broken.get(key)
    done = Repository(broken).repair(source)
    assert not done.ok
    assert done.aside == (key,)
    # Of the frame only the chunk that rotted is lost.
    assert [d.problem for d in done.lost] == ["needs 1 chunks that are lost"] * len(done.touched)
    assert broken.get(key.replace("packs", "damaged")) == before
    report = Repository(broken).check()
    assert report.touched == done.touched
    assert report.leftovers == (key.replace("packs", "damaged"),)
    data = A if indexes[0] in done.touched else B
    again = Repository(broken).ingest(BytesDisk(data))
    assert again.new_chunks == 1
    assert [whole(broken, i) for i in indexes] == [A, B]
    assert Repository(broken).repair().ok
    assert Repository(broken).check() == Repository(broken).check()
    assert list(broken.list("damaged/")) == []
    assert Repository(broken).check().ok


def test_a_repair_without_a_source_takes_rotten_chunks_out_of_use(pair):
    """A frame that is known to be bad is not relied on: the same bytes are stored anew."""
    objects, indexes = pair
    broken = clone(objects)
    key = data_pack(objects)
    flip(broken, key, 5000)
    assert Repository(broken).ingest(BytesDisk(A)).new_chunks == 0  # nobody knows yet
    repository = Repository(broken)
    lost = repository.repair()
    assert not lost.ok
    for data in (A, B):
        repository.ingest(BytesDisk(data))
    assert repository.check().ok
    assert [whole(broken, i) for i in indexes] == [A, B]


def test_disks_with_the_same_bytes_are_a_source(pair):
    objects, indexes = pair
    broken = clone(objects)
    for stored in objects.list("packs/"):
        if load(objects, stored.key, stored.size).kind is Kind.DATA:
            broken.delete(stored.key)
    wrong = BytesDisk(B[:-70_000] + A[:70_000])
    done = Repository(broken).repair(disks={indexes[0]: BytesDisk(A), indexes[1]: wrong})
    assert done.touched == (indexes[1],)
    assert whole(broken, indexes[0]) == A
    done = Repository(broken).repair(disks={indexes[1]: BytesDisk(B)})
    assert done.ok
    assert Repository(broken).check().ok


@pytest.mark.parametrize("other_packs", [False, True])
def test_packs_that_are_cut_off_or_gone_come_back(pair, other_packs):
    objects, indexes = pair
    source = clone(objects)
    if other_packs:
        source = MemoryStore()
        copy(Repository(objects), Repository.replica(Repository(objects), source))
    for cut in (0, 30, 40_000, None):
        broken = clone(objects)
        for stored in objects.list("packs/"):
            if cut is None:
                broken.delete(stored.key)
            else:
                broken.put(stored.key, objects.get(stored.key)[: min(cut, stored.size - 1)])
        done = Repository(broken).repair(source)
        assert done.ok
        assert Repository(broken).check().ok
        assert [whole(broken, i) for i in indexes] == [A, B]


def test_roots_profiles_and_domains_come_back(pair):
    objects, indexes = pair
    kept = clone(objects)
    Repository(kept).keep_boot_profile(indexes[0], [Extent(0, 8192, zero=False)])
    for key in [s.key for s in kept.list() if not s.key.startswith("packs/")]:
        broken = clone(kept)
        broken.put(key, b"something else entirely")
        done = mend_parameters(broken, kept)
        report = Repository(broken).check()
        restored = (*done, *Repository(broken).repair(kept, report=report).restored)
        assert restored == (key,)
        assert broken.get(key) == kept.get(key)
        assert Repository(broken).check().ok


def test_a_config_from_a_replica_gets_the_repositorys_own_id(pair):
    objects, _ = pair
    source, broken = MemoryStore(), clone(objects)
    Repository.replica(Repository(objects), source)
    broken.delete("config")
    own = Repository(objects).id
    assert own != Repository(source).id
    assert mend_parameters(broken, source, repository=own) == ("config",)
    assert broken.get("config") == objects.get("config")


def test_a_key_that_does_not_fit_is_not_taken(pair):
    objects, indexes = pair
    other = MemoryStore()
    Repository.create(other, chunking=SMALL)
    broken = clone(objects)
    broken.put("domains/default", b"gone")
    done = Repository(broken).repair(other)
    assert [d.key for d in done.lost] == ["domains/default"]
    assert set(done.touched) == set(indexes)
    assert broken.get("domains/default") == b"gone"
    assert {s.key for s in broken.list("packs/")} == {s.key for s in objects.list("packs/")}


def test_a_source_that_lies_is_not_believed(pair):
    objects, indexes = pair
    liar = clone(objects)
    for stored in list(objects.list("packs/")):
        pack = load(objects, stored.key, stored.size)
        data = bytearray(objects.get(stored.key))
        for offset in pack.frame_offset.tolist():
            data[offset] ^= 1
        liar.put(stored.key, bytes(data))
    for index in indexes:
        liar.put("indexes/" + index, objects.get("indexes/" + indexes[0])[:-1] + b"x")
    broken = clone(objects)
    for stored in objects.list("packs/"):
        flip(broken, stored.key, 10)
    flip(broken, "indexes/" + indexes[0], 40)
    broken.delete("indexes/" + indexes[1])
    done = Repository(broken).repair(liar)
    assert not done.ok
    for pack in (load(broken, s.key, s.size) for s in broken.list("packs/")):
        for stretch in scan.stretches(pack):
            for number, stored in scan.read(broken, stretch):
                assert scan.verified(pack, number, stored, Repository(objects).domain("default"))


def test_an_index_that_was_never_right_is_not_called_repaired(pair):
    objects, indexes = pair
    forged = clone(objects)
    leaf = Repository(objects).root(indexes[0]).leaves[0]
    data = Root("default", MIB - 1, MIB, {0: leaf}).encode()
    forged.put("indexes/" + root_id(data), data)
    other = b"these are no root's bytes"
    forged.put("indexes/" + root_id(other), other)
    done = Repository(forged).repair(objects)
    forgeries = tuple(sorted([root_id(data), root_id(other)]))
    assert done.touched == Repository(forged).check().touched == forgeries


def test_a_pack_that_was_pruned_since_the_check_does_not_return(pair):
    objects, _ = pair
    broken = clone(objects)
    key = data_pack(broken)
    flip(broken, key, 100)
    report = Repository(broken).check()
    broken.delete(key)
    done = Repository(broken).repair(objects, report=report)
    assert done.ok
    assert key not in {s.key for s in broken.list("packs/")}
    assert Repository(broken).check().ok


def test_no_repair_while_a_prune_is_at_work():
    objects, ledger = MemoryStore(), MemoryLedger()
    repository = Repository.create(objects, ledger, chunking=SMALL)
    repository.ingest(BytesDisk(B))
    operation = ledger.begin(60, prune=True)
    with pytest.raises(Conflict):
        repository.repair()
    ledger.end(operation)
    assert repository.repair().ok


def test_a_repaired_store_is_pruned_as_any_other():
    from datetime import timedelta  # noqa: PLC0415 - used here alone

    objects, ledger = MemoryStore(), MemoryLedger()
    repository = Repository.create(objects, ledger, chunking=SMALL)
    index = repository.ingest(BytesDisk(A)).index
    gone = repository.ingest(BytesDisk(B)).index
    replica = MemoryStore()
    copy(repository, Repository.replica(repository, replica))
    repository.delete_index(gone)
    flip(objects, data_pack(objects), 100)
    assert repository.repair(replica).ok
    for _ in range(3):
        repository.prune(grace=timedelta(0))
    assert repository.check().ok
    assert whole(objects, index) == A


def test_memory_of_a_check_does_not_hold_the_packs(pair):
    """Parts name a pack by its number: footers are read as they are needed."""
    objects, _ = pair
    checker = Checker(objects)
    checker.run()
    assert all(isinstance(p.key, str) and len(p) == 3 for p in checker._listed)


# Statistics


def chunks_of(repository: Repository, index: str) -> dict[bytes, int]:
    root = repository.root(index)
    found = dict.fromkeys(root.leaves.values(), 0)
    for region in root.leaves:
        leaf = repository._leaf_reader(root).leaf(region)
        assert leaf is not None
        found.update(zip([d.tobytes() for d in leaf.digests], leaf.sizes.tolist(), strict=True))
    return found


def test_statistics_are_those_of_a_count_by_hand():
    here = bitrot.build(256, MemoryLedger())
    repository = Repository(here.objects, here.ledger)
    share: dict[bytes, list[float]] = {}
    for stored in here.objects.list("packs/"):
        pack = load(here.objects, stored.key, stored.size)
        for digest, size in zip(pack.digests, pack.chunk_stored.tolist(), strict=True):
            share.setdefault(digest.tobytes(), []).append(size)
    named = [*here.contents, next(iter(here.contents))]  # the first is two images
    needs = {index: chunks_of(repository, index) for index in named}
    stats = repository.stats(named)
    everything = set().union(*needs.values())
    for row in stats.indexes:
        others = [set(needs[i]) for i in named if i != row.index]
        alone = set(needs[row.index]) - set().union(*others)
        if named.count(row.index) > 1:
            alone = set()
        assert row.unique == pytest.approx(sum(min(share[d]) for d in alone), abs=2 + len(alone))
        assert row.stored == row.unique + row.shared
        assert row.logical == len(here.contents[row.index])
    assert stats.chunks == len(everything)
    assert stats.raw >= sum({d: s for n in needs.values() for d, s in n.items()}.values())
    assert stats.duplicate > 0
    dead = sum(sum(sizes) for d, sizes in share.items() if d not in everything)
    assert stats.dead == pytest.approx(dead, abs=5)
    frames = sum(sum(sizes) for sizes in share.values())
    assert stats.referenced + stats.dead + stats.duplicate == pytest.approx(frames, abs=5)
    assert stats.stored > frames
    assert stats.condemned == stats.condemned_packs == 0
    repository.prune()
    assert repository.stats(named).condemned_packs > 0


def test_statistics_of_nothing():
    repository = Repository.create(MemoryStore())
    stats = repository.stats([])
    assert (stats.indexes, stats.stored, stats.dead, stats.packs) == ((), 0, 0, 0)
    with pytest.raises(NotFound):
        repository.stats(["0" * 64])


def test_statistics_of_a_damaged_store_say_so(pair):
    objects, indexes = pair
    broken = clone(objects)
    for stored in list(broken.list("packs/")):
        broken.delete(stored.key)
    with pytest.raises(StoreDamaged):
        Repository(broken).stats(indexes)
