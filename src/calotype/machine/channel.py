"""Lines of JSON over a Unix socket of a VM: what QMP and the guest agent have in common."""

import contextlib
import json
import os
import select
import socket
import stat
import struct
import time
from pathlib import Path
from typing import Any, Self

from calotype.errors import InvalidInput, TimedOut, ToolFailed
from calotype.strict import require_shallow

#: The longest line that is read; both ends of these channels are hostile until shown otherwise.
MAX_LINE = 64 << 20


def connect(path: Path, timeout: float = 10.0) -> socket.socket:
    """Connect to the Unix socket at ``path``.

    The address goes through the directory's descriptor, for the kernel takes only 108 bytes.

    Raises:
        OSError: nobody listens there, or what is there is not a socket.
        TimedOut: whoever listens has accepted nobody for ``timeout`` seconds.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        status = os.stat(path.name, dir_fd=directory, follow_symlinks=False)
        name = path.name if stat.S_ISSOCK(status.st_mode) else "."  # no link is followed
        # QEMU's queues are one long, and a queue that is full stops even connect().
        limit = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6) or 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        client.connect(f"/proc/self/fd/{directory}/{name}")
    except BlockingIOError:
        client.close()
        raise TimedOut(f"nobody answers at {path.name}") from None
    except BaseException:
        client.close()
        raise
    finally:
        os.close(directory)
    return client


def peer(client: socket.socket) -> tuple[int, int]:
    """The process id and the user id of the process that listens at the other end."""
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", credentials)
    return pid, uid


class Channel:
    """One connection; ``what`` names the other end in errors. Use it as a context manager."""

    def __init__(self, client: socket.socket, what: str) -> None:
        self.socket = client
        self._what = what
        self._buffer = bytearray()
        client.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; harmless when repeated."""
        self.socket.close()

    def send(self, message: bytes, deadline: float) -> None:
        """Send all of ``message``; ``deadline`` by the monotonic clock."""
        rest = memoryview(message)
        while rest:
            self._wait(select.POLLOUT, deadline)
            try:
                rest = rest[self.socket.send(rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise ToolFailed(f"{self._what} has gone away") from error

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next JSON object.

        Raises:
            TimedOut: nothing came before ``deadline``.
            ToolFailed: the other end has gone, or speaks no JSON.
        """
        scanned = 0
        while (end := self._buffer.find(b"\n", scanned)) < 0:
            scanned = len(self._buffer)
            self._wait(select.POLLIN, deadline)
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                raise ToolFailed(f"{self._what} has gone away")
            self._buffer += data
            if len(self._buffer) > MAX_LINE:
                raise ToolFailed(f"{self._what} sends lines without an end")
        # The agent marks the start of a fresh conversation by 0xff; what stands before is stale.
        line = bytes(self._buffer[:end].rpartition(b"\xff")[2])
        del self._buffer[: end + 1]
        with contextlib.suppress(ValueError, InvalidInput):
            require_shallow(line, self._what)
            message = json.loads(line)
            if isinstance(message, dict):
                return message
        raise ToolFailed(f"{self._what} does not speak JSON")

    def _wait(self, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self.socket, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimedOut(f"{self._what} does not answer")
