"""A disk of ours as an NBD export for a while: what QEMU's programs can read it by."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from calotype.disk.base import Disk
from calotype.disk.nbd_server import NbdServer
from calotype.disk.view import NbdSource

_EXPORT = "disk"


@contextlib.contextmanager
def served(disk: Disk, scratch: Path) -> Iterator[NbdSource]:
    """Serve a disk, read-only, on a socket in a new directory under ``scratch``, within the block."""
    with (
        tempfile.TemporaryDirectory(prefix="served-", dir=scratch) as room,
        contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener,
    ):
        directory = os.open(room, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{directory}/socket")  # whatever length the path has
        finally:
            os.close(directory)
        listener.listen()
        server = NbdServer(listener, _EXPORT, disk)
        server.start()
        try:
            yield NbdSource(Path(room) / "socket", _EXPORT)
        finally:
            server.close()
