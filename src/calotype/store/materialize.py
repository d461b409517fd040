"""Materialize: an Index as a sparse raw file, written by several threads, whole or not at all."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from calotype.disk.durable import fsync_directory
from calotype.store.reader import IndexDisk
from calotype.store.workers import spread

_MOST = 4 << 20  # bytes written at once


def materialize(disk: IndexDisk, path: Path, name: str, report: Callable[[int], None]) -> None:
    """Write the disk to ``path`` (mode 0600): to a temporary file first, fsynced, then renamed.

    ``name`` is the Index's id; ``report`` gets bytes of the regions that are
    not all zero. A temporary file that a killed process left is taken over. When another
    process is writing the same file, this waits for it and then has nothing to do.
    """
    part = path.with_name(f".{path.name}.{name[:16]}.part")
    fd = _locked(part, path)
    if fd is None:
        return
    try:
        os.ftruncate(fd, 0)
        os.ftruncate(fd, disk.size)
        spread(disk.regions, lambda next_region: _write_regions(next_region, fd, disk, report))
        os.fsync(fd)
        os.rename(part, path)
        fsync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise
    finally:
        os.close(fd)


def _locked(part: Path, path: Path) -> int | None:
    """The temporary file, locked; None when another process has finished ``path`` meanwhile."""
    while True:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(part, follow_symlinks=False)):
                return fd
        finished = os.fstat(fd)
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(finished, os.stat(path)):
                return None


def _write_regions(
    next_region: Callable[[], int | None],
    fd: int,
    disk: IndexDisk,
    report: Callable[[int], None],
) -> None:
    while (region := next_region()) is not None:
        done, end = disk.span(region)
        for offset, views in _contiguous(disk.region(region)):
            _pwrite(fd, offset, views)
            written = offset + sum(len(v) for v in views)
            report(written - done)
            done = written
        report(end - done)


def _contiguous(
    pieces: Iterator[tuple[int, memoryview]],
) -> Iterator[tuple[int, list[memoryview]]]:
    """Pieces that touch, together."""
    start = end = 0
    views: list[memoryview] = []
    for offset, view in pieces:
        if views and (offset != end or end - start >= _MOST or len(views) >= 512):
            yield start, views
            views = []
        if not views:
            start = offset
        views.append(view)
        end = offset + len(view)
    if views:
        yield start, views


def _pwrite(fd: int, offset: int, views: list[memoryview]) -> None:
    written = os.pwritev(fd, views, offset)
    total = sum(len(v) for v in views)
    while written < total:
        rest = b"".join(views)[written:]
        written += os.pwrite(fd, rest, offset + written)
