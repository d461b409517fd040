"""Every sample image: imported with the hash that its table states, or refused for the stated reason.

The four disks of 16 GiB and more are compared by extents and data here; ``bench/samples.py`` hashes all.
"""

import bz2
import csv
import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from calotype.disk import OpenImage, open_image
from calotype.errors import DiskRefused

SAMPLES = Path(__file__).parents[3] / "shared" / "samples"
TABLE = SAMPLES / "samples.csv"
BLOCK = 8 << 20

pytestmark = pytest.mark.skipif(
    not TABLE.exists(), reason="../shared/samples is not on this machine"
)


def rows() -> list[dict[str, str]]:
    if not TABLE.exists():
        return []
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def unpack(name: str, directory: Path) -> Path:
    target = directory / name.removesuffix(".bz2")
    with bz2.open(SAMPLES / name) as packed, target.open("wb") as file:
        while block := packed.read(1 << 20):
            if block.count(0) == len(block):
                file.seek(len(block), 1)
            else:
                file.write(block)
        file.truncate()
    return target


def digest(image: OpenImage, size: int) -> str:
    """SHA-256 of the first ``size`` bytes, zeros included."""
    found, zeros = hashlib.sha256(), bytes(BLOCK)
    buffer = bytearray(BLOCK)
    for extent in image.disk.extents():
        for offset in range(extent.offset, min(extent.end, size), BLOCK):
            count = min(BLOCK, min(extent.end, size) - offset)
            if extent.zero:
                found.update(zeros[:count])
            else:
                image.disk.read_into(offset, memoryview(buffer)[:count])
                found.update(memoryview(buffer)[:count])
    return found.hexdigest()


def same_as_qemu(image: OpenImage, path: Path, rule: str, out: Path) -> None:
    """Compare size and every data byte with a sparse conversion by qemu-img."""
    driver = {"vhd": "vpc"}.get(image.format, image.format)
    options = f"driver={driver},file.driver=file,file.filename={path}"
    options += ",force_size_calc=current_size" if (driver, rule) == ("vpc", "current") else ""
    argv = ["qemu-img", "convert", "--image-opts", options, "-O", "raw", str(out)]
    subprocess.run(argv, check=True, capture_output=True)
    with open_image(out, declared="raw") as raw:
        assert raw.virtual_size == image.virtual_size
        held = [e for e in raw.disk.extents() if not e.zero]
        held += [e for e in image.disk.extents() if not e.zero]
        for extent in held:
            for offset in range(extent.offset, extent.end, BLOCK):
                mine, theirs = (bytearray(min(BLOCK, extent.end - offset)) for _ in range(2))
                image.disk.read_into(offset, memoryview(mine))
                raw.disk.read_into(offset, memoryview(theirs))
                assert mine == theirs


ACCEPTED = [row for row in rows() if row["raw_sha256"]]
REFUSED = [row for row in rows() if not row["raw_sha256"]]

#: The message must name the problem that the table states.
REASONS = {
    "afl5.img.bz2": "table of 1073741825 entries",
    "afl9.vmdk.bz2": "directory of .* entries is larger",
    "iotest-dirtylog-10G-4M.vhdx.bz2": "log waits to be replayed",
    "empty.bochs.bz2": "foreign format, not supported: Bochs",
    "parallels-v1.bz2": "foreign format, not supported: Parallels",
    "parallels-v2.bz2": "foreign format, not supported: Parallels",
    "parallels-with-bitmap.bz2": "foreign format, not supported: Parallels",
    "simple-dmg.dmg.bz2": "foreign format, not supported: Apple",
    "simple-pattern.cloop.bz2": "foreign format, not supported: cloop",
}


@pytest.mark.parametrize("row", ACCEPTED, ids=lambda row: row["file"])
def test_accepted(row, tmp_path):
    path = unpack(row["file"], tmp_path)
    packed = (SAMPLES / row["file"]).read_bytes()
    assert hashlib.sha256(packed).hexdigest() == row["file_sha256"]
    # The table follows qemu-img, which takes Virtual PC's geometry for its size.
    with open_image(path, vhd_size="geometry") as image:
        assert image.virtual_size == int(row["virtual_size"])
        if image.virtual_size < 2 << 30:
            assert digest(image, image.virtual_size) == row["raw_sha256"]
        else:
            same_as_qemu(image, path, "geometry", tmp_path / "raw")
        image.unchanged()


def test_virtual_pc_by_azures_rule(tmp_path):
    path = unpack("virtualpc-dynamic.vhd.bz2", tmp_path)
    with open_image(path) as image:
        assert image.virtual_size == 136365211648
        same_as_qemu(image, path, "current", tmp_path / "raw")


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row["file"])
@pytest.mark.parametrize("declared", [None, "raw", "own"])
def test_refused(row, declared, tmp_path):
    path = unpack(row["file"], tmp_path)
    if declared == "own":
        declared = {"vpc": "vhd", "none": None}.get(row["qemu_format"], row["qemu_format"])
    with pytest.raises(DiskRefused) as caught:
        open_image(path, declared=declared)
    assert caught.value.hint
    if declared != "raw":
        assert re.search(REASONS[row["file"]], caught.value.message)
