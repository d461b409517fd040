"""Public trees behind web servers that are honest, absent, or not."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Faults:
    """What a mirror does otherwise than it should.

    Attributes:
        lie: changes the bytes of an answer, given path and where it begins.
        cut: after how many bytes of packs, in all, connections break; None: never.
        status: what it answers instead of anything.
        instead: other content for paths.
        hidden: paths that it does not have.
        absent: what it answers for what it does not have.
    """

    lie: Callable[[str, int, bytes], bytes] = field(default=lambda _path, _start, data: data)
    cut: int | None = None
    status: int | None = None
    instead: dict[str, bytes] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    absent: int = 404


class MirrorServer(ThreadingHTTPServer):
    """Serves a directory as a mirror would, with faults."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.faults = Faults()
        self.sent = 0  # bytes of bodies
        self.of_packs = 0
        self.asked: list[str] = []
        self.counting = threading.Lock()
        self._events: list[tuple[int, Callable[[], object]]] = []

    def at(self, sent: int, event: Callable[[], object]) -> None:
        """Do something as soon as so many bytes of packs were sent in all."""
        with self.counting:
            self._events.append((sent, event))

    def happen(self) -> None:
        """Do what is due."""
        with self.counting:
            due = [event for sent, event in self._events if sent <= self.of_packs]
            self._events = [one for one in self._events if one[0] > self.of_packs]
        for event in due:
            event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, *_: object) -> None:
        """Who hangs up early is no error here."""


@contextmanager
def mirroring(root: Path) -> Iterator[MirrorServer]:
    """A running mirror of the tree in ``root``."""
    with MirrorServer(root) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: MirrorServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        faults, path = self.server.faults, self.path.lstrip("/")
        with self.server.counting:
            self.server.asked.append(path)
        if faults.status is not None:
            self._head(faults.status, 0)
            return
        file = self.server.root / path
        if path in faults.instead:
            body = faults.instead[path]
        elif path in faults.hidden or not file.is_file():
            self._head(faults.absent, 0)
            return
        else:
            body = file.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(found[1]), int(found[2]) + 1) if found else (0, len(body))
        data = faults.lie(path, start, body[start:end])
        told = {"Content-Range": f"bytes {start}-{end - 1}/{len(body)}"} if found else {}
        self._head(206 if found else 200, len(data), **told)
        self._send(path, data)

    def _send(self, path: str, data: bytes) -> None:
        for at in range(0, len(data), 1 << 14):
            block = data[at : at + (1 << 14)]
            with self.server.counting:
                if path.startswith("packs/"):
                    cut = self.server.faults.cut
                    if cut is not None and self.server.of_packs + len(block) > cut:
                        self.close_connection = True
                        return
                    self.server.of_packs += len(block)
                self.server.sent += len(block)
            self.wfile.write(block)
            self.server.happen()

    def _head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
