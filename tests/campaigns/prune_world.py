"""A small world in which commands run over one store at once, stopped before each thing that they do to it.

A :class:`Process` runs the real code in a thread, with a store and a ledger that stop it at a gate before
every call; whoever drives the world lets one process pass one gate at a time. So every interleaving of
calls can be had, a process can be killed between any two of them, and nothing depends on time.

The world watches the shared store and ledger. A root is *owed* from the moment in which the ledger commits
it until it removes it, and all that it needs must be in the store at every moment between.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

from blake3 import blake3
from tests.disks import BytesDisk

from calotype.disk.base import read
from calotype.errors import CalotypeError
from calotype.store import Ingested, MemoryStore, Repository
from calotype.store.chunking import Chunking
from calotype.store.index import Leaf, Root
from calotype.store.ledger import MemoryLedger, PackState
from calotype.store.objects import Bytes, Stored, as_buffers
from calotype.store.pack import PREFIX, Kind, Pack, load
from calotype.store.scan import read as read_frames
from calotype.store.scan import stretches, verified

BLOCK = 4096
BLOCKS = 3  # different ones; each is a chunk
LEASE = 100.0  # seconds of the world's clock
SMALL = Chunking(region=1 << 20, grid=BLOCK)
_FOREVER = 1e6  # real seconds: leases are renewed by the world, not by threads


def content(blocks: Sequence[int]) -> bytes:
    """A disk of these blocks (0 is none), apart, so that each becomes one chunk."""
    return b"".join(_block(number) + bytes(BLOCK) for number in blocks)


def _block(number: int) -> bytes:
    return blake3(bytes([number])).digest(BLOCK) if number else bytes(BLOCK)


class Killed(BaseException):
    """The process is dead: nothing that it still tries has an effect."""


class Lost(AssertionError):
    """An owed root needs something that is not in the store."""


# -- the four rules, each left out once


class NoReprieve(MemoryLedger):
    """Without rule 1."""

    def meet(self, operation, packs):
        del operation
        with self._lock:
            return {k for k in packs if k in self._packs and self._packs[k].state != "condemned"}


class NoWaiting(MemoryLedger):
    """Without rule 2."""

    def ripe(self, grace):
        with self._lock:
            self._expire(prunes=False)
            return {
                key: pack.sequence
                for key, pack in self._packs.items()
                if pack.state is PackState.CONDEMNED and pack.since <= self._clock() - grace
            }


class NoDeleting(MemoryLedger):
    """Without rule 3: packs are deleted while they still look condemned."""

    def doom(self, prune, ripe):
        doomed = super().doom(prune, ripe)
        for key in doomed:
            self._packs[key].state = PackState.CONDEMNED
        return doomed

    def deleted(self, packs):
        for key in packs:
            if key in self._packs:
                self._packs[key].state = PackState.DELETED


class NoFence(MemoryLedger):
    """Without rule 4."""

    def commit(self, operation, root, data):
        with self._lock:
            self._roots[root] = data
            self._operations.pop(operation, None)


MUTANTS = (NoReprieve, NoWaiting, NoDeleting, NoFence)


# -- the world


@dataclass(slots=True)
class Need:
    """What a root needs, and what it reads back as."""

    leaves: frozenset[bytes]
    chunks: frozenset[bytes]
    data: bytes


class World:
    """One store, one ledger, and the processes that use them."""

    def __init__(self, ledger: type[MemoryLedger] = MemoryLedger) -> None:
        self.now = 1_000_000.0
        self.objects = MemoryStore()
        _found(self.objects)
        self.ledger = ledger(lambda: self.now)
        self.owed: dict[str, Need] = {}
        self.held: dict[Kind, Counter[bytes]] = {kind: Counter() for kind in Kind}
        self.packs: dict[str, Pack] = {}
        self.disks: dict[str, list[int]] = {}  # the blocks of every root that was ever made
        self.processes: list[Process] = []
        self.remembered: list[Stored] = []
        self.lost = False  # something that is owed is gone
        self.gates = 0
        self.events: Counter[str] = Counter()

    def process(self) -> "Process":
        """A new process."""
        self.processes.append(Process(self))
        return self.processes[-1]

    def ingest(self, blocks: list[int], **how: Any) -> Callable[[Repository], Any]:
        """The job of taking in a disk of these blocks."""

        def job(repository: Repository) -> Ingested:
            ledger = repository._ledger
            assert isinstance(ledger, GatedLedger)
            ledger.blocks = blocks
            return repository.ingest(BytesDisk(content(blocks)), **how)

        return job

    def list(self, prefix: str, listing: str) -> list[Stored]:
        """What a listing shows: all, nothing, or what there was some time ago."""
        if listing == "empty":
            return []
        if listing == "stale":
            return [stored for stored in self.remembered if stored.key.startswith(prefix)]
        return list(self.objects.list(prefix))

    # -- what is watched

    def added(self, key: str) -> None:
        """An object was put."""
        if key.startswith(PREFIX) and key not in self.packs:
            pack = load(self.objects, key, self.objects.size(key))
            self.packs[key] = pack
            self.held[pack.kind].update(_digests(pack))

    def removed(self, key: str) -> None:
        """An object was deleted."""
        pack = self.packs.pop(key, None)
        if pack is not None:
            self.events["packs deleted"] += 1
            self.held[pack.kind].subtract(_digests(pack))
            self.check(f"{key[:12]} was deleted")

    def committed(self, index: str, data: bytes) -> None:
        """A root is owed."""
        self.events["roots committed"] += 1
        root = Root.decode(data)
        leaves = frozenset(root.leaves.values())
        for digest in leaves:
            self._held(Kind.LEAF, digest, "a root was committed")
        chunks: set[bytes] = set()
        for digest in leaves:
            chunks.update(row.tobytes() for row in self._leaf(digest, root).digests)
        self.owed[index] = Need(leaves, frozenset(chunks), content(self.disks[index]))
        self.check("a root was committed")

    def forgotten(self, index: str) -> None:
        """A root is owed no more."""
        self.events["roots removed"] += self.owed.pop(index, None) is not None

    def check(self, when: str) -> None:
        """Every owed root has everything in the store.

        Raises:
            Lost: one has not.
        """
        for need in self.owed.values():
            for digest in need.leaves:
                self._held(Kind.LEAF, digest, when)
            for digest in need.chunks:
                self._held(Kind.DATA, digest, when)

    def _held(self, kind: Kind, digest: bytes, when: str) -> None:
        if self.held[kind][digest] <= 0:
            self.lost = True
            raise Lost(f"{kind.name.lower()} chunk {digest.hex()[:8]} is lost, when {when}")

    def _leaf(self, digest: bytes, root: Root) -> Leaf:
        for pack in self.packs.values():
            digests = _digests(pack)
            if pack.kind is Kind.LEAF and digest in digests:
                chunk = digests.index(digest)
                (stretch,) = stretches(pack, pack.chunk_frame[chunk : chunk + 1])
                ((number, stored),) = read_frames(self.objects, stretch)
                raw = verified(pack, number, stored, Repository(self.objects)._domain("default"))
                return Leaf.decode(raw, root.region)
        raise AssertionError("a leaf that is held is in a pack")

    def read_back(self) -> None:
        """Read every byte of every owed root, as a new process would."""
        repository = Repository(self.objects, self.ledger)
        assert set(repository.indexes()) == set(self.owed)
        for index, need in self.owed.items():
            disk = repository.open(index)
            assert read(disk, 0, disk.size) == need.data
        assert repository.check().ok

    def kill(self) -> None:
        """Kill every process."""
        for process in self.processes:
            process.kill()
        self.processes.clear()

    def settle(self) -> None:
        """Kill what runs; then two prunes leave what is owed, and nothing else."""
        self.kill()
        self.now += 1e6  # whatever the clock said before, every lease has run out
        for _ in range(2):
            process = self.process()
            process.start("prune", lambda r: r.prune(grace=timedelta(0), empty=True))
            process.finish()
            assert process.error is None, process.error
        self.read_back()
        needed = {
            kind: {d for n in self.owed.values() for d in (n.leaves if kind else n.chunks)}
            for kind in Kind
        }
        for pack in self.packs.values():
            assert needed[pack.kind].intersection(_digests(pack)), "a pack that nobody needs stayed"
        assert not [s for s in self.ledger.packs().values() if s is not PackState.DELETED]


def _digests(pack: Pack) -> list[bytes]:
    return [row.tobytes() for row in pack.digests]


def _found(objects: MemoryStore) -> None:
    """A repository whose key is always the same, so that runs can be repeated."""
    with mock.patch("secrets.token_hex", return_value="5" * 64):
        Repository.create(objects, chunking=SMALL)


class Process:
    """One process with one repository, which does one job at a time and stops at every gate."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead = False
        self.job: str | None = None
        self.error: BaseException | None = None
        self.operation: int | None = None
        self.listing = "fresh"
        self.next = ""  # the call that it stands before
        self.repository: Repository | None = None
        self._go, self._arrived = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._arrived.acquire()
        self._done = True

    @property
    def idle(self) -> bool:
        return self._done

    def start(self, name: str, job: Callable[[Repository], Any]) -> None:
        """Begin a job; it stops before its first call."""
        assert self.idle
        assert not self.dead
        self.job, self._done, self.error, self.operation = name, False, None, None
        threading.Thread(target=self._run, args=(job,), daemon=True).start()
        self._arrived.acquire()

    def _run(self, job: Callable[[Repository], Any]) -> None:
        try:
            if self.repository is None:
                self.repository = Repository(Gated(self), GatedLedger(self))
                self.repository.lease = _FOREVER
            job(self.repository)
            self.world.events[f"{self.job} done"] += 1
        except Killed:
            self.world.events[f"{self.job} killed"] += 1
        except CalotypeError as error:
            self.world.events[f"{self.job} refused"] += 1
            self.error = error
        except BaseException as error:  # noqa: BLE001 - shown to whoever steps
            self.error = error
        finally:
            self._done = True
            self._arrived.release()

    def gate(self, call: str) -> None:
        """Wait to be let through to ``call``."""
        self.next = call
        if self.dead:
            raise Killed
        self._arrived.release()
        self._go.acquire()
        if self.dead:
            raise Killed
        self.world.gates += 1

    def step(self) -> None:
        """Let the process do one thing."""
        if not self._done:
            self._go.release()
            self._arrived.acquire()
        if self.error is not None and not isinstance(self.error, CalotypeError):
            raise self.error

    def until(self, call: str) -> None:
        """Let the process run until it is about to make a call, or has ended."""
        self.step()
        while not self._done and self.next != call:
            self.step()

    def finish(self) -> None:
        """Let the process run to the end of its job."""
        while not self._done:
            self.step()

    def kill(self) -> None:
        """End the process where it stands; nothing that it has begun to do happens."""
        self.dead = True
        while not self._done:
            self._go.release()
            self._arrived.acquire()


