"""A web server on loopback for tests of downloads: with ranges and without, honest and not."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class File:
    """What the server holds under one path.

    Attributes:
        body: its bytes.
        ranges: whether the server knows ranges.
        length: whether it says how long the file is.
        etag: its validator.
        cut: after how many bytes of each answer the connection breaks; None: never.
        lie: changes the bytes of an answer, given where it begins.
        pace: is told where it is before each 64 KiB is sent.
    """

    body: bytes
    ranges: bool = True
    length: bool = True
    etag: str | None = '"1"'
    cut: int | None = None
    lie: Callable[[int, bytes], bytes] = field(default=lambda _start, data: data)
    pace: Callable[[int], None] = field(default=lambda _at: None)


class Web(ThreadingHTTPServer):
    """Serves ``files``; ``redirects`` maps a path to where it leads; ``failing`` answers come first."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.files: dict[str, File] = {}
        self.redirects: dict[str, str] = {}
        self.failing: list[int] = []
        self.hosts: list[str] = []
        self.asked: list[tuple[int, int]] = []
        self.sent = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, *_: object) -> None:
        """Who hangs up early is no error here."""


@contextmanager
def serving(port: int = 0) -> Iterator[Web]:
    """A running server, at a port that is free unless it is said."""
    with Web(port) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield web
        finally:
            web.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Web
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.hosts.append(self.headers["Host"])
        if self.path in self.server.redirects:
            self._head(302, 0, Location=self.server.redirects[self.path])
        elif (file := self.server.files.get(self.path)) is None:
            self._head(404, 0)
        elif self.server.failing:
            self._head(self.server.failing.pop(0), 0)
        else:
            self._send(file)

    def _send(self, file: File) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = 0, len(file.body)
        headers = {"ETag": file.etag} if file.etag else {}
        status = 200
        if found and file.ranges:
            status = 206
            start, end = int(found[1]), min(int(found[2] or end) + 1, len(file.body))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(file.body)}"
        data = file.lie(start, file.body[start:end])
        self.server.asked.append((start, end))
        self._head(status, len(data) if file.length else None, **headers)
        if file.cut is not None:
            data = data[: file.cut]
        for at in range(0, len(data), 1 << 16):
            file.pace(start + at)
            self.wfile.write(data[at : at + (1 << 16)])
            self.server.sent += len(data[at : at + (1 << 16)])

    def _head(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
