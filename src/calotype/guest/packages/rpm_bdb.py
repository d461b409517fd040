"""Berkeley DB's hash (Packages of RHEL 8 and older), as far as rpm uses it.

Each page of the hash holds pairs of a key and a value; a value that is too long for its page, as headers are,
lies in a chain of overflow pages.
"""

import struct
from collections.abc import Iterator

from calotype.errors import GuestError

_MAGIC = 0x061561
_HEAD = 26  # bytes before a page's index
_UNSORTED, _OVERFLOW, _SORTED = 2, 7, 13  # types of pages
_ON_PAGE, _OFF_PAGE = 1, 3  # types of items
_COUNTER = b"\0\0\0\0"  # the key under which rpm keeps the last number that it gave


def blobs(data: bytes) -> Iterator[bytes]:
    """The headers of the installed packages.

    Raises:
        GuestError: this is no such database, or a damaged one.
    """
    if len(data) < 512:
        raise GuestError("Packages is no Berkeley DB")
    order = next((o for o in "<>" if struct.unpack_from(f"{o}I", data, 12)[0] == _MAGIC), None)
    if order is None:
        raise GuestError("Packages is no hash of Berkeley DB")
    (size,) = struct.unpack_from(f"{order}I", data, 20)
    if size not in {1 << n for n in range(9, 17)}:
        raise GuestError("Packages makes no sense")
    if data[24]:
        raise GuestError("Packages is encrypted")
    reader = _Pages(data, size, order)
    for number in range(1, len(data) // size):
        yield from reader.values(number)


class _Pages:
    """The pages of a hash; overflow pages are used once, so that no chain is endless."""

    def __init__(self, data: bytes, size: int, order: str) -> None:
        self._data = data
        self._size = size
        self._order = order
        self._seen: set[int] = set()

    def values(self, number: int) -> Iterator[bytes]:
        """The values on a page."""
        page = self._page(number)
        count, _free, kind = self._head(page)
        if kind not in (_UNSORTED, _SORTED):
            return
        if _HEAD + 2 * count > len(page) or count % 2:
            raise GuestError("a page of Packages makes no sense")
        index = struct.unpack_from(f"{self._order}{count}H", page, _HEAD)
        ends = (len(page), *index)  # items are laid down from the page's end on
        for at in range(0, count, 2):
            key = page[index[at] + 1 : ends[at]]
            if key != _COUNTER:
                yield from self._item(page[index[at + 1] : ends[at + 1]])

    def _item(self, item: bytes) -> Iterator[bytes]:
        if item[:1] == bytes([_ON_PAGE]):
            yield item[1:]
        elif item[:1] == bytes([_OFF_PAGE]) and len(item) >= 12:
            yield self._chain(*struct.unpack_from(f"{self._order}II", item, 4))

    def _chain(self, number: int, length: int) -> bytes:
        parts = []
        missing = length
        while missing > 0:
            if number in self._seen:
                raise GuestError("a page of Packages is used twice")
            self._seen.add(number)
            page = self._page(number)
            _, used, kind = self._head(page)
            if kind != _OVERFLOW or not 0 < used <= len(page) - _HEAD:
                raise GuestError("a package in Packages is damaged")
            parts.append(page[_HEAD : _HEAD + min(used, missing)])
            missing -= len(parts[-1])
            (number,) = struct.unpack_from(f"{self._order}I", page, 16)
        return b"".join(parts)

    def _page(self, number: int) -> bytes:
        page = self._data[number * self._size : (number + 1) * self._size]
        if number < 1 or len(page) != self._size:
            raise GuestError("a page of Packages is missing")
        return page

    def _head(self, page: bytes) -> tuple[int, int, int]:
        """How many items, the free offset (of an overflow page: bytes in use), the page's type."""
        count, free = struct.unpack_from(f"{self._order}2H", page, 20)
        return count, free, page[25]
