"""Hash every sample image in full, zeros included, and write ``docs/reports/samples.md``.

    .venv/bin/python bench/samples.py [SAMPLES]

It takes some minutes: four disks hold 16 to 127 GiB of zeros.
"""

import bz2
import csv
import hashlib
import sys
import tempfile
import time
from pathlib import Path

from calotype.disk import OpenImage, open_image
from calotype.errors import DiskRefused

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "reports" / "samples.md"
BLOCK = 16 << 20

HEAD = """# Samples

Written by `bench/samples.py`. Each sample goes through the gate (`calotype.disk.open_image`) and is read
to its end; *raw SHA-256* is of all its bytes, zeros included. The table that comes with the samples
follows qemu-img; where Azure's size rule gives another size, both are shown.

| sample | size rule | result | virtual size | raw SHA-256 | open | read |
|---|---|---|---|---|---|---|
"""


def unpack(source: Path, directory: Path) -> Path:
    target = directory / source.name.removesuffix(".bz2")
    with bz2.open(source) as packed, target.open("wb") as file:
        while block := packed.read(1 << 20):
            if block.count(0) == len(block):
                file.seek(len(block), 1)
            else:
                file.write(block)
        file.truncate()
    return target


def digest(image: OpenImage, size: int) -> str:
    found, zeros, buffer = hashlib.sha256(), memoryview(bytes(BLOCK)), memoryview(bytearray(BLOCK))
    for extent in image.disk.extents():
        for offset in range(extent.offset, min(extent.end, size), BLOCK):
            count = min(BLOCK, min(extent.end, size) - offset)
            if not extent.zero:
                image.disk.read_into(offset, buffer[:count])
            found.update((zeros if extent.zero else buffer)[:count])
    return found.hexdigest()


def row(path: Path, expected: dict[str, str], rule: str) -> tuple[str, bool]:
    started = time.perf_counter()
    try:
        image = open_image(path, vhd_size="geometry" if rule == "geometry" else "current")
    except DiskRefused as error:
        right = not expected["raw_sha256"]
        return f"| {expected['file']} | | refused: {error} | | | | |\n", right
    opened = time.perf_counter()
    with image:
        size = min(image.virtual_size, int(expected["virtual_size"]))
        found = digest(image, size)
        image.unchanged()
    read = time.perf_counter()
    right = found == expected["raw_sha256"]
    note = "hash as stated" if right else "HASH DIFFERS"
    if size < image.virtual_size:
        note += f" for the first {size} bytes"
    shown = rule if image.format == "vhd" else ""
    return (
        f"| {expected['file']} | {shown} | {note} | {image.virtual_size} | `{found}` "
        f"| {opened - started:.3f} s | {read - opened:.1f} s |\n"
    ), right


def main() -> int:
    samples = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "samples"
    with (samples / "samples.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    report, right = HEAD, True
    with tempfile.TemporaryDirectory() as directory:
        for expected in table:
            path = unpack(samples / expected["file"], Path(directory))
            two = expected["qemu_format"] == "vpc" and expected["raw_sha256"]
            for rule in ("current", "geometry") if two else ("current",):
                line, good = row(path, expected, rule)
                print(line, end="", flush=True)
                report, right = report + line, right and good
            path.unlink()
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(report, encoding="utf-8")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
