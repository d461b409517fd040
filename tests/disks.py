"""A disk in memory, for tests and campaigns."""

from collections.abc import Iterator

from calotype.disk.base import Extent


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
