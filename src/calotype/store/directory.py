"""Objects as files of one directory, written so that a power cut loses nothing acknowledged.

An object is written to ``tmp/``, fsynced, renamed to its key, and its directory is fsynced. The writer
holds a lock on its temporary file, so that :meth:`DirectoryStore.sweep` knows which writers are gone.
"""

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from calotype.disk.durable import fsync_directory
from calotype.errors import Conflict
from calotype.store.objects import Bytes, Stored, as_buffers, check_key, missing, truncated

_TMP = "tmp"
_IOV_MAX = 512


class DirectoryStore:
    """Objects as files under ``path``; several processes may use one directory at once.

    With ``public``, every user of the host may read the objects, such as a web server.
    """

    def __init__(self, path: Path | str, *, public: bool = False) -> None:
        self._root = os.path.abspath(path)
        self._public = public
        _make_directory(self._root, public=public)
        _make_directory(os.path.join(self._root, _TMP))

    @property
    def path(self) -> Path:
        """The directory."""
        return Path(self._root)

    def _file(self, key: str) -> str:
        check_key(key)
        if key.startswith(f"{_TMP}/") or key == _TMP:
            raise missing(key)
        return os.path.join(self._root, key)

    def get(self, key: str) -> bytes:
        """The whole object."""
        with self._opened(key) as fd:
            return _pread(fd, 0, os.fstat(fd).st_size, key)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes of an object."""
        if offset < 0 or length < 0:
            raise truncated(key, offset + length)
        with self._opened(key) as fd:
            return _pread(fd, offset, length, key)

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[int]:
        try:
            fd = os.open(self._file(key), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise missing(key) from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise missing(key)
            yield fd
        finally:
            os.close(fd)

    def size(self, key: str) -> int:
        """The object's size in bytes."""
        with self._opened(key) as fd:
            return os.fstat(fd).st_size

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """The objects whose keys start with ``prefix``, sorted by key."""
        found: list[Stored] = []
        for directory, files in self._directories(prefix):
            below = os.path.relpath(directory, self._root)
            for file in files:
                key = file if below == "." else f"{below}/{file}"
                if key.startswith(prefix):
                    # A file that is deleted while we list was never there.
                    with contextlib.suppress(FileNotFoundError):
                        found.append(Stored(key, os.stat(os.path.join(directory, file)).st_size))
        return iter(sorted(found))

    def put(self, key: str, data: Bytes | Iterable[Bytes], *, if_absent: bool = False) -> bool:
        """Keep ``data`` as ``key``."""
        if if_absent and os.path.exists(self._file(key)):
            # Whoever finds a key taken may rely on it, so its name must be durable by then.
            fsync_directory(os.path.dirname(self._file(key)))
            return False
        writer = self.writer()
        try:
            for buffer in as_buffers(data):
                writer.write((buffer,))
            return writer.publish(key, replace=not if_absent)
        finally:
            writer.abort()

    def writer(self) -> "FileWriter":
        """Start an object whose key is known only at its end."""
        return FileWriter(self)

    def delete(self, key: str) -> None:
        """Remove an object."""
        path = self._file(key)
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        fsync_directory(os.path.dirname(path))

    def persist(self, prefix: str) -> None:
        """Sync the directories that hold the objects of ``prefix``."""
        for directory, _files in self._directories(prefix):
            fsync_directory(directory)

    def _directories(self, prefix: str) -> Iterator[tuple[str, Sequence[str]]]:
        """The directories that may hold keys of ``prefix``, with the names of their files."""
        top = os.path.join(self._root, os.path.dirname(prefix)) if "/" in prefix else self._root
        for directory, names, files in os.walk(top):
            if directory == self._root and _TMP in names:
                names.remove(_TMP)
            if directory != os.path.join(self._root, _TMP):
                yield directory, files

    def leftovers(self) -> Sequence[str]:
        """Names of unfinished objects whose writers are gone."""
        return [name for name in self._temporary() if self._abandoned(name, remove=False)]

    def sweep(self) -> Sequence[str]:
        """Remove the leftovers, and return their names."""
        return [name for name in self._temporary() if self._abandoned(name, remove=True)]

    def _temporary(self) -> Sequence[str]:
        return sorted(f"{_TMP}/{name}" for name in os.listdir(os.path.join(self._root, _TMP)))

    def _abandoned(self, name: str, *, remove: bool) -> bool:
        path = os.path.join(self._root, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            if not os.fstat(fd).st_nlink:
                return False
            if remove:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            return True
        finally:
            os.close(fd)

    def close(self) -> None:
        """Nothing to release."""

    def temporary_file(self) -> tuple[str, int]:
        """A new, locked, empty file in ``tmp/``: its path and descriptor."""
        while True:
            path = os.path.join(self._root, _TMP, f"{os.getpid()}-{secrets.token_hex(8)}")
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            if self._public:
                os.fchmod(fd, 0o644)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:  # else a sweep came between the two calls
                return path, fd
            os.close(fd)

    def target(self, key: str) -> str:
        """The path of an object, whose directory now exists."""
        path = self._file(key)
        _make_directory(os.path.dirname(path), public=self._public)
        return path


class FileWriter:
    """An object of a :class:`DirectoryStore` that is being written."""

    def __init__(self, store: DirectoryStore) -> None:
        self._store = store
        self._path, self._fd = store.temporary_file()

    def write(self, buffers: Sequence[Bytes]) -> None:
        """Append the buffers."""
        if self._fd < 0:
            raise Conflict("this object is already finished")
        write_all(self._fd, buffers)

    def commit(self, key: str) -> None:
        """Make the object durable, then visible as ``key``."""
        self.publish(key, replace=True)

    def publish(self, key: str, *, replace: bool) -> bool:
        """As :meth:`commit`; without ``replace``, False when the key is taken."""
        if self._fd < 0:
            raise Conflict("this object is already finished")
        target = self._store.target(key)
        os.fsync(self._fd)
        fresh = True
        if replace:
            os.rename(self._path, target)
        else:
            try:
                os.link(self._path, target)
            except FileExistsError:
                fresh = False
        fsync_directory(os.path.dirname(target))
        self.abort()
        return fresh

    def abort(self) -> None:
        """Drop what was written; harmless after a commit."""
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            os.close(self._fd)
            self._fd = -1


def write_all(fd: int, buffers: Sequence[Bytes]) -> None:
    """Append every byte of the buffers to a file."""
    views = [memoryview(b).cast("B") for b in buffers if len(b)]
    start = 0
    while start < len(views):
        written = os.writev(fd, views[start : start + _IOV_MAX])
        while start < len(views) and written >= len(views[start]):
            written -= len(views[start])
            start += 1
        if written:
            views[start] = views[start][written:]


def _pread(fd: int, offset: int, length: int, key: str) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise truncated(key, offset + length)
        data += more
    return data


def _make_directory(path: str, *, public: bool = False) -> None:
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    _make_directory(parent, public=public)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        if public:
            os.chmod(path, 0o755)  # noqa: S103 (everybody is to read it)
    fsync_directory(parent)
