"""The cache of packs: what it keeps, what it serves, what it forgets, and who waits for whom."""

import os
import random
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.disks import BytesDisk

from calotype.errors import NotFound, StoreDamaged
from calotype.store import DirectoryStore, MemoryStore
from calotype.store.cache import CacheStore, uncached
from calotype.store.repository import Repository

BLOCK = 4096
TAIL = 40


class Counting(MemoryStore):
    """Counts what is read."""

    def __init__(self):
        super().__init__()
        self.ranges = []
        self.gets = 0
        self.sizes = 0
        self.gate = None

    def get(self, key):
        self.gets += 1
        return super().get(key)

    def get_range(self, key, offset, length):
        self.ranges.append((offset, length))
        if self.gate:
            self.gate.wait(10)
        return MemoryStore.get(self, key)[offset : offset + length]

    def size(self, key):
        self.sizes += 1
        return len(MemoryStore.get(self, key))


@pytest.fixture
def inner():
    return Counting()


@pytest.fixture
def cache(inner, tmp_path):
    return make(inner, tmp_path)


def make(inner, path, limit=1 << 20, **options):
    return CacheStore(inner, path / "cache", limit, block=BLOCK, **options)


def blocks(path):
    return sorted(p for p in (path / "cache" / "blocks").rglob("*") if p.is_file())


def used(path):
    return sum(p.stat().st_size for p in blocks(path))


def test_a_block_is_fetched_once(cache, inner):
    data = os.urandom(5 * BLOCK + 7)
    inner.put("packs/a", data)
    assert cache.get_range("packs/a", 10, 20) == data[10:30]
    assert cache.get_range("packs/a", 100, BLOCK - 100) == data[100:BLOCK]
    assert inner.ranges == [(0, BLOCK)]
    # Only the blocks that are absent are fetched, those that touch together.
    assert cache.get_range("packs/a", 5, 4 * BLOCK) == data[5 : 5 + 4 * BLOCK]
    assert inner.ranges == [(0, BLOCK), (BLOCK, 4 * BLOCK)]
    assert cache.get("packs/a") == data
    assert inner.ranges[2:] == [(5 * BLOCK, 7)]
    assert inner.gets == 0


def test_another_process_finds_what_this_one_kept(inner, tmp_path):
    inner.put("packs/a", b"x" * 9000)
    make(inner, tmp_path).get("packs/a")
    again = make(inner, tmp_path)
    assert again.get("packs/a") == b"x" * 9000
    assert again.get_range("packs/a", 8990, 10) == b"x" * 10
    assert (inner.gets, inner.ranges, inner.sizes) == (1, [], 0)


def test_a_listing_spares_asking_for_sizes(cache, inner):
    inner.put("packs/a", b"x" * 9000)
    list(cache.list("packs/"))
    assert cache.get_range("packs/a", 8990, 10) == b"x" * 10
    assert inner.sizes == 0


@pytest.mark.parametrize("key", ["config", "domains/default", "indexes/a"])
def test_only_packs_are_kept(cache, inner, tmp_path, key):
    inner.put(key, b"1")
    assert cache.get(key) == b"1"
    assert cache.get_range(key, 0, 1) == b"1"
    inner.delete(key)
    with pytest.raises(NotFound):
        cache.get(key)
    assert blocks(tmp_path) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap", "grow", "size"])
def test_a_rotten_block_is_dropped_and_fetched_again(cache, inner, tmp_path, damage):
    data = os.urandom(2 * BLOCK)
    inner.put("packs/a", data)
    assert cache.get("packs/a") == data
    first, second = blocks(tmp_path)
    raw = first.read_bytes()
    if damage == "swap":
        first.write_bytes(second.read_bytes())
    else:
        bad = {
            "flip": raw[:99] + bytes([raw[99] ^ 1]) + raw[100:],
            "cut": raw[:-1],
            "empty": b"",
            "grow": raw + b"\0",
            "size": raw[:-TAIL] + b"\1" + raw[1 - TAIL :],
        }
        first.write_bytes(bad[damage])
    assert make(inner, tmp_path).get("packs/a") == data
    assert first.read_bytes() == raw


