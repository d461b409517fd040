"""The laws of the repository: what goes in comes out, and equal bytes are one Index."""

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calotype.disk.base import Disk, Extent, read
from calotype.errors import Conflict, InvalidInput, NotFound, StoreDamaged
from calotype.store import DirectoryStore, MemoryStore, Repository, capture, ingest
from calotype.store.chunking import Chunking
from calotype.store.digest import Domain

MIB = 1 << 20
SMALL = Chunking(region=MIB)
POOL = [random.Random(n).randbytes(200_000) for n in range(4)]


class MemoryDisk:
    """A disk in memory; ``holes`` are hints, and reading inside a long one fails."""

    def __init__(self, data: bytes, holes: list[tuple[int, int]] | None = None) -> None:
        self.data = data
        self.size = len(data)
        self.holes = holes or []
        self.read: list[tuple[int, int]] = []

    def extents(self) -> Iterator[Extent]:
        done = 0
        for start, end in self.holes:
            if start > done:
                yield Extent(done, start - done, zero=False)
            yield Extent(start, end - start, zero=True)
            done = end
        if done < self.size:
            yield Extent(done, self.size - done, zero=False)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        assert 0 <= offset <= end <= self.size
        long = [(s, e) for s, e in self.holes if e - s >= 65536]
        assert not any(offset < e and s < end for s, e in long), "read inside a hole"
        self.read.append((offset, end))
        buffer[:] = self.data[offset:end]

    def close(self) -> None:
        pass


class Content(NamedTuple):
    """Sparse bytes with repeated content at any offset, told in few words."""

    size: int
    pieces: tuple[tuple[int, int, int], ...]  # (offset, number in POOL, length)

    def make(self) -> bytes:
        data = bytearray(self.size)
        for start, number, length in self.pieces:
            piece = POOL[number][:length]
            data[start : start + len(piece)] = piece[: max(0, self.size - start)]
        return bytes(data[: self.size])


SIZES = st.integers(0, 3 * MIB) | st.integers(0, 48).map(lambda n: n * 65536)
PIECES = st.tuples(
    st.integers(0, 3 * MIB) | st.integers(0, 768).map(lambda n: n * 4096),
    st.integers(0, len(POOL) - 1),
    st.integers(1, 200_000),
)
CONTENTS = st.builds(Content, SIZES, st.lists(PIECES, max_size=6).map(tuple))


def zero_runs(data: bytes, block: int) -> list[tuple[int, int]]:
    """The holes of ``data`` as a format of this granularity would show them."""
    runs: list[tuple[int, int]] = []
    for start in range(0, len(data), block):
        end = min(start + block, len(data))
        if not any(data[start:end]):
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
    return runs


def fresh() -> Repository:
    return Repository.create(MemoryStore(), chunking=SMALL)


def whole(repository: Repository, index: str) -> bytes:
    disk = repository.open(index)
    return read(disk, 0, disk.size)


@settings(max_examples=60, deadline=None)
@given(CONTENTS, st.sampled_from([512, 4096, 65536]))
def test_what_is_ingested_reads_back_and_equal_bytes_are_one_index(content, granularity):
    data = content.make()
    repository = fresh()
    first = repository.ingest(MemoryDisk(data))
    assert whole(repository, first.index) == data
    again = repository.ingest(MemoryDisk(data, zero_runs(data, granularity)))
    assert again.index == first.index
    assert (again.new_chunks, again.new_bytes, again.stored_bytes) == (0, 0, 0)
    assert again.chunks == first.chunks
    disk = repository.open(first.index)
    extents = list(disk.extents())
    assert [e.offset for e in extents] == [0, *(e.end for e in extents)][: len(extents)]
    assert sum(e.length for e in extents) == disk.size == len(data)
    assert all(not any(data[e.offset : e.end]) for e in extents if e.zero)


