"""The file map of NTFS: ntfscluster is the oracle."""

import random
import re
import struct
import subprocess
from pathlib import Path

import pytest

from calotype.store.files.extents import FileMap
from calotype.store.files.ntfs import read_map

MIB = 1 << 20


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        return self.data[offset : offset + length]


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], check=True, capture_output=True)
    return done.stdout.decode()


def make(path: Path, options: list[str], files: dict[str, bytes], size: int = 16 * MIB) -> None:
    with path.open("wb") as file:
        file.truncate(size)
    run("mkntfs", "-q", "-F", *options, path)
    content = path.with_suffix(".content")
    for name, data in files.items():
        content.write_bytes(data)
        run("ntfscp", "-f", path, content, name)


def oracle(path: Path, names: list[str], cluster: int) -> set[tuple[int, int, int]]:
    """(start, end, logical) in bytes of every run of the files' data, by ntfscluster."""
    found = set()
    for name in names:
        output = run("ntfscluster", "-f", "-F", name, path)
        _head, _, data = output.partition("0x80 - non-resident")
        for row in re.finditer(r"^ +(\d+) +(-?\d+) +(\d+)$", data.split("0x90")[0], re.MULTILINE):
            logical, physical, length = (int(n) * cluster for n in row.groups())
            if physical >= 0:
                found.add((physical, physical + length, logical))
    return found


def as_set(files: FileMap | None) -> set[tuple[int, int, int]]:
    assert files is not None
    return set(zip(files.start.tolist(), files.end.tolist(), files.logical.tolist(), strict=True))


def joined(runs: set[tuple[int, int, int]]) -> set[tuple[int, int, int]]:
    """Runs that go on in the next, as one."""
    found: list[tuple[int, int, int]] = []
    for start, end, logical in sorted(runs):
        if found and found[-1][1] == start and found[-1][2] + start - found[-1][0] == logical:
            found[-1] = (found[-1][0], end, found[-1][2])
        else:
            found.append((start, end, logical))
    return set(found)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    rng = random.Random(1)
    sizes = {f"f{n}": rng.randrange(1500, 20_000) for n in range(25)}
    return {name: rng.randbytes(size) for name, size in (sizes | {"large": 3 * MIB + 5}).items()}


@pytest.mark.parametrize(
    ("sector", "cluster"), [(512, 512), (512, 1024), (512, 4096), (512, 65536), (4096, 4096)]
)
def test_the_map_is_ntfsclusters_map(files, tmp_path, sector, cluster):
    path = tmp_path / "fs"
    options = ["-s", str(sector), "-c", str(cluster)]
    make(path, options, files | {"resident": b"in the record itself"})
    expected = oracle(path, list(files), cluster)
    assert len(expected) > 15  # the others fit in their records
    data = path.read_bytes()
    found = read_map(Bytes(data))
    assert found is not None
    assert found.size == len(data) - sector  # the last sector is a copy of the first
    assert as_set(found) == joined(expected)
    start, _end, _logical = next(row for row in sorted(expected) if row[1] - row[0] >= MIB)
    assert data[start : start + 4096] == files["large"][:4096]


def test_attribute_lists_and_holes(files, tmp_path):
    """Files that grow in turns have more runs than fit in their first record."""
    path = tmp_path / "fs"
    names = ["f0", "f1", "f2"]
    make(path, ["-s", "512", "-c", "512"], {name: files[name][:900] for name in names}, 4 * MIB)
    for size in range(2000, 110_000, 512):
        for name in names:
            run("ntfsfallocate", "-f", "-l", size, path, name)
    run("ntfstruncate", path, 64, 2_000_000)
    assert "ATTRIBUTE_LIST" in run("ntfsinfo", "-f", "-F", "f1", path)
    expected = oracle(path, names, 512)
    assert len(expected) > 300
    assert as_set(read_map(Bytes(path.read_bytes()))) == joined(expected)


def test_torn_records_and_deleted_files_do_not_count(files, tmp_path):
    path = tmp_path / "fs"
    make(path, ["-s", "512", "-c", "4096"], {name: files[name] for name in ("f0", "f1", "f2")})
    data = bytearray(path.read_bytes())
    table = struct.unpack_from("<Q", data, 48)[0] * 4096
    whole = as_set(read_map(Bytes(bytes(data))))
    assert len(whole) == 3
    torn, deleted = bytearray(data), bytearray(data)
    torn[table + 64 * 1024 + 510] ^= 1
    deleted[table + 65 * 1024 + 22] &= 0xFE
    for broken, gone in ((torn, "f0"), (deleted, "f1")):
        left = as_set(read_map(Bytes(bytes(broken))))
        assert left == whole - oracle(path, [gone], 4096)


def test_another_boot_sector_has_no_map(files, tmp_path):
    path = tmp_path / "fs"
    make(path, ["-s", "512"], {"f0": files["f0"]})
    data = path.read_bytes()
    assert read_map(Bytes(data[: len(data) // 2])) is None
    for offset, value in ((3, b"FAT"), (11, b"\1"), (13, b"\3"), (40, bytes(8)), (48, b"\xff" * 8)):
        broken = bytearray(data)
        broken[offset : offset + len(value)] = value
        assert read_map(Bytes(bytes(broken))) is None
    broken = bytearray(data)
    broken[64] = 7
    assert read_map(Bytes(bytes(broken))) is None