def test_the_limit_holds_and_the_least_recently_used_go_first(inner, tmp_path):
    limit = 20 * (BLOCK + TAIL)
    cache = make(inner, tmp_path, limit)
    for n in range(20):
        inner.put(f"packs/{n}", bytes([n]) * BLOCK)
        cache.get(f"packs/{n}")
    for age, file in enumerate(sorted(blocks(tmp_path), key=lambda p: p.read_bytes()[0])):
        os.utime(file, (age, age))
    cache.get("packs/0")
    cache._sizes.clear()
    inner.put("packs/new", b"n" * BLOCK)
    cache.get("packs/new")
    assert used(tmp_path) <= limit
    left = {p.read_bytes()[0] for p in blocks(tmp_path)}
    assert {0, ord("n"), 19} <= left
    assert 1 not in left


def test_several_caches_on_one_directory_share_the_limit(inner, tmp_path):
    limit = 10 * (BLOCK + TAIL)
    caches = [make(inner, tmp_path, limit, name=str(n)) for n in range(3)]
    for n in range(30):
        inner.put(f"packs/{n}", bytes([n]) * BLOCK)
        caches[n % 3].get(f"packs/{n}")
        assert used(tmp_path) <= limit


def test_stores_of_other_names_keep_apart(inner, tmp_path):
    other = Counting()
    inner.put("packs/a", b"ours")
    other.put("packs/a", b"theirs")
    assert make(inner, tmp_path, name="1").get("packs/a") == b"ours"
    assert make(other, tmp_path, name="2").get("packs/a") == b"theirs"


