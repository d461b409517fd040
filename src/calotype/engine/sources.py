"""Where an upload comes from: a file, a block device, a URL, standard input — made one open file."""

import errno
import hashlib
import os
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from calotype.disk.vhd import SizeRule
from calotype.engine import names
from calotype.engine.context import Context
from calotype.engine.fetch import fetch, plain
from calotype.errors import InvalidInput, NotFound
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
class LocalFile:
    """An upload on this machine, not yet looked at."""

    path: Path
    kind: SourceKind
    shown: str  # as it is recorded: never a credential


def fetch_source(context: Context, upload: Upload, scratch: Path) -> LocalFile:
    """Bring an upload to this machine.

    Raises:
        NotFound: no such file.
        InvalidInput: a URL without a checksum, or that is refused; a path that is no file.
    """
    if upload.location == "-":
        return LocalFile(
            path=_spool(context, scratch), kind=SourceKind.STDIN, shown="standard input"
        )
    if upload.location.startswith(("http://", "https://")):
        return _download(context, upload, scratch)
    if "://" in upload.location:
        raise InvalidInput(f"'{plain(upload.location)}' is not an http or https URL")
    path = Path(upload.location)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise NotFound(f"there is no file '{path}'") from None
    if stat.S_ISREG(mode) and upload.recipe is not None:
        return LocalFile(path=path, kind=SourceKind.RECIPE, shown=upload.recipe)
    if stat.S_ISREG(mode):
        return LocalFile(path=path, kind=SourceKind.FILE, shown=path.name)
    if stat.S_ISBLK(mode):
        return LocalFile(path=path, kind=SourceKind.DEVICE, shown=str(path))
    raise InvalidInput(f"'{path}' is neither a file nor a block device")


def _download(context: Context, upload: Upload, scratch: Path) -> LocalFile:
    if upload.sha256 is None:
        raise InvalidInput(
            "a URL needs a checksum",
            hint="add --checksum with the SHA-256 that its publisher names",
        )
    target = scratch / names.new_id()
    fetch(
        upload.location,
        target,
        sha256=upload.sha256,
        allow=upload.allow_addresses,
        max_bytes=_room(scratch),
        progress=context.progress,
    )
    return LocalFile(path=target, kind=SourceKind.URL, shown=plain(upload.location))


def _spool(context: Context, scratch: Path) -> Path:
    """Standard input as a file: formats with tables at their end cannot be read as a stream."""
    target = scratch / names.new_id()
    room = _room(scratch)
    with target.open("xb") as file, context.progress.phase("standard input") as advance:
        while block := sys.stdin.buffer.read(_BLOCK):
            room -= len(block)
            if room < 0:
                raise InvalidInput("standard input does not fit on this disk")
            file.write(block)
            advance(len(block))
    return target


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
