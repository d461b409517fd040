"""The file map of ext2/3/4: debugfs is the oracle, and a mad file system costs nothing but ratio."""

import os
import random
import re
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.disks import BytesDisk

from calotype.disk.base import Extent, read
from calotype.store import MemoryStore, Repository
from calotype.store.chunking import Chunking, Cutter
from calotype.store.files.areas import areas
from calotype.store.files.ext4 import read_map
from calotype.store.files.extents import FileMap
from calotype.store.files.partitions import partitions
from calotype.store.files.volume import Metered
from calotype.store.source import Source, data_runs

MIB = 1 << 20

VARIANTS = {
    "plain": [],
    "1k": ["-b", "1024"],
    "old inodes": ["-I", "128", "-O", "^64bit,^metadata_csum"],
    "no checksums": ["-O", "^metadata_csum,uninit_bg"],
    "no flex_bg": ["-b", "1024", "-O", "^flex_bg"],
    "meta_bg": ["-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"],
    "meta_bg and 32 bit": ["-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode,^64bit"],
    "sparse_super2": ["-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode,sparse_super2"],
    "4k": ["-b", "4096"],
    "bigalloc, 4k": ["-b", "4096", "-O", "bigalloc", "-C", "65536"],
    "bigalloc": ["-O", "bigalloc", "-C", "16384"],
    "inline data": ["-I", "512", "-O", "inline_data"],
    "big inodes": ["-I", "1024"],
    "ext2": ["-b", "1024", "-O", "none"],
    "ext3": ["-b", "1024", "-O", "none,has_journal,dir_index,filetype,sparse_super"],
    "block maps, 4k": ["-b", "4096", "-O", "^extents,^64bit"],
}


def source(data: bytes) -> Source:
    disk = BytesDisk(data)
    return Source(disk, data_runs(disk))


