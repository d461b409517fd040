"""A bounded, read-only run of bytes of one open file: the only way a stranger's image is read."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from calotype.errors import DiskRefused, InvalidInput, NotFound


class Window:
    """Bytes ``[start, start + size)`` of an open file, addressed from 0.

    It owns its descriptor. Reads use ``pread``, so threads may share it. A read that leaves the window,
    or that the file cannot fill, is refused: a table that points outside the file ends here.
    """

    __slots__ = ("_fd", "size", "start")

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd = fd
        self.start = start
        self.size = size

    @classmethod
    def open(cls, source: str | os.PathLike[str] | int) -> Self:
        """Open a whole file or block device, by path or by descriptor (which is duplicated).

        Raises:
            NotFound: there is no such file.
            InvalidInput: it is neither a regular file nor a block device, or cannot be opened.
        """
        fd = os.dup(source) if isinstance(source, int) else _open(Path(source))
        try:
            _storage(fd, source)
            return cls(fd, 0, os.lseek(fd, 0, os.SEEK_END))
        except BaseException:
            os.close(fd)
            raise

    @property
    def fd(self) -> int:
        """The open descriptor."""
        if self._fd < 0:
            raise ValueError("the window is closed")
        return self._fd

    def part(self, start: int, size: int) -> "Window":
        """A window of its own (own descriptor) on ``size`` bytes at ``start`` of this one."""
        self._bounds(start, size)
        return Window(os.dup(self.fd), self.start + start, size)

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``."""
        buffer = bytearray(length) if self._bounds(offset, length) else bytearray()
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes at ``offset``.

        Raises:
            DiskRefused: they are not all inside the window, or the file has become shorter.
        """
        self._bounds(offset, len(buffer))
        position = self.start + offset
        done = 0
        while done < len(buffer):
            count = os.preadv(self.fd, [buffer[done:]], position + done)
            if count == 0:
                raise DiskRefused(
                    "the file became shorter while it was read",
                    hint="import it again from a copy that nothing writes to",
                )
            done += count

    def gather(self, offsets: NDArray[np.int64], length: int) -> NDArray[np.uint8]:
        """Equally long tables as rows of an array of shape ``(len(offsets), length)``."""
        rows = np.empty((len(offsets), length), dtype=np.uint8)
        if not len(offsets):
            return rows
        breaks = np.flatnonzero(np.diff(offsets) != length) + 1
        flat = rows.reshape(-1).data
        for first, last in zip([0, *breaks], [*breaks, len(offsets)], strict=True):
            self.read_into(int(offsets[first]), flat[first * length : last * length])
        return rows

    def data_runs(self, length: int) -> Iterator[tuple[int, int]]:
        """``(offset, length)`` of the runs of ``[0, length)`` that are not holes of the file."""
        position, end = self.start, self.start + length
        while position < end:
            try:
                begin = os.lseek(self.fd, position, os.SEEK_DATA)
                stop = os.lseek(self.fd, begin, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    return
                begin, stop = position, end  # a device or file system that knows no holes
            if begin >= end:
                return
            stop = min(max(stop, begin + 1), end)
            yield begin - self.start, stop - begin
            position = stop

    def close(self) -> None:
        """Close the descriptor; harmless when repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _bounds(self, offset: int, length: int) -> bool:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise DiskRefused(
                f"the file ends at byte {self.size}, but its tables speak of "
                f"bytes {offset} to {offset + length}",
                hint="the file is truncated or damaged: fetch it again and compare its checksum",
            )
        return True


def _storage(fd: int, source: object) -> None:
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise InvalidInput(
            f"{source} is neither a regular file nor a block device",
            hint="store the stream in a file first",
        )


def _open(path: Path) -> int:
    try:
        # O_NONBLOCK: a FIFO must not hang us before its type is known.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except OSError as error:
        raise InvalidInput(f"cannot open {path}: {error.strerror}") from None
