"""The lookup: right whatever its files say, fast to open, and bounded in memory."""

import fcntl
import functools
import itertools
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.disks import BytesDisk

from calotype.disk.base import read
from calotype.store import DirectoryStore, MemoryStore, Repository, footers, lookup, packset
from calotype.store.digest import Bytes32, as_rows
from calotype.store.lookup import LOW, SHIFT, Group
from calotype.store.objects import Stored
from calotype.store.pack import HEADER, Codec, FrameRow, Kind, Pack, footer, parse, trailer
from calotype.store.packset import PackSet

DATA = Group(Kind.DATA, "default")


def digest(number: int) -> bytes:
    return blake3(number.to_bytes(8, "little")).digest()


def digests(numbers: Sequence[int]) -> Bytes32:
    return as_rows([digest(n) for n in numbers])


def packed(numbers: Sequence[int], kind: Kind = Kind.DATA, domain: str = "default") -> Pack:
    """A pack of one-byte chunks of these numbers, one frame each ten."""
    rows = [
        FrameRow(
            len(some), len(some), Codec.RAW, bytes(32), [digest(n) for n in some], [1] * len(some)
        )
        for first in range(0, len(numbers), 10)
        for some in [numbers[first : first + 10]]
    ]
    foot = footer(kind, domain, rows)
    name, tail = trailer(foot)
    return parse(foot, name, len(HEADER) + len(numbers) + len(foot) + len(tail))


def put(store: MemoryStore, pack: Pack) -> Pack:
    """The pack as an object (its chunks are zeros: they are not read here)."""
    frames = bytes(int(pack.frame_stored.sum()))
    store.put(pack.key, HEADER + frames + pack.foot + trailer(pack.foot)[1])
    return pack


class Counting(MemoryStore):
    """Counts what is read of each object."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        self.fetched.append(key)
        return super().get_range(key, offset, length)


def found(packs: PackSet, numbers: Sequence[int]) -> list[bool]:
    """Which of these chunks are found; a place that is given must hold the chunk."""
    wanted = digests(numbers)
    places = packs.find(*DATA, wanted)
    for place, row in zip(places.tolist(), wanted, strict=True):
        if place >= 0:
            _number, pack, chunk = packs.locate(place)
            assert (pack.digests[chunk] == row).all()
    right: list[bool] = (places >= 0).tolist()
    return right


@pytest.fixture
def small(monkeypatch):
    """Tables that become files early."""
    monkeypatch.setattr(packset, "_ROWS", 40)
    monkeypatch.setattr(packset, "_PACKS", 4)
    monkeypatch.setattr(lookup, "_BLOCK", 8)
    monkeypatch.setattr(lookup, "_SLICE", 64)
    monkeypatch.setattr(lookup, "_SMALL", 64)


CHUNKS = st.lists(st.integers(0, 150), min_size=1, max_size=60, unique=True)
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "put", "delete", "refresh", "reopen"]), CHUNKS),
    min_size=1,
    max_size=12,
)


@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_a_lookup_finds_what_the_packs_hold(steps):
    """Whatever comes and goes, in whichever order, and whether its tables are files or not."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(packset, "_ROWS", 40)
        patch.setattr(packset, "_PACKS", 4)
        patch.setattr(lookup, "_BLOCK", 8)
        patch.setattr(lookup, "_SLICE", 64)
        patch.setattr(lookup, "_SMALL", 64)
        store = MemoryStore()
        filed = PackSet(store, Path(directory), keep_footers=True)
        plain = PackSet(store)
        held: dict[str, set[int]] = {}
        for what, numbers in steps:
            if what in ("add", "put"):
                pack = put(store, packed(numbers))
                held[pack.key] = set(numbers)
                if what == "add":
                    filed.add(pack)
                    plain.add(pack)
            elif what == "delete" and held:
                key = sorted(held)[numbers[0] % len(held)]
                store.delete(key)
                del held[key]
                filed.forget([key])
                plain.forget([key])
            elif what == "reopen":
                filed = PackSet(store, Path(directory), keep_footers=True)
            filed.refresh()
            plain.refresh()
            there = set().union(*held.values())
            for packs in (filed, plain):
                assert found(packs, range(160)) == [n in there for n in range(160)]
        assert len(lookup.load(Path(directory))) <= 6


