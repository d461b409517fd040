"""A public tree over HTTP, for those without a web server: files with a tree's names, and nothing else."""

import os
import re
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, Final

from calotype.errors import InvalidInput, NotFound

#: What a tree is made of; all else in its directory is nobody's business.
_PATH: Final = re.compile(
    r"/(config|(?:domains|packs|indexes|metadata|targets)(?:/[a-z0-9][a-z0-9._-]{0,199}){1,2})"
)
_RANGE: Final = re.compile(r"bytes=([0-9]{1,18})-([0-9]{0,18})")
_MOST: Final = (
    400  # connections at once, each with a thread and at most two files; more are turned away
)
_PATIENCE: Final = 30.0  # seconds for a client to ask, and for one that does not read


class TreeServer(ThreadingHTTPServer):
    """Serves one directory until it is shut down."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path, bind: str, port: int, told: Callable[[str], None]) -> None:
        """Listen.

        Args:
            root: the tree.
            bind: the address to listen at.
            port: 0: any free one.
            told: gets a line for each request.

        Raises:
            NotFound: there is no tree.
            InvalidInput: nobody can listen there.
        """
        if not (root / "metadata" / "timestamp.json").is_file():
            raise NotFound(
                f"there is no public tree in '{root}'",
                hint=f"calotype community export {root}",
            )
        self.root = root.resolve()
        self.told = told
        self._slots = threading.BoundedSemaphore(_MOST)
        if ":" in bind:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((bind, port), _Handler)
        except OSError as error:
            raise InvalidInput(
                f"cannot listen at {bind} port {port}: {error.strerror}",
                hint="name an address of this machine, and a free port",
            ) from error

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread of its own, as long as there are few."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, *_: object) -> None:
        """Who hangs up early is no error here."""


class _Questions(RawIOBase):
    """What a client asks, as it comes; a whole question must be there before ``until``."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.until = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(max(self.until - time.monotonic(), 0.001))
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: TreeServer
    protocol_version = "HTTP/1.1"
    server_version = "calotype"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self._questions = _Questions(self.connection)
        self.rfile = BufferedReader(self._questions)

    def handle_one_request(self) -> None:
        self._questions.until = time.monotonic() + _PATIENCE
        super().handle_one_request()

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        self.connection.settimeout(_PATIENCE)
        lengths = self.headers.get_all("Content-Length", ["0"])
        if lengths != ["0"] or "Transfer-Encoding" in self.headers:
            # Its body would be taken for the next request; somebody else's, behind a proxy.
            self.close_connection = True
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        file = self._opened()
        if file is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with file:
            self._send(file, body=body)

    def _opened(self) -> BinaryIO | None:
        """A regular file of the tree; ``None`` for everything else."""
        match = _PATH.fullmatch(self.path)
        if match is None:
            return None
        # No part of the name can be hidden or lead upwards; nor may one be a link.
        path = self.server.root / match[1]
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            inside = Path(os.readlink(f"/proc/self/fd/{fd}")) == path
            if inside and stat.S_ISREG(os.fstat(fd).st_mode):
                return os.fdopen(fd, "rb")
            os.close(fd)
        return None

    def _send(self, file: BinaryIO, *, body: bool) -> None:
        about = os.fstat(file.fileno())
        start, end = 0, about.st_size
        status = HTTPStatus.OK
        if wanted := self.headers.get("Range"):
            found = _RANGE.fullmatch(wanted)
            if found is not None:  # several ranges, and what is no range, get the whole file
                start, last = int(found[1]), int(found[2]) + 1 if found[2] else end
                if start >= end or last <= start:
                    self._refuse(
                        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"bytes */{about.st_size}"
                    )
                    return
                status, end = HTTPStatus.PARTIAL_CONTENT, min(last, end)
        self.send_response(status)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{about.st_mtime_ns:x}-{about.st_size:x}"')
        if status is HTTPStatus.PARTIAL_CONTENT:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{about.st_size}")
        self.end_headers()
        if (
            body
            and start < end
            and self.connection.sendfile(file, start, end - start) < end - start
        ):
            self.close_connection = True  # it was cut off meanwhile

    def _refuse(self, status: HTTPStatus, content_range: str | None = None) -> None:
        self.send_response(status)
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_request(self, code: int | str = "-", _size: int | str = "-") -> None:
        status = code.value if isinstance(code, HTTPStatus) else code
        self.server.told(f"{self.client_address[0]} {self.command} {self.path} {status}")

    def log_message(self, *_: object) -> None:
        """What went wrong with a client is the client's matter."""
