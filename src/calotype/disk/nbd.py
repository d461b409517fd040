"""A disk behind an NBD server on a unix socket: the point-in-time view of a running VM.

The client is small and strict: fixed newstyle handshake, structured replies, one request at a time on
each connection of a small pool. Whatever the protocol does not foresee ends the connection.
"""

import contextlib
import itertools
import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from calotype.disk import nbd_protocol as nbd
from calotype.disk.base import Extent
from calotype.disk.overlay import coalesce
from calotype.errors import InvalidInput, NotFound, TimedOut, ToolFailed

_DEPTH = "qemu:allocation-depth"

_ERROR_CHUNK = 1 << 15  # the flag of all kinds of chunks that say an error
_MAX_READ = 32 << 20
_MAX_STATUS = 1 << 30
_MAX_PAYLOAD = 16 << 20  # of a block-status chunk: 2 Mi descriptors


class _Chunk(NamedTuple):
    done: bool
    kind: int
    length: int


class NbdDisk:
    """The export named ``export`` of the NBD server at the unix socket ``path``; read-only.

    Safe to read from several threads: up to ``connections`` connections are opened, as needed (a
    server that serves one client only, as ``qemu-nbd`` does by default, needs ``connections=1``).

    ``base_depth`` is the place of the base in the export's backing chain, for :meth:`changed`: the node
    exported is 1, its backing node 2, and so on. In the view of a running VM the copy-before-write
    target is 1, the VM's overlay 2, the base 3 (and nothing is at 3 when the disk has no base).

    Raises:
        NotFound: no server listens there, or it has no export of that name.
        ToolFailed: the server broke the protocol or went away; TimedOut: it did not answer.
    """

    def __init__(
        self,
        path: Path,
        export: str,
        *,
        base_depth: int = 3,
        connections: int = 4,
        timeout: float = 120.0,
    ) -> None:
        self.path = path
        self.export = export
        self.base_depth = base_depth
        self._timeout = timeout
        self._slots = threading.Semaphore(connections)
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        first = _Connection(path, export, timeout)
        self._idle.append(first)
        self._size = first.size

    @property
    def size(self) -> int:
        """The virtual size in bytes."""
        return self._size

    def extents(self) -> Iterator[Extent]:
        """Runs that cover the disk; ``zero`` where the server says so."""
        runs = (Extent(at, n, zero) for at, n, zero, _depth in self._segments())
        yield from coalesce(runs)

    def changed(self) -> list[Extent]:
        """The runs that lie above the base: everything written since (zeroed runs among them).

        Raises:
            InvalidInput: the export was not made with ``allocation-depth=on``.
        """
        with self._connection() as connection:
            if _DEPTH not in connection.contexts.values():
                raise InvalidInput(
                    f"the export {self.export} does not tell the depth of its blocks",
                    hint="export it with allocation-depth=on",
                )
        above = range(1, self.base_depth)
        runs = (Extent(at, n, zero) for at, n, zero, depth in self._segments() if depth in above)
        return list(coalesce(runs))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes at ``offset``."""
        if offset < 0 or offset + len(buffer) > self._size:
            raise InvalidInput(f"read past the end of the disk: {offset} + {len(buffer)}")
        with self._connection() as connection:
            for start in range(0, len(buffer), _MAX_READ):
                connection.read(offset + start, buffer[start : start + _MAX_READ])

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._closed.set()
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()

    def _segments(self) -> Iterator[tuple[int, int, bool, int]]:
        """Runs as (offset, length, zero, depth) that cover the disk; depth is 0 where unallocated."""
        at = 0
        with self._connection() as connection:
            while at < self._size:
                states = connection.block_status(at, min(_MAX_STATUS, self._size - at))
                plain = states.get(nbd.ALLOCATION)
                if plain is None:
                    raise ToolFailed(f"the NBD server at {self.path} does not tell its allocation")
                for length, flags, depth in _zip_runs(plain, states.get(_DEPTH)):
                    yield at, length, bool(flags & nbd.STATE_ZERO), depth
                    at += length

    @contextlib.contextmanager
    def _connection(self) -> Iterator["_Connection"]:
        """One connection for the caller alone; after an error it is dropped."""
        with self._slots:
            with self._lock:
                if self._closed.is_set():
                    raise InvalidInput(f"the disk {self.export} is closed")
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                connection = _Connection(self.path, self.export, self._timeout)
                if connection.size != self._size:
                    connection.disconnect()
                    raise ToolFailed(f"the export {self.export} changed its size")
            try:
                yield connection
            except BaseException:
                connection.abort()
                raise
            with self._lock:
                if not self._closed.is_set():
                    self._idle.append(connection)
                    return
            connection.disconnect()


def _zip_runs(
    plain: list[tuple[int, int]], depths: list[tuple[int, int]] | None
) -> Iterator[tuple[int, int, int]]:
    """Cut two lists of (length, state) at each other's borders: (length, state, depth)."""
    if depths is None:
        yield from ((length, flags, 0) for length, flags in plain)
        return
    left, right = iter(plain), iter(depths)
    a, flags = next(left, (0, 0))
    b, depth = next(right, (0, 0))
    while a and b:
        step = min(a, b)
        yield step, flags, depth
        a, b = a - step, b - step
        if not a:
            a, flags = next(left, (0, 0))
        if not b:
            b, depth = next(right, (0, 0))


