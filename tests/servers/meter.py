"""A port before a server that counts the bytes which the server sends; it changes nothing."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class Meter:
    """Forwards ``port`` to another port of the loopback; ``sent`` counts the server's bytes, headers too."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.sent = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            for source, sink, counts in ((client, server, False), (server, client, True)):
                copy = threading.Thread(target=self._copy, args=(source, sink, counts), daemon=True)
                copy.start()

    def _copy(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                if counts:
                    with self._lock:
                        self.sent += len(data)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def meter(target: int) -> Iterator[Meter]:
    """A :class:`Meter` before the server at ``target``."""
    counter = Meter(target)
    try:
        yield counter
    finally:
        counter.close()
