"""Boot profiles: which bytes of a disk its first boot read, in the order in which it did.

A profile lies beside the root of its Index and is a hint, nothing more: a wrong one costs bytes, never
correctness. It is sealed and bounded all the same, for what comes from a store may be damaged or hostile.
"""

import struct
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from calotype.disk.base import Extent
from calotype.errors import StoreDamaged

PREFIX = "profiles/"

BLOCK = 4096  # reads are rounded to blocks of so many bytes
MAX_EXTENTS = 1 << 16
MAX_BYTES = 1 << 30  # of the disk
_HEAD = struct.Struct("<8sI")
_MAGIC = b"CALOPRO\x01"
_SEAL = 32

#: The longest profile in bytes.
MAX_ENCODED = _HEAD.size + MAX_EXTENTS * 8 + _SEAL


def encode(extents: Sequence[Extent]) -> bytes:
    """The bytes of a profile; extents beyond the bounds are left out."""
    blocks = [(e.offset // BLOCK, -(-e.end // BLOCK)) for e in extents if e.length]
    kept: list[tuple[int, int]] = []
    room = MAX_BYTES // BLOCK
    for first, last in blocks[:MAX_EXTENTS]:
        count = min(last - first, room)
        if not count or last > 1 << 32:
            break
        kept.append((first, count))
        room -= count
    body = _HEAD.pack(_MAGIC, len(kept)) + np.array(kept, dtype="<u4").tobytes()
    return body + blake3(body).digest()


def decode(data: bytes, size: int) -> list[Extent]:
    """The extents of a profile, for a disk of ``size`` bytes.

    Raises:
        StoreDamaged: these are not the bytes of a profile of such a disk.
    """
    if not _HEAD.size + _SEAL <= len(data) <= MAX_ENCODED:
        raise StoreDamaged("a boot profile has an impossible length")
    body, seal = data[:-_SEAL], data[-_SEAL:]
    magic, count = _HEAD.unpack_from(body)
    if magic != _MAGIC or blake3(body).digest() != seal or len(body) != _HEAD.size + count * 8:
        raise StoreDamaged("a boot profile is damaged, or of a version that is not known")
    table = np.frombuffer(body, dtype="<u4", offset=_HEAD.size).astype(np.int64).reshape(-1, 2)
    start, length = table[:, 0] * BLOCK, table[:, 1] * BLOCK
    if bool((start >= size).any()) or not length.all() or int(length.sum()) > MAX_BYTES:
        raise StoreDamaged("a boot profile names bytes that its disk does not have")
    ends = np.minimum(start + length, size)
    return [
        Extent(a, b - a, zero=False) for a, b in zip(start.tolist(), ends.tolist(), strict=True)
    ]


class Recorder:
    """Writes down what is read of a disk of ``size`` bytes for the first time. Safe for several threads."""

    def __init__(self, size: int) -> None:
        self._seen: npt.NDArray[np.bool_] = np.zeros(-(-size // BLOCK), dtype=np.bool_)
        self._runs: list[list[int]] = []  # first block, block after the last
        self._blocks = 0
        self._lock = threading.Lock()

    def note(self, offset: int, length: int) -> None:
        """``length`` bytes at ``offset`` are read."""
        first, last = offset // BLOCK, -(-(offset + length) // BLOCK)
        with self._lock:
            if self._seen[first:last].all() or self.full:
                return
            fresh = np.flatnonzero(~self._seen[first:last]) + first
            self._seen[first:last] = True
            self._blocks += len(fresh)
            cuts = np.flatnonzero(np.diff(fresh) > 1) + 1
            for run in np.split(fresh, cuts):
                start, end = int(run[0]), int(run[-1]) + 1
                if self._runs and self._runs[-1][1] == start:
                    self._runs[-1][1] = end
                else:
                    self._runs.append([start, end])

    @property
    def bytes(self) -> int:
        """How much of the disk was read, rounded to blocks."""
        return self._blocks * BLOCK

    @property
    def full(self) -> bool:
        """Whether a profile takes no more."""
        return len(self._runs) >= MAX_EXTENTS or self.bytes >= MAX_BYTES

    def extents(self) -> list[Extent]:
        """What was read, in order."""
        with self._lock:
            return [Extent(a * BLOCK, (b - a) * BLOCK, zero=False) for a, b in self._runs]
