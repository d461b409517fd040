"""Mutants: whatever the gate lets in, qemu-img reads identically; nothing hangs or crashes.

``CALOTYPE_FUZZ=5000 pytest tests/unit/test_disk_fuzz.py`` runs a longer campaign.
"""

import os
import random
import struct
import subprocess
from pathlib import Path
from typing import Literal

import pytest

from calotype.disk import open_image, read
from calotype.disk.opinion import QEMU_DRIVERS
from calotype.disk.vhd import SizeRule, checksum_of
from calotype.errors import DiskRefused

COUNT = int(os.environ.get("CALOTYPE_FUZZ", "20"))
SIZE = 3 << 20
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x10000, 0xFFFFFFFF, 1 << 32, 1 << 62, (1 << 64) - 1)

#: Name, format, qemu-img options, and the bytes of the file that hold its tables.
SEEDS = [
    ("qcow2", "qcow2", ["-o", "cluster_size=4k"], [(0, 600), (0, 0x5000)]),
    ("qcow2 packed", "qcow2", ["-c", "-o", "cluster_size=4k"], [(0, 600), (0, 0x9000)]),
    ("qcow2 zstd", "qcow2", ["-c", "-o", "compression_type=zstd"], [(0, 600), (0x30000, 0x60000)]),
    (
        "qcow2 subclusters",
        "qcow2",
        ["-o", "extended_l2=on,cluster_size=16k"],
        [(0, 600), (0, 0x14000)],
    ),
    ("vhd dynamic", "vhd", ["-o", "subformat=dynamic,force_size=on"], [(0, 2048), (-512, 512)]),
    ("vhd fixed", "vhd", ["-o", "subformat=fixed,force_size=on"], [(-512, 512)]),
    ("vhdx", "vhdx", ["-o", "block_size=1M"], [(0, 64), (0x30000, 600), (2 << 20, 3 << 20)]),
    (
        "vmdk",
        "vmdk",
        ["-o", "subformat=monolithicSparse"],
        [(0, 512), (512, 800), (0x2A00, 0x3000)],
    ),
    (
        "vmdk stream",
        "vmdk",
        ["-o", "subformat=streamOptimized"],
        [(0, 512), (512, 800), (-2048, 2048)],
    ),
]


def source(path: Path) -> None:
    rng = random.Random(11)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for _ in range(30):
            length = rng.choice([512, 4096, 20480])
            file.seek(rng.randrange((SIZE - length) // 512) * 512)
            file.write(rng.choice([rng.randbytes(length), bytes([rng.randrange(256)]) * length]))


def mutate(rng: random.Random, data: bytearray, places: list[tuple[int, int]]) -> None:
    """Change one to three fields in the tables."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        start, length = rng.choice(places)
        start += len(data) if start < 0 else 0
        width = rng.choice([1, 2, 4, 8])
        place = (start + rng.randrange(length)) // width * width
        if place + width > len(data):
            continue
        order: Literal["little", "big"] = rng.choice(["little", "big"])
        old = int.from_bytes(data[place : place + width], order)
        new = rng.choice(
            [
                old ^ (1 << rng.randrange(width * 8)),
                rng.choice(INTERESTING),
                old + rng.choice([-512, -1, 1, 512, 4096, 65536]),
                rng.getrandbits(width * 8),
            ]
        )
        data[place : place + width] = (new % (1 << (width * 8))).to_bytes(width, order)


def repair(format_: str, data: bytearray) -> None:
    """Make checksums right again, so that mutants reach the code behind them."""
    if format_ == "vhd":
        for place, where, length in ((0, 64, 512), (512, 36, 1024), (len(data) - 512, 64, 512)):
            raw = bytes(data[place : place + length])
            if raw[:8] in {b"conectix", b"cxsparse"}:
                struct.pack_into(">I", data, place + where, checksum_of(raw, where))


def ours(path: Path, format_: str, rule: SizeRule) -> bytes | None:
    try:
        with open_image(path, declared=format_, vhd_size=rule) as image:
            assert sum(extent.length for extent in image.disk.extents()) == image.virtual_size
            if image.virtual_size > 64 << 20:
                return None  # the oracle would take too long; the size itself agrees with it
            return read(image.disk, 0, image.virtual_size)
    except DiskRefused:
        return None


def oracle(path: Path, out: Path, format_: str, rule: str) -> bytes:
    options = f"driver={QEMU_DRIVERS[format_]},file.driver=file,file.filename={path}"
    options += ",force_size_calc=current_size" if (format_, rule) == ("vhd", "current") else ""
    argv = ["qemu-img", "convert", "--image-opts", options, "-O", "raw", str(out)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return out.read_bytes()


@pytest.mark.parametrize(
    ("format_", "options", "places"), [s[1:] for s in SEEDS], ids=[s[0] for s in SEEDS]
)
def test_mutants(tmp_path, format_, options, places):
    source(tmp_path / "raw")
    seed = tmp_path / "seed"
    argv = ["qemu-img", "convert", "-f", "raw", "-O", QEMU_DRIVERS[format_], *options]
    subprocess.run([*argv, str(tmp_path / "raw"), str(seed)], check=True)
    original = seed.read_bytes()
    rng = random.Random(f"{format_}{options}{COUNT}")
    mutant, accepted = tmp_path / "mutant", 0
    for number in range(COUNT):
        data = bytearray(original)
        if number:
            mutate(rng, data, places)
            repair(format_, data)
        mutant.write_bytes(data)
        rule: SizeRule = rng.choice(["current", "geometry"])
        found = ours(mutant, format_, rule)
        if found is not None:
            accepted += 1
            same = found == oracle(mutant, tmp_path / "out", format_, rule)
            assert same, f"mutant {number} is read differently"
    assert accepted, "not even the seed was accepted"