def test_an_opened_lookup_reads_no_footer_again(small, tmp_path):
    store = Counting()
    packs = [put(store, packed(range(n * 10, n * 10 + 10))) for n in range(40)]
    first = PackSet(store, tmp_path, keep_footers=True)
    first.refresh()
    assert all(found(first, range(400)))
    assert set(store.fetched) == {p.key for p in packs}

    store.fetched.clear()
    second = PackSet(store, tmp_path, keep_footers=True)
    second.refresh()
    assert all(found(second, range(400)))
    assert not store.fetched
    put(store, packed(range(400, 410)))
    second.refresh()
    assert all(found(second, range(410)))
    assert len(store.fetched) == 1


def test_far_footers_are_fetched_together(tmp_path):
    """Many requests are under way at once."""
    import threading  # noqa: PLC0415 - used here alone

    meeting = threading.Barrier(8, timeout=30)

    class Far(MemoryStore):
        def get_range(self, key: str, offset: int, length: int) -> bytes:
            meeting.wait()
            return super().get_range(key, offset, length)

    store = Far()
    for n in range(8):
        put(store, packed([n]))
    packs = PackSet(store, tmp_path, keep_footers=True)
    packs.refresh()
    assert all(found(packs, range(8)))


@pytest.mark.parametrize("step", [1, 97])
def test_a_damaged_lookup_never_says_something_wrong(small, tmp_path, step):
    """Each byte of a table is changed in turn; a reader finds all the same what is there."""
    store = MemoryStore()
    for n in range(12):
        put(store, packed(range(n * 12, n * 12 + 12)))
    PackSet(store, tmp_path).refresh()
    (table,) = tmp_path.glob("*.table")
    whole = table.read_bytes()
    places = range(0, len(whole), 41) if step == 1 else [0, 8, 16, 100, len(whole) - 1]
    for at in places:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        for path in tmp_path.glob("*.table"):
            path.unlink()
        table.write_bytes(damaged)
        packs = PackSet(store, tmp_path)
        packs.refresh()
        some = found(packs, range(150))
        assert not any(some[144:])
        packs.recover()
        assert found(packs, range(150)) == [True] * 144 + [False] * 6


@pytest.mark.parametrize("length", [0, 10, 100, 1000])
def test_a_cut_off_table_is_made_again(small, tmp_path, length):
    store = MemoryStore()
    for n in range(12):
        put(store, packed(range(n * 12, n * 12 + 12)))
    PackSet(store, tmp_path).refresh()
    (table,) = tmp_path.glob("*.table")
    os.truncate(table, length)
    packs = PackSet(store, tmp_path)
    packs.refresh()
    assert all(found(packs, range(144)))
    assert len(list(tmp_path.glob("*.table"))) == 1


def test_a_damaged_footer_of_the_cache_is_fetched_again(tmp_path):
    store = Counting()
    pack = put(store, packed(range(10)))
    PackSet(store, tmp_path, keep_footers=True).refresh()
    path = tmp_path / "footers" / pack.id
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    store.fetched.clear()
    packs = PackSet(store, tmp_path, keep_footers=True)
    packs.refresh()
    assert all(found(packs, range(10)))
    assert set(store.fetched) == {pack.key}
    assert path.read_bytes() == pack.foot


def test_the_cache_forgets_what_the_store_no_longer_has(small, tmp_path):
    store = MemoryStore()
    packs = [put(store, packed(range(n * 10, n * 10 + 10))) for n in range(8)]
    PackSet(store, tmp_path, keep_footers=True).refresh()
    for pack in packs:
        store.delete(pack.key)
    PackSet(store, tmp_path, keep_footers=True).refresh()
    assert not list(tmp_path.glob("*.table"))
    assert not list((tmp_path / "footers").iterdir())


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead, alive = tmp_path / "dead.part", tmp_path / "alive.part"
    dead.touch()
    with alive.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lookup.load(tmp_path) == []
        assert [p.name for p in tmp_path.iterdir()] == ["alive.part"]