def test_what_is_larger_than_the_limit_is_not_kept(inner, tmp_path):
    cache = make(inner, tmp_path, 100)
    inner.put("packs/a", b"x" * 1000)
    assert cache.get("packs/a") == b"x" * 1000
    assert blocks(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_none(inner, tmp_path, monkeypatch):
    inner.put("packs/a", b"x" * 9000)
    cache = make(inner, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    assert cache.get("packs/a") == b"x" * 9000
    assert cache.get_range("packs/a", 8000, 100) == b"x" * 100
    assert os.listdir(tmp_path / "cache" / "tmp") == []


def test_a_process_killed_while_writing_leaves_nothing_that_is_served(tmp_path):
    DirectoryStore(tmp_path / "store").put("packs/a", b"y" * 9000)
    script = """
import os, sys, pathlib
from calotype.store import DirectoryStore
from calotype.store.cache import CacheStore
path = pathlib.Path(sys.argv[1])
count = 0
real = os.rename
def rename(a, b):
    global count
    count += 1
    if count == 3: os._exit(9)  # the first finds no directory
    real(a, b)
os.rename = rename
CacheStore(DirectoryStore(path / "store"), path / "cache", 1 << 20, block=4096).get("packs/a")
"""
    died = subprocess.run([sys.executable, "-c", script, tmp_path], check=False)
    assert died.returncode == 9
    assert len(blocks(tmp_path)) == 1
    cache = CacheStore(DirectoryStore(tmp_path / "store"), tmp_path / "cache", 1 << 20, block=BLOCK)
    assert cache.get("packs/a") == b"y" * 9000
    # What the dead one was writing goes with the first eviction that finds it old.
    left = list((tmp_path / "cache" / "tmp").iterdir())
    assert len(left) == 2
    for file in left:
        os.utime(file, (1, 1))
    (tmp_path / "cache" / "usage").unlink()
    cache.delete("packs/a")
    cache.put("packs/a", b"z" * 100)
    cache.get("packs/a")
    assert list((tmp_path / "cache" / "tmp").iterdir()) == []


@pytest.mark.parametrize("whole", [True, False])
def test_many_readers_at_once_fetch_once(inner, tmp_path, whole):
    data = os.urandom(8 * BLOCK)
    inner.put("packs/a", data)
    store = Slow(inner)
    ready = threading.Barrier(8)
    got = []

    def read(number):
        cache = make(store, tmp_path)  # of its own, as another process has
        ready.wait()
        if whole:
            got.append(cache.get("packs/a"))
        else:
            got.append(cache.get_range("packs/a", number, 7 * BLOCK) == data[number:][: 7 * BLOCK])

    threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    store.gate.set()
    for thread in threads:
        thread.join()
    assert got == [data if whole else True] * 8
    assert store.fetched <= len(data) * (1 if whole else 1.0)


class Slow:
    """A store whose reads wait for a gate, and that counts bytes."""

    def __init__(self, inner):
        self.inner = inner
        self.gate = threading.Event()
        self.fetched = 0

    def get(self, key):
        self.gate.wait(10)
        data = self.inner.get(key)
        self.fetched += len(data)
        return data

    def get_range(self, key, offset, length):
        self.gate.wait(10)
        self.fetched += length
        return self.inner.get_range(key, offset, length)

    def size(self, key):
        return self.inner.size(key)


def test_readers_of_other_blocks_do_not_wait(inner, tmp_path):
    """Both reads must be under way before either may end."""
    inner.put("packs/a", b"x" * (4 * BLOCK))
    inner.gate = threading.Barrier(2)
    cache = make(inner, tmp_path)
    list(cache.list())
    reads = [
        threading.Thread(target=cache.get_range, args=("packs/a", n * 2 * BLOCK, BLOCK))
        for n in range(2)
    ]
    for read in reads:
        read.start()
    for read in reads:
        read.join()
    assert not inner.gate.broken
    assert len(inner.ranges) == 2


def test_what_is_deleted_or_replaced_is_forgotten(cache, inner, tmp_path):
    cache.put("packs/a", b"1" * 5000)
    cache.get("packs/a")
    cache.delete("packs/a")
    assert blocks(tmp_path) == []
    with pytest.raises(NotFound):
        cache.get("packs/a")
    cache.put("packs/a", b"2" * 6000)
    assert cache.get("packs/a") == b"2" * 6000
    writer = cache.writer()
    writer.write([b"3" * 100])
    writer.commit("packs/a")
    assert cache.get("packs/a") == b"3" * 100


def test_the_store_itself_is_at_hand(cache, inner):
    assert uncached(cache) is inner
    assert uncached(inner) is inner


@given(
    size=st.integers(0, 5 * BLOCK),
    reads=st.lists(st.tuples(st.integers(-1, 5 * BLOCK), st.integers(-1, 5 * BLOCK)), max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_every_range_is_what_the_store_has(tmp_path_factory, size, reads):
    inner = Counting()
    data = bytes(n * 7 % 251 for n in range(size))
    inner.put("packs/a", data)
    cache = make(inner, tmp_path_factory.mktemp("c"))
    for offset, length in reads:
        if offset < 0 or length < 0 or offset + length > size:
            with pytest.raises(StoreDamaged):
                cache.get_range("packs/a", offset, length)
        else:
            assert cache.get_range("packs/a", offset, length) == data[offset : offset + length]
    assert cache.get("packs/a") == data
    fetched = [n for o, w in inner.ranges for n in range(o, o + w)]
    assert len(fetched) == len(set(fetched))


class Flipping(MemoryStore):
    """The first so many reads of ranges arrive with one bit changed."""

    flips = 0

    def get_range(self, key, offset, length):
        data = super().get_range(key, offset, length)
        if self.flips and length:
            self.flips -= 1
            return bytes([data[0] ^ 1]) + data[1:]
        return data


def whole(repository, index):
    disk = repository.open(index)
    buffer = bytearray(disk.size)
    disk.read_into(0, memoryview(buffer))
    return bytes(buffer)


@pytest.fixture
def kept(tmp_path):
    """A store with one image, the cache before it, and the image."""
    inner = Flipping()
    data = random.Random(1).randbytes(3 << 20)
    index = Repository.create(inner).ingest(BytesDisk(data)).index
    return inner, CacheStore(inner, tmp_path / "cache", 1 << 26), index, data


def test_what_was_damaged_on_its_way_is_neither_served_nor_kept(kept):
    inner, cache, index, data = kept
    repository = Repository(cache)
    repository.stats([index])  # all footers and leaves are known
    inner.flips = 1
    assert whole(repository, index) == data
    assert inner.flips == 0
    assert whole(Repository(cache), index) == data


def test_a_check_sees_the_store_and_not_the_cache(kept):
    inner, cache, index, data = kept
    assert whole(Repository(cache), index) == data
    key = max(inner.list("packs/"), key=lambda s: s.size).key
    rotten = bytearray(inner.get(key))
    rotten[1000] ^= 1
    inner.put(key, rotten)
    assert not Repository(cache).check().ok
    assert whole(Repository(cache), index) == data  # what is kept is still right


def test_an_image_repaired_in_the_store_is_whole_for_those_who_kept_the_damage(kept):
    inner, cache, index, data = kept
    key = max(inner.list("packs/"), key=lambda s: s.size).key
    right = inner.get(key)
    inner.put(key, right[:1000] + bytes([right[1000] ^ 1]) + right[1001:])
    with pytest.raises(StoreDamaged):
        whole(Repository(cache), index)
    inner.put(key, right)
    assert whole(Repository(cache), index) == data
