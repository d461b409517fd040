"""Overlays: created as QEMU would, opened by QEMU over an explicit base, read back by us."""

import itertools
import json
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype import run
from calotype.disk import overlay
from calotype.disk.base import Disk, Extent, read
from calotype.disk.overlay import OverlayDisk
from calotype.disk.view import OverlaySource, RawSource, writable
from calotype.errors import Conflict, DiskRefused, InvalidInput

MIB = 1 << 20
GIB = 1 << 30


def write(path: Path, base: Path | None, *commands: str) -> None:
    """Write into an overlay with QEMU, its base given as an explicit node."""
    top: dict[str, object] = {"driver": "qcow2", "discard": "unmap", "backing": None}
    top["file"] = {"driver": "file", "filename": str(path)}
    if base is not None:
        raw = {"driver": "raw", "read-only": True}
        top["backing"] = raw | {"file": {"driver": "file", "filename": str(base)}}
    flags = [flag for command in commands for flag in ("-c", command)]
    run.run(["qemu-io", "-d", "unmap", *flags, f"json:{json.dumps(top)}"])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.raw"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(MIB)
        file.write(b"\1" * MIB)
    return path


@pytest.mark.parametrize(
    "size", [512, 4096, MIB, GIB, GIB + 512, 3 * GIB, 5 << 40, (16 << 40) + 512, 1 << 46]
)
def test_made_as_qemu_makes_it(size: int, tmp_path: Path) -> None:
    path, peer = tmp_path / "o", tmp_path / "peer"
    overlay.create(path, size)
    options = "extended_l2=on,cluster_size=128k"
    run.run(["qemu-img", "create", "-f", "qcow2", "-u", "-o", options, str(peer), str(size)])
    run.run(["qemu-img", "check", "-f", "qcow2", str(path)])
    ours, theirs = path.read_bytes(), peer.read_bytes().ljust(path.stat().st_size, b"\0")
    assert ours[:112] == theirs[:112]
    assert ours[1 << 17 :] == theirs[1 << 17 :]
    with closing(OverlayDisk(path, None)) as disk:
        assert disk.size == size
        assert disk.changed() == []
        assert list(disk.extents()) == [Extent(0, size, zero=True)]


def test_refusals(tmp_path: Path) -> None:
    for size in (0, -512, 511, (1 << 46) + 512):
        with pytest.raises(InvalidInput):
            overlay.create(tmp_path / "o", size)
    overlay.create(tmp_path / "o", 512)
    with pytest.raises(Conflict):
        overlay.create(tmp_path / "o", 512)


def test_written_by_qemu_over_a_base(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "o"
    overlay.create(path, 16 * MIB)
    commands = ("write -P 2 1048576 4096", "write -z -u 1310720 131072", "write -P 3 12M 8k")
    write(path, base, *commands)
    with closing(OverlaySource(path, base).open()) as disk:
        assert isinstance(disk, Disk)
        assert isinstance(disk, OverlayDisk)
        assert disk.size == 16 * MIB
        assert disk.changed() == [
            Extent(MIB, 4096, zero=False),
            Extent(1310720, 131072, zero=True),
            Extent(12 * MIB, 8192, zero=False),
        ]
        content = bytearray(16 * MIB)
        content[MIB : 2 * MIB] = b"\1" * MIB
        content[MIB : MIB + 4096] = b"\2" * 4096
        content[1310720 : 1310720 + 131072] = bytes(131072)
        content[12 * MIB : 12 * MIB + 8192] = b"\3" * 8192
        assert read(disk, 0, disk.size) == content
        zero = bytearray(16 * MIB)
        end = 0
        for extent in disk.extents():
            assert extent.offset == end
            end = extent.end
            zero[extent.offset : extent.end] = bytes([extent.zero]) * extent.length
        assert end == disk.size
        assert zero == bytes(0 if byte else 1 for byte in content)


def test_written_by_qemu_over_nothing(tmp_path: Path) -> None:
    path = tmp_path / "o"
    overlay.create(path, 8 * MIB)
    write(path, None, "write -P 5 64k 4k")
    with closing(OverlaySource(path, None).open()) as disk:
        assert read(disk, 65536, 4097) == b"\5" * 4096 + b"\0"
        assert [e for e in disk.extents() if not e.zero] == [Extent(65536, 4096, zero=False)]


def test_the_name_of_a_backing_file_is_not_followed(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "named"
    options = f"extended_l2=on,cluster_size=128k,backing_file={base},backing_fmt=raw"
    run.run(["qemu-img", "create", "-f", "qcow2", "-o", options, str(path), str(8 * MIB)])
    with closing(OverlayDisk(path, None)) as disk:
        assert read(disk, 0, disk.size) == bytes(8 * MIB)
    with writable(OverlaySource(path, None), tmp_path / "o", tmp_path) as view:
        assert view.path.read_bytes() == bytes(8 * MIB)


def test_an_external_data_file_is_refused(tmp_path: Path, base: Path) -> None:
    path, data = tmp_path / "named", tmp_path / "data"
    run.run(["qemu-img", "create", "-f", "qcow2", "-o", f"data_file={data}", str(path), "8M"])
    with pytest.raises(DiskRefused):
        OverlayDisk(path, None)
    with pytest.raises(DiskRefused), writable(OverlaySource(path, None), tmp_path / "o", tmp_path):
        pass


def test_a_raw_source(base: Path) -> None:
    with closing(RawSource(base).open()) as disk:
        assert read(disk, MIB - 1, 2) == b"\0\1"
        assert disk.changed() == [Extent(MIB, MIB, zero=False)]


layers = st.lists(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.booleans()), max_size=6), max_size=4
)


@given(layers)
def test_a_stack_shows_the_topmost(gaps: list[list[tuple[int, int, bool]]]) -> None:
    stacked: list[list[Extent]] = []
    cells: dict[int, bool] = {}
    for layer in gaps:
        at, runs = 0, []
        for gap, length, zero in layer:
            at += gap - 1
            runs.append(Extent(at, length, zero))
            at += length
        stacked.append(runs)
        for run_ in runs:
            for cell in range(run_.offset, run_.end):
                cells.setdefault(cell, run_.zero)
    result = list(overlay.stack(stacked))
    assert {c: r.zero for r in result for c in range(r.offset, r.end)} == cells
    assert sum(r.length for r in result) == len(cells)
    for left, right in itertools.pairwise(result):
        assert left.end < right.offset or (left.end == right.offset and left.zero != right.zero)
