"""A partial base: filled as it is read, each frame once, continued after a crash, never trusted blindly."""

import os
import random
import threading
from contextlib import closing

import pytest

from calotype.disk.base import Extent, read
from calotype.errors import StoreDamaged, ToolFailed
from calotype.store import MemoryStore, Repository, profile
from calotype.store.chunking import Chunking

MIB = 1 << 20
UNIT = 1 << 16  # a region has 64 of them
SIZE = 150 * UNIT + 4096  # three regions


class Memory:
    """A disk in memory: some data in each region, holes between."""

    size = SIZE

    def __init__(self, seed=1):
        rng = random.Random(seed)
        self.parts = {}
        for start in (0, 3 * UNIT + 512, 64 * UNIT - 4096, 70 * UNIT, 149 * UNIT):
            self.parts[start] = rng.randbytes(UNIT + rng.randrange(5000))

    def extents(self):
        at = 0
        for start, data in self.parts.items():
            if start > at:
                yield Extent(at, start - at, zero=True)
            yield Extent(start, len(data), zero=False)
            at = start + len(data)
        yield Extent(at, SIZE - at, zero=True)

    def read_into(self, offset, buffer):
        buffer[:] = bytes(len(buffer))
        for start, data in self.parts.items():
            low, high = max(offset, start), min(offset + len(buffer), start + len(data))
            if low < high:
                buffer[low - offset : high - offset] = data[low - start : high - start]

    def close(self):
        pass


class Counting(MemoryStore):
    """A store that counts what is read of its data, and may fail."""

    def __init__(self):
        super().__init__()
        self.read = 0
        self.failing = False
        self.lock = threading.Lock()

    def get_range(self, key, offset, length):
        if self.failing:
            raise ToolFailed("the store does not answer")
        with self.lock:
            self.read += length
        return super().get_range(key, offset, length)


@pytest.fixture
def disk():
    return Memory()


@pytest.fixture
def store():
    return Counting()


@pytest.fixture
def repository(store):
    return Repository.create(store, chunking=Chunking(region=64 * UNIT))


@pytest.fixture
def index(repository, disk):
    return repository.ingest(disk).index


def same(base, disk, offset=0, length=SIZE):
    return read(base, offset, length) == read(disk, offset, length)


def fill(base):
    for region in base.regions:
        base.fill(region, lambda: None)


def test_what_is_read_is_fetched_and_nothing_else(repository, index, disk, tmp_path):
    with closing(repository.partial(index, tmp_path)) as base:
        assert base.size == SIZE
        assert list(base.extents()) == list(repository.open(index).extents())
        assert not base.ready(70 * UNIT, 4096)
        assert same(base, disk, 70 * UNIT, 4096)
        assert base.ready(70 * UNIT, 4096)
        assert base.fetched < 3 * UNIT  # one frame
        assert not base.whole
        assert same(base, disk)
        assert base.whole


def test_several_runs_at_once(repository, index, disk, tmp_path):
    runs = [Extent(at * UNIT, 9000, zero=False) for at in (149, 0, 70, 63, 0, 20)]
    with closing(repository.partial(index, tmp_path)) as base:
        base.fetch_all(runs)
        fetched = base.fetched
        for run in runs:
            assert same(base, disk, run.offset, min(run.length, SIZE - run.offset))
        assert base.fetched == fetched


