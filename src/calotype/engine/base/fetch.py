"""Fetch a URL for a user without becoming that user's hands inside our network (no SSRF).

A host name is resolved once; every address must be public (or allowed by name); the connection goes to
exactly that address, and the same is done again at every redirect.
"""

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3
from urllib3.response import BaseHTTPResponse

from calotype.engine.base import pace
from calotype.errors import Conflict, InvalidInput, NotFound, ToolFailed

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Connect = Callable[[SplitResult, Sequence[Network]], urllib3.HTTPConnectionPool]

#: Ranges that :attr:`is_global` takes for public and that lead inside (NAT64, 6to4, Azure's host agent).
_INSIDE = tuple(
    ipaddress.ip_network(text) for text in ("64:ff9b::/96", "2002::/16", "168.63.129.16/32")
)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({404, 410})
_MAX_REDIRECTS = 5
_AWAY = 30.0  # seconds after which no further redirect is followed
_LINES = 8  # connections to one server that stay open
_SERVERS = 8  # to which connections stay open
_STALLED = 20.0  # seconds without a byte after which another server is asked
_PASSING = frozenset({429, 500, 502, 503, 504})
_PATIENCE = 120.0  # seconds that a small file may take
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # seconds before each further try
_PIECE = 1 << 17  # bytes: as much as a killed command had in hand and not yet written


class Validator(NamedTuple):
    """Which state of a file an answer is of.

    Attributes:
        place: The URL that redirects led to: each mirror has tags of its own for the same file.
        tag: The ETag, or the time of the last change.
    """

    place: str
    tag: str | None

    def contradicts(self, other: "Validator") -> bool:
        """Whether the same place speaks of another state."""
        return self.place == other.place and self.tag != other.tag


