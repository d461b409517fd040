"""A proxy before an object store that does to one request what networks and servers do to some.

Each connection has a thread. Requests are counted; the plan says which of them meet a fault.
"""

import contextlib
import http.client
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self


class Kind(StrEnum):
    """What happens to a request."""

    BUSY = "busy"  # 503, not done
    BROKEN = "broken"  # done, and then 500
    REFUSED = "refused"  # the connection is reset, not done
    LOST = "lost"  # done, and the connection is closed without an answer
    LOST_RESET = "lost-reset"  # done, and the connection is reset
    CUT = "cut"  # half of the answer, then a reset
    SHORT = "short"  # half of the body, under a length that says it is all
    FLIPPED = "flipped"  # one bit of the body is another
    STALLED = "stalled"  # done, and no answer for longer than the client waits
    SLOW = "slow"  # done, and answered late but in time
    STALE = "stale"  # a listing does not show the newest object
    EMPTY = "empty"  # a listing shows nothing
    ABSENT = "absent"  # what is there is said not to be

    @property
    def applies(self) -> Callable[["Request"], bool]:
        """Which requests can meet it."""
        if self in {Kind.STALE, Kind.EMPTY}:
            return lambda r: r.listing
        if self is Kind.ABSENT:
            return lambda r: r.method in {"GET", "HEAD"} and not r.listing
        if self in {Kind.SHORT, Kind.FLIPPED}:
            return lambda r: r.method == "GET"
        return lambda _: True


@dataclass(frozen=True)
class Request:
    """What a client asks."""

    method: str
    path: str
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def listing(self) -> bool:
        """Whether it asks for a listing of objects."""
        return self.method == "GET" and ("list-type=2" in self.path or "comp=list" in self.path)


@dataclass(frozen=True)
class Answer:
    """What a server says."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class Plan:
    """Which requests meet a fault: ``count`` of those it applies to, from number ``first`` on (from 0)."""

    kind: Kind
    first: int
    count: int = 1
    seen: int = 0
    met: int = 0

    def meets(self, request: Request) -> bool:
        """Count the request, and say whether it meets the fault."""
        if not self.kind.applies(request):
            return False
        self.seen += 1
        hit = self.first < self.seen <= self.first + self.count
        self.met += hit
        return hit


class Proxy:
    """Stands on a free port before the server on ``port``."""

    def __init__(self, port: int, stall: float) -> None:
        self.upstream = port
        self.stall = stall  # seconds that a client does not wait
        self.plan: Plan | None = None
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self._server = _Server(self)

    @property
    def port(self) -> int:
        """Where clients connect."""
        return int(self._server.server_address[1])

    def fault(self, request: Request) -> Kind | None:
        """What happens to this request."""
        with self.lock:
            self.requests.append(request)
            return self.plan.kind if self.plan and self.plan.meets(request) else None

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news here."""


class _Gone(Exception):
    """The connection has ended."""


class _Handler(socketserver.StreamRequestHandler):
    server: _Server
    timeout = 60

    def handle(self) -> None:
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.proxy.upstream, timeout=60)
        try:
            with contextlib.suppress(_Gone, OSError):
                while request := self._read():
                    self._serve(request, upstream)
        finally:
            upstream.close()

    def _read(self) -> Request | None:
        line = self.rfile.readline(65536).decode("latin-1").split()
        if len(line) != 3:
            return None
        headers = http.client.parse_headers(self.rfile)
        body = self.rfile.read(int(headers.get("content-length", "0")))
        return Request(line[0], line[1], headers, body)

    def _serve(self, request: Request, upstream: http.client.HTTPConnection) -> None:
        kind = self.server.proxy.fault(request)
        if kind is Kind.BUSY:
            self._answer(request, _error(503, "SlowDown"))
            return
        if kind is Kind.REFUSED:
            self._reset()
        answer = _forward(request, upstream)
        if kind is Kind.CUT:
            self._answer(request, answer, part=len(answer.body) // 2)
        if kind in {Kind.CUT, Kind.LOST_RESET}:
            self._reset()
        if kind in {Kind.STALLED, Kind.SLOW}:
            self.server.proxy.ended.wait(self.server.proxy.stall if kind is Kind.STALLED else 0.1)
        if kind in {Kind.LOST, Kind.STALLED}:
            raise _Gone
        self._answer(request, _altered(kind, answer))

    def _answer(self, request: Request, answer: Answer, part: int | None = None) -> None:
        head = [f"HTTP/1.1 {answer.status} {answer.reason}"]
        length = str(len(answer.body))
        for name, value in answer.headers:
            lower = name.lower()
            if lower == "content-length" and request.method == "HEAD":
                length = value
            elif lower not in {"content-length", "transfer-encoding", "connection"}:
                head.append(f"{name}: {value}")
        if answer.status != 204:
            head.append(f"Content-Length: {length}")
        self.wfile.write("\r\n".join([*head, "", ""]).encode("latin-1"))
        if request.method != "HEAD":
            self.wfile.write(answer.body[:part])

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        raise _Gone


def _forward(request: Request, upstream: http.client.HTTPConnection) -> Answer:
    upstream.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.items():
        if name.lower() != "connection":
            upstream.putheader(name, value)
    upstream.endheaders(request.body)
    answer = upstream.getresponse()
    return Answer(answer.status, answer.reason, answer.getheaders(), answer.read())


def _error(status: int, code: str) -> Answer:
    body = f"<Error><Code>{code}</Code><Message>as planned</Message></Error>".encode()
    return Answer(
        status, http.client.responses[status], [("Content-Type", "application/xml")], body
    )


def _altered(kind: Kind | None, answer: Answer) -> Answer:
    if kind is Kind.BROKEN:
        return _error(500, "InternalError")
    if kind is Kind.ABSENT:
        return _error(404, "NoSuchKey")
    if kind is None or answer.status >= 300:
        return answer
    return replace(answer, body=_changed(kind, answer.body))


_LISTED = re.compile(rb"<Contents>.*?</Contents>|<Blob>.*?</Blob>", re.DOTALL)


def _changed(kind: Kind, body: bytes) -> bytes:
    if kind is Kind.SHORT:
        return body[: len(body) // 2]
    if kind is Kind.FLIPPED and body:
        at = len(body) // 2
        return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
    listed = list(_LISTED.finditer(body)) if kind in {Kind.STALE, Kind.EMPTY} else []
    gone = listed if kind is Kind.EMPTY else listed[-1:]
    for found in reversed(gone):
        body = body[: found.start()] + body[found.end() :]
    return body


@contextlib.contextmanager
def planned(proxy: Proxy, plan: Plan | None) -> Iterator[None]:
    """Requests meet this plan inside the block."""
    proxy.plan = plan
    try:
        yield
    finally:
        proxy.plan = None