class Gated:
    """The store as one process sees it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._objects = process.world.objects

    def get(self, key: str) -> bytes:
        self._process.gate("get")
        return self._objects.get(key)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        self._process.gate("get_range")
        return self._objects.get_range(key, offset, length)

    def size(self, key: str) -> int:
        self._process.gate("size")
        return self._objects.size(key)

    def list(self, prefix: str = "") -> Iterator[Stored]:
        self._process.gate("list")
        return iter(self._world.list(prefix, self._process.listing))

    def put(self, key: str, data: Bytes | Iterable[Bytes], *, if_absent: bool = False) -> bool:
        self._process.gate("put")
        return self._put(key, data, if_absent=if_absent)

    def _put(self, key: str, data: Bytes | Iterable[Bytes], *, if_absent: bool = False) -> bool:
        whole = b"".join(as_buffers(data))
        put = self._objects.put(key, whole, if_absent=if_absent)
        self._world.added(key)
        return put

    def writer(self) -> "GatedWriter":
        return GatedWriter(self._process, self._put)

    def delete(self, key: str) -> None:
        self._process.gate("delete")
        self._objects.delete(key)
        self._world.removed(key)

    def persist(self, _prefix: str) -> None:
        """The gate is what matters: whoever persists has nothing more to lose."""
        self._process.gate("persist")

    def leftovers(self) -> Sequence[str]:
        return ()

    def sweep(self) -> Sequence[str]:
        self._process.gate("sweep")
        return ()

    def close(self) -> None:
        pass


class GatedWriter:
    """An object that a process is writing."""

    def __init__(self, process: Process, put: Callable[[str, Bytes], bool]) -> None:
        self._process = process
        self._put = put
        self._data = bytearray()

    def write(self, buffers: Sequence[Bytes]) -> None:
        for buffer in buffers:
            self._data += buffer

    def commit(self, key: str) -> None:
        self._process.gate("seal")
        self._put(key, self._data)

    def abort(self) -> None:
        pass


class GatedLedger:
    """The ledger as one process sees it; leases last as long as the world's clock says."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._ledger = process.world.ledger
        self.blocks: list[int] = []  # what is being taken in

    def __getattr__(self, name: str) -> Any:
        if name == "id":
            return self._ledger.id
        return partial(self._call, getattr(self._ledger, name))

    def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        self._process.gate(method.__name__)
        return method(*arguments)

    def begin(self, _lease: float, *, prune: bool = False) -> int:
        self._process.gate("begin")
        self._process.operation = self._ledger.begin(LEASE, prune=prune)
        return self._process.operation

    def commit(self, operation: int, root: str, data: bytes) -> None:
        self._process.gate("commit")
        self._world.disks[root] = self.blocks
        self._ledger.commit(operation, root, data)
        self._world.committed(root, data)

    def remove(self, root: str) -> None:
        self._process.gate("remove")
        self._ledger.remove(root)
        self._world.forgotten(root)


@contextmanager
def repeatable() -> Iterator[None]:
    """One thread for each process, and no chance: pack ids are a series."""
    series = iter(range(1 << 32))
    with ExitStack() as stack:
        stack.enter_context(mock.patch("secrets.randbits", side_effect=series))
        stack.enter_context(mock.patch("os.cpu_count", return_value=1))
        stack.enter_context(mock.patch("calotype.store.packset._READERS", 1))
        yield


def report(events: Counter[str]) -> str:
    """What happened, for people."""
    return json.dumps(dict(sorted(events.items())))