def test_a_full_disk_costs_memory_and_nothing_else(small, tmp_path, monkeypatch, caplog):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    store = MemoryStore()
    packs = PackSet(store, tmp_path)
    monkeypatch.setattr(lookup, "_pwrite", full)
    for n in range(12):
        packs.add(put(store, packed(range(n * 12, n * 12 + 12))))
    assert all(found(packs, range(144)))
    assert list(tmp_path.iterdir()) == []
    assert "No space left" in caplog.text


def test_tables_of_two_processes_may_overlap(small, tmp_path):
    store = MemoryStore()
    one, two = PackSet(store, tmp_path), PackSet(store, tmp_path)
    for n in range(20):
        pack = put(store, packed(range(n * 12, n * 12 + 12)))
        if n % 3:
            one.add(pack)
        if n % 2:
            two.add(pack)
    for packs in (one, two, PackSet(store, tmp_path)):
        packs.refresh()
        assert all(found(packs, range(240)))


def test_a_deleted_pack_is_not_found_in_a_table_that_still_lists_it(small, tmp_path):
    store = MemoryStore()
    packs = [put(store, packed(range(n * 10, n * 10 + 10))) for n in range(8)]
    twin = put(store, packed(range(10)))
    PackSet(store, tmp_path).refresh()
    store.delete(packs[0].key)
    store.delete(packs[1].key)
    again = PackSet(store, tmp_path)
    again.refresh()
    assert found(again, range(80)) == [True] * 10 + [False] * 10 + [True] * 60
    places = again.find(*DATA, digests(range(10)))
    assert set(again.keys(places)) == {twin.key}


def test_a_pack_that_vanishes_under_a_lookup_is_no_hit(tmp_path):
    store = MemoryStore()
    pack = put(store, packed(range(10)))
    PackSet(store, tmp_path).refresh()
    packs = PackSet(store, tmp_path)
    packs.refresh()
    packs._footers.drop([pack.key])
    store.delete(pack.key)
    assert not any(found(packs, range(10)))


NUMBERS = st.lists(st.integers(0, 2**64 - 1) | st.integers(2**64 - 20, 2**64 - 1), max_size=200)


@settings(deadline=None)
@given(NUMBERS, NUMBERS)
def test_a_table_in_a_file_is_searched_as_an_array_is(rows, wanted):
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "_BLOCK", 8)
        patch.setattr(lookup, "_SMALL", 0)
        prefix = np.array(sorted(rows), dtype=np.uint64)
        place = np.arange(len(rows), dtype=np.int64)
        pack = lookup.Listed("packs/" + "0" * 64, 1, len(rows))
        memory = lookup.MemoryTable(DATA, [pack], (prefix, place))
        if rows:
            filed = lookup.merge([memory], [np.array([True])], Path(directory))
            assert isinstance(filed, lookup.FileTable)
            near = [r + 1 for r in rows if r + 1 < 2**64]
            keys = np.array([*wanted, *rows, *near], dtype=np.uint64)
            assert filed.search(keys).tolist() == np.searchsorted(prefix, keys).tolist()
            expected = [(n, i) for n, k in enumerate(keys) for i in np.flatnonzero(prefix == k)]
            for table in (memory, filed):
                pairs = zip(*(c.tolist() for c in table.candidates(keys)), strict=True)
                assert sorted(p for p in pairs if p[1] >= 0) == expected


def test_footers_in_memory_are_bounded(monkeypatch):
    monkeypatch.setattr(footers, "_ROOM", 10_000)
    store = Counting()
    for n in range(30):
        put(store, packed(range(n * 20, n * 20 + 20)))
    packs = PackSet(store)
    packs.refresh()
    for _ in range(2):
        assert all(found(packs, range(600)))
    assert len(packs._footers._packs) <= 10
    assert sum(len(p.lengths) for p in packs.packs) == 600