def test_random_reads_by_many_threads_fetch_each_frame_once(
    repository, index, disk, store, tmp_path
):
    repository.materialize(index, tmp_path / "copy")
    fresh = Repository(store)
    read(fresh.open(index), 70 * UNIT, 1)  # the packs' footers
    before = store.read
    Repository(store).materialize(index, tmp_path / "copy2")
    one_copy = store.read - before
    directory = tmp_path / "partial"
    directory.mkdir()
    before = store.read
    with closing(Repository(store).partial(index, directory)) as base:
        wrong = []

        def work(seed):
            rng = random.Random(seed)
            for _ in range(60):
                offset = rng.choice([0, 3 * UNIT, 63 * UNIT, 70 * UNIT, 149 * UNIT])
                offset += rng.randrange(UNIT)
                length = rng.randrange(1, min(30_000, SIZE - offset))
                if not same(base, disk, offset, length):
                    wrong.append((offset, length))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        threads.append(threading.Thread(target=fill, args=(base,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert base.whole
        base.finish()
    assert (directory / "data").read_bytes() == (tmp_path / "copy").read_bytes()
    # One read spans a small gap between two frames, which depends on who came first.
    assert store.read - before <= 1.25 * one_copy


def test_what_was_saved_is_not_fetched_again(repository, index, disk, store, tmp_path):
    with closing(repository.partial(index, tmp_path)) as base:
        assert same(base, disk, 0, 2 * UNIT)
        base.save()
        assert same(base, disk, 70 * UNIT, UNIT)  # not saved
    again = Repository(store).partial(index, tmp_path)
    with closing(again):
        assert same(again, disk, 0, UNIT)
        assert again.fetched == 0
        assert same(again, disk, 70 * UNIT, UNIT)
        assert again.fetched > 0
        fill(again)
        assert again.whole
        assert same(again, disk)


def test_a_whole_map_needs_no_store(repository, index, disk, store, tmp_path):
    with closing(repository.partial(index, tmp_path)) as base:
        fill(base)
        base.save()
    with closing(Repository(store).partial(index, tmp_path)) as again:
        fill(again)
        assert again.whole
        assert again.fetched == 0


@pytest.mark.parametrize("seed", range(8))
def test_rot_in_a_partial_base_is_found_and_fetched_again(repository, index, disk, tmp_path, seed):
    rng = random.Random(seed)
    with closing(repository.partial(index, tmp_path)) as base:
        fill(base)
        base.save()
    with open(tmp_path / "data", "r+b") as file:
        for _ in range(20):
            start, data = rng.choice(list(disk.parts.items()))
            at = start + rng.randrange(len(data))
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ (1 << rng.randrange(8))]))
    with closing(repository.partial(index, tmp_path)) as again:
        fill(again)
        assert again.whole
        assert 0 < again.fetched < 20 * UNIT
        assert same(again, disk)


def test_a_base_that_was_cut_off(repository, index, disk, tmp_path):
    with closing(repository.partial(index, tmp_path)) as base:
        fill(base)
        base.save()
    os.truncate(tmp_path / "data", 2 * UNIT)
    with closing(repository.partial(index, tmp_path)) as again:
        assert same(again, disk)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:-1],
        lambda data: data[:40],
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:50] + bytes([data[50] ^ 255]) + data[51:],
        lambda data: os.urandom(len(data)),
    ],
)
def test_a_damaged_map_is_none(repository, index, disk, tmp_path, damage):
    with closing(repository.partial(index, tmp_path)) as base:
        fill(base)
        base.save()
    path = tmp_path / "map"
    path.write_bytes(damage(path.read_bytes()))
    with closing(repository.partial(index, tmp_path)) as again:
        assert not again.ready(0, 10)
        assert same(again, disk)
        assert again.fetched > 0


def test_what_should_be_zero_is(repository, index, disk, tmp_path):
    with closing(repository.partial(index, tmp_path)) as base:
        fill(base)
        base.save()
    with open(tmp_path / "data", "r+b") as file:
        for offset in (2 * UNIT, 80 * UNIT + 5, 148 * UNIT):
            file.seek(offset)
            file.write(b"stray")
    with closing(repository.partial(index, tmp_path)) as again:
        fill(again)
        assert same(again, disk)


def test_a_region_that_should_be_zero_is(repository, tmp_path):
    disk = Memory()
    disk.parts = {0: disk.parts[0]}
    index = repository.ingest(disk).index
    with closing(repository.partial(index, tmp_path)) as base:
        fill(base)
        base.save()
    with open(tmp_path / "data", "r+b") as file:
        file.seek(100 * UNIT)
        file.write(b"stray")
    with closing(repository.partial(index, tmp_path)) as again:
        fill(again)
        assert same(again, disk)


def test_the_map_of_another_index_is_none(repository, index, disk, tmp_path):
    other = Memory(seed=2)
    with closing(repository.partial(index, tmp_path)) as base:
        fill(base)
        base.save()
    with closing(repository.partial(repository.ingest(other).index, tmp_path)) as again:
        assert same(again, other)


