"""What this machine allows: rates of one core, and the least time that ingest, hydrate and capture can take.

    .venv/bin/python bench/limits.py IMAGE.raw [--scratch DIRECTORY]

Stores the image in a throw-away repository (so that the numbers of bytes and chunks are those of this disk),
measures the rates on the disk's own bytes, and prints the limits as JSON. With ``measure`` and the three
functions of limits a bench does the same in its own run. Rates of a core are by its CPU time, so that others
who use the machine do not count; so are the fractions under ``cpu``: the least CPU time for the work, by the
time that was used.
"""

import argparse
import json
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import zstandard
from blake3 import blake3

from calotype.disk.base import read
from calotype.disk.view import RawSource
from calotype.store import DirectoryStore, Ingested, Repository
from calotype.store.codec import LEVEL
from calotype.store.source import data_runs

MIB = 1 << 20
SAMPLE = 256 * MIB  # bytes of the disk that rates are measured on
FRAME = 128 << 10
CHUNK = 32 << 10
REPEATS = 3

Clock = Callable[[], float]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Bytes per second of one core, or of the device; ``tau`` is seconds of Python for one chunk."""

    cores: int
    read: float  # R: from the page cache into a buffer
    hash: float  # H
    compress: float  # Z: zstd at our level, raw bytes
    decompress: float  # X: raw bytes
    write: float  # W of hydrate: into the page cache
    sync: float  # W of ingest: into a file until it is on the device
    device: float  # R_dev: from the device
    tau: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One disk and what of it was new; all but ``chunks`` in bytes."""

    data: int  # D: read from the disk
    hashed: int  # N: not zero
    new: int  # U
    stored: int  # U / rho
    chunks: int  # n

    @classmethod
    def of(cls, ingested: Ingested, hashed: int) -> "Work":
        """The work that an ingest did; ``hashed`` is what of the disk is not zero."""
        return cls(
            data=ingested.bytes_read,
            hashed=hashed,
            new=ingested.new_bytes,
            stored=ingested.stored_bytes,
            chunks=ingested.chunks,
        )


def ingest_cpu(work: Work, rates: Rates) -> float:
    """CPU seconds: D/R + N/H + U/Z."""
    return work.data / rates.read + work.hashed / rates.hash + work.new / rates.compress


def ingest_limit(work: Work, rates: Rates) -> float:
    """Seconds: max([D/R + N/H + U/Z]/P, n tau, stored/W)."""
    cpu = ingest_cpu(work, rates)
    return max(cpu / rates.cores, work.chunks * rates.tau, work.stored / rates.sync)


def hydrate_cpu(work: Work, rates: Rates) -> float:
    """CPU seconds: N/X + N/W."""
    return work.hashed / rates.decompress + work.hashed / rates.write


def hydrate_limit(work: Work, rates: Rates) -> float:
    """Seconds: max([N/X + N/W]/P, stored/R_dev) for a disk of ``work`` with everything new.

    Bytes that count as hydrated are acknowledged when they are on the device: N/W_sync is a limit too.
    """
    cpu = hydrate_cpu(work, rates)
    return max(cpu / rates.cores, work.stored / rates.device, work.hashed / rates.sync)


def capture_limit(work: Work, rates: Rates) -> float:
    """Seconds to read, hash, compress and write what changed, after its list is known."""
    return ingest_limit(work, rates)


def measure(disk: Path, scratch: Path) -> Rates:
    """The rates of this machine, each the median of three, on bytes of ``disk`` (a raw file)."""
    sample = _sample(disk)
    frames = [bytes(sample[i : i + FRAME]) for i in range(0, len(sample), FRAME)]
    compressor, decompressor = zstandard.ZstdCompressor(level=LEVEL), zstandard.ZstdDecompressor()
    packed = [compressor.compress(frame) for frame in frames]
    path = scratch / "limits.bin"

    def seconds(work: Callable[[], object], clock: Clock = time.thread_time) -> float:
        return statistics.median(_timed(work, clock) for _ in range(REPEATS))

    def write(*, sync: bool) -> None:
        path.unlink(missing_ok=True)
        with path.open("wb", buffering=0) as file:
            for i in range(0, len(sample), 4 * MIB):
                file.write(sample[i : i + 4 * MIB])
            if sync:
                os.fsync(file.fileno())

    view = memoryview(sample)
    chunks = range(0, len(sample), CHUNK)
    size = len(sample)
    buffer = bytearray(4 * MIB)
    rates = Rates(
        cores=os.cpu_count() or 1,
        write=size / seconds(lambda: write(sync=False)),
        sync=size / seconds(lambda: write(sync=True), time.perf_counter),
        read=_data(disk) / seconds(lambda: _read_into(disk, buffer)),
        hash=size / seconds(lambda: [blake3(view[i : i + CHUNK]).digest() for i in chunks]),
        compress=size / seconds(lambda: [compressor.compress(f) for f in frames]),
        decompress=size / seconds(lambda: [decompressor.decompress(p) for p in packed]),
        device=size / seconds(lambda: _read_device(path), time.perf_counter),
        tau=seconds(lambda: [blake3(view[i : i + 1]).digest() for i in chunks]) / len(chunks),
    )
    path.unlink()
    return rates


