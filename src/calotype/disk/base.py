"""What every open disk image is: a size, extents that cover it, and bytes."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable


class Extent(NamedTuple):
    """A run of bytes of a disk: ``zero`` says that all are known to be zero without reading."""

    offset: int
    length: int
    zero: bool

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.length


@runtime_checkable
class Disk(Protocol):
    """An open disk image, read-only. Safe to read from several threads at once."""

    @property
    def size(self) -> int:
        """The virtual size in bytes."""
        ...

    def extents(self) -> Iterator[Extent]:
        """Runs in ascending order that cover ``[0, size)`` without gap or overlap."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes at ``offset`` (all inside the disk; zeros where it is empty)."""
        ...

    def close(self) -> None:
        """Release its descriptors; harmless when repeated."""
        ...


def read(disk: Disk, offset: int, length: int) -> bytes:
    """``length`` bytes of ``disk`` at ``offset``."""
    buffer = bytearray(length)
    disk.read_into(offset, memoryview(buffer))
    return bytes(buffer)