def test_a_repository_reads_through_a_lying_table(small, tmp_path):
    """Prefixes that were overwritten: chunks seem to be missing, until the tables are made again."""
    objects = DirectoryStore(tmp_path / "store")
    data = random.Random(8).randbytes(4 << 20)
    open_it = functools.partial(Repository.open_or_create, objects, lookup=tmp_path / "lookup")
    index = open_it().ingest(BytesDisk(data)).index
    tables = list((tmp_path / "lookup").glob("*.table"))
    assert tables
    for table in tables:
        with table.open("r+b") as file:
            rows = len(file.read()) // 16
            file.seek(-rows * 15, os.SEEK_END)
            file.write(bytes(rows * 4))
    disk = open_it().open(index)
    assert read(disk, 0, disk.size) == data


BIG = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_store_lookup import DATA, Made, fake_digests
from calotype.store.packset import PackSet
from tests.memory import peak
store = Made(int(sys.argv[3]), 10_000)
packs = PackSet(store, Path(sys.argv[2]))
start = time.perf_counter()
packs.refresh()
opened = time.perf_counter() - start
for number in range(0, store.count, max(1, store.count // 10)):
    wanted = fake_digests(number, 10_000)
    for first in range(0, 10_000, 125):
        assert (packs.find(*DATA, wanted[first : first + 125]) >= 0).all()
    unknown = fake_digests(10**6 + number, 125)
    assert (packs.find(*DATA, unknown) < 0).all()
print(opened, time.perf_counter() - start, peak())
"""


def fake_digests(number: int, chunks: int) -> Bytes32:
    drawn = np.random.default_rng(number).bytes(chunks * 32)
    return np.frombuffer(drawn, dtype=np.uint8).reshape(-1, 32)


class Made:
    """A store of ``count`` packs with footers that are made when they are asked for; no frames."""

    def __init__(self, count: int, chunks: int) -> None:
        self.count = count
        self.chunks = chunks
        self.size = len(HEADER) + chunks + len(self.foot(0)) + len(trailer(b"")[1])
        names = (trailer(self.foot(n))[0] for n in range(count))
        self.numbers = {f"packs/{name}": n for n, name in enumerate(names)}

    def foot(self, number: int) -> bytes:
        empty = footer(Kind.DATA, "default", [])[: 8 + 4 + 12 + 64]
        head = bytearray(empty)
        head[12:24] = np.array([self.chunks, 1, number], dtype="<u4").tobytes()
        columns = np.array([self.chunks, self.chunks, self.chunks], dtype="<u4").tobytes()
        lengths = np.ones(self.chunks, dtype="<u4").tobytes()
        rest = lengths + columns + bytes([Codec.RAW]) + bytes(32)
        return bytes(head) + fake_digests(number, self.chunks).tobytes() + rest

    def list(self, prefix: str = "") -> Iterator[Stored]:
        assert prefix == "packs/"
        return (Stored(key, self.size) for key in sorted(self.numbers))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        foot = self.foot(self.numbers[key])
        end = foot + trailer(foot)[1]
        assert offset + length == self.size
        return end[-length:]


def big(directory: Path, packs: int) -> tuple[float, float, float]:
    """Seconds to open a store of so many packs of 10,000 chunks, until all was found; MiB at most."""
    command = [sys.executable, "-c", BIG, str(Path(__file__).parent), str(directory), str(packs)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    opened, everything, memory = map(float, done.stdout.split())
    return opened, everything, memory / 1024


def test_memory_does_not_grow_with_the_store(tmp_path):
    """Four million chunks: made once, then opened again."""
    _first, _, memory = big(tmp_path / "many", 400)
    assert memory < 250
    again, _, memory = big(tmp_path / "many", 400)
    assert memory < 250
    assert again < 2


def test_places_are_of_the_packs_listed(small, tmp_path):
    store = MemoryStore()
    names = [put(store, packed(range(n * 10, n * 10 + 10))).key for n in range(9)]
    packs = PackSet(store, tmp_path)
    packs.refresh()
    places = packs.find(*DATA, digests(range(90)))
    chunks = list(itertools.chain.from_iterable(c.tolist() for *_, c in packs.by_pack(places)))
    assert sorted(packs.keys(places)) == sorted(names)
    assert sorted(chunks) == sorted((places & LOW).tolist())
    assert set((places >> SHIFT).tolist()) == set(range(9))
