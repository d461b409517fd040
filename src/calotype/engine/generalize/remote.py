"""A raw disk behind a URL, read where it lies: what is kept on this machine is what is stored.

One thread reads the file from its beginning to its end, takes its SHA-256, and leaves what it read in a
small file for those who read the disk; they follow it. What lies elsewhere is asked for by itself. Each
block is hashed when it comes, and must be the same when it comes again, so every byte that was used is one
of those that the SHA-256 is of: a server cannot show one file to the checksum and another to the disk.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
from blake3 import blake3

from calotype.disk.window import Window
from calotype.engine.base.fetch import Remote, plain
from calotype.errors import CalotypeError, Conflict, ToolFailed

BLOCK = 1 << 20  # bytes
AHEAD = 192  # blocks that wait for their readers
_APART = 16  # blocks that were asked for by themselves, in memory
_STILL = 2.0  # seconds without any reading after which what waits longest is given up
_DIGEST = 16  # bytes


class RemoteWindow(Window):
    """A remote file, or a part of it, as a window. The whole one ends the reading when it is closed."""

    __slots__ = ("_file", "_owner")

    def __init__(self, file: "RemoteFile", start: int, size: int, *, owner: bool) -> None:
        # There is no file behind the descriptor: it only says that this window is open.
        super().__init__(os.memfd_create("remote", os.MFD_CLOEXEC), start, size)
        self._file = file
        self._owner = owner

    def part(self, start: int, size: int) -> Window:
        """A window of its own on ``size`` bytes at ``start`` of this one."""
        self._bounds(start, size)
        return RemoteWindow(self._file, self.start + start, size, owner=False)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes at ``offset``.

        Raises:
            ToolFailed: the server does not deliver; Conflict: it delivers another file than before.
        """
        self._bounds(offset, len(buffer))
        self._file.read_into(self.start + offset, buffer)

    def data_runs(self, length: int) -> Iterator[tuple[int, int]]:
        """All of it: a server does not tell where the zeros are."""
        yield 0, length

    def close(self) -> None:
        """Close it; harmless when repeated."""
        super().close()
        if self._owner:
            self._file.close()


