"""Fetch a URL for a user without becoming that user's hands inside our network (no SSRF).

A host name is resolved once; every address must be public (or allowed by name); the connection goes to
exactly that address, and the same is done again at every redirect.
"""

import hashlib
import ipaddress
import socket
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3
from urllib3.response import BaseHTTPResponse

from calotype.errors import CalotypeError, InvalidInput, ToolFailed
from calotype.progress import Progress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Ranges that :attr:`is_global` takes for public and that lead inside (NAT64, 6to4, Azure's host agent).
_INSIDE = tuple(
    ipaddress.ip_network(text) for text in ("64:ff9b::/96", "2002::/16", "168.63.129.16/32")
)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_BLOCK = 1 << 20


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str,
    allow: Sequence[str] = (),
    max_bytes: int,
    progress: Progress,
) -> None:
    """Download ``url`` to ``target`` and check it.

    Args:
        url: ``http`` or ``https``, without user or password.
        target: The file to write.
        sha256: What the bytes must hash to (hex).
        allow: Networks (CIDR) that may be reached although they are not public.
        max_bytes: The most that is accepted.
        progress: Told the bytes.

    Raises:
        InvalidInput: the URL, an address behind it, its size or its checksum is refused.
        ToolFailed: the server does not deliver.
    """
    networks = [_network(text) for text in allow]
    _split(url)
    try:
        with closing(_open(url, networks)) as response:
            digest = _save(response, target, max_bytes, progress)
    except urllib3.exceptions.HTTPError as error:
        raise ToolFailed(f"cannot fetch {plain(url)}: {error}") from error
    if digest != sha256.lower():
        raise InvalidInput(
            f"{plain(url)} has SHA-256 {digest}, not {sha256.lower()}",
            hint="the file changed or was tampered with; check the publisher's checksum",
        )


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


def _open(url: str, allow: Sequence[Network]) -> BaseHTTPResponse:
    """The answer to a GET, after redirects, with its body unread."""
    for _ in range(_MAX_REDIRECTS + 1):
        response = _get(_split(url), allow)
        if response.status == 200:
            return response
        location = response.headers.get("Location")
        response.close()
        if response.status not in _REDIRECTS or location is None:
            raise ToolFailed(
                f"{plain(url)} answers {response.status} {response.reason or ''}".strip()
            )
        target = _join(url, location)
        if _split(url).scheme == "https" and _split(target).scheme != "https":
            raise InvalidInput(f"{plain(url)} redirects from https to {plain(target)}")
        url = target
    raise ToolFailed(f"{plain(url)} redirects more than {_MAX_REDIRECTS} times")


def _get(parts: SplitResult, allow: Sequence[Network]) -> BaseHTTPResponse:
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"'{parts.geturl()}' is not an http or https URL")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput(
            "a URL with a user or password in it is refused", hint="use a signed URL"
        )
    host, port = _ascii(parts.hostname), _port(parts)
    address = str(_resolve(host, port, allow))
    timeout = urllib3.Timeout(connect=15, read=60)
    pool: urllib3.HTTPConnectionPool = (
        urllib3.HTTPSConnectionPool(
            address, port, timeout=timeout, server_hostname=host, assert_hostname=host
        )
        if parts.scheme == "https"
        else urllib3.HTTPConnectionPool(address, port, timeout=timeout)
    )
    target = parts.path or "/"
    return pool.urlopen(
        "GET",
        f"{target}?{parts.query}" if parts.query else target,
        headers={
            "Host": _authority(host, parts),
            "User-Agent": "calotype",
            "Accept-Encoding": "identity",
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


def _save(response: BaseHTTPResponse, target: Path, max_bytes: int, progress: Progress) -> str:
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() and len(length) < 20 else None
    if total is not None and total > max_bytes:
        raise _too_big(max_bytes)
    digest = hashlib.sha256()
    done = 0
    with target.open("xb") as file, progress.phase("download", total) as advance:
        for block in response.stream(_BLOCK, decode_content=False):
            done += len(block)
            if done > max_bytes:
                raise _too_big(max_bytes)
            digest.update(block)
            file.write(block)
            advance(len(block))
    return digest.hexdigest()


def _too_big(max_bytes: int) -> CalotypeError:
    return InvalidInput(f"the file is larger than the {max_bytes} bytes that fit here")
