"""An NBD server for one read-only disk on a unix socket: fixed newstyle, structured replies, block status.

Its clients are QEMUs, each of which a guest may have taken over: whatever the protocol does not foresee
ends the connection, every length is bounded before memory is taken, and who does not read its answers
stalls nobody else.
"""

import contextlib
import errno
import logging
import socket
import struct
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from calotype.disk import nbd_protocol as nbd
from calotype.disk.base import Disk, Extent
from calotype.errors import CalotypeError

log = logging.getLogger("calotype.disk")

_MAX_OPTION = 64 << 10  # bytes
_MAX_OPTIONS = 64  # of one client
_MAX_READ = 32 << 20  # bytes that one request may ask for
_PIECE = 1 << 20  # bytes of one chunk of a reply
_MAX_CLIENTS = 512
_AT_ONCE = 4  # requests of one client that wait for the disk
_QUEUED = 32  # requests of one client that were received and not answered
_HANDSHAKE = 10.0  # seconds that a client may take to choose the export
_STALL = 60  # seconds until a client that does not read is dropped
_MAX_RUNS = 1 << 16  # descriptors of one block status
_CONTEXT = 1  # the number that we give to base:allocation


class _Gone(Exception):
    """The client has left, or is to be left."""


class _Request(NamedTuple):
    command: int
    handle: int
    offset: int
    length: int


class NbdServer:
    """Serves ``disk`` as ``export`` to all who connect to ``listener``, until it is closed.

    ``ready(offset, length)`` says that a read needs no waiting; ``note(offset, length)`` is told each read.
    The disk is read from several threads. It and the listener stay the caller's.
    """

    def __init__(
        self,
        listener: socket.socket,
        export: str,
        disk: Disk,
        *,
        ready: Callable[[int, int], bool] = lambda _offset, _length: True,
        note: Callable[[int, int], None] = lambda _offset, _length: None,
    ) -> None:
        self.export = export.encode()
        self.disk = disk
        self.ready = ready
        self.note = note
        self._listener = listener
        self._lock = threading.Lock()
        self._clients: set[_Client] = set()
        self._runs: tuple[list[int], list[Extent]] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="nbd-accept", daemon=True)

    def start(self) -> None:
        """Serve, in threads of its own."""
        self._thread.start()

    @property
    def clients(self) -> int:
        """How many are connected."""
        with self._lock:
            return len(self._clients)

    def close(self) -> None:
        """Take no more clients, and drop those that there are."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            client.drop()

    def runs(self, offset: int, length: int) -> Iterator[Extent]:
        """The disk's extents in a range; at least one, and at most so many as one answer takes."""
        with self._lock:
            if self._runs is None:
                extents = list(self.disk.extents())
                self._runs = ([extent.offset for extent in extents], extents)
            starts, extents = self._runs
        first = bisect_right(starts, offset) - 1
        for extent in extents[first : first + _MAX_RUNS]:
            if extent.offset >= offset + length:
                return
            start, end = max(extent.offset, offset), min(extent.end, offset + length)
            yield Extent(start, end - start, extent.zero)

    def leave(self, client: "_Client") -> None:
        """A client has gone."""
        with self._lock:
            self._clients.discard(client)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed; or no descriptors are left for a moment
                if self._closed.wait(0.1):
                    return
                continue
            client = _Client(self, connection)
            with self._lock:
                full = len(self._clients) >= _MAX_CLIENTS or self._closed.is_set()
                if not full:
                    self._clients.add(client)
            if full:
                connection.close()
            else:
                client.start()


