"""Where a store is: a URL without secrets, and what it opens."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from calotype.errors import InvalidInput, NotFound
from calotype.store.directory import DirectoryStore
from calotype.store.objects import MemoryStore, ObjectStore

CACHE_BYTES = 10 << 30

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_OPTIONS = {"s3": {"endpoint", "region", "allow_http"}, "az": {"endpoint", "allow_http"}}
_EXAMPLES = "a path, file:///path, s3://bucket/prefix or az://account/container/prefix"


@dataclass(frozen=True, slots=True)
class Location:
    """A place on a server."""

    scheme: str
    host: str  # the bucket, or the account
    path: tuple[str, ...]
    options: Mapping[str, str]

    @property
    def name(self) -> str:
        """The URL without options, for messages."""
        return f"{self.scheme}://{'/'.join((self.host, *self.path))}"

    @property
    def allow_http(self) -> bool:
        """Whether plain HTTP may leave this machine."""
        return self.options.get("allow_http", "false") == "true"


def open_store(
    url: str,
    *,
    cache: Path | None = None,
    cache_bytes: int = CACHE_BYTES,
    create: bool = True,
    public: bool = False,
) -> ObjectStore:
    """The store at ``url``: a path, ``file:``, ``memory:``, ``s3:`` or ``az:``.

    A store on a server is asked once what it can do, is used patiently, and, with ``cache``, what is read
    from its packs is kept in that directory, at most ``cache_bytes`` of it. Credentials come from the
    environment and the usual files. Without ``create``, no directory is made; with ``public``, every user
    of the host may read what is written to one.

    Raises:
        NotFound: there is no such directory, and none is to be made.
        InvalidInput: this is no URL of a store, or the server cannot be used as one.
        StoreUnavailable: the server does not answer.
    """
    scheme = _SCHEME.match(url)
    kind = scheme[1].lower() if scheme else ""
    if kind in {"", "file"}:
        path = _local(url) if kind else Path(url)
        if not create and not path.is_dir():
            raise NotFound(
                f"there is no directory '{path}'",
                hint="name a directory, a URL, or a name under [stores] in config.toml",
            )
        return DirectoryStore(path, public=public)
    if kind == "memory" and url[len("memory:") :] in {"", "//"}:
        return MemoryStore()
    location = parse(url)
    # obstore takes 30 ms to load, and local stores need none of it.
    from calotype.store import server  # noqa: PLC0415

    return server.open_server(location, cache=cache, cache_bytes=cache_bytes)


def parse(url: str) -> Location:
    """The parts of the URL of a store on a server.

    Raises:
        InvalidInput: it is none, or it holds a secret. The URL is not quoted then.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query), max_num_fields=8))
    except ValueError:
        raise _bad("the store's URL cannot be read") from None
    if parts.scheme not in _OPTIONS:
        raise _bad(f"{parts.scheme or 'this'}: is no kind of store")
    if "@" in parts.netloc:
        raise InvalidInput(
            "the store's URL names a user",
            hint="credentials come from the environment, such as AWS_ACCESS_KEY_ID",
        )
    if unknown := set(options) - _OPTIONS[parts.scheme]:
        known = ", ".join(sorted(_OPTIONS[parts.scheme]))
        name = min(unknown)
        shown = name if re.fullmatch(r"[a-z_]{1,20}", name) else "another"
        raise _bad(f"the store's URL has the option {shown}; {parts.scheme}: knows {known}")
    if options.get("allow_http", "true") not in {"true", "false"}:
        raise _bad("allow_http is true or false")
    location = Location(parts.scheme, parts.netloc, _segments(parts), options)
    if not _SEGMENT.fullmatch(location.host):
        raise _bad(f"the store's URL names no {'bucket' if parts.scheme == 's3' else 'account'}")
    if parts.scheme == "az" and not location.path:
        raise _bad("the store's URL names no container")
    return location


def endpoint(location: Location, url: str) -> str:
    """The server's URL, if requests may be sent there.

    Raises:
        InvalidInput: it is none, or plain HTTP that leaves this machine.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = SplitResult("", "", "", "", ""), None
    if (
        parts.scheme not in {"http", "https"}
        or not parts.hostname
        or port == 0
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
    ):
        raise _bad("the store's endpoint is no plain http: or https: URL")
    if parts.scheme == "http" and not (location.allow_http or _loopback(parts.hostname)):
        raise InvalidInput(
            f"{location.name}: plain HTTP to {parts.hostname} would show everything on the way",
            hint="use https:, or add allow_http=true to the store's URL",
        )
    return url.rstrip("/")


def _segments(parts: SplitResult) -> tuple[str, ...]:
    path = parts.path.strip("/")
    segments = tuple(path.split("/")) if path else ()
    if parts.fragment or not all(_SEGMENT.fullmatch(s) for s in segments):
        raise _bad("the store's URL has a path of other characters than A-Z a-z 0-9 . _ -")
    return segments


def _local(url: str) -> Path:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in {"", "localhost"} or not path.startswith("/") or "\0" in path:
        raise _bad("a file: URL of a store is file:///and/a/path")
    if parts.query or parts.fragment:
        raise _bad("a file: URL of a store has no options")
    return Path(path)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bad(message: str) -> InvalidInput:
    return InvalidInput(message, hint=f"a store is {_EXAMPLES}")
