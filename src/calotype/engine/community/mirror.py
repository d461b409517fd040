"""A public tree behind a URL: objects by their keys, in bounded time and size, over connections that stay."""

from collections.abc import Generator, Sequence
from contextlib import closing
from urllib.parse import urlsplit

import urllib3
from urllib3.response import BaseHTTPResponse

from calotype.engine.base import fetch
from calotype.errors import InvalidInput, NotFound, StoreUnavailable, ToolFailed, Untrusted
from calotype.store.objects import check_key

_BLOCK = 128 << 10
_FORBIDDEN = 403  # what buckets answer for what is not there


class HttpMirror:
    """One server that claims to hold a public tree. Safe for several threads.

    Args:
        url: of the tree; ``http`` or ``https``.
        allow: Networks (CIDR) that may be reached although they are not public.
    """

    def __init__(self, url: str, allow: Sequence[str] = ()) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(
                f"'{url}' is not an http or https URL", hint="such as https://example.org/images/"
            )
        if parts.query or parts.fragment:
            raise InvalidInput(f"'{fetch.plain(url)}' has a query or a fragment")
        self.url = url.rstrip("/") + "/"
        self._lines = fetch.Lines(allow)

    @property
    def name(self) -> str:
        """Its URL."""
        return fetch.plain(self.url)

    def get(self, path: str, limit: int) -> bytes:
        """A whole object of at most ``limit`` bytes.

        Raises:
            NotFound: it has none.
            StoreUnavailable: it does not deliver now, or too slowly.
            Untrusted: it sends more than ``limit``.
        """
        held = bytearray()
        with closing(self._ask(path, None)) as response:
            for block in _blocks(response):
                held += block
                if len(held) > limit:
                    raise Untrusted(f"it sends more than {limit} bytes as {path}")
            told = response.headers.get("Content-Length", "")
            if told.isdecimal() and len(held) < int(told[:20]):
                raise StoreUnavailable("the connection ended too early")
        return bytes(held)

    def stream(self, key: str, start: int, end: int, size: int) -> Generator[bytes, None, None]:
        """The bytes ``[start, end)`` of an object of ``size`` bytes as they come, perhaps not all.

        Raises:
            NotFound: it has no such object.
            StoreUnavailable: it does not deliver now, or too slowly.
            Untrusted: it has another object of that name.
            ToolFailed: it answers with other bytes than asked for, or leads where nobody goes.
        """
        path = check_key(key)
        try:
            response = self._ask(path, f"bytes={start}-{end - 1}")
        except InvalidInput as error:  # of this mirror: the others go on
            raise ToolFailed(error.message, hint=error.hint) from None
        with closing(response):
            self._require_range(response, key, start, end, size)
            yield from _blocks(response)

    def _require_range(
        self, response: BaseHTTPResponse, key: str, start: int, end: int, size: int
    ) -> None:
        if response.status == 206:
            wanted = f"bytes {start}-{end - 1}/{size}"
            told = response.headers.get("Content-Range", "")
            if told.rpartition("/")[2] != str(size):
                raise Untrusted(f"its {key} is not {size} bytes long, as the signed list says")
            if told != wanted:
                raise ToolFailed(f"it answers with other bytes of {key} than it was asked for")
        elif start != 0 or end != size:
            raise ToolFailed("it does not know ranges, without which images cannot be pulled")

    def _ask(self, path: str, wanted: str | None) -> BaseHTTPResponse:
        try:
            return self._lines.open(self.url + path, wanted)
        except fetch.Answered as error:
            if error.status == _FORBIDDEN:
                raise NotFound(error.message) from None
            raise StoreUnavailable(error.message) from None
        except (ToolFailed, urllib3.exceptions.HTTPError) as error:
            raise StoreUnavailable(f"cannot reach it: {error}") from None


def _blocks(response: BaseHTTPResponse) -> Generator[bytes, None, None]:
    """What comes, as it comes; :mod:`calotype.engine.base.pace` sees that it does."""
    try:
        while block := response.read1(_BLOCK):
            yield block
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise StoreUnavailable(f"the connection broke: {error}") from None
