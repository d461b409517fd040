"""LVM2: physical volumes written by hand (device-mapper is not needed), with file systems in them."""

import random
import subprocess
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.physical_volume import ORIGIN, UNIT, metadata, physical_volume

from calotype.disk.base import Extent, read
from calotype.store import MemoryStore, Repository
from calotype.store.chunking import Chunking
from calotype.store.files import areas
from calotype.store.files.ext4 import read_map
from calotype.store.files.lvm import linear_volumes, parse
from calotype.store.files.volume import Segment

MIB = 1 << 20


class Bytes:
    """A disk in memory, for readers and for ingest."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        return self.data[offset : offset + length]

    def extents(self):
        yield Extent(0, self.size, zero=False)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]

    def close(self) -> None:
        pass


def at(first: int, count: int) -> Segment:
    return Segment(ORIGIN + first * UNIT, count * UNIT)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file system of 2 MiB with some files."""
    base = tmp_path_factory.mktemp("small")
    (base / "tree").mkdir()
    rng = random.Random(1)
    for number in range(40):
        (base / "tree" / f"f{number}").write_bytes(rng.randbytes(rng.randrange(40_000)))
    with (base / "fs").open("wb") as file:
        file.truncate(2 * MIB)
    options = ["-b", "1024", "-O", "^has_journal", "-d", str(base / "tree")]
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", *options, str(base / "fs")], check=True)
    return (base / "fs").read_bytes()


def placed(disk: bytearray, segments: list[tuple[int, int]], content: bytes) -> None:
    done = 0
    for first, count in segments:
        start, length = at(first, count)
        disk[start : start + length] = content[done : done + length]
        done += length


def test_linear_volumes_are_found():
    volumes = {"root": [(3, 5)], "swap": [(0, 1)], "pieces": [(20, 2), (10, 1), (22, 4)]}
    found = linear_volumes(Bytes(bytes(physical_volume(volumes, extents=32))))
    assert found == [[at(3, 5)], [at(0, 1)], [at(20, 2), at(10, 1), at(22, 4)]]


@pytest.mark.parametrize("start", [512, 2048, ORIGIN - 4096 - 100, ORIGIN - 4096 - 1])
def test_the_text_is_read_around_its_ring(start):
    disk = physical_volume({"root": [(3, 5)]}, extents=32, at=start)
    assert linear_volumes(Bytes(bytes(disk))) == [[at(3, 5)]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('type = "striped"', 'type = "raid1"'),
        ("stripe_count = 1", "stripe_count = 2"),
        ('"pv0", 3', '"pv1", 3'),
        ('"pv0", 3', '"pv0", 30'),  # leaves the disk
        ('"pv0", 3', '"pv0", 3, "pv1", 3'),
        ('"pv0", 3', "3"),
        ("extent_count = 5", "extent_count = 0"),
        ("extent_count = 5", f"extent_count = {10**18}"),
        ("start_extent = 0", "start_extent = 1"),
        ("pe_start = 2048", "pe_start = x"),
        ("extent_size", "size"),
        ('id = "abcdef', 'id = "bbcdef'),
        ("logical_volumes {", "others {"),
        ("stripes = [", "stripes = "),
    ],
)
def test_what_is_not_linear_here_does_not_count(old, new):
    text = metadata({"root": [(3, 5)]}, 32)
    assert old in text
    disk = physical_volume({}, extents=32, text=text.replace(old, new, 1))
    assert linear_volumes(Bytes(bytes(disk))) == []


def test_other_disks_have_no_volumes():
    disk = physical_volume({"root": [(3, 5)]}, extents=32)
    for offset, value in (
        (512, b"X"),
        (540, b"X"),
        (4100, b"X"),
        (4124, b"\1"),
        (4136, b"\xff" * 8),
    ):
        broken = bytearray(disk)
        broken[offset : offset + len(value)] = value
        assert linear_volumes(Bytes(bytes(broken))) == []
    assert linear_volumes(Bytes(bytes(MIB))) == []
    assert linear_volumes(Bytes(b"")) == []


def test_the_text_is_parsed():
    text = 'a = 1 # no "comment" {\nb = "x \\"y\\" {"\nc { d = ["p", 2, "q"]\n e { f = -1 } }\ng=h }}} i = 1'
    assert parse(text) == {
        "a": 1,
        "b": 'x \\"y\\" {',
        "c": {"d": ["p", 2, "q"], "e": {"f": "-1"}},
        "g": "h",
    }


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='ab1"{}[]=,#\\ \n'))
def test_any_text_is_parsed(text):
    assert isinstance(parse(text), dict)


def test_files_in_a_volume_of_several_pieces(small):
    """The map is the file system's own, moved with the pieces that it is in."""
    pieces = [(20, 10), (4, 1), (40, 21)]
    disk = physical_volume({"root": pieces}, extents=64)
    placed(disk, pieces, small)
    alone = read_map(Bytes(small))
    assert alone is not None
    found = areas(Bytes(bytes(disk)))
    assert found[0].start == 0
    assert found[-1].end == len(disk)
    # Read the disk's runs back as those of the file system: cut where a piece ends.
    offsets = {
        at(first, count).start: done
        for first, count, done in ((4, 1, 10), (20, 10, 0), (40, 21, 11))
    }
    runs = []
    for area in found:
        if area.files is not None:
            move = offsets[area.start] * UNIT - area.start
            assert area.files.origin == -move
            for start, end, logical in zip(
                area.files.start.tolist(),
                area.files.end.tolist(),
                area.files.logical.tolist(),
                strict=True,
            ):
                runs.append((start + move, end + move, logical))
    cuts = [0, 10 * UNIT, 11 * UNIT, 32 * UNIT]
    expected = []
    for start, end, logical in zip(
        alone.start.tolist(), alone.end.tolist(), alone.logical.tolist(), strict=True
    ):
        for first, last in pairwise(cuts):
            low, high = max(first, start), min(last, end)
            if low < high:
                expected.append((low, high, logical + low - start))
    assert sorted(runs) == sorted(expected)
    assert len(runs) > 40


def test_a_disk_with_volumes_reads_back_and_shares_files(small):
    """The same file system alone and in pieces of a physical volume: nearly nothing is new."""
    repository = Repository.create(MemoryStore(), chunking=Chunking(region=MIB))
    first = repository.ingest(Bytes(small))
    pieces = [(20, 10), (40, 22)]
    disk = physical_volume({"root": pieces}, extents=64)
    placed(disk, pieces, small)
    second = repository.ingest(Bytes(bytes(disk)))
    assert first.new_bytes > MIB // 2
    assert second.new_bytes < first.new_bytes // 4
    opened = repository.open(second.index)
    assert read(opened, 0, opened.size) == disk