@settings(max_examples=60, deadline=None)
@given(CONTENTS, st.sampled_from([320, 384, 1000]), st.sampled_from([512, 65536]))
def test_windows_do_not_matter(content, window, granularity):
    """The Index is the same however much of the disk is in memory at once, with holes and without."""
    data = content.make()
    repository = Repository.create(MemoryStore())
    index = repository.ingest(MemoryDisk(data)).index
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "WINDOW", window << 10)
        for holes in ([], zero_runs(data, granularity)):
            taken = repository.ingest(MemoryDisk(data, holes))
            assert (taken.index, taken.new_chunks) == (index, 0)
        patch.setattr(capture, "WINDOW", window << 10)
        turned = data[::-1]
        all_of_it = [Extent(0, len(data), zero=False)]
        taken = repository.ingest(MemoryDisk(turned), base=index, changed=all_of_it)
    assert whole(repository, taken.index) == turned
    assert whole(repository, index) == data


def test_a_run_that_goes_on_in_zeros_is_cut_as_a_whole(monkeypatch):
    """Every block has one byte of data at its start, and chunks end in the zeros behind it."""
    repository = Repository.create(MemoryStore())
    disks = []
    for length in range(6000, 30_000, 2000):
        data = bytearray(MIB)
        data[:length] = POOL[2][:length]
        data[::65536] = b"x" * 16
        disks.append(MemoryDisk(bytes(data)))
    expected = [repository.ingest(disk).index for disk in disks]
    monkeypatch.setattr(ingest, "WINDOW", 320 << 10)
    assert [repository.ingest(disk).index for disk in disks] == expected


@settings(max_examples=60, deadline=None)
@given(CONTENTS, st.data())
def test_any_range_reads_as_it_was(content, draw):
    data = content.make()
    repository = fresh()
    disk = repository.open(repository.ingest(MemoryDisk(data)).index)
    for _ in range(4):
        start = draw.draw(st.integers(0, len(data)))
        end = draw.draw(st.integers(start, len(data)))
        assert read(disk, start, end - start) == data[start:end]
    with pytest.raises(InvalidInput):
        read(disk, len(data), 1)


