"""Row *capture*: what a VM changed, on disks of four sizes, against copies of the whole disk.

The disk holds bytes of the bench set (bounded: it has to lie somewhere) and 64 KiB in each further 64 MiB, as
the metadata of a file system would; the VM's overlay holds 100 MiB of new bytes in runs of 4 KiB to 1 MiB,
which lie in 100 areas all over the disk. New bytes are those of real files through a permutation of byte
values: they compress as files do, and are nowhere else.
"""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard
from bench.images import BenchImage
from bench.log import Sample
from bench.measure import Command, cold, data_runs, held, run, warm
from bench.tools import Restic, facts, ours
from bench.works import Bench, space

from calotype.disk.base import read
from calotype.disk.overlay import create
from calotype.store import DirectoryStore, Repository
from calotype.store.codec import LEVEL

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SHARE = 20 * MIB  # changed in runs of each length
LENGTHS = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB)
AREAS, AREA = 100, 16 * MIB
MARK, MARKS = 64 * KIB, 64 * MIB  # written beyond the data: how much, how far apart
RESTIC_UP_TO = 2  # GiB; it reads all of the disk, and its row takes four times as long
COPY, DELTA = "qemu-img convert", "qemu-img convert -B"
_SPACE = 24 * GIB


@dataclass(frozen=True, slots=True)
class DiskSize:
    """A disk of ``gib`` GiB with ``data`` bytes in use; ``copies`` of it are measured, which take long."""

    gib: int
    data: int
    copies: int