class Remote:
    """A file behind a URL, read as a stream or in ranges; one state of it, whatever the network does.

    A connection that breaks is made again, and goes on where it was, when the server knows ranges. Every
    answer must be of the same length as the first, and from the same place of the same validator.
    """

    def __init__(self, url: str, *, allow: Sequence[str] = ()) -> None:
        """Ask for the file.

        Args:
            url: ``http`` or ``https``, without user or password.
            allow: Networks (CIDR) that may be reached although they are not public.

        Raises:
            InvalidInput: the URL, or an address behind it, is refused.
            NotFound: the server has no such file.
            ToolFailed: the server does not deliver.
        """
        self._networks = [_network(text) for text in allow]
        self.url = url
        _split(url)
        with self._asked(0, 1) as (response, place):
            self.ranges = response.status == 206
            self.size = _total(response)
            self.validator = _validator(response, place)

    def stream(self, start: int = 0) -> Iterator[bytes]:
        """The bytes from ``start`` to the end.

        Raises:
            ToolFailed: the server does not deliver, also not after several tries.
            Conflict: the file was changed meanwhile.
        """
        at = broken = start
        tries = 0
        while self.size is None or at < self.size:
            try:
                with self._checked(at, None) as response:
                    while block := response.read1(_PIECE, decode_content=False):
                        yield block
                        at += len(block)
                if self.size is None or at >= self.size:
                    break
                raise urllib3.exceptions.IncompleteRead(at, self.size - at)
            except urllib3.exceptions.HTTPError as error:
                tries = tries + 1 if at - broken < _PIECE else 1
                broken = at
                if not self.ranges or tries > len(_PAUSES):
                    raise ToolFailed(f"cannot fetch {plain(self.url)}: {error}") from error
                self._pause(tries)

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``; only where the server knows ranges.

        Raises:
            ToolFailed: the server does not deliver, also not after several tries.
            Conflict: the file was changed meanwhile.
        """
        for tries in range(1, len(_PAUSES) + 2):
            try:
                data = bytearray()
                with self._checked(offset, offset + length) as response:
                    while block := response.read1(
                        min(length - len(data), _PIECE), decode_content=False
                    ):
                        data += block
                if len(data) == length:
                    return bytes(data)
                raise urllib3.exceptions.IncompleteRead(len(data), length)
            except urllib3.exceptions.HTTPError as error:
                if tries > len(_PAUSES):
                    raise ToolFailed(f"cannot fetch {plain(self.url)}: {error}") from error
                self._pause(tries)
        raise AssertionError

    def _pause(self, tries: int) -> None:
        time.sleep(_PAUSES[tries - 1])

    @contextmanager
    def _checked(self, start: int, end: int | None) -> Iterator[BaseHTTPResponse]:
        """An answer that begins at ``start``, and is of the file that was asked for first."""
        with self._asked(start, end) as (response, place):
            whole = response.status == 200
            if (
                (whole and start)
                or _total(response) != self.size
                or _validator(response, place).contradicts(self.validator)
            ):
                raise Conflict(
                    f"{plain(self.url)} was changed while it was fetched", hint="try again"
                )
            if not whole and _first(response) != start:
                raise ToolFailed(f"{plain(self.url)} answers with other bytes than asked for")
            yield response

    @contextmanager
    def _asked(self, start: int, end: int | None) -> Iterator[tuple[BaseHTTPResponse, str]]:
        """An answer, and the place that redirects led to."""
        last = "" if end is None else str(end - 1)
        try:
            response, place = _open(self.url, self._networks, f"bytes={start}-{last}")
            with closing(response):
                yield response, place
        except urllib3.exceptions.HTTPError as error:
            if hasattr(self, "validator"):
                raise
            raise ToolFailed(f"cannot fetch {plain(self.url)}: {error}") from error


class Answered(ToolFailed):
    """A server that answers, and not with the file; ``status`` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Lines:
    """Connections that stay open; each server's address is checked when it is first connected to.

    Safe to use from several threads at once.
    """

    def __init__(self, allow: Sequence[str] = ()) -> None:
        """``allow``: networks (CIDR) that may be reached although they are not public."""
        self._networks = [_network(text) for text in allow]
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, str], urllib3.HTTPConnectionPool] = {}

    def open(self, url: str, wanted: str | None) -> BaseHTTPResponse:
        """The answer to a GET, for the range ``wanted`` or the whole, its body unread; the caller closes it.

        Raises:
            NotFound: the server has no such file.
            Answered: the server says that it will not.
            InvalidInput: the URL, or an address behind it, is refused.
            ToolFailed, urllib3.exceptions.HTTPError: the server does not deliver.
        """
        return _open(url, self._networks, wanted, self._connected)[0]

    def _connected(
        self, parts: SplitResult, allow: Sequence[Network]
    ) -> urllib3.HTTPConnectionPool:
        server = (parts.scheme, parts.netloc)
        with self._lock:
            pool = self._pools.get(server)
        pool = pool or _pool(parts, allow, read=_STALLED)
        with self._lock:
            self._pools.pop(server, None)
            self._pools[server] = pool
            if len(self._pools) > _SERVERS:  # its connections close with their last user
                del self._pools[next(iter(self._pools))]
        return pool


def get(url: str, limit: int, *, allow: Sequence[str] = ()) -> bytes:
    """All of a small file, of ``limit`` bytes at most; asked for once.

    Raises:
        InvalidInput: the URL, or an address behind it, is refused; or the file is larger.
        NotFound: the server has no such file.
        ToolFailed: the server does not deliver.
    """
    networks = [_network(text) for text in allow]
    try:
        response, _ = _open(url, networks, None)
        with closing(response):
            data = bytearray()
            until = time.monotonic() + _PATIENCE
            while piece := response.read1(_PIECE, decode_content=False):
                data += piece
                if len(data) > limit:
                    raise InvalidInput(
                        f"{plain(url)} is larger than the {limit} bytes that it may have"
                    )
                if time.monotonic() > until:
                    raise ToolFailed(f"{plain(url)} did not come in {_PATIENCE:.0f} seconds")
            return bytes(data)
    except urllib3.exceptions.HTTPError as error:
        raise ToolFailed(f"cannot fetch {plain(url)}: {error}") from error