@settings(max_examples=100, deadline=None)
@given(CONTENTS, CONTENTS, st.data())
def test_a_capture_reads_as_the_base_with_its_changes(base, other, draw):
    """Blocks of another disk are laid over the base, again and again."""
    before, patches = base.make(), other.make()
    repository = fresh()
    index = repository.ingest(MemoryDisk(before)).index
    now = bytearray(before)
    for _ in range(draw.draw(st.integers(1, 3))):
        now += bytes(draw.draw(st.integers(0, MIB)) if draw.draw(st.booleans()) else 0)
        changed = []
        for _ in range(draw.draw(st.integers(0, 4))):
            start = draw.draw(st.integers(0, len(now)))
            end = min(len(now), start + draw.draw(st.integers(0, 300_000)))
            now[start:end] = patches[start:end].ljust(end - start, b"\0")
            changed.append(Extent(start, end - start, zero=False))
        disk = MemoryDisk(bytes(now))
        taken = repository.ingest(disk, base=index, changed=changed)
        assert whole(repository, taken.index) == bytes(now)
        for first, last in disk.read:
            assert any(
                first < -(-e.end // 4096) * 4096 and e.offset // 4096 * 4096 < last for e in changed
            )
        assert taken.bytes_read == sum(last - first for first, last in disk.read)
        index = taken.index
    assert repository.check().ok


@settings(max_examples=30, deadline=None)
@given(CONTENTS)
def test_changes_over_nothing_are_changes_over_zeros(content):
    data = content.make()
    repository = fresh()
    extents = [
        Extent(s, min(65536, len(data) - s), zero=False) for s in range(0, len(data), 131072)
    ]
    expected = bytearray(len(data))
    for extent in extents:
        expected[extent.offset : extent.end] = data[extent.offset : extent.end]
    taken = repository.ingest(MemoryDisk(data), changed=extents)
    assert whole(repository, taken.index) == bytes(expected)


def test_writing_the_same_bytes_again_changes_nothing():
    data = POOL[0] + bytes(500_000) + POOL[1] * 5
    repository = fresh()
    first = repository.ingest(MemoryDisk(data))
    again = repository.ingest(
        MemoryDisk(data), base=first.index, changed=[Extent(0, len(data), zero=False)]
    )
    assert again.index == first.index
    assert again.stored_bytes == 0


@settings(max_examples=50, deadline=None)
@given(CONTENTS, st.lists(st.tuples(st.integers(0, 3 * MIB), st.integers(0, MIB)), max_size=4))
def test_extents_that_are_said_to_be_zero_are_not_read(content, cleared):
    repository = fresh()
    base = repository.ingest(MemoryDisk(content.make())).index
    now = bytearray(content.make())
    changed = []
    for start, length in cleared:
        end = min(start + length, len(now))
        if start < end:
            now[start:end] = bytes(end - start)
            changed.append(Extent(start, end - start, zero=True))
    disk = MemoryDisk(bytes(now))
    taken = repository.ingest(disk, base=base, changed=changed)
    assert whole(repository, taken.index) == bytes(now)
    assert taken.bytes_read == sum(e - s for s, e in disk.read) <= 2 * 4096 * len(changed)


def test_a_huge_discard_costs_nothing():
    class Huge(MemoryDisk):
        def __init__(self) -> None:
            super().__init__(POOL[0] + bytes(4096))
            self.size = 1 << 40

    repository = Repository.create(MemoryStore())
    zero = Extent(8192, (1 << 40) - 8192, zero=True)
    taken = repository.ingest(Huge(), changed=[Extent(0, 8192, zero=False), zero])
    assert (taken.size, taken.bytes_read) == (1 << 40, 8192)
    disk = repository.open(taken.index)
    assert read(disk, 0, 8192) == POOL[0][:8192]
    assert [e.zero for e in disk.extents()] == [False, True]


def test_zeros_written_over_data_become_a_hole():
    data = POOL[0] * 4
    repository = fresh()
    base = repository.ingest(MemoryDisk(data))
    now = data[:8192] + bytes(81920) + data[90112:]
    taken = repository.ingest(
        MemoryDisk(now), base=base.index, changed=[Extent(8192, 81920, zero=False)]
    )
    assert whole(repository, taken.index) == now
    assert Extent(8192, 81920, zero=True) in list(repository.open(taken.index).extents())
    assert taken.new_chunks == 0


def test_a_capture_rewrites_only_dirty_leaves_and_stores_only_what_changed():
    rng = np.random.default_rng(7)
    data = bytearray(rng.bytes(8 * MIB))
    objects = MemoryStore()
    repository = Repository.create(objects, chunking=SMALL)
    base = repository.ingest(MemoryDisk(bytes(data)))
    data[5 * MIB + 8192 : 5 * MIB + 12288] = rng.bytes(4096)
    before = sum(s.size for s in objects.list("packs/"))
    taken = repository.ingest(
        MemoryDisk(bytes(data)), base=base.index, changed=[Extent(5 * MIB + 8200, 10, zero=False)]
    )
    assert (taken.bytes_read, taken.new_chunks, taken.new_bytes) == (4096, 1, 4096)
    added = sum(s.size for s in objects.list("packs/")) - before
    assert added < 4096 + 8192  # the block, one leaf, two footers
    old, new = repository._root(base.index).leaves, repository._root(taken.index).leaves
    assert {r for r in old if old[r] != new[r]} == {5}


def test_disks_share_the_leaves_of_equal_regions():
    rng = np.random.default_rng(8)
    first = bytearray(rng.bytes(4 * MIB))
    repository = fresh()
    one = repository.ingest(MemoryDisk(bytes(first)))
    first[MIB + 5] ^= 1
    two = repository.ingest(MemoryDisk(bytes(first)))
    old, new = repository._root(one.index).leaves, repository._root(two.index).leaves
    assert {r for r in old if old[r] != new[r]} == {1}
    assert two.new_bytes <= 2 * 65536


def test_content_that_moved_is_found_again():
    body = random.Random(5).randbytes(2 * MIB)
    repository = Repository.create(MemoryStore())
    first = repository.ingest(MemoryDisk(body + bytes(MIB)))
    moved = repository.ingest(MemoryDisk(bytes(70_001) + body + bytes(MIB)))
    assert moved.new_bytes < 0.1 * first.new_bytes


def test_domains_share_nothing():
    repository = fresh()
    data = POOL[0]
    repository.add_domain("tenant-1")
    one = repository.ingest(MemoryDisk(data))
    two = repository.ingest(MemoryDisk(data), domain="tenant-1")
    assert two.new_bytes == one.new_bytes
    assert two.index != one.index
    assert whole(repository, two.index) == data
    with pytest.raises(InvalidInput):
        repository.ingest(MemoryDisk(data), base=two.index, changed=[], domain="default")
    with pytest.raises(NotFound):
        repository.ingest(MemoryDisk(data), domain="tenant-2")
    assert repository.check().ok


def test_a_change_is_of_the_domain_of_its_base():
    repository = fresh()
    repository.keep_domain(Domain("known", bytes(32)))
    repository.keep_domain(Domain("known", bytes(32)))
    with pytest.raises(Conflict, match="another key"):
        repository.keep_domain(Domain("known", bytes(31) + b"1"))
    base = repository.ingest(MemoryDisk(POOL[0] + bytes(MIB)), domain="known")
    changed = MemoryDisk(POOL[0] + POOL[1] + bytes(MIB - len(POOL[1])))
    extent = Extent(len(POOL[0]), len(POOL[1]), zero=False)
    taken = repository.ingest(changed, base=base.index, changed=[extent])
    assert repository.root(taken.index).domain == "known"
    assert whole(repository, taken.index) == changed.data
    assert taken.new_bytes < 2 * len(POOL[1])


def test_an_empty_disk_and_an_all_zero_disk():
    repository = fresh()
    for size in (0, 1, 5 * MIB):
        taken = repository.ingest(MemoryDisk(bytes(size)))
        assert whole(repository, taken.index) == bytes(size)
        assert taken.chunks == taken.stored_bytes == 0
    assert isinstance(repository.open(taken.index), Disk)


def test_bases_that_do_not_fit_are_refused():
    repository = fresh()
    base = repository.ingest(MemoryDisk(POOL[0])).index
    small = MemoryDisk(POOL[0][:1000])
    with pytest.raises(InvalidInput, match="smaller"):
        repository.ingest(small, base=base, changed=[])
    with pytest.raises(InvalidInput, match="outside"):
        repository.ingest(small, changed=[Extent(0, 1001, zero=False)])
    with pytest.raises(NotFound):
        repository.ingest(small, base="0" * 64, changed=[])
    with pytest.raises(InvalidInput):
        repository.open("../config")


def test_indexes_are_listed_and_deleted():
    repository = fresh()
    one = repository.ingest(MemoryDisk(POOL[0])).index
    two = repository.ingest(MemoryDisk(POOL[1])).index
    assert sorted(repository.indexes()) == sorted([one, two])
    repository.delete_index(one)
    repository.delete_index(one)
    assert list(repository.indexes()) == [two]
    with pytest.raises(NotFound):
        repository.open(one)


def test_a_repository_is_made_once(tmp_path):
    objects = DirectoryStore(tmp_path / "store")
    with pytest.raises(NotFound):
        Repository(objects)
    one = Repository.open_or_create(objects)
    two = Repository.open_or_create(DirectoryStore(tmp_path / "store"))
    assert one.id == two.id == Repository.create(objects).id
    assert not list(objects.leftovers())


def test_what_another_process_adds_is_found(tmp_path):
    one = Repository.open_or_create(DirectoryStore(tmp_path))
    two = Repository.open_or_create(DirectoryStore(tmp_path))
    assert two.ingest(MemoryDisk(POOL[1])).new_chunks
    taken = one.ingest(MemoryDisk(POOL[0]))
    assert whole(two, taken.index) == POOL[0]
    assert two.ingest(MemoryDisk(POOL[0])).new_chunks == 0


@settings(max_examples=25, deadline=None)
@given(CONTENTS)
def test_materialized_is_what_was_ingested_and_sparse(tmp_path_factory, content):
    data = content.make()
    path = tmp_path_factory.mktemp("base") / "disk.raw"
    repository = fresh()
    repository.materialize(repository.ingest(MemoryDisk(data)).index, path)
    assert path.read_bytes() == data
    assert os.listdir(path.parent) == ["disk.raw"]
    held = sum(e.length for e in repository.open(repository.indexes()[0]).extents() if not e.zero)
    assert path.stat().st_blocks * 512 <= held + 8192 * 8


def test_materialize_takes_over_what_a_killed_process_left(tmp_path):
    repository = fresh()
    data = POOL[0] + bytes(MIB)
    index = repository.ingest(MemoryDisk(data)).index
    left = tmp_path / f".base.{index[:16]}.part"
    left.write_bytes(b"x" * (2 * MIB))
    repository.materialize(index, tmp_path / "base")
    assert (tmp_path / "base").read_bytes() == data
    assert not left.exists()


def test_materialize_at_once_does_the_work_once(tmp_path):
    repository = fresh()
    index = repository.ingest(MemoryDisk(POOL[0] * 8)).index
    path = tmp_path / "base"
    threads = [
        threading.Thread(target=repository.materialize, args=(index, path)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == POOL[0] * 8
    assert os.listdir(tmp_path) == ["base"]


def test_a_failed_materialize_leaves_the_old_file_and_nothing_else(tmp_path):
    objects = MemoryStore()
    repository = Repository.create(objects)
    index = repository.ingest(MemoryDisk(POOL[0])).index
    path = tmp_path / "base"
    path.write_bytes(b"old")
    for stored in list(objects.list("packs/")):
        objects.delete(stored.key)
    with pytest.raises(StoreDamaged):
        repository.materialize(index, path)
    with pytest.raises(StoreDamaged):
        Repository(objects).materialize(index, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["base"]


def test_an_error_of_the_disk_ends_the_ingest_and_leaves_no_file(tmp_path):
    class Broken(MemoryDisk):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            if offset > 2 * MIB:
                raise OSError(5, "Input/output error")
            super().read_into(offset, buffer)

    objects = DirectoryStore(tmp_path)
    repository = Repository.create(objects, chunking=SMALL)
    with pytest.raises(OSError, match="Input/output"):
        repository.ingest(Broken(random.Random(3).randbytes(5 * MIB)))
    assert list(repository.indexes()) == []
    assert os.listdir(tmp_path / "tmp") == []
    assert repository.check().ok


def test_progress_counts_to_its_total(tmp_path):
    class Recorder:
        def __init__(self) -> None:
            self.phases: list[list[Any]] = []

        @contextmanager
        def phase(self, label, total=None, *, unit="B"):
            assert unit == "B"
            entry = [label, total, 0]
            self.phases.append(entry)

            def report(count):
                entry[2] += count

            yield report

    recorder = Recorder()
    repository = fresh()
    data = POOL[0] * 10 + bytes(3 * MIB) + POOL[1]
    index = repository.ingest(MemoryDisk(data), progress=recorder).index
    repository.materialize(index, Path(tmp_path) / "x", progress=recorder)
    repository.check(progress=recorder)
    assert [p[0] for p in recorder.phases] == ["storing", "writing", "checking"]
    assert all(total == done > 0 for _, total, done in recorder.phases)


def test_statistics_say_what_is_shared_and_what_a_delete_would_free():
    objects = MemoryStore()
    repository = Repository.create(objects, chunking=SMALL)
    one = repository.ingest(MemoryDisk(POOL[0] + bytes(MIB))).index
    both = repository.ingest(MemoryDisk(POOL[0] + bytes(MIB) + POOL[1])).index
    stats = repository.stats([one, both])
    first, second = stats.indexes
    assert (first.index, first.logical) == (one, 200_000 + MIB)
    assert first.unique < 0.1 * first.stored  # its own leaf alone
    assert 190_000 < second.unique < 215_000
    assert second.stored == second.unique + second.shared
    assert stats.stored == sum(s.size for s in objects.list("packs/"))
    assert stats.referenced <= stats.stored
    assert stats.logical == first.logical + second.logical
    twice = repository.stats([both, both])
    assert [i.unique for i in twice.indexes] == [0, 0]
    alone = repository.stats([both]).indexes[0]
    assert alone.unique == alone.stored