#: Copies grow with the data, not with the disk, so that they need not be repeated at each size.
SIZES = (
    DiskSize(2, 3 * GIB // 2, 3),
    DiskSize(10, 6 * GIB, 1),
    DiskSize(50, 6 * GIB, 3),
    DiskSize(128, 6 * GIB, 1),
)


def capture(bench: Bench, subjects: Sequence[BenchImage]) -> None:
    """All sizes; the first alone when it has to be quick."""
    sizes = SIZES[:1] if bench.quick else SIZES
    if all(bench.log.has("capture", gib=disk.gib) for disk in sizes):
        return
    space(bench.scratch, _SPACE)
    place = bench.scratch / "capture"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        base = Base(place / "disk.raw", subjects)
        for disk in sizes:
            base.grow(disk)
            if bench.log.has("capture", gib=disk.gib):
                continue
            print(f"capture, a disk of {disk.gib} GiB", flush=True)
            put = ours("put", place / "store", base.path, facts(place, "disk"))
            run(put, place, bench.scratch / "output.log")
            changes = Changes(disk.gib * GIB, subjects[-1])
            changes.write(place / "overlay.qcow2", place)
            cell = _Cell(bench, place, disk, changes)
            bench.log.add("capture", [sample | {"gib": disk.gib} for sample in cell.samples()])
    finally:
        shutil.rmtree(place, ignore_errors=True)


class Base:
    """The disk as it was before: a raw file that grows from one size to the next."""

    def __init__(self, path: Path, subjects: Sequence[BenchImage]) -> None:
        self.path = path
        self._blocks = blocks(subjects)
        self._mark = next(self._blocks)
        self._laid = MIB  # the first stays empty: no partition table of some image
        path.touch()

    def grow(self, disk: DiskSize) -> None:
        """More data, and a larger disk."""
        size = disk.gib * GIB
        have = self.path.stat().st_size
        with self.path.open("r+b") as file:
            file.truncate(size)
            while self._laid < disk.data:
                file.seek(self._laid)
                file.write(next(self._blocks))
                self._laid += MIB
            for at in range(0, size, MARKS):
                if at >= max(have, disk.data):
                    file.seek(at)
                    start = at // MARKS * 509 % (MIB - MARK)
                    file.write(self._mark[start : start + MARK])
            os.fsync(file.fileno())


def blocks(subjects: Sequence[BenchImage]) -> Iterator[bytes]:
    """The images' bytes, MiB after MiB without those that are all zero, over and over."""
    while True:
        for subject in subjects:
            with subject.path.open("rb", buffering=0) as file:
                for start, end in data_runs(file.fileno()):
                    for at in range(start, end - MIB + 1, MIB):
                        block = os.pread(file.fileno(), MIB, at)
                        if any(block):
                            yield block


class Changes:
    """What the VM wrote: places on a disk of ``size`` bytes, ascending, and the bytes there."""

    def __init__(self, size: int, subject: BenchImage) -> None:
        rng = random.Random(size)
        areas = rng.sample(range(size // AREA), AREAS)
        width = AREA // len(LENGTHS) // MIB * MIB  # of an area, for runs of one length
        runs: list[tuple[int, int]] = []
        for number, length in enumerate(LENGTHS):
            slots = width // length
            for place in rng.sample(range(AREAS * slots), SHARE // length):
                start = areas[place // slots] * AREA + number * width + place % slots * length
                runs.append((start, length))
        values = list(range(1, 256))
        rng.shuffle(values)
        table = bytes([0, *values])  # zeros stay: they are what makes files compress
        source = blocks([subject])
        rest = b""
        self.size = size
        self.runs: list[tuple[int, bytes]] = []
        for start, length in sorted(runs):
            while len(rest) < length:
                rest += next(source).translate(table)
            self.runs.append((start, rest[:length]))
            rest = rest[length:]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(len(data) for _start, data in self.runs)

    @property
    def compressed(self) -> int:
        """Bytes, as one stream of zstd at our level."""
        compressor = zstandard.ZstdCompressor(level=LEVEL)
        return len(compressor.compress(b"".join(data for _start, data in self.runs)))

    def write(self, overlay: Path, scratch: Path) -> None:
        """A new overlay with these bytes, written by QEMU's own block layer."""
        overlay.unlink(missing_ok=True)
        create(overlay, self.size)
        sources = scratch / "changes"
        sources.mkdir()
        commands = []
        for number, (start, data) in enumerate(self.runs):
            source = sources / str(number)
            source.write_bytes(data)
            commands.append(f"write -q -s {source} {start} {len(data)}")
        script = "\n".join([*commands, "quit", ""]).encode()
        argv = ["qemu-io", "-f", "qcow2", str(overlay)]
        subprocess.run(argv, input=script, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(sources)


@dataclass(frozen=True, slots=True)
class _Cell:
    """One disk with its changes, in ``place``: disk.raw, overlay.qcow2, store."""

    bench: Bench
    place: Path
    disk: DiskSize
    changes: Changes

    def samples(self) -> Iterator[Sample]:
        facts = {"changed": self.changes.total, "compressed": self.changes.compressed}
        yield {"tool": "", "data": held(self.place / "disk.raw"), **facts}
        warm([self.place / "overlay.qcow2", self.place / "disk.raw", self.place / "store"])
        for number in range(self.bench.runs):
            yield self._ours(number, "warm")
            yield self._copy(number, DELTA, ["-B", str(self.place / "disk.raw"), "-F", "raw"])
            if number < self.disk.copies:
                yield self._copy(number, COPY, [])
            if not self.bench.quick:
                yield self._ours(number, "cold")
        if self.disk.gib <= RESTIC_UP_TO and not self.bench.quick:
            yield from self._restic()

    def _ours(self, number: int, caches: str) -> Sample:
        with self.bench.room() as room:
            # Objects never change: links are as good as a copy.
            subprocess.run(
                ["cp", "-al", str(self.place / "store"), str(room / "store")], check=True
            )
            before = held(room / "store")
            overlay, base = self.place / "overlay.qcow2", self.place / "disk.raw"
            made = facts(room, "captured")
            work = ours("capture", room / "store", overlay, base, facts(self.place, "disk"), made)
            if caches == "cold":
                cold([overlay, room / "store"])
            sample = self._measured(work, room, number, "calotype", caches)
            stored = held(room / "store") - before
            if number == 0 and caches == "warm":
                self._check(room / "store", str(json.loads(made.read_text())["index"]))
        return {**sample, "stored": stored}

    def _check(self, store: Path, index: str) -> None:
        """The captured disk has the new bytes, and the old ones on both sides of them."""
        captured = Repository(DirectoryStore(store)).open(index)
        with (self.place / "disk.raw").open("rb") as base:
            expected = _expected(base.fileno(), self.changes)
            if any(read(captured, at, len(data)) != data for at, data in expected):
                raise SystemExit("a capture gave back other bytes than the VM wrote")

    def _copy(self, number: int, tool: str, options: list[str]) -> Sample:
        stacked = {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": str(self.place / "overlay.qcow2")},
            "backing": {
                "driver": "raw",
                "file": {"driver": "file", "filename": str(self.place / "disk.raw")},
            },
        }
        with self.bench.room() as room:
            target = room / "copy.qcow2"
            argv = ["qemu-img", "convert", f"json:{json.dumps(stacked)}", "-O", "qcow2"]
            command = Command(argv=[*argv, *options, str(target)])
            sample = self._measured(command, room, number, tool, "warm")
            return {**sample, "stored": held(target)}

    def _restic(self) -> Iterator[Sample]:
        """Backup of a flattened copy at the same path; only the second backup is measured."""
        flat = self.bench.scratch / "flat.raw"
        tool = Restic()
        try:
            with self.bench.room() as room:
                tool.open(room)
                subprocess.run(["cp", "--sparse=always", self.place / "disk.raw", flat], check=True)
                backup = Command(argv=["restic", "backup", "-q", str(flat)], env=tool.env(room))
                run(backup, room, self.bench.scratch / "output.log")
                before = held(room / "store")
                with flat.open("r+b") as file:
                    for start, data in self.changes.runs:
                        file.seek(start)
                        file.write(data)
                sample = self._measured(backup, room, 0, "restic", "warm")
                yield {**sample, "stored": held(room / "store") - before}
        finally:
            flat.unlink(missing_ok=True)

    def _measured(
        self, command: Command, room: Path, number: int, tool: str, caches: str
    ) -> Sample:
        return self.bench.measured(
            command, room, row="capture", gib=self.disk.gib, caches=caches, tool=tool, run=number
        )


def _expected(base: int, changes: Changes) -> Iterator[tuple[int, bytes]]:
    """Every changed run, and the unchanged 4 KiB before and after it."""
    starts = {start for start, _data in changes.runs}
    ends = {start + len(data) for start, data in changes.runs}
    for start, data in changes.runs:
        yield start, data
        if start not in ends and start:
            yield start - 4 * KIB, os.pread(base, 4 * KIB, start - 4 * KIB)
        after = start + len(data)
        if after not in starts and after < changes.size:
            yield after, os.pread(base, 4 * KIB, after)
