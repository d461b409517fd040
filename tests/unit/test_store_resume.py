"""Uploads that end in the middle: what was taken in stays, and the next one goes on with it."""

import os
import random
import signal
from collections.abc import Callable, Iterator

import pytest

from calotype.disk.base import Extent, read
from calotype.store import DirectoryStore, MemoryStore, Repository, intake, packwriter, workers
from calotype.store.chunking import Chunking
from calotype.store.objects import Stored
from calotype.store.pack import load

MIB = 1 << 20
SIZE = 48 * MIB
DATA = random.Random(11).randbytes(SIZE)


class BytesDisk:
    """A disk in memory; ``at`` is called with each offset that is read."""

    def __init__(self, data: bytes, at: Callable[[int], None] = lambda _offset: None) -> None:
        self.data = data
        self.size = len(data)
        self.at = at

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size, zero=False)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.at(offset)
        buffer[:] = self.data[offset : offset + len(buffer)]

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Packs of 2, 4, then 8 MiB; one worker, so that the disk is read in order."""
    monkeypatch.setattr(intake, "_FIRST", 2 * MIB)
    monkeypatch.setattr(packwriter, "SEALED_AT", 8 * MIB)
    monkeypatch.setattr(workers, "MOST", 1)


def packs(store: DirectoryStore | MemoryStore) -> list[Stored]:
    return list(store.list("packs/"))


def half_way(action: Callable[[], None]) -> Callable[[int], None]:
    def at(offset: int) -> None:
        if offset >= SIZE // 2:
            action()

    return at


def create(store: DirectoryStore | MemoryStore) -> None:
    Repository.create(store, chunking=Chunking(region=4 * MIB))


def test_the_first_packs_of_an_ingest_are_small():
    store = MemoryStore()
    create(store)
    Repository(store).ingest(BytesDisk(DATA))
    sizes = sorted(stored.size // MIB for stored in packs(store))
    # The leaves, then what was left; each of the others may be too large by a window (4 MiB).
    assert sizes[0] == 0
    assert sizes[2] < 2 + 4
    assert sizes[3] < 4 + 4
    assert 8 <= sizes[4] <= sizes[-1] < 8 + 4 + 1


def test_killed_half_way_an_upload_goes_on(tmp_path):
    path = tmp_path / "store"
    create(DirectoryStore(path))
    kill = half_way(lambda: os.kill(os.getpid(), signal.SIGKILL))
    child = os.fork()
    if child == 0:
        try:
            Repository(DirectoryStore(path)).ingest(BytesDisk(DATA, kill))
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL

    store = DirectoryStore(path)
    repository = Repository(store)
    before = packs(store)
    assert sum(s.size for s in before) >= SIZE // 2 - 12 * MIB
    assert len(repository.sweep()) == 2  # the packs that were not sealed
    assert repository.sweep() == []
    taken = repository.ingest(BytesDisk(DATA))
    assert taken.new_bytes <= SIZE // 2 + 12 * MIB  # what one unsealed pack and a window hold
    disk = repository.open(taken.index)
    assert read(disk, 0, disk.size) == DATA
    # Everything that the first try left is in use: there is nothing to prune.
    assert {s.key for s in before} <= {s.key for s in packs(store)}
    usage = repository.stats([taken.index])
    assert usage.referenced >= 0.98 * usage.stored
    assert repository.check().ok


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_stopped_half_way_nothing_is_lost(stop):
    def halt() -> None:
        raise stop

    store = MemoryStore()
    create(store)
    with pytest.raises(stop):
        Repository(store).ingest(BytesDisk(DATA, half_way(halt)))
    taken = Repository(store).ingest(BytesDisk(DATA))
    assert taken.new_bytes <= SIZE // 2 + MIB  # the frame that was not full


def test_after_an_error_of_the_disk_no_pack_is_sealed_in_a_hurry():
    def fail() -> None:
        raise OSError(5, "Input/output error")

    store = MemoryStore()
    create(store)
    with pytest.raises(OSError, match="Input"):
        Repository(store).ingest(BytesDisk(DATA, half_way(fail)))
    assert all(s.size >= 2 * MIB for s in packs(store))


def test_chunks_that_compress_well_fill_no_footer(monkeypatch):
    monkeypatch.setattr(packwriter, "_CHUNKS_AT", 100)
    store = MemoryStore()
    create(store)
    blocks = (n.to_bytes(4, "little") * 1024 for n in range(1, 16 * 256))
    Repository(store).ingest(BytesDisk(b"".join(blocks)))
    loaded = [load(store, stored.key, stored.size) for stored in packs(store)]
    assert len(loaded) > 3
    assert all(len(pack.lengths) < 100 + 300 for pack in loaded)
