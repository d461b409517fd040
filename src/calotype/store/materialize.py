"""Materialize: an Index as a sparse raw file, written by several threads, whole or not at all."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from calotype.disk.durable import fsync_directory
from calotype.store.reader import IndexDisk
from calotype.store.workers import spread

_MOST = 4 << 20  # bytes written at once
_FLUSH = 32 << 20  # bytes that may wait in memory before the device is given them


def materialize(
    disk: IndexDisk,
    path: Path,
    name: str,
    report: Callable[[int], None],
    *,
    threads: int | None = None,
) -> None:
    """Write the disk to ``path`` (mode 0600): to a temporary file first, fsynced, then renamed.

    ``name`` is the Index's id; ``report`` gets bytes of the regions that are not all zero; ``threads`` is how
    many write, else as many as there are cores. A temporary file that a killed process left is taken over.
    When another process is writing the same file, this waits for it and then has nothing to do.
    """
    part = path.with_name(f".{path.name}.{name[:16]}.part")
    fd = _locked(part, path)
    if fd is None:
        return
    try:
        os.ftruncate(fd, 0)
        os.ftruncate(fd, disk.size)
        with _Flusher(fd) as flusher:

            def write(next_region: Callable[[], int | None]) -> None:
                while (region := next_region()) is not None:
                    _write_region(region, fd, disk, report, flusher)

            spread(disk.regions, write, threads)
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


def _write_region(
    region: int,
    fd: int,
    disk: IndexDisk,
    report: Callable[[int], None],
    flusher: "_Flusher",
) -> None:
    done, end = disk.span(region)
    for offset, views in _contiguous(disk.region(region)):
        _pwrite(fd, offset, views)
        length = sum(len(v) for v in views)
        flusher.wrote(length)
        report(offset + length - done)
        done = offset + length
    report(end - done)


class _Flusher:
    """Has a file written to the device while others still fill it, so that little is left at the end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._changed = threading.Condition()
        self._waiting = 0  # bytes
        self._ended = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="calotype-flush", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()
        # The kernel tells a lost write once: a later fsync would not know of it.
        if self._error is not None and kind is None:
            raise self._error

    def wrote(self, length: int) -> None:
        """So many more bytes were written to the file."""
        with self._changed:
            self._waiting += length
            if self._waiting >= _FLUSH:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._waiting >= _FLUSH)
                if self._ended:
                    return
                self._waiting = 0
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                self._error = error
                return


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