def test_pieces_of_chunks_are_fetched_again(repository, index, tmp_path):
    """After a capture a row may be a piece of a chunk, which has no digest of its own."""
    changed = Memory()
    changed.parts[70 * UNIT] = b"x" * 4096 + changed.parts[70 * UNIT][4096:]
    taken = repository.ingest(changed, base=index, changed=[Extent(70 * UNIT, 4096, zero=False)])
    with closing(repository.partial(taken.index, tmp_path)) as base:
        fill(base)
        base.save()
    with closing(repository.partial(taken.index, tmp_path)) as again:
        fill(again)
        assert 0 < again.fetched < 3 * UNIT  # one frame
        assert same(again, changed)


def test_a_failing_store_is_an_error_of_the_read(repository, index, disk, store, tmp_path):
    with closing(repository.partial(index, tmp_path)) as base:
        assert same(base, disk, 0, 4096)
        store.failing = True
        with pytest.raises(ToolFailed):
            read(base, 149 * UNIT, 4096)
        assert same(base, disk, 0, 4096)
        store.failing = False
        assert same(base, disk, 149 * UNIT, 4096)


def test_damaged_data_is_never_served(repository, index, store, tmp_path):
    for stored in list(store.list("packs/")):
        data = bytearray(store.get(stored.key))
        data[len(data) // 3] ^= 1
        store.put(stored.key, bytes(data))
    with closing(repository.partial(index, tmp_path)) as base, pytest.raises(StoreDamaged):
        read(base, 0, SIZE)


def test_a_lost_write_forgets_the_map(repository, index, tmp_path, monkeypatch):
    with closing(repository.partial(index, tmp_path)) as base:
        read(base, 0, 4096)
        base.save()
        read(base, 70 * UNIT, 4096)

        def fail(_fd):
            raise OSError(5, "lost")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="lost"):
            base.save()
        monkeypatch.undo()
    assert not (tmp_path / "map").exists()


# Boot profiles


def test_a_profile_comes_back():
    recorder = profile.Recorder(64 * MIB)
    recorder.note(10 * MIB + 100, 10_000)
    recorder.note(0, 4096)
    recorder.note(10 * MIB, 20_000)
    extents = recorder.extents()
    assert extents == [
        Extent(10 * MIB, 12288, zero=False),
        Extent(0, 4096, zero=False),
        Extent(10 * MIB + 12288, 8192, zero=False),
    ]
    assert recorder.bytes == 6 * 4096
    assert profile.decode(profile.encode(extents), 64 * MIB) == extents


def test_a_profile_is_bounded():
    extents = [Extent(n * 8192, 4096, zero=False) for n in range(profile.MAX_EXTENTS + 5)]
    data = profile.encode(extents)
    assert len(data) <= profile.MAX_ENCODED
    assert len(profile.decode(data, 1 << 40)) == profile.MAX_EXTENTS
    data = profile.encode([Extent(0, 5 * profile.MAX_BYTES, zero=False)])
    assert profile.decode(data, 1 << 40) == [Extent(0, profile.MAX_BYTES, zero=False)]
    recorder = profile.Recorder(1 << 40)
    recorder.note(0, profile.MAX_BYTES)
    assert recorder.full


def test_a_profile_ends_with_its_disk():
    data = profile.encode([Extent(SIZE - 512, 512, zero=False)])
    assert profile.decode(data, SIZE)[-1].end == SIZE


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0" * 8,
        lambda data: data[:12] + b"\xff" + data[13:],
        lambda data: os.urandom(len(data)),
        lambda _: b"\0" * (profile.MAX_ENCODED + 1),
        lambda _: profile.encode([Extent(SIZE + 4096, 4096, zero=False)]),
    ],
)
def test_a_damaged_profile_is_none(repository, index, store, damage):
    repository.keep_boot_profile(index, [Extent(0, 4096, zero=False)])
    assert len(repository.boot_profile(index)) == 1
    store.put(profile.PREFIX + index, damage(store.get(profile.PREFIX + index)))
    assert repository.boot_profile(index) == ()


def test_a_profile_goes_with_its_index(repository, index, store):
    repository.keep_boot_profile(index, [Extent(0, 4096, zero=False)])
    repository.keep_boot_profile(index, [Extent(4096, 4096, zero=False)])  # the first one stays
    assert repository.boot_profile(index) == [Extent(0, 4096, zero=False)]
    assert repository.check().ok
    repository.delete_index(index)
    assert list(store.list(profile.PREFIX)) == []