def file_map(disk: Source) -> FileMap | None:
    return read_map(Metered(disk))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Small, empty, large and holey files; the holes give extent trees of depth 1 and 2."""
    root = tmp_path_factory.mktemp("tree")
    rng = random.Random(1)
    (root / "sub").mkdir()
    for number in range(60):
        (root / "sub" / f"small{number}").write_bytes(rng.randbytes(rng.randrange(9000)))
    (root / "empty").write_bytes(b"")
    (root / "tiny").write_bytes(b"short enough for an inode")
    (root / "large").write_bytes(rng.randbytes(3 * MIB + 123))
    os.symlink("large", root / "link")
    # 70 MiB into a file with blocks of 1 KiB: its third indirect block.
    for name, pieces, step in (
        ("holes", 20, 16384),
        ("many holes", 500, 16384),
        ("far", 8, 10 * MIB),
    ):
        with (root / name).open("wb") as file:
            for piece in range(pieces):
                file.seek(piece * step)
                file.write(rng.randbytes(1500))
    return root


def make(tree: Path, path: Path, options: list[str], size: int = 48 * MIB) -> bytes:
    with path.open("wb") as file:
        file.truncate(size)
    env = {**os.environ, "E2FSPROGS_FAKE_TIME": "1700000000"}
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), *options, str(path)],
        check=True,
        env=env,
        capture_output=True,
    )
    return path.read_bytes()


NAMES = ["empty", "tiny", "large", "holes", '"many holes"', "far"]
NAMES += [f"sub/small{number}" for number in range(60)]


def debugfs(path: Path, command: str) -> str:
    script = "".join(f"{command} {name}\n" for name in NAMES)
    return subprocess.run(
        ["debugfs", "-f", "-", str(path)], input=script, text=True, check=True, capture_output=True
    ).stdout


def oracle(path: Path, block: int) -> set[tuple[int, int, int]]:
    """(start, end, logical) in bytes of every written extent of a regular file, by debugfs."""
    found = set()
    for line in debugfs(path, "dump_extents -n -l").splitlines():
        row = re.match(r"\s*\d+/\s*\d+\s+\d+/\s*\d+\s+(\d+)\s*-\s*\d+\s+(\d+)\s*-\s*(\d+)", line)
        if row and "Uninit" not in line:
            logical, first, last = (int(n) for n in row.groups())
            found.add((first * block, (last + 1) * block, logical * block))
    return found or mapped(path, block)


def mapped(path: Path, block: int) -> set[tuple[int, int, int]]:
    """The same for files with block maps."""
    found = set()
    for row in re.finditer(r"\((\d+)(?:-\d+)?\):(\d+)(?:-(\d+))?", debugfs(path, "stat")):
        logical, first, last = int(row[1]), int(row[2]), int(row[3] or row[2])
        found.add((first * block, (last + 1) * block, logical * block))
    return found


def joined(runs: set[tuple[int, int, int]]) -> set[tuple[int, int, int]]:
    """Runs that go on in the next, as one."""
    found: list[tuple[int, int, int]] = []
    for start, end, logical in sorted(runs):
        if found and found[-1][1] == start and found[-1][2] + start - found[-1][0] == logical:
            found[-1] = (found[-1][0], end, found[-1][2])
        else:
            found.append((start, end, logical))
    return set(found)


def as_set(files: FileMap) -> set[tuple[int, int, int]]:
    return set(zip(files.start.tolist(), files.end.tolist(), files.logical.tolist(), strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_map_is_debugfs_map(tree, tmp_path, name):
    options = VARIANTS[name]
    data = make(tree, tmp_path / "fs", options)
    block = 1024 << struct.unpack_from("<I", data, 1048)[0]
    expected = oracle(tmp_path / "fs", block)
    assert len(expected) > 550
    files = file_map(source(data))
    assert files is not None
    assert files.size == len(data)
    assert as_set(files) == joined(expected)


def test_inside_a_partition_everything_is_shifted(tree, tmp_path):
    data = make(tree, tmp_path / "fs", [])
    table = mbr([(0x83, 2048, len(data) // 512)])
    alone = areas(source(data))[0].files
    inside = areas(source(table.ljust(MIB, b"\0") + data))[1].files
    assert alone is not None
    assert inside is not None
    assert np.array_equal(inside.start, alone.start + MIB)
    assert np.array_equal(inside.logical, alone.logical)


def test_other_bytes_have_no_map(tree, tmp_path):
    old = make(tree, tmp_path / "fs", [])
    assert file_map(source(bytes(MIB))) is None
    assert file_map(source(random.Random(2).randbytes(MIB))) is None
    assert file_map(source(old[: len(old) // 2])) is None  # cut off
    assert file_map(source(old[:100])) is None


def test_files_are_found_again_in_another_file_system(tree, tmp_path):
    """The same files at other places, among others: nearly nothing is new."""
    repository = Repository.create(MemoryStore())
    first = repository.ingest(BytesDisk(make(tree, tmp_path / "one", [])))
    more = tmp_path / "more"
    subprocess.run(["cp", "-a", str(tree), str(more)], check=True)
    (more / "aaa").write_bytes(random.Random(9).randbytes(333_333))
    second = repository.ingest(
        BytesDisk(make(more, tmp_path / "two", ["-U", "random", "-N", "9000"], 64 * MIB))
    )
    assert first.new_bytes > 4 * MIB
    assert second.new_bytes < 333_333 + 2 * MIB


@pytest.fixture(scope="module")
def small(tree, tmp_path_factory):
    """A small file system whose metadata is worth garbling, in a GPT."""
    base = tmp_path_factory.mktemp("small")
    return make(tree, base / "fs", ["-b", "1024", "-N", "256"], 16 * MIB)


def check_map(files: FileMap | None, size: int) -> None:
    if files is None:
        return
    assert 0 < files.size <= size
    assert (files.start < files.end).all()
    assert (files.start[1:] >= files.end[:-1]).all()
    if len(files.start):
        assert files.start[0] >= 0
        assert files.end[-1] <= files.size
    assert (files.logical >= 0).all()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_garbled_metadata_gives_a_sane_map_or_none(small, draw):
    data = bytearray(small)
    spots = st.integers(1024, 2048) | st.integers(2048, 4096) | st.integers(0, 400_000)
    for _ in range(draw.draw(st.integers(1, 12))):
        at = draw.draw(spots)
        patch = draw.draw(
            st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8)])
        )
        data[at : at + len(patch)] = patch
    check_map(file_map(source(bytes(data))), len(data))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1024, 2048, 4096, 16384]), st.booleans())
def test_a_mad_file_system_still_reads_back(small, seed, reach, cut):
    rng = random.Random(seed)
    data = bytearray(small)
    for _ in range(40):
        at = rng.randrange(1024, 1024 + reach)
        data[at] = rng.randrange(256)
    if cut:
        data = data[: rng.randrange(len(data))]
    repository = Repository.create(MemoryStore(), chunking=Chunking(region=MIB))
    disk = repository.open(repository.ingest(BytesDisk(bytes(data))).index)
    assert read(disk, 0, disk.size) == data


def inode_tree(small: bytes) -> tuple[int, int]:
    """Where the i_block of a file with a tree stands, and the block that it points to."""
    at = small.index(b"\x0a\xf3\x01\x00\x04\x00\x01\x00")  # one child, depth 1
    return at, struct.unpack_from("<I", small, at + 16)[0]


def test_a_cycle_of_tree_nodes_ends(small):
    data = bytearray(small)
    _at, block = inode_tree(small)
    for depth in (4, 1):
        node = struct.pack("<HHHHI", 0xF30A, 84, 84, depth, 0)
        node += struct.pack("<IIHH", 0, block, 0, 0) * 84
        data[block * 1024 : block * 1024 + len(node)] = node
        check_map(file_map(source(bytes(data))), len(data))


def test_extents_that_overlap_or_leave_the_disk_are_dropped(small):
    data = bytearray(small)
    _at, block = inode_tree(small)
    rows = [(0, 32768, 0, 1), (0, 100, 0, 5000), (7, 100, 0, 5050), (0, 9, 0xFFFF, 0xFFFFFFFF)]
    rows += [(n, 1, 0, 16383) for n in range(10)]
    node = struct.pack("<HHHHI", 0xF30A, len(rows), 84, 0, 0)
    node += b"".join(struct.pack("<IHHI", *row) for row in rows)
    data[block * 1024 : block * 1024 + len(node)] = node
    files = file_map(source(bytes(data)))
    check_map(files, len(data))
    assert files is not None
    assert (5000 * 1024, 5100 * 1024, 0) in as_set(files)
    assert not (
        (files.start < 5101 * 1024) & (files.end > 5100 * 1024) & (files.logical == 7)
    ).any()


def test_numbers_beyond_reason_are_not_believed(small):
    """Sizes of 2⁶⁰ on a huge empty disk are refused before anything is read or kept."""

    class Huge(BytesDisk):
        def __init__(self, data: bytes) -> None:
            super().__init__(data)
            self.size = 1 << 50
            self.total = 0

        def extents(self):
            yield Extent(0, len(self.data), zero=False)
            yield Extent(len(self.data), self.size - len(self.data), zero=True)

        def read_into(self, offset: int, buffer: memoryview) -> None:
            self.total += len(buffer)
            super().read_into(offset, buffer) if offset < len(self.data) else None

    for groups in (1, 1 << 10, 1 << 17, 1 << 30):
        data = bytearray(small)
        struct.pack_into("<I", data, 1024, (256 * groups) & 0xFFFFFFFF)  # inodes
        struct.pack_into("<I", data, 1024 + 4, (8192 * groups) & 0xFFFFFFFF)
        struct.pack_into("<I", data, 1024 + 0x150, (8192 * groups) >> 32)
        struct.pack_into("<I", data, 1024 + 40, 256)
        disk = Huge(bytes(data))
        begun = time.monotonic()
        check_map(file_map(Source(disk, data_runs(disk))), disk.size)
        assert time.monotonic() - begun < 20
        assert disk.total < 64 * MIB


def gpt(entries: list[tuple[int, int]], sector: int = 512) -> bytes:
    head = struct.pack(
        "<8s4sIIIQQQQ16sQII", b"EFI PART", b"", 92, 0, 0, 1, 0, 0, 0, b"g" * 16, 2, 128, 128
    )
    table = b"".join(
        b"t" * 16 + b"u" * 16 + struct.pack("<QQQ", first, last, 0) + bytes(72)
        for first, last in entries
    )
    return bytes(sector) + head.ljust(sector, b"\0") + table.ljust(128 * 128, b"\0")


@pytest.mark.parametrize("sector", [512, 4096])
def test_gpt(sector):
    disk = gpt([(2048, 4095), (40, 2047)], sector).ljust(4096 * sector, b"\0")
    expected = [(40 * sector, 2008 * sector), (2048 * sector, 2048 * sector)]
    assert partitions(source(disk)) == expected


def mbr(entries: list[tuple[int, int, int]]) -> bytes:
    rows = b"".join(struct.pack("<4xB3xII", *entry) for entry in entries)
    return (bytes(446) + rows).ljust(510, b"\0") + b"\x55\xaa"


def test_mbr_with_logical_partitions():
    disk = bytearray(8 * MIB)
    disk[:512] = mbr([(0x83, 64, 100), (5, 1000, 5000)])
    disk[1000 * 512 : 1001 * 512] = mbr([(0x83, 8, 100), (5, 500, 500)])
    disk[1500 * 512 : 1501 * 512] = mbr([(0x83, 8, 200)])
    expected = [(64, 100), (1008, 100), (1508, 200)]
    assert partitions(source(bytes(disk))) == [(s * 512, n * 512) for s, n in expected]


def test_a_cycle_of_logical_partitions_ends():
    disk = bytearray(MIB)
    disk[:512] = mbr([(5, 100, 500)])
    disk[100 * 512 : 101 * 512] = mbr([(0x83, 8, 8), (5, 1, 500)])
    disk[101 * 512 : 102 * 512] = mbr([(0x83, 20, 8), (5, 1, 500)])
    assert partitions(source(bytes(disk)))[0] == (108 * 512, 8 * 512)


def test_overlapping_and_outlying_partitions_are_dropped():
    disk = gpt([(40, 99), (50, 60), (100, 1 << 60), (2000, 2100), (5, 3)]).ljust(2 * MIB, b"\0")
    assert partitions(source(disk)) == [(40 * 512, 60 * 512), (2000 * 512, 101 * 512)]


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=64, max_size=64), st.binary(min_size=128, max_size=256))
def test_any_table_is_sane(mbr_rows, gpt_bytes):
    disk = (bytes(446) + mbr_rows + b"\x55\xaa" + b"EFI PART" + gpt_bytes).ljust(MIB, b"\1")
    done = 0
    for start, length in partitions(source(disk)):
        assert start >= done
        assert length > 0
        done = start + length
    assert done <= len(disk)


def test_the_pieces_of_a_disk_cover_each_region(small):
    disk = gpt([(2048, 2048 + 32767), (40000, 50000)]).ljust(MIB, b"\0") + small
    disk = disk.ljust(32 * MIB, b"\7")
    cutter = Cutter(source(disk), Chunking(region=MIB))
    kinds = set()
    for start in range(0, len(disk), MIB):
        done = start
        for piece in cutter.pieces(start, start + MIB):
            assert piece.start == done
            done = piece.end
            kinds.add(piece.cuts is None)
            if piece.cuts is not None:
                assert piece.cuts[0] == piece.start
                assert piece.cuts[-1] == piece.end
                assert (np.diff(piece.cuts) > 0).all()
                assert (np.diff(piece.cuts) <= 256 << 10).all()
        assert done == start + MIB
    assert kinds == {True, False}