class RemoteFile:
    """The blocks of a remote file. Safe to read from several threads at once.

    Args:
        remote: the file; its size must be known, and it must be readable in ranges.
        fd: an empty file for blocks that wait for their readers.
    """

    def __init__(self, remote: Remote, fd: int) -> None:
        if remote.size is None or not remote.ranges:
            raise ToolFailed(f"{plain(remote.url)} cannot be read in parts")
        self.size = remote.size
        self._remote = remote
        self._fd = fd
        self._count = -(-self.size // BLOCK)
        self._digests = np.zeros((self._count, _DIGEST), dtype=np.uint8)
        self._known = np.zeros(self._count, dtype=np.bool_)
        self._sha256 = hashlib.sha256()
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()  # guards all that follows
        self._next = 0  # the block that the thread reads next
        self._ahead: OrderedDict[int, int] = OrderedDict()  # block -> its place in the file
        self._free = list(range(AHEAD))  # places
        self._read: dict[int, int] = {}  # block ahead -> bytes of it that were read
        self._finished: OrderedDict[int, None] = OrderedDict()  # blocks ahead that were read
        self._readings = 0
        self._apart: OrderedDict[int, bytes] = OrderedDict()
        self._stop = self._drain = False
        self._error: CalotypeError | None = None

    def window(self) -> RemoteWindow:
        """The whole file as a window; closing it ends the reading."""
        return RemoteWindow(self, 0, self.size, owner=True)

    def begin(self) -> None:
        """From now on it is read about from its beginning to its end."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="calotype-fetch", daemon=True)
            self._thread.start()

    def sha256(self) -> str:
        """The SHA-256 (hex) of the whole file; waits until all of it is read.

        Raises:
            ToolFailed: the server does not deliver; Conflict: it delivers another file than before.
        """
        self.begin()
        with self._changed:
            self._drain = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._sha256.hexdigest()

    def close(self) -> None:
        """End the reading; harmless when repeated."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes at ``offset``, all inside the file."""
        done = 0
        while done < len(buffer):
            number, skip = divmod(offset + done, BLOCK)
            part = buffer[done : done + BLOCK - skip]
            if not self._follow(number, skip, part):
                more = -(-(len(buffer) - done + skip) // BLOCK)
                block = self._ask(number, min(more, _APART))
                part[:] = block[skip : skip + len(part)]
            done += len(part)

    def _follow(self, number: int, skip: int, part: memoryview) -> bool:
        """Read from a block that the thread has read, or is about to; False: it has gone."""
        with self._changed:
            if self._thread is not None:
                self._changed.wait_for(lambda: self._next > number or self._stop or self._error)
            if self._error is not None:
                raise self._error
            place = self._ahead.get(number)
            if place is None:
                return False
            os.preadv(self._fd, [part], place * BLOCK + skip)
            self._readings += 1
            self._read[number] += len(part)
            if self._read[number] >= min(BLOCK, self.size - number * BLOCK):
                self._finished[number] = None
                self._changed.notify_all()
            return True

    def _ask(self, number: int, more: int) -> bytes:
        """Ask for ``more`` blocks by themselves, unless the first is here; the first of them."""
        with self._changed:
            if (known := self._apart.get(number)) is not None:
                return known
            more = more if self._thread is None else 1
        start = number * BLOCK
        data = self._remote.read(start, min(more * BLOCK, self.size - start))
        blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
        with self._changed:
            for place, block in enumerate(blocks, number):
                self._check(place, block)
                self._apart[place] = block
            while len(self._apart) > _APART:
                self._apart.popitem(last=False)
        return blocks[0]

    def _check(self, number: int, block: bytes) -> None:
        """Hold a block against what it was when it came before."""
        digest = np.frombuffer(blake3(block).digest()[:_DIGEST], dtype=np.uint8)
        if self._known[number] and (self._digests[number] != digest).any():
            raise Conflict(
                f"{plain(self._remote.url)} was changed while it was fetched", hint="try again"
            )
        self._digests[number] = digest
        self._known[number] = True

    def _drop(self, number: int) -> None:
        self._free.append(self._ahead.pop(number))
        self._finished.pop(number, None)
        del self._read[number]

    # The thread

    def _run(self) -> None:
        try:
            for block in _blocks(self._remote.stream()):
                self._sha256.update(block)
                self._put(block)
                if self._stop:
                    return
            if self._next != self._count:
                raise ToolFailed(f"{plain(self._remote.url)} ends too early")
        except CalotypeError as error:
            self._fail(error)
        except OSError as error:
            self._fail(ToolFailed(f"cannot keep what was fetched: {error.strerror}"))

    def _fail(self, error: CalotypeError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _put(self, block: bytes) -> None:
        """Leave the next block to the readers, when there is room."""
        with self._changed:
            if self._next >= self._count:
                raise ToolFailed(f"{plain(self._remote.url)} sends more than it said")
            self._check(self._next, block)
            while not (self._free or self._finished or self._stop or self._drain):
                before = self._readings
                self._changed.wait(_STILL)
                if before == self._readings and not self._finished:
                    # They all wait for what is to come; who needs this one can ask for it again.
                    self._drop(next(iter(self._ahead)))
            if not self._free and self._finished:
                self._drop(next(iter(self._finished)))
            if self._free and not self._drain:
                place = self._free.pop()
                os.pwrite(self._fd, block, place * BLOCK)
                self._ahead[self._next], self._read[self._next] = place, 0
            self._next += 1
            self._changed.notify_all()


def _blocks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in whole blocks."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= BLOCK:
            yield bytes(held[:BLOCK])
            del held[:BLOCK]
    if held:
        yield bytes(held)
