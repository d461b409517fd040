"""Disks for tests and campaigns: one in memory, and one as a raw file."""

from collections.abc import Iterator
from pathlib import Path

from calotype.disk.base import Disk, Extent, read


class BytesDisk:
    """The disk that holds these bytes; it says nothing of its zeros."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def extents(self) -> Iterator[Extent]:
        """All of it."""
        yield Extent(0, self.size, zero=False)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``, which lies inside the disk."""
        assert 0 <= offset <= offset + len(buffer) <= self.size
        buffer[:] = self.data[offset : offset + len(buffer)]

    def close(self) -> None:
        """Nothing to release."""


def write_raw(disk: Disk, path: Path) -> None:
    """Write a disk to a sparse file."""
    with path.open("wb") as file:
        file.truncate(disk.size)
        for extent in disk.extents():
            if not extent.zero:
                file.seek(extent.offset)
                file.write(read(disk, extent.offset, extent.length))
