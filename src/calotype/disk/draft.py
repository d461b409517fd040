"""Files that appear whole or not at all, and scratch files that no crash leaves behind."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from calotype.disk.base import Disk
from calotype.disk.durable import fsync_directory
from calotype.errors import Conflict, InvalidInput
from calotype.progress import SILENT, Progress

#: Zeros are looked for in pieces of so many bytes.
PIECE: Final = 64 << 10
_BLOCK: Final = 4 << 20
_NO_TMPFILE: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})


@contextlib.contextmanager
def draft(target: Path, *, overwrite: bool = False) -> Iterator[int]:
    """A descriptor to write to; the file gets its name, durably, when the block ends well.

    Until then it has no name (``O_TMPFILE``), so that even ``kill -9`` leaves nothing behind; on a file
    system without that it has a hidden name beside ``target``.

    Raises:
        Conflict: ``target`` exists and is not to be overwritten.
        InvalidInput: ``target`` is a device, a directory, or something else that is no file.
    """
    if target.exists() and not target.is_file():
        raise InvalidInput(f"{target} is no regular file", hint="name a file to write")
    if not overwrite and target.exists():
        raise _taken(target)
    beside = target.parent / f".{target.name}.{secrets.token_hex(6)}.part"
    fd, named = _create(target.parent, beside)
    try:
        yield fd
        os.fchmod(fd, 0o666 & ~_umask())
        os.fsync(fd)
        if not named:
            _name(fd, beside)
            named = True
        if overwrite:
            os.replace(beside, target)
            named = False
        else:
            _link(beside, target)
        fsync_directory(target.parent)
    finally:
        if named:
            beside.unlink(missing_ok=True)
        os.close(fd)


@contextlib.contextmanager
def scratch_file(directory: Path) -> Iterator[int]:
    """A nameless file in ``directory``, open for reading and writing."""
    path = directory / f".{secrets.token_hex(8)}.scratch"
    fd, named = _create(directory, path)
    try:
        if named:
            path.unlink()
        yield fd
    finally:
        os.close(fd)


def write_sparse(fd: int, offset: int, block: memoryview) -> None:
    """Write ``block`` at ``offset`` of a fresh file, leaving out pieces that are all zero."""
    whole = len(block) // PIECE * PIECE
    pieces = np.frombuffer(block[:whole], dtype=np.uint64).reshape(-1, PIECE // 8)
    full = pieces.any(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], full, [False]))))
    for first, last in edges.reshape(-1, 2).tolist():
        _write_all(fd, block[first * PIECE : last * PIECE], offset + first * PIECE)
    rest = bytes(block[whole:])
    if rest != bytes(len(rest)):
        _write_all(fd, block[whole:], offset + whole)


def copy_disk(disk: Disk, fd: int, *, label: str, progress: Progress = SILENT) -> None:
    """Write all of ``disk`` to a fresh file, with holes for its zeros."""
    os.ftruncate(fd, disk.size)
    buffer = memoryview(bytearray(_BLOCK))
    with progress.phase(label, disk.size) as advance:
        for extent in disk.extents():
            if extent.zero:
                advance(extent.length)
                continue
            for offset in range(extent.offset, extent.end, _BLOCK):
                part = buffer[: min(_BLOCK, extent.end - offset)]
                disk.read_into(offset, part)
                write_sparse(fd, offset, part)
                advance(len(part))


def _create(directory: Path, path: Path) -> tuple[int, bool]:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), False
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600), True


def _name(fd: int, path: Path) -> None:
    # Only with a directory descriptor does Python pass AT_SYMLINK_FOLLOW, which /proc needs.
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=directory, follow_symlinks=True)
    finally:
        os.close(directory)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise _taken(target) from None


def _taken(target: Path) -> Conflict:
    return Conflict(
        f"{target} exists already", hint="choose another name, or overwrite it (--overwrite)"
    )


def _umask() -> int:
    with open("/proc/self/status", encoding="ascii") as status:  # os.umask() would have to set it
        return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count
