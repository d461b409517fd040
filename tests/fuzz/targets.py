"""What is fuzzed, and what must hold for any input: the readers of file systems and of volumes."""

import time
from collections.abc import Callable
from contextlib import suppress

from tests.fuzz.sparse import SparseDisk
from tests.memory import forget_peak, peak

from calotype.store.digest import Ints
from calotype.store.files import areas, ext4, lvm, ntfs, xfs
from calotype.store.files.extents import MAX_EXTENTS, FileMap
from calotype.store.files.partitions import partitions
from calotype.store.files.volume import BUDGET, Enough, Metered, Reader, Segment

MAX_SECONDS = 30.0  # of processor time
MAX_MEMORY = (
    240 << 20
)  # bytes, besides what Python, numpy and the reader's code take: 60 MiB at the most
_SMALL_BUDGET = 24 << 20  # most inputs: so that they are many


def one(read: Callable[[SparseDisk, int], None], data: bytes) -> None:
    """Read what an input describes; raises AssertionError when a law does not hold."""
    disk = SparseDisk(data)
    budget = BUDGET if disk.size >> 10 & 15 == 15 else _SMALL_BUDGET
    forget_peak()
    before = peak()
    begun = time.process_time()
    read(disk, budget)
    assert disk.bytes_read <= budget, "more was read than the budget allows"
    assert time.process_time() - begun < MAX_SECONDS, "it took too long"
    taken = (peak() - before) << 10
    assert taken < MAX_MEMORY, f"{taken >> 20} MiB of memory"


def _reads(reader: Callable[[Reader], FileMap | None]) -> Callable[[SparseDisk, int], None]:
    def read(disk: SparseDisk, budget: int) -> None:
        with suppress(Enough):
            check_map(reader(Metered(disk, budget)), disk.size)

    return read


def check_map(files: FileMap | None, size: int) -> None:
    """A map is ascending, apart, and inside its file system, which is inside the volume."""
    if files is None:
        return
    assert 0 < files.size <= size
    assert len(files.start) <= MAX_EXTENTS
    _check_runs(files.start, files.end, files.logical, 0, files.size)


def _check_runs(start: Ints, end: Ints, logical: Ints, first: int, last: int) -> None:
    assert len(start) == len(end) == len(logical)
    assert (start < end).all()
    assert (start[1:] >= end[:-1]).all()
    assert (logical >= 0).all()
    if len(start):
        assert first <= start[0]
        assert end[-1] <= last


def volumes(disk: SparseDisk, budget: int) -> None:
    """Partitions and logical volumes are inside the disk; the areas cover it."""
    with suppress(Enough):
        _check_segments(partitions(Metered(disk, budget)), disk.size)
    with suppress(Enough):
        for segments in lvm.linear_volumes(Metered(disk, budget)):
            _check_segments(segments, disk.size)
    done = 0
    for area in areas(Metered(disk, budget)):
        assert area.start == done < area.end
        done = area.end
        if area.files is not None:
            runs = area.files
            _check_runs(runs.start, runs.end, runs.logical, area.start, area.end)
    assert done == disk.size


def _check_segments(segments: list[Segment], size: int) -> None:
    for start, length in segments:
        assert 0 <= start < start + length <= size


TARGETS: dict[str, Callable[[SparseDisk, int], None]] = {
    "ext4": _reads(ext4.read_map),
    "xfs": _reads(xfs.read_map),
    "ntfs": _reads(ntfs.read_map),
    "volumes": volumes,
}