def _total(response: BaseHTTPResponse) -> int | None:
    """The size of the whole file, as far as an answer tells."""
    text = response.headers.get("Content-Length", "")
    if response.status == 206:
        text = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _first(response: BaseHTTPResponse) -> int:
    """The first byte of a partial answer."""
    found = re.match(r"bytes (\d{1,19})-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _validator(response: BaseHTTPResponse, place: str) -> Validator:
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return Validator(plain(place), tag)


def plain(url: str) -> str:
    """``url`` without what may be secret: user, password, query and fragment."""
    parts = urlsplit(url)
    return SplitResult(parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "").geturl()


def check_address(text: str, allow: Sequence[Network] = ()) -> Address:
    """The address if it may be connected to.

    Raises:
        InvalidInput: it is private, link-local, loopback, multicast or otherwise not public.
    """
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if any(address.version == network.version and address in network for network in allow):
        return address
    inside = any(address.version == n.version and address in n for n in _INSIDE)
    if inside or not address.is_global or address.is_multicast:
        raise InvalidInput(
            f"the address {address} is not public; a fetch does not go there",
            hint=f"if you mean it: --allow-address {address}",
        )
    return address


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InvalidInput(f"'{text}' is not a network", hint="write 192.168.1.0/24") from error


def _pool(
    parts: SplitResult, allow: Sequence[Network], read: float = 60.0
) -> urllib3.HTTPConnectionPool:
    """Connections to the one address that was found for a URL's host, and was allowed."""
    host, port = _ascii(parts.hostname or ""), _port(parts)
    address = str(_resolve(host, port, allow))
    timeout = urllib3.Timeout(connect=15, read=read)
    if parts.scheme == "https":
        return pace.SecurePool(
            address,
            port,
            timeout=timeout,
            maxsize=_LINES,
            server_hostname=host,
            assert_hostname=host,
        )
    return pace.Pool(address, port, timeout=timeout, maxsize=_LINES)


def _open(
    url: str, allow: Sequence[Network], wanted: str | None, connect: Connect = _pool
) -> tuple[BaseHTTPResponse, str]:
    """The answer to a GET for a range (``None``: for all), body unread, and the URL after redirects."""
    until = time.monotonic() + _AWAY
    for _ in range(_MAX_REDIRECTS + 1):
        response = _get(_split(url), allow, wanted, connect)
        if response.status in (200, 206):
            return response, url
        if response.status in _PASSING:
            response.close()
            raise urllib3.exceptions.HTTPError(f"it answers {response.status}")
        location = response.headers.get("Location")
        response.close()
        if response.status not in _REDIRECTS or location is None:
            said = f"{plain(url)} answers {response.status} {response.reason or ''}".strip()
            if response.status in _GONE:
                raise NotFound(said)
            raise Answered(said, response.status)
        target = _join(url, location)
        if _split(url).scheme == "https" and _split(target).scheme != "https":
            raise InvalidInput(f"{plain(url)} redirects from https to {plain(target)}")
        if time.monotonic() > until:
            raise ToolFailed(f"{plain(url)} redirects for longer than {_AWAY:.0f} seconds")
        url = target
    raise ToolFailed(f"{plain(url)} redirects more than {_MAX_REDIRECTS} times")


def _get(
    parts: SplitResult, allow: Sequence[Network], wanted: str | None, connect: Connect
) -> BaseHTTPResponse:
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"'{parts.geturl()}' is not an http or https URL")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput(
            "a URL with a user or password in it is refused", hint="use a signed URL"
        )
    target = parts.path or "/"
    return connect(parts, allow).urlopen(
        "GET",
        f"{target}?{parts.query}" if parts.query else target,
        headers={
            "Host": _authority(_ascii(parts.hostname), parts),
            "User-Agent": "calotype",
            "Accept-Encoding": "identity",
            **({} if wanted is None else {"Range": wanted}),
        },
        redirect=False,
        retries=False,
        preload_content=False,
        decode_content=False,
    )


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise InvalidInput(f"that is no URL: {error}") from error


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise ToolFailed(f"{plain(url)} redirects to what is no URL: {error}") from error


def _ascii(host: str) -> str:
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise InvalidInput(f"'{host}' cannot be the name of a host") from error


def _authority(host: str, parts: SplitResult) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if parts.port is None else f"{name}:{parts.port}"


def _port(parts: SplitResult) -> int:
    try:
        return parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise InvalidInput(f"'{parts.netloc}' has no valid port") from error


def _resolve(host: str, port: int, allow: Sequence[Network]) -> Address:
    """One address of ``host``, after all of them were found to be allowed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ToolFailed(f"cannot resolve {host}: {error}") from error
    addresses = [check_address(str(entry[4][0]).partition("%")[0], allow) for entry in found]
    return addresses[0]
