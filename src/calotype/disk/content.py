"""The digest of what a disk holds, whatever it is stored in: that of its raw file.

SHA-256 is what every machine can compute (``sha256sum``), and must see every zero; BLAKE3 (``b3sum``) is
three times as fast. Both are taken in one pass while the next bytes are read.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from blake3 import blake3

from calotype.disk.base import Disk
from calotype.progress import SILENT, Progress

#: A disk that is larger has no SHA-256 in our reports: it would take long, however empty the disk is.
SHA256_LIMIT = 16 << 30
SHA256 = "sha256"
BLAKE3 = "blake3"

_BLOCK = 4 << 20
_AHEAD = 3  # blocks that are read while others are hashed
_ZERO = memoryview(bytes(_BLOCK))


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> object: ...

    def hexdigest(self) -> str: ...


def digest_kinds(size: int) -> frozenset[str]:
    """The digests that a disk of ``size`` bytes gets."""
    return frozenset({BLAKE3, SHA256} if size <= SHA256_LIMIT else {BLAKE3})


def content_digests(
    disk: Disk,
    *,
    size: int | None = None,
    kinds: frozenset[str] | None = None,
    progress: Progress = SILENT,
) -> Mapping[str, str]:
    """The digests of a disk's raw content by their names, in hex.

    Args:
        disk: is read once, without its holes.
        size: bytes of the disk that count (the default: all).
        kinds: the digests to take (the default: :func:`digest_kinds`).
        progress: is told of bytes.
    """
    size = disk.size if size is None else size
    chosen = digest_kinds(size) if kinds is None else kinds
    hashes: dict[str, _Hash] = {
        kind: hashlib.sha256() if kind == SHA256 else blake3(max_threads=blake3.AUTO)
        for kind in sorted(chosen)
    }
    with (
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(len(hashes)) as hashers,
        progress.phase("computing the digest of the disk", size) as advance,
    ):
        for block in _read_ahead(disk, size, reader):
            for done in [hashers.submit(state.update, block) for state in hashes.values()]:
                done.result()
            advance(len(block))
    return {kind: state.hexdigest() for kind, state in hashes.items()}


def is_zero(disk: Disk, start: int, end: int) -> bool:
    """Whether a disk holds nothing but zeros in ``[start, end)``."""
    for offset, length, zero in _blocks(disk, start, end):
        if not zero and any(_read(disk, offset, length)):
            return False
    return True


def _read_ahead(disk: Disk, size: int, reader: ThreadPoolExecutor) -> Iterator[memoryview]:
    waiting: deque[memoryview | Future[memoryview]] = deque()
    try:
        for offset, length, zero in _blocks(disk, 0, size):
            waiting.append(_ZERO[:length] if zero else reader.submit(_read, disk, offset, length))
            if len(waiting) > _AHEAD:
                yield _settled(waiting.popleft())
        while waiting:
            yield _settled(waiting.popleft())
    finally:
        for block in waiting:
            if isinstance(block, Future):
                block.cancel()


def _settled(block: memoryview | Future[memoryview]) -> memoryview:
    return block.result() if isinstance(block, Future) else block


def _read(disk: Disk, offset: int, length: int) -> memoryview:
    buffer = memoryview(bytearray(length))
    disk.read_into(offset, buffer)
    return buffer


def _blocks(disk: Disk, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """(offset, length, whether it is a hole) of each block; extents shorter than a block are joined."""
    holes = ((e.offset, e.end) for e in disk.extents() if e.zero)
    hole = next(holes, None)
    at = start
    while at < end:
        stop = min(at - at % _BLOCK + _BLOCK, end)
        while hole and hole[1] <= at:
            hole = next(holes, None)
        inside = hole is not None and hole[0] <= at and hole[1] >= stop
        yield at, stop - at, inside
        at = stop