def not_zero(disk: Path) -> int:
    """How many bytes of a raw file lie in 4 KiB blocks that are not all zero."""
    found = 0
    for block in _blocks(disk, 4 * MIB):
        raw = np.frombuffer(block, dtype=np.uint8)
        marks = np.arange(0, len(raw), 4096)
        found += int((np.bitwise_or.reduceat(raw, marks) != 0).sum()) * 4096
    return found


def _sample(path: Path) -> bytearray:
    """Bytes of a raw file, taken evenly from all of its data, without blocks of zeros."""
    sample = bytearray()
    blocks = list(_blocks(path, MIB))
    for block in blocks[:: max(1, len(blocks) * MIB // SAMPLE)]:
        if any(block):
            sample += block
    return sample[: len(sample) // FRAME * FRAME]


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    disk = RawSource(path).open()
    try:
        runs = data_runs(disk)
        for start, end in zip(runs.start.tolist(), runs.end.tolist(), strict=True):
            for at in range(start, end, size):
                yield read(disk, at, min(size, end - at))
    finally:
        disk.close()


def _data(path: Path) -> int:
    """How many bytes of a raw file are not holes."""
    disk = RawSource(path).open()
    try:
        return data_runs(disk).total
    finally:
        disk.close()


def _read_into(path: Path, buffer: bytearray) -> None:
    """Read all that is not a hole, as an ingest does: large pieces into one buffer."""
    disk = RawSource(path).open()
    view = memoryview(buffer)
    try:
        runs = data_runs(disk)
        for start, end in zip(runs.start.tolist(), runs.end.tolist(), strict=True):
            for at in range(start, end, len(view)):
                disk.read_into(at, view[: min(len(view), end - at)])
    finally:
        disk.close()


def _read_device(path: Path) -> None:
    """Read past the page cache; where the file system cannot, after asking for it to be dropped."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    buffer = mmap.mmap(-1, 4 * MIB)  # aligned, as direct reads need it
    try:
        at = 0
        while count := os.preadv(fd, [buffer], at):
            at += count
    finally:
        os.close(fd)


def _timed(work: Callable[[], object], clock: Clock) -> float:
    started = clock()
    work()
    return clock() - started


@contextmanager
def _scratch(directory: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="limits-", dir=directory) as path:
        yield Path(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="What this machine allows for a disk image.")
    parser.add_argument("image", type=Path)
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    with _scratch(arguments.scratch) as scratch:
        repository = Repository.create(DirectoryStore(scratch / "store"))
        disk = RawSource(arguments.image).open()
        spent: dict[str, tuple[float, float]] = {}
        first = _spend("ingest", lambda: repository.ingest(disk), spent)
        again = _spend("ingest again", lambda: repository.ingest(disk), spent)
        _spend("hydrate", lambda: repository.materialize(first.index, scratch / "out"), spent)
        disk.close()
        hashed = not_zero(arguments.image)
        rates = measure(arguments.image, scratch)
        whole, known = Work.of(first, hashed), Work.of(again, hashed)
        limits = {
            "ingest": (ingest_limit(whole, rates), ingest_cpu(whole, rates)),
            "ingest again": (ingest_limit(known, rates), ingest_cpu(known, rates)),
            "hydrate": (hydrate_limit(whole, rates), hydrate_cpu(whole, rates)),
        }
    rows = {
        name: {
            "limit": limit,
            "seconds": spent[name][0],
            "fraction": limit / spent[name][0],
            "cpu": cpu / spent[name][1],
        }
        for name, (limit, cpu) in limits.items()
    }
    print(json.dumps({"rates": asdict(rates), "work": asdict(whole), "rows": rows}, indent=2))


def _spend(name: str, work: Callable[[], T], spent: dict[str, tuple[float, float]]) -> T:
    """Do the work, and note its wall clock and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    spent[name] = time.perf_counter() - wall, time.process_time() - cpu
    return result


if __name__ == "__main__":
    main()
