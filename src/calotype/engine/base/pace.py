"""HTTP connections at whose end nobody can hold us: a body comes at 4 KiB a second, or the answer fails.

Only the body counts. The head, the framing of chunks and the trailers may be endless, so they have a time
by which they end, however fast they come.
"""

import http.client
import io
import socket
from time import monotonic
from typing import TYPE_CHECKING

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_SLOWEST = 4 << 10  # bytes of a body a second
_WINDOW = 20.0  # seconds, unless the connection says how long it waits for a byte


class TooSlow(urllib3.exceptions.HTTPError):
    """An answer that did not come at the least pace."""


class _Received(io.RawIOBase):
    """What a socket receives ``until`` a moment."""

    def __init__(self, raw: io.RawIOBase, until: float) -> None:
        self._raw = raw
        self.until = until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int | None:
        if monotonic() > self.until:
            raise TooSlow("it is too slow: it sends, and nothing of the file comes")
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer whose head comes within a window, and whose body, read by :meth:`read1`, at the least pace.

    Time that the reader spends elsewhere is not the server's.
    """

    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        url: str | None = None,
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self._window = sock.gettimeout() or _WINDOW
        self._received = _Received(self.fp.detach(), monotonic() + self._window)
        self.fp = io.BufferedReader(self._received)
        self._spent, self._got = 0.0, 0  # seconds and bytes since the last look at the pace

    def read1(self, n: int = -1) -> bytes:
        began = monotonic()
        self._received.until = began + self._window
        data = super().read1(n)
        self._spent += monotonic() - began
        self._got += len(data)
        if data and self._spent >= self._window:
            if self._got < _SLOWEST * self._spent:
                raise TooSlow(f"it is too slow: {self._got} bytes in {self._spent:.0f} seconds")
            self._spent, self._got = 0.0, 0
        return data


class _Connection(HTTPConnection):
    response_class = _Answer


class _SecureConnection(HTTPSConnection):
    response_class = _Answer


class Pool(urllib3.HTTPConnectionPool):
    """Connections to a server."""

    ConnectionCls = _Connection


class SecurePool(urllib3.HTTPSConnectionPool):
    """TLS connections to a server."""

    ConnectionCls = _SecureConnection
