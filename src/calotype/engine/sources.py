"""Where an upload comes from: a file, a block device, a URL, standard input — made one open window.

A file is read where it lies, and so is a raw disk behind a URL. Any other stream is written, unpacked and
without its zeros, to a file without a name in the operation's directory: formats have tables at their ends,
file systems all over the disk, and a stream can be read but once. A killed command leaves nothing of it.
"""

import errno
import hashlib
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import FileIO
from itertools import chain
from pathlib import Path

from calotype.disk.base import Disk
from calotype.disk.compression import HEAD, Packing, keep, packing, packing_of
from calotype.disk.draft import scratch_file
from calotype.disk.gate import MAX_VIRTUAL_SIZE, Format, parse_format, sniff
from calotype.disk.ova import is_ova
from calotype.disk.vhd import SizeRule
from calotype.disk.window import Window
from calotype.engine.base.fetch import Remote, plain
from calotype.engine.context import Context
from calotype.engine.generalize.remote import RemoteFile
from calotype.errors import DiskRefused, InvalidInput, NotFound
from calotype.model import Caching, SourceKind

_BLOCK = 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """One thing that a user wants to upload.

    Attributes:
        location: A path, an ``http(s)`` URL, or ``-`` for standard input.
        format: The disk format that the user declares; ``None``: found out.
        sha256: What the file must hash to (hex); required for a URL.
        caching: The host caching of the disk.
        recipe: The recipe that made the file, if one did.
        vhd_size: Whose word counts for a VHD's size: ``current`` (Azure's rule) or ``geometry``.
        allow_addresses: Networks that a URL may lead to although they are not public.
    """

    location: str
    format: str | None = None
    sha256: str | None = None
    caching: Caching = Caching.READ_WRITE
    allow_addresses: tuple[str, ...] = ()
    recipe: str | None = None
    vhd_size: SizeRule = "current"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An upload that can be read, not yet looked at."""

    window: Window
    kind: SourceKind
    shown: str  # as it is recorded: never a credential
    sha256: Callable[[], str]  # of what was uploaded (hex); waits until all of it is read
    packed: Packing | None = None  # it was packed so, and is not any more
    begin: Callable[[], None] | None = None  # to be called when it will be read once, in order

    def follow(self, disk: Disk) -> Disk:
        """A disk of this upload, as the store is to read it."""
        return _Followed(disk, self.begin) if self.begin is not None else disk


class _Followed:
    """A disk that wants to know when it is read in order; a :class:`calotype.store.Followed`."""

    def __init__(self, disk: Disk, begin: Callable[[], None]) -> None:
        self.size = disk.size
        self.extents = disk.extents
        self.read_into = disk.read_into
        self.close = disk.close
        self.begin = begin


@contextmanager
def open_source(context: Context, upload: Upload, scratch: Path) -> Iterator[Source]:
    """Open an upload for reading.

    Raises:
        NotFound: no such file.
        InvalidInput: a URL without a checksum, or that is refused; a path that is no file; a stream
            that does not fit on this machine.
        DiskRefused: a packed stream is damaged.
        ToolFailed: a server does not deliver.
    """
    if upload.location == "-":
        opened = _stdin(context, scratch)
    elif upload.location.startswith(("http://", "https://")):
        opened = _url(context, upload, scratch)
    elif "://" in upload.location:
        raise InvalidInput(f"'{plain(upload.location)}' is not an http or https URL")
    else:
        opened = _local(upload)
    with opened as source:
        yield source


@contextmanager
def _local(upload: Upload) -> Iterator[Source]:
    path = Path(upload.location)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise NotFound(f"there is no file '{path}'") from None
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise InvalidInput(f"'{path}' is neither a file nor a block device")
    kind, shown = SourceKind.FILE, path.name
    if stat.S_ISBLK(mode):
        kind, shown = SourceKind.DEVICE, str(path)
    elif upload.recipe is not None:
        kind, shown = SourceKind.RECIPE, upload.recipe
    with (
        FileIO(path) as file,  # opened once: what is hashed is what is read
        Window.open(file.fileno()) as window,
        hashing(file) as digest,
    ):
        yield Source(window=window, kind=kind, shown=shown, sha256=digest.result)


@contextmanager
def _stdin(context: Context, scratch: Path) -> Iterator[Source]:
    blocks = iter(lambda: sys.stdin.buffer.read(_BLOCK), b"")
    with _kept(blocks, scratch, context.progress.phase("reading standard input")) as kept:
        yield Source(
            window=kept.window,
            kind=SourceKind.STDIN,
            shown="standard input",
            sha256=kept.sha256,
            packed=kept.packed,
        )


@contextmanager
def _url(context: Context, upload: Upload, scratch: Path) -> Iterator[Source]:
    if upload.sha256 is None:
        raise InvalidInput(
            "a URL needs a checksum",
            hint="add --checksum with the SHA-256 that its publisher names",
        )
    remote = Remote(upload.location, allow=upload.allow_addresses)
    kind, shown = SourceKind.URL, plain(upload.location)
    if remote.ranges and remote.size is not None:
        with scratch_file(scratch) as fd:
            file = RemoteFile(remote, fd)
            with file.window() as window:
                if _is_raw(window, upload):
                    yield Source(
                        window=window,
                        kind=kind,
                        shown=shown,
                        sha256=file.sha256,
                        begin=file.begin,
                    )
                    return
    phase = context.progress.phase("downloading", remote.size)
    with _kept(remote.stream(), scratch, phase) as kept:
        # Nothing is made of bytes that are not those that the user meant.
        require_sha256(shown, kept.sha256(), upload.sha256)
        yield Source(
            window=kept.window, kind=kind, shown=shown, sha256=kept.sha256, packed=kept.packed
        )


def require_sha256(shown: str, found: str, wanted: str | None) -> None:
    """Refuse an upload that is not what its user said.

    Raises:
        InvalidInput: it has another checksum.
    """
    if wanted is not None and wanted.lower() != found:
        raise InvalidInput(
            f"'{shown}' has SHA-256 {found}, not {wanted.lower()}",
            hint="the file changed or was tampered with; check the publisher's checksum",
        )


def _is_raw(window: Window, upload: Upload) -> bool:
    """Whether a remote file is a plain raw disk; what it says wrongly is found again at the gate."""
    declared = parse_format(upload.format) if upload.format not in (None, "ova") else None
    if packing(window) is not None or is_ova(window):
        return False
    try:
        return sniff(window, declared) is Format.RAW
    except DiskRefused:
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """A stream that was read to its end."""

    window: Window
    packed: Packing | None
    digest: str

    def sha256(self) -> str:
        return self.digest


@contextmanager
def _kept(
    blocks: Iterator[bytes],
    scratch: Path,
    phase: AbstractContextManager[Callable[[int], None]],
) -> Iterator[_Kept]:
    """A stream as a nameless file: unpacked, with holes for its zeros."""
    digest = hashlib.sha256()
    room = _room(scratch)
    with scratch_file(scratch) as fd:

        def check() -> None:
            if os.fstat(fd).st_blocks * 512 > room:
                raise InvalidInput(f"the upload is larger than the {room} bytes that fit here")

        with phase as advance:
            stream = _counted(blocks, digest.update, advance)
            head = b""
            while len(head) < HEAD and (block := next(stream, None)) is not None:
                head += block
            packed = packing_of(head[:HEAD])
            keep(chain([head], stream), packed, fd, limit=MAX_VIRTUAL_SIZE, check=check)
        with Window.open(fd) as window:
            yield _Kept(window=window, packed=packed, digest=digest.hexdigest())


def _counted(
    blocks: Iterator[bytes], update: Callable[[bytes], None], advance: Callable[[int], None]
) -> Iterator[bytes]:
    for block in blocks:
        update(block)
        yield block
        advance(len(block))


def _room(path: Path) -> int:
    """Bytes that may be used below ``path``: a fifth of what is free is left alone."""
    return shutil.disk_usage(path).free * 4 // 5


@contextmanager
def hashing(file: FileIO) -> Iterator["Future[str]"]:
    """SHA-256 of an open file, counted in the background; stopped when the block is left early."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(_digest, file, stop)
        except BaseException:
            stop.set()
            raise


def _digest(file: FileIO, stop: threading.Event) -> str:
    """SHA-256 in hex; holes are counted as the zeros that they are, and not read."""
    digest = hashlib.sha256()
    buffer, zeros = memoryview(bytearray(_BLOCK)), memoryview(bytes(_BLOCK))
    # A description of its own: others move the position of the one that they share.
    with FileIO(f"/proc/self/fd/{file.fileno()}") as own:
        size = own.seek(0, os.SEEK_END)
        at = 0
        while at < size and not stop.is_set():
            hole = min(_next_data(own.fileno(), at, size) - at, _BLOCK)
            block = zeros[:hole] if hole else buffer[: os.preadv(own.fileno(), [buffer], at)]
            if not block:  # the file was cut off meanwhile
                break
            digest.update(block)
            at += len(block)
    return digest.hexdigest()


def _next_data(descriptor: int, at: int, size: int) -> int:
    """Where the next data of a file begins; ``at`` itself where the file system knows no holes."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        return size if error.errno == errno.ENXIO else at