class _Connection:
    """One connection in transmission phase: requests and their replies, one after the other."""

    def __init__(self, path: Path, export: str, timeout: float) -> None:
        self._where = f"the NBD server at {path}"
        self._handles = itertools.count(1)
        self.contexts: dict[int, str] = {}
        self.size = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout)
            self._connect(path)
            self._handshake(export)
        except BaseException:
            self._socket.close()
            raise

    # Handshake

    def _connect(self, path: Path) -> None:
        # The kernel takes 107 bytes of name at most; the directory's descriptor makes it short.
        try:
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            raise NotFound(f"no NBD server listens at {path}") from None
        try:
            if not stat.S_ISSOCK(os.lstat(path.name, dir_fd=directory).st_mode):
                raise NotFound(f"{path} is no socket")
            self._socket.connect(f"/proc/self/fd/{directory}/{path.name}")
        except TimeoutError:
            raise TimedOut(f"{self._where} does not answer") from None
        except OSError:
            raise NotFound(f"no NBD server listens at {path}") from None
        finally:
            os.close(directory)

    def _handshake(self, export: str) -> None:
        magic, option, flags = struct.unpack(">8s8sH", self._receive(18))
        if magic != nbd.MAGIC or option != nbd.OPTION_MAGIC or not flags & nbd.FIXED_NEWSTYLE:
            raise self._broken("no fixed newstyle handshake")
        self._send(struct.pack(">I", nbd.FIXED_NEWSTYLE | (flags & nbd.NO_ZEROES)))
        if [kind for kind, _ in self._option(nbd.OPT_STRUCTURED_REPLY, b"")] != [nbd.REP_ACK]:
            raise self._broken("no structured replies")
        name = export.encode()
        named = struct.pack(">I", len(name)) + name
        self._set_contexts(named, export)
        self._go(named, export)

    def _set_contexts(self, named: bytes, export: str) -> None:
        queries = [query.encode() for query in (nbd.ALLOCATION, _DEPTH)]
        data = named + struct.pack(">I", len(queries))
        data += b"".join(struct.pack(">I", len(query)) + query for query in queries)
        for kind, payload in self._option(nbd.OPT_SET_META_CONTEXT, data):
            if kind == nbd.REP_META_CONTEXT and len(payload) > 4:
                (context,) = struct.unpack(">I", payload[:4])
                self.contexts[context] = payload[4:].decode("utf-8", "replace")
            elif kind == nbd.REP_ERROR_UNKNOWN:
                raise NotFound(f"{self._where} has no export named {export}")
            elif kind != nbd.REP_ACK:
                raise self._broken(f"reply {kind:#x} to the choice of contexts")

    def _go(self, named: bytes, export: str) -> None:
        data = named + struct.pack(">HH", 1, nbd.INFO_BLOCK_SIZE)
        known = False
        for kind, payload in self._option(nbd.OPT_GO, data):
            if kind == nbd.REP_INFO and len(payload) >= 2:
                if payload[:2] == struct.pack(">H", nbd.INFO_EXPORT) and len(payload) == 12:
                    (self.size,) = struct.unpack(">Q", payload[2:10])
                    known = True
            elif kind == nbd.REP_ERROR_UNKNOWN:
                raise NotFound(f"{self._where} has no export named {export}")
            elif kind != nbd.REP_ACK:
                raise self._broken(f"reply {kind:#x} to the choice of the export")
        if not known or self.size >= 1 << 63:
            raise self._broken("no size")

    def _option(self, option: int, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Send an option; yield its replies as (type, payload), an ACK or an error last."""
        self._send(nbd.OPTION_MAGIC + struct.pack(">II", option, len(data)) + data)
        kind = 0
        while kind != nbd.REP_ACK and not kind & nbd.REP_ERROR:
            magic, answered, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != nbd.OPTION_REPLY_MAGIC or answered != option or length > 1 << 16:
                raise self._broken("a reply to an option that was not asked")
            yield kind, self._receive(length)

    # Transmission

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read ``len(buffer)`` bytes (at most 32 MiB) at ``offset``."""
        left = len(buffer)
        for chunk in self._request(nbd.CMD_READ, offset, len(buffer)):
            if chunk.kind == nbd.REPLY_DATA and chunk.length > 8:
                (at,) = struct.unpack(">Q", self._receive(8))
                length = chunk.length - 8
                self._receive_into(self._part(buffer, at - offset, length))
            elif chunk.kind == nbd.REPLY_HOLE and chunk.length == 12:
                at, length = struct.unpack(">QI", self._receive(12))
                self._part(buffer, at - offset, length)[:] = bytes(length)
            else:
                raise self._broken(f"reply of type {chunk.kind} to a read")
            left -= length
        if left != 0:
            raise self._broken("a read was answered in part")

    def block_status(self, offset: int, length: int) -> dict[str, list[tuple[int, int]]]:
        """The runs at ``offset`` for each context, as (length, state); they may end early."""
        states: dict[str, list[tuple[int, int]]] = {}
        for chunk in self._request(nbd.CMD_BLOCK_STATUS, offset, length):
            well_formed = chunk.length >= 12 and chunk.length % 8 == 4
            if chunk.kind != nbd.REPLY_STATUS or not well_formed or chunk.length > _MAX_PAYLOAD:
                raise self._broken(f"reply of type {chunk.kind} to a block status request")
            payload = self._receive(chunk.length)
            (context,) = struct.unpack(">I", payload[:4])
            name = self.contexts.get(context)
            if name is None or name in states:
                raise self._broken("a block status of an unknown context")
            states[name] = self._clip(struct.iter_unpack(">II", payload[4:]), length)
        if not states:
            raise self._broken("no block status")
        return states

    def _clip(self, pairs: Iterator[tuple[int, ...]], length: int) -> list[tuple[int, int]]:
        """Descriptors as (length, state), cut at ``length`` (the last may pass the request)."""
        runs = []
        for run, state in pairs:
            if run == 0:
                raise self._broken("an empty run")
            if length > 0:
                runs.append((min(run, length), state))
                length -= run
        return runs

    def _part(self, buffer: memoryview, start: int, length: int) -> memoryview:
        if start < 0 or length < 1 or start + length > len(buffer):
            raise self._broken("bytes that were not asked for")
        return buffer[start : start + length]

    def _request(self, command: int, offset: int, length: int) -> Iterator[_Chunk]:
        """Send a request; yield its reply chunks (the caller receives each one's payload)."""
        handle = next(self._handles)
        self._send(struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, command, handle, offset, length))
        done = False
        while not done:
            magic, flags, kind, answered, size = struct.unpack(">IHHQI", self._receive(20))
            if magic != nbd.STRUCTURED_MAGIC or answered != handle:
                raise self._broken("a reply to no request")
            done = bool(flags & nbd.DONE)
            if kind & _ERROR_CHUNK:
                raise self._refused(self._receive(min(size, 1 << 16)))
            if kind != nbd.REPLY_NONE:
                yield _Chunk(done, kind, size)
            elif size or not done:
                raise self._broken("an empty chunk with something in it")

    def _refused(self, payload: bytes) -> ToolFailed:
        number, length = struct.unpack(">IH", payload[:6].ljust(6, b"\0"))
        text = payload[6 : 6 + length].decode("utf-8", "replace")
        return ToolFailed(f"{self._where} answered with error {number}: {text}")

    def _broken(self, what: str) -> ToolFailed:
        return ToolFailed(f"{self._where} broke the protocol: {what}")

    # Bytes

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise TimedOut(f"{self._where} does not answer") from None
        except OSError as error:
            raise ToolFailed(f"{self._where} went away: {error.strerror}") from error

    def _receive(self, length: int) -> bytes:
        buffer = bytearray(length)
        self._receive_into(memoryview(buffer))
        return bytes(buffer)

    def _receive_into(self, buffer: memoryview) -> None:
        while len(buffer) > 0:
            try:
                count = self._socket.recv_into(buffer)
            except TimeoutError:
                raise TimedOut(f"{self._where} does not answer") from None
            except OSError as error:
                raise ToolFailed(f"{self._where} went away: {error.strerror}") from error
            if count == 0:
                raise ToolFailed(f"{self._where} went away")
            buffer = buffer[count:]

    def disconnect(self) -> None:
        """Say good-bye and close."""
        with contextlib.suppress(OSError):
            self._socket.sendall(
                struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, nbd.CMD_DISC, 0, 0, 0)
            )
        self._socket.close()

    def abort(self) -> None:
        """Close at once: the stream may be in the middle of a reply."""
        self._socket.close()