class _Client:
    """One connection, with a thread that receives and, when it has to wait, a few that answer."""

    def __init__(self, server: NbdServer, connection: socket.socket) -> None:
        self._server = server
        self._socket = connection
        self._sending = threading.Lock()
        self._room = threading.Semaphore(_QUEUED)
        self._structured = False
        self._allocation = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="nbd-client", daemon=True).start()

    def drop(self) -> None:
        """End the connection; its threads notice."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        # What a thread is in the middle of is answered, or dropped, before the socket goes.
        with contextlib.closing(self._socket), ThreadPoolExecutor(_AT_ONCE, "nbd-read") as pool:
            try:
                self._socket.settimeout(_HANDSHAKE)
                if self._negotiate():
                    limit = struct.pack("ll", _STALL, 0)
                    self._socket.setblocking(True)
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
                    self._transmit(pool)
            except (_Gone, OSError):
                pass
            finally:
                self.drop()
                self._server.leave(self)

    # Handshake

    def _negotiate(self) -> bool:
        """Until the client has chosen the export; false when it leaves before."""
        flags = nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES
        self._socket.sendall(struct.pack(">8s8sH", nbd.MAGIC, nbd.OPTION_MAGIC, flags))
        (answer,) = struct.unpack(">I", self._receive(4))
        if not answer & nbd.FIXED_NEWSTYLE or answer & ~flags:
            raise _Gone
        for _ in range(_MAX_OPTIONS):
            magic, option, length = struct.unpack(">8sII", self._receive(16))
            if magic != nbd.OPTION_MAGIC or length > _MAX_OPTION:
                raise _Gone
            chosen = self._option(option, self._receive(length))
            if chosen is not None:
                return chosen
        raise _Gone

    def _option(self, option: int, data: bytes) -> bool | None:
        """Answer an option; true when transmission begins, false when the client leaves."""
        if option == nbd.OPT_ABORT:
            self._reply(option, nbd.REP_ACK)
            return False
        if option == nbd.OPT_STRUCTURED_REPLY and not data:
            self._structured = True
            self._reply(option, nbd.REP_ACK)
        elif option == nbd.OPT_LIST and not data:
            name = self._server.export
            self._reply(option, nbd.REP_SERVER, struct.pack(">I", len(name)) + name)
            self._reply(option, nbd.REP_ACK)
        elif option in (nbd.OPT_SET_META_CONTEXT, nbd.OPT_LIST_META_CONTEXT):
            self._contexts(option, data)
        elif option in (nbd.OPT_GO, nbd.OPT_INFO):
            return self._info(option, data)
        else:
            self._reply(option, nbd.REP_ERROR_UNSUPPORTED)
        return None

    def _contexts(self, option: int, data: bytes) -> None:
        name, rest = _text(data)
        if name is None or len(rest) < 4:
            self._reply(option, nbd.REP_ERROR_INVALID)
            return
        if name != self._server.export:
            self._reply(option, nbd.REP_ERROR_UNKNOWN)
            return
        (count,) = struct.unpack_from(">I", rest)
        rest = rest[4:]
        found = option == nbd.OPT_LIST_META_CONTEXT and not count
        for _ in range(min(count, _MAX_OPTION)):
            query, rest = _text(rest)
            if query is None:
                self._reply(option, nbd.REP_ERROR_INVALID)
                return
            found |= query in (nbd.ALLOCATION.encode(), b"base:")
        if option == nbd.OPT_SET_META_CONTEXT:
            self._allocation = found
        if found:
            payload = struct.pack(">I", _CONTEXT) + nbd.ALLOCATION.encode()
            self._reply(option, nbd.REP_META_CONTEXT, payload)
        self._reply(option, nbd.REP_ACK)

    def _info(self, option: int, data: bytes) -> bool | None:
        name, rest = _text(data)
        if name is None or len(rest) < 2 or len(rest) != 2 + 2 * int.from_bytes(rest[:2]):
            self._reply(option, nbd.REP_ERROR_INVALID)
            return None
        if name != self._server.export:
            self._reply(option, nbd.REP_ERROR_UNKNOWN, b"there is no such export")
            return None
        if not self._structured:
            self._reply(option, nbd.REP_ERROR_POLICY, b"ask for structured replies first")
            return None
        flags = nbd.FLAG_HAS_FLAGS | nbd.FLAG_READ_ONLY | nbd.FLAG_MULTI_CONN
        export = struct.pack(">HQH", nbd.INFO_EXPORT, self._server.disk.size, flags)
        self._reply(option, nbd.REP_INFO, export)
        sizes = struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, 1, 4096, _MAX_READ)
        self._reply(option, nbd.REP_INFO, sizes)
        self._reply(option, nbd.REP_ACK)
        return True if option == nbd.OPT_GO else None

    def _reply(self, option: int, kind: int, payload: bytes = b"") -> None:
        head = struct.pack(">QIII", nbd.OPTION_REPLY_MAGIC, option, kind, len(payload))
        self._socket.sendall(head + payload)

    # Transmission

    def _transmit(self, pool: ThreadPoolExecutor) -> None:
        server = self._server
        while True:
            magic, _flags, *rest = struct.unpack(">IHHQQI", self._receive(28))
            request = _Request(*rest)
            if magic != nbd.REQUEST_MAGIC or request.command == nbd.CMD_DISC:
                raise _Gone
            known = request.command in (nbd.CMD_READ, nbd.CMD_BLOCK_STATUS)
            if not known:  # a write would bring bytes that nobody is to take
                self._refuse(request, errno.EPERM)
                raise _Gone
            too_long = request.command == nbd.CMD_READ and request.length > _MAX_READ
            if not request.length or request.offset + request.length > server.disk.size or too_long:
                self._refuse(request, errno.EINVAL)
            elif request.command == nbd.CMD_READ:
                server.note(request.offset, request.length)
                if server.ready(request.offset, request.length):
                    self._read(request)
                else:
                    self._later(pool, self._read, request)
            elif self._allocation:
                self._later(pool, self._status, request)
            else:
                self._refuse(request, errno.EINVAL)

    def _later(
        self, pool: ThreadPoolExecutor, answer: Callable[[_Request], None], request: _Request
    ) -> None:
        """Answer in another thread, while more requests are received."""
        self._room.acquire()

        def work() -> None:
            try:
                answer(request)
            except (_Gone, OSError):
                self.drop()
            finally:
                self._room.release()

        pool.submit(work)

    def _read(self, request: _Request) -> None:
        buffer = memoryview(bytearray(min(_PIECE, request.length)))
        end = request.offset + request.length
        for offset in range(request.offset, end, _PIECE):
            part = buffer[: min(_PIECE, end - offset)]
            try:
                self._server.disk.read_into(offset, part)
            except (CalotypeError, OSError) as error:
                log.warning("read of %d bytes at %d: %s", len(part), offset, error)
                self._refuse(request, errno.EIO)
                return
            last = offset + len(part) == end
            self._chunk(request, nbd.REPLY_DATA, struct.pack(">Q", offset), part, last=last)

    def _status(self, request: _Request) -> None:
        flags = {False: 0, True: nbd.STATE_HOLE | nbd.STATE_ZERO}
        try:
            runs = list(self._server.runs(request.offset, request.length))
        except (CalotypeError, OSError) as error:
            log.warning("block status: %s", error)
            self._refuse(request, errno.EIO)
            return
        table = b"".join(struct.pack(">II", run.length, flags[run.zero]) for run in runs)
        self._chunk(request, nbd.REPLY_STATUS, struct.pack(">I", _CONTEXT), memoryview(table))

    def _refuse(self, request: _Request, number: int) -> None:
        payload = struct.pack(">IH", number, 0)
        self._chunk(request, nbd.REPLY_ERROR, payload, memoryview(b""))

    def _chunk(
        self, request: _Request, kind: int, head: bytes, data: memoryview, *, last: bool = True
    ) -> None:
        flags, length = (nbd.DONE if last else 0), len(head) + len(data)
        start = struct.pack(">IHHQI", nbd.STRUCTURED_MAGIC, flags, kind, request.handle, length)
        with self._sending:
            sent = self._socket.sendmsg([start, head, data])
            whole = len(start) + length
            if sent < whole:
                rest = start + head
                if sent < len(rest):
                    self._socket.sendall(rest[sent:])
                self._socket.sendall(data[max(0, sent - len(rest)) :])

    def _receive(self, length: int) -> bytes:
        buffer = bytearray(length)
        view = memoryview(buffer)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise _Gone
            view = view[count:]
        return bytes(buffer)


def _text(data: bytes) -> tuple[bytes | None, bytes]:
    """A text with its length before it, and what follows; None when it is cut off."""
    if len(data) < 4:
        return None, b""
    (length,) = struct.unpack_from(">I", data)
    if length > len(data) - 4:
        return None, b""
    return data[4 : 4 + length], data[4 + length :]
