"""The laws of copies: images stay byte-identical, ids stay, and only what is missing moves."""

import errno
import logging
import random
import threading
from collections.abc import Iterable
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.disks import BytesDisk

from calotype.disk.base import Extent, read
from calotype.errors import Conflict, NotFound
from calotype.store import MemoryStore, Repository
from calotype.store.chunking import Chunking
from calotype.store.copy import CopyReport, copy
from calotype.store.ledger import MemoryLedger
from calotype.store.objects import MemoryWriter
from calotype.store.pack import Kind, load

MIB = 1 << 20
SMALL = Chunking(region=MIB)
POOL = [random.Random(n).randbytes(150_000) for n in range(4)]
WORDS = [random.Random(n).randbytes(6).hex().encode() * 9000 for n in range(3)]


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL)


def fresh(objects: MemoryStore | None = None, ledger: MemoryLedger | None = None) -> Repository:
    return Repository.create(objects or MemoryStore(), ledger, chunking=SMALL)


def whole(repository: Repository, index: str) -> bytes:
    disk = repository.open(index)
    return read(disk, 0, disk.size)


def moved(report: CopyReport) -> tuple[int, int, int]:
    return report.chunks, report.bytes_read, report.bytes_stored


CONTENTS = st.lists(
    st.lists(st.sampled_from([*POOL, *WORDS, bytes(200_000)]), max_size=8).map(b"".join),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40, deadline=None)
@given(CONTENTS, st.data())
def test_a_copy_is_clean_and_identical_and_a_second_one_moves_nothing(contents, draw):
    source = fresh()
    images = {source.ingest(BytesDisk(data)).index: data for data in contents}
    some = draw.draw(st.lists(st.sampled_from(sorted(images)), unique=True))
    target = Repository.replica(source, MemoryStore())
    assert copy(source, target, some).indexes == {index: index for index in some}
    assert target.indexes() == sorted(some)
    everything = copy(source, target)
    assert everything.present == len(some)
    assert everything.ok
    assert target.check().ok
    assert {index: whole(target, index) for index in target.indexes()} == images
    again = copy(source, target)
    assert again.present == len(images)
    assert moved(again) == (0, 0, 0)
    # The other way round there is nothing to move either.
    assert moved(copy(target, source)) == (0, 0, 0)


@settings(max_examples=25, deadline=None)
@given(CONTENTS, CONTENTS)
def test_what_the_target_has_is_not_read_again(first, second):
    """The target stored some of the same bytes by itself, in other packs."""
    source = fresh()
    target = Repository.replica(source, MemoryStore())
    for data in first:
        target.ingest(BytesDisk(data))
    images = {source.ingest(BytesDisk(data)).index: data for data in second}
    stored = source.stats(images).referenced
    known = fresh_share(source, target)
    report = copy(source, target, images)
    assert target.check().ok
    assert {index: whole(target, index) for index in images} == images
    assert report.chunks == len(needed(source, images)) - known
    assert report.bytes_stored <= stored + 4096
    # Each chunk of the target is stored once.
    assert target.stats(target.indexes()).duplicate == 0


def needed(repository: Repository, indexes: Iterable[str]) -> set[bytes]:
    found: set[bytes] = set()
    for index in indexes:
        root = repository.root(index)
        found.update(root.leaves.values())
        for region in root.leaves:
            leaf = repository._leaf_reader(root).leaf(region)
            assert leaf is not None
            found.update(d.tobytes() for d in leaf.digests)
    return found


def fresh_share(source: Repository, target: Repository) -> int:
    """How many chunks and leaves of the source the target has."""
    held: set[bytes] = set()
    for stored in target.objects.list("packs/"):
        pack = load(target.objects, stored.key, stored.size)
        held.update(d.tobytes() for d in pack.digests)
    return len(needed(source, source.indexes()) & held)


def test_frames_move_as_they_are_and_only_those_that_are_wanted():
    source = fresh()
    a = source.ingest(BytesDisk(POOL[0] + WORDS[0] + POOL[1])).index
    source.ingest(BytesDisk(POOL[2] + WORDS[1]))
    target = Repository.replica(source, MemoryStore())
    report = copy(source, target, [a])
    assert report.bytes_read == report.bytes_stored
    assert report.bytes_read < sum(s.size for s in source.objects.list("packs/")) * 0.7
    packs = [load(target.objects, s.key, s.size) for s in target.objects.list("packs/")]
    assert report.frames == sum(len(p.frame_raw) for p in packs)


