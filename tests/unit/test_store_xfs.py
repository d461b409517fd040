"""The file map of XFS: xfs_db is the oracle, for file systems of mkfs and for fragmented ones of a kernel."""

import gzip
import json
import random
import struct
import subprocess
from pathlib import Path

import pytest
from tests.fuzz.sparse import SparseDisk
from tests.fuzz.xfs_guest import DATA, xfs_extents

from calotype.store.files import areas
from calotype.store.files.extents import FileMap
from calotype.store.files.volume import Metered
from calotype.store.files.xfs import read_map

MIB = 1 << 20

VARIANTS = {
    "v5": [],
    "1k": ["-b", "size=1024"],
    "16k": ["-b", "size=16384"],
    "big inodes": ["-i", "size=2048"],
    "nrext64, bigtime": ["-i", "nrext64=1", "-m", "bigtime=1"],
    "no sparse inodes": ["-i", "sparse=0"],
    "4k sectors": ["-s", "size=4096"],
    "odd groups": ["-d", "agcount=3"],
    "v4": ["-m", "crc=0"],
    "v4, small": ["-m", "crc=0", "-b", "size=512", "-i", "size=256"],
}


class Image:
    """An image file, read as the reader reads a disk."""

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        self._path = path

    def read(self, offset: int, length: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Files, and the prototype of a file system that holds them."""
    root = tmp_path_factory.mktemp("tree")
    rng = random.Random(1)
    lines = ["/none", "0 0", "d--755 0 0"]
    for number in range(150):
        path = root / f"file{number}"
        path.write_bytes(rng.randbytes(rng.randrange(200_000 if number % 10 == 0 else 9000)))
        lines.append(f"{path.name} ---644 0 0 {path}")
    (root / "empty").write_bytes(b"")
    lines += [f"empty ---644 0 0 {root / 'empty'}", "link l--777 0 0 file1", "$", ""]
    proto = root / "proto"
    proto.write_text("\n".join(lines))
    return proto


def make(proto: Path, path: Path, options: list[str], size: int = 300 * MIB) -> None:
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(
        ["mkfs.xfs", "-q", "-f", "-p", str(proto), *options, str(path)],
        check=True,
        capture_output=True,
    )


def as_set(files: FileMap) -> set[tuple[int, int, int]]:
    return set(zip(files.start.tolist(), files.end.tolist(), files.logical.tolist(), strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_map_is_xfs_dbs_map(tree, tmp_path, name):
    path = tmp_path / "fs"
    make(tree, path, VARIANTS[name])
    expected = xfs_extents(path, [f"/file{n}" for n in range(150)])
    assert len(expected) >= 148
    files = read_map(Image(path))
    assert files is not None
    assert files.size == path.stat().st_size
    assert as_set(files) == expected


@pytest.mark.parametrize("name", ["v5", "nrext64", "v4"])
def test_fragmented_files_of_a_kernel(name):
    """Trees of extents, deleted files, sparse chunks of inodes: from images that a kernel wrote."""
    described = gzip.decompress((DATA / f"xfs-{name}.disk.gz").read_bytes())
    rows = gzip.decompress((DATA / f"xfs-{name}.extents.json.gz").read_bytes())
    expected = {tuple(row) for row in json.loads(rows)}
    disk = SparseDisk(described)
    files = read_map(Metered(disk))
    assert files is not None
    assert len(expected) > 1500
    assert as_set(files) == expected


def test_inside_a_partition(tree, tmp_path):
    path = tmp_path / "fs"
    make(tree, path, [])
    alone = areas(Image(path))
    assert [(a.start, a.end) for a in alone] == [(0, 300 * MIB)]
    head = bytearray(MIB)
    head[510:512] = b"\x55\xaa"
    struct.pack_into("<4xB3xII", head, 446, 0x83, 2048, 300 * 2048)
    disk = tmp_path / "disk"
    disk.write_bytes(head)
    subprocess.run(["sh", "-c", f"cat {path} >> {disk}"], check=True)
    first, second = areas(Image(disk))
    assert (first.start, first.end, first.files) == (0, MIB, None)
    assert (second.start, second.end) == (MIB, 301 * MIB)
    assert alone[0].files is not None
    assert second.files is not None
    assert second.files.start.tolist() == (alone[0].files.start + MIB).tolist()
    assert second.files.logical.tolist() == alone[0].files.logical.tolist()


def test_what_is_cut_off_or_another_has_no_map(tree, tmp_path):
    path = tmp_path / "fs"
    make(tree, path, [])
    with path.open("r+b") as file:
        file.truncate(299 * MIB)
    assert read_map(Image(path)) is None
    for offset, value in ((0, b"XFSC"), (4, struct.pack(">I", 4095)), (88, bytes(4))):
        broken = tmp_path / "broken"
        make(tree, broken, [])
        with broken.open("r+b") as file:
            file.seek(offset)
            file.write(value)
        assert read_map(Image(broken)) is None
