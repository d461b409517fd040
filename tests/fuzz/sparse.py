"""Small descriptions of large disks, for fuzzing the readers of file systems.

An input is ``u32 size of the disk in KiB``, then any number of ``u32 place, u16 length, bytes``: what the
disk holds there, counted in units of 16 bytes; everything else is zero. So a fuzzer works on metadata alone.
"""

import struct
from bisect import bisect_right
from mmap import mmap

_HEAD = struct.Struct("<I")
_RECORD = struct.Struct("<IH")
UNIT = 16


class SparseDisk:
    """The disk that an input describes; it notes what was read of it."""

    def __init__(self, data: bytes) -> None:
        self.size = _HEAD.unpack_from(data.ljust(_HEAD.size, b"\0"))[0] << 10
        self.bytes_read = 0
        self.reads: list[tuple[int, int]] = []
        parts: dict[int, bytes] = {}
        at = _HEAD.size
        while at + _RECORD.size <= len(data):
            place, length = _RECORD.unpack_from(data, at)
            at += _RECORD.size
            parts[place * UNIT] = data[at : at + length]
            at += length
        self._starts = sorted(parts)
        self._parts = [parts[start] for start in self._starts]

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``."""
        assert 0 <= offset <= offset + length <= self.size
        self.bytes_read += length
        self.reads.append((offset, length))
        view = bytearray(length)
        # A part is shorter than 64 KiB: earlier ones do not reach here.
        number = bisect_right(self._starts, offset - (1 << 16))
        while number < len(self._starts) and self._starts[number] < offset + length:
            start, part = self._starts[number], self._parts[number]
            first, last = max(start, offset), min(start + len(part), offset + length)
            if first < last:
                view[first - offset : last - offset] = part[first - start : last - start]
            number += 1
        return bytes(view)


class Traced:
    """A disk's bytes; it notes what was read, so that an input of just this can be made."""

    def __init__(self, data: bytes | mmap) -> None:
        self.data = data
        self.size = len(data)
        self.units: set[int] = set()

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``."""
        assert 0 <= offset <= offset + length <= self.size
        self.units.update(range(offset // UNIT, -(-(offset + length) // UNIT)))
        return self.data[offset : offset + length]

    def described(self) -> bytes:
        """The input that describes what was read."""
        runs: list[tuple[int, bytearray]] = []
        for unit in sorted(self.units):
            raw = self.data[unit * UNIT : (unit + 1) * UNIT]
            if not any(raw):
                continue
            if (
                runs
                and len(runs[-1][1]) < 60_000
                and runs[-1][0] + len(runs[-1][1]) // UNIT == unit
            ):
                runs[-1][1].extend(raw)
            else:
                runs.append((unit, bytearray(raw)))
        records = [_RECORD.pack(unit, len(raw)) + raw for unit, raw in runs]
        return b"".join([_HEAD.pack(self.size >> 10), *records])