def test_leaves_stay_one_a_frame():
    source = fresh()
    data = b"".join(random.Random(n).randbytes(MIB // 2) + bytes(MIB // 2) for n in range(6))
    a = source.ingest(BytesDisk(data)).index
    target = Repository.replica(source, MemoryStore())
    copy(source, target, [a])
    for stored in target.objects.list("packs/"):
        pack = load(target.objects, stored.key, stored.size)
        assert pack.kind is Kind.DATA or (pack.frame_chunks == 1).all()


def test_the_target_gets_a_domain_that_it_does_not_have():
    source = fresh()
    source.add_domain("tenant")
    index = source.ingest(BytesDisk(POOL[0]), domain="tenant").index
    target = fresh()
    assert copy(source, target).indexes == {index: index}
    assert target.domain("tenant") == source.domain("tenant")
    assert target.domain("default") != source.domain("default")
    assert whole(target, index) == POOL[0]


@pytest.mark.parametrize("chunking", [SMALL, Chunking(region=2 * MIB)])
def test_where_chunks_have_other_names_the_disk_is_taken_in_anew(chunking):
    source = fresh()
    index = source.ingest(BytesDisk(POOL[0] + WORDS[1])).index
    target = Repository.create(MemoryStore(), chunking=chunking)
    report = copy(source, target)
    assert report.redigested == 1
    assert report.ok
    assert report.indexes[index] != index
    assert whole(target, report.indexes[index]) == POOL[0] + WORDS[1]
    assert target.check().ok
    assert copy(source, target).bytes_stored == 0


def test_captures_and_boot_profiles_are_copied():
    source = fresh()
    base = source.ingest(BytesDisk(POOL[0] * 8)).index
    data = bytearray(POOL[0] * 8)
    data[70_000:75_000] = POOL[1][:5000]
    changed = [Extent(70_000, 5000, zero=False)]
    index = source.ingest(BytesDisk(bytes(data)), base=base, changed=changed).index
    source.keep_boot_profile(index, [Extent(0, 4096, zero=False)])
    target = Repository.replica(source, MemoryStore())
    assert copy(source, target, [index]).ok
    assert whole(target, index) == data
    assert target.boot_profile(index) == source.boot_profile(index) != ()


def test_an_existing_repository_stays_what_it_is():
    source, other = fresh(), fresh()
    key = other.domain("default")
    assert Repository.replica(source, other.objects).id == other.id
    assert Repository.replica(source, other.objects).domain("default") == key


class Failing(MemoryStore):
    """A store whose process is killed after so many objects."""

    left = 1 << 30

    def put(self, key, data, *, if_absent=False):
        if self.left <= 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().put(key, data, if_absent=if_absent)


def test_a_killed_copy_is_continued(monkeypatch):
    from calotype.store import packwriter  # noqa: PLC0415 - used here alone

    monkeypatch.setattr(packwriter, "SEALED_AT", 100_000)
    source = fresh()
    images = [source.ingest(BytesDisk(POOL[n] + POOL[n + 1])).index for n in range(3)]
    objects = Failing()
    total = copy(source, Repository.replica(source, MemoryStore())).chunks
    Repository.replica(source, objects)
    chunks = []
    for _ in range(20):
        objects.left = 2
        try:
            report = copy(source, Repository(objects))
        except KeyboardInterrupt:
            held = sum(len(load(objects, s.key, s.size).digests) for s in objects.list("packs/"))
            chunks.append(held)
            continue
        break
    objects.left = 1 << 30
    assert report.ok
    assert chunks == sorted(chunks)  # each one goes on where the last one ended
    assert chunks[0] < chunks[1] < chunks[-1] == total
    target = Repository(objects)
    assert target.check().ok
    assert sorted(target.indexes()) == sorted(images)
    held = sum(len(load(objects, s.key, s.size).digests) for s in objects.list("packs/"))
    assert held == total


def test_roots_come_after_all_that_they_name():
    """Whenever a root is there, so is everything that it needs."""
    source = fresh()
    for n in range(3):
        source.ingest(BytesDisk(POOL[n] + WORDS[n]))

    class Watching(MemoryStore):
        def put(self, key, data, *, if_absent=False):
            done = super().put(key, data, if_absent=if_absent)
            if key.startswith("indexes/"):
                assert Repository(self).check().ok
            return done

    assert copy(source, Repository.replica(source, Watching())).ok


def test_what_is_damaged_in_the_source_is_told_and_the_rest_is_copied():
    source = fresh()
    good = source.ingest(BytesDisk(POOL[0])).index
    before = {s.key for s in source.objects.list("packs/")}
    bad = source.ingest(BytesDisk(POOL[0] + POOL[1])).index
    leafless = source.ingest(BytesDisk(POOL[2])).index
    rootless = source.ingest(BytesDisk(POOL[3])).index
    objects = source.objects
    chunks, leaves = needed(source, [bad]), needed(source, [leafless])
    for stored in list(objects.list("packs/")):
        pack = load(objects, stored.key, stored.size)
        names = {d.tobytes() for d in pack.digests}
        if pack.kind is Kind.DATA and stored.key not in before and names & chunks:
            data = bytearray(objects.get(stored.key))
            data[60] ^= 1
            objects.put(stored.key, bytes(data))
        if pack.kind is Kind.LEAF and names & leaves:
            objects.delete(stored.key)
    objects.put("indexes/" + rootless, b"?")
    source = Repository(objects)
    target = Repository.replica(source, MemoryStore())
    report = copy(source, target)
    assert set(report.failed) == {bad, leafless, rootless}
    assert report.indexes == {good: good}
    assert not report.ok
    assert target.check().ok
    assert target.indexes() == [good]
    with pytest.raises(NotFound):
        copy(source, target, ["0" * 64])


class Counting(MemoryStore):
    """Counts requests, as a store far away would bill them."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0

    def get_range(self, key, offset, length):
        self.requests += 1
        return super().get_range(key, offset, length)


def test_reads_are_few_and_large():
    source = fresh()
    data = b"".join(random.Random(n).randbytes(MIB // 2) for n in range(24))
    index = source.ingest(BytesDisk(data)).index
    far = Counting()
    for stored in source.objects.list():
        far.put(stored.key, source.objects.get(stored.key))
    report = copy(Repository(far), Repository.replica(source, MemoryStore()), [index])
    assert report.bytes_read > 12 * MIB
    assert far.requests < 15  # footers twice, leaves once, and 4 MiB at a time


def test_a_copy_beside_a_prune_of_both_sides_loses_nothing():
    """Packs are repacked and deleted on both sides while images are copied."""
    objects, ledger = MemoryStore(), MemoryLedger()
    source = fresh(objects, ledger)
    far, theirs = MemoryStore(), MemoryLedger()
    Repository.replica(source, far, theirs)
    contents = [POOL[n % 4] + WORDS[n % 3] + POOL[n * 7 % 4][n:] for n in range(8)]
    images = {source.ingest(BytesDisk(data)).index: data for data in contents}
    stop = threading.Event()
    failures: list[BaseException] = []

    def prune(repository: Repository) -> None:
        try:
            while not stop.is_set():
                repository.prune(grace=timedelta(0), share=2, empty=True)
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    prunes = [
        threading.Thread(target=prune, args=(Repository(some, book),))
        for some, book in ((objects, ledger), (far, theirs))
    ]
    for thread in prunes:
        thread.start()
    try:
        for index in images:
            report = copy(Repository(objects, ledger), Repository(far, theirs), [index])
            assert report.failed == {}
    finally:
        stop.set()
        for thread in prunes:
            thread.join()
    assert failures == []
    target = Repository(far, theirs)
    target.prune(grace=timedelta(0), empty=True)
    assert target.check().ok
    assert {index: whole(target, index) for index in target.indexes()} == images


def test_a_target_of_another_installation_is_left_alone():
    source = fresh()
    source.ingest(BytesDisk(POOL[0]))
    objects = MemoryStore()
    Repository.replica(source, objects, MemoryLedger()).ingest(BytesDisk(POOL[1]))
    with pytest.raises(Conflict):
        copy(source, Repository(objects))


class FailingWriter(MemoryWriter):
    def write(self, buffers):
        store = self._store
        assert isinstance(store, Full)
        if store.left <= 0:
            raise OSError(errno.EIO, "Input/output error")
        store.left -= 1
        super().write(buffers)


class Full(MemoryStore):
    """A store whose disk fails while a pack is written."""

    left = 1 << 30

    def writer(self):
        return FailingWriter(self)


def test_a_target_that_cannot_write_gets_no_root():
    source = fresh()
    source.ingest(BytesDisk(b"".join(POOL)))
    objects = Full()
    Repository.replica(source, objects)
    for left in range(8):
        objects.left = left
        with pytest.raises(OSError, match="Input/output error"):
            copy(source, Repository(objects))
        assert list(objects.list("indexes/")) == []
    objects.left = 1 << 30
    assert copy(source, Repository(objects)).ok
    assert Repository(objects).check().ok
