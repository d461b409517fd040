"""Killed at any durable operation, or cut from power there: what was acknowledged is whole, and the next
ingest converges.

A forked process does the work with the system calls counted; at the Nth it dies. For a power cut it first
takes away what was not synced: the later half of unsynced files, and names whose directory was not synced.
"""

import itertools
import os
import random
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.disks import BytesDisk

from calotype.disk.base import Extent, read
from calotype.store import DirectoryStore, Repository, packwriter
from calotype.store.chunking import Chunking
from calotype.store.ledger import MemoryLedger

MIB = 1 << 20
CRASHED = 86
CHANGED = [Extent(200_000, 5000, zero=False), Extent(MIB + 4096, 65536, zero=False)]


FIRST = random.Random(1).randbytes(MIB) + bytes(MIB)
SECOND = random.Random(2).randbytes(MIB // 2) + FIRST
THIRD = bytearray(FIRST)
for extent in CHANGED:
    THIRD[extent.offset : extent.end] = random.Random(3).randbytes(extent.length)


class Crash:
    """Counts what changes the disk, and dies at the Nth such call."""

    def __init__(self, at: int, place: Path, *, power: bool) -> None:
        self._at = at
        self._place = place
        self._power = power
        self._count = 0
        self._lock = threading.RLock()
        self._unsynced: set[tuple[int, int]] = set()  # files (device, inode) with unsynced bytes
        self._names: list[tuple[str, Callable[[], None]]] = []  # directory, how to undo
        self._real = {
            name: getattr(os, name)
            for name in (
                "fsync",
                "rename",
                "link",
                "mkdir",
                "writev",
                "pwritev",
                "unlink",
                "ftruncate",
            )
        }

    def install(self) -> None:
        for name in self._real:
            setattr(os, name, getattr(self, name))

    def _next(self) -> None:
        self._count += 1
        if self._count == self._at:
            self.now()

    def now(self) -> None:
        """Die."""
        if self._power:
            for path in self._place.rglob("*"):
                state = path.stat()
                if (state.st_dev, state.st_ino) in self._unsynced:
                    os.truncate(path, state.st_size // 2)
            for _directory, undo in reversed(self._names):
                undo()
        os._exit(CRASHED)

    def fsync(self, fd):
        with self._lock:
            self._next()
            self._real["fsync"](fd)
            path = os.readlink(f"/proc/self/fd/{fd}")
            self._unsynced.discard(_file(fd))
            self._names = [entry for entry in self._names if entry[0] != path]

    def rename(self, source, target):
        with self._lock:
            self._next()
            source, target = os.fspath(source), os.fspath(target)
            self._real["rename"](source, target)
            undo = lambda: self._real["rename"](target, source)  # noqa: E731 - one line says it
            self._names.append((os.path.dirname(target), undo))

    def link(self, source, target):
        with self._lock:
            self._next()
            self._real["link"](source, target)
            self._names.append((os.path.dirname(target), lambda: self._real["unlink"](target)))

    def mkdir(self, path, mode=0o777):
        with self._lock:
            self._next()
            self._real["mkdir"](path, mode)
            self._names.append((os.path.dirname(path), lambda: shutil.rmtree(path, True)))

    def unlink(self, path):
        with self._lock:
            self._next()
            self._real["unlink"](path)

    def writev(self, fd, buffers):
        with self._lock:
            self._unsynced.add(_file(fd))
            half = b"".join(buffers)
            if self._count + 1 == self._at:
                self._real["writev"](fd, [half[: len(half) // 2]])
            self._next()
            written: int = self._real["writev"](fd, buffers)
            return written

    def pwritev(self, fd, buffers, offset):
        with self._lock:
            self._unsynced.add(_file(fd))
            self._next()
            written: int = self._real["pwritev"](fd, buffers, offset)
            return written

    def ftruncate(self, fd, size):
        with self._lock:
            self._next()
            self._real["ftruncate"](fd, size)


def _file(fd: int) -> tuple[int, int]:
    state = os.fstat(fd)
    return state.st_dev, state.st_ino


def forked(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # no thread of ours is alive here
        child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in memory where there is one: the crash is modelled, so real syncs only cost time."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as name:
        yield Path(name)


@pytest.fixture
def small_packs(monkeypatch):
    monkeypatch.setattr(packwriter, "SEALED_AT", 256 << 10)


def content(repository: Repository, index: str) -> bytes:
    disk = repository.open(index)
    return read(disk, 0, disk.size)


def reference(path: Path) -> str:
    """A repository with one image, acknowledged before anything crashes: its Index."""
    repository = Repository.create(DirectoryStore(path), chunking=Chunking(region=MIB))
    return repository.ingest(BytesDisk(FIRST)).index


def work(path: Path, base: str) -> None:
    """What is interrupted: an ingest, a capture over the base, and a materialize."""
    repository = Repository.open_or_create(DirectoryStore(path))
    repository.ingest(BytesDisk(SECOND))
    repository.ingest(BytesDisk(bytes(THIRD)), base=base, changed=CHANGED)
    repository.materialize(base, path.parent / "base.raw")
    repository.sweep()  # a step after the last, to crash at
    DirectoryStore(path).persist("packs/")


def converge(path: Path, base: str, expected: dict[str, bytes]) -> None:
    """After a crash: nothing lost, nothing torn, and doing it again ends as if nothing happened."""
    repository = Repository.open_or_create(DirectoryStore(path))
    listed = list(repository.indexes())
    assert base in listed
    assert set(listed) <= set(expected)
    for index in listed:
        assert content(repository, index) == expected[index]
    assert repository.check().ok
    repository.sweep()
    assert not os.listdir(path / "tmp")
    if (path.parent / "base.raw").exists():
        assert (path.parent / "base.raw").read_bytes() == FIRST
    work(path, base)
    again = Repository.open_or_create(DirectoryStore(path))
    assert set(again.indexes()) == set(expected)
    report = again.check()
    assert report.ok
    assert not report.leftovers
    assert sorted(p.name for p in path.parent.iterdir()) == ["base.raw", "store"]


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
@pytest.mark.usefixtures("small_packs")
def test_every_point_of_ingest_capture_and_materialize(place, power):
    template, undisturbed = place / "template" / "store", place / "undisturbed" / "store"
    base = reference(template)
    shutil.copytree(template, undisturbed)
    work(undisturbed, base)
    made = Repository(DirectoryStore(undisturbed))
    expected = {index: content(made, index) for index in made.indexes()}
    assert sorted(expected.values()) == sorted([FIRST, SECOND, bytes(THIRD)])
    for at in itertools.count(1):
        path = place / f"run{at}" / "store"
        shutil.copytree(template, path)

        def crashing(at: int = at, path: Path = path) -> None:
            Crash(at, path.parent, power=power).install()
            work(path, base)

        status = forked(crashing)
        if status == 0:
            break
        assert status == CRASHED
        converge(path, base, expected)
        shutil.rmtree(path.parent)
    assert at > 40


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
def test_every_point_of_creation(place, power):
    for at in itertools.count(1):
        path = place / str(at)

        def crashing(at: int = at, path: Path = path) -> None:
            Crash(at, path, power=power).install()
            Repository.open_or_create(DirectoryStore(path))

        if forked(crashing) == 0:
            break
        repository = Repository.open_or_create(DirectoryStore(path))
        index = repository.ingest(BytesDisk(FIRST)).index
        assert content(Repository(DirectoryStore(path)), index) == FIRST
        assert repository.check().ok
    assert at > 8


def test_an_image_acknowledged_in_a_new_store_survives_a_power_cut(place):
    path = place / "new" / "store"

    def acknowledge() -> None:
        crash = Crash(0, place, power=True)
        crash.install()
        Repository.open_or_create(DirectoryStore(path)).ingest(BytesDisk(FIRST))
        crash.now()

    assert forked(acknowledge) == CRASHED
    repository = Repository(DirectoryStore(path))
    (index,) = repository.indexes()
    assert content(repository, index) == FIRST
    assert repository.check().ok


@pytest.mark.usefixtures("small_packs")
def test_a_killed_ingest_is_continued_with_what_is_there(place):
    path = place / "store"
    Repository.open_or_create(DirectoryStore(path))
    disk = BytesDisk(random.Random(4).randbytes(4 * MIB))

    class Dying(BytesDisk):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            if offset >= 3 * MIB:
                os._exit(CRASHED)
            super().read_into(offset, buffer)

    def ingest() -> None:
        Repository(DirectoryStore(path)).ingest(Dying(disk.data))

    # One region, so that its first windows are stored when the last one kills.
    from calotype.store import ingest as module  # noqa: PLC0415 - only here

    before, module.WINDOW = module.WINDOW, MIB
    try:
        assert forked(ingest) == CRASHED
    finally:
        module.WINDOW = before
    repository = Repository(DirectoryStore(path))
    assert list(repository.indexes()) == []
    taken = repository.ingest(disk)
    assert taken.new_bytes < 3 * MIB
    assert content(repository, taken.index) == disk.data


@pytest.mark.usefixtures("small_packs")
def test_two_processes_at_once_in_one_store(place):
    path = place / "store"
    start_read, start_write = os.pipe()
    children = []
    for data in (SECOND, SECOND, bytes(THIRD), FIRST):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # no thread of ours is alive here
            child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(start_write)
                os.read(start_read, 1)
                repository = Repository.open_or_create(DirectoryStore(path))
                index = repository.ingest(BytesDisk(data)).index
                status = 0 if content(repository, index) == data else 2
            finally:
                os._exit(status)
        children.append(child)
    os.close(start_write)
    os.close(start_read)
    assert [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children] == [0] * 4
    repository = Repository(DirectoryStore(path))
    assert len(list(repository.indexes())) == 3
    report = repository.check()
    assert report.ok
    assert not report.leftovers


def test_a_root_that_was_committed_and_not_yet_written_is_no_damage(place, monkeypatch):
    """Killed between the ledger's commit and the root's object: the ledger's copy is put there."""
    ledger = MemoryLedger()
    objects = DirectoryStore(place / "store")
    repository = Repository.create(objects, ledger, chunking=Chunking(region=MIB))
    kept = repository.ingest(BytesDisk(SECOND)).index

    class Killed(BaseException):
        pass

    def put(key: str, *_arguments: object, **_options: object) -> bool:
        assert key.startswith("indexes/")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(objects, "put", put)
        with pytest.raises(Killed):
            repository.ingest(BytesDisk(FIRST))
    again = Repository(DirectoryStore(place / "store"), ledger)
    assert len(list(objects.list("indexes/"))) == 1
    assert again.check().ok
    (lost,) = set(again.indexes()) - {kept}
    assert content(again, lost) == FIRST
    assert len(list(objects.list("indexes/"))) == 2
