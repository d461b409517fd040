"""``vm generalize`` and the way back, killed (``kill -9``) right before every call that changes a file.

Run as a program for all points, and the report; the ordinary tests run a part of them.

    python -m tests.campaigns.inplace --report docs/reports/inplace
"""

import argparse
import json
import os
import platform
import random
import select
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.campaigns.power_check import Observer, opened
from tests.contract.tripwire import Outcome, Tripwire
from tests.used_vm import MIB, attach_new, contents, digest_of, os_disk, used_vm, write

from calotype.engine import machines, storage
from calotype.engine.context import Context
from calotype.engine.generalize.inplace import generalize_vm
from calotype.engine.generalize.restore import list_points, restore, take_restore_point
from calotype.errors import CalotypeError
from calotype.store.repack import SHARE

#: After every so many points the whole job is done again, and the store pruned, before the way back.
_AGAIN = 16
_PATIENCE = 20_000  # milliseconds until the helpers of a killed command must have ended
REPORT = """\
# In place, and back

Written by `tests/campaigns/inplace.py` (`make campaign-inplace`). A stopped VM with an OS disk (ext4,
Debian's layout, used) and a data disk; both were written to. Each command is killed with `kill -9` right
before its 1st, 2nd, … last call that changes a file (its threads' and helpers' calls counted), each time on
a fresh copy of the installation. After every kill: no process is left; the next command clears up until no
file is there that the catalogue does not know; every object and base is whole; the VM is either exactly what
it was or exactly what the command was to bring about (SHA-256 of the whole virtual content of every disk,
with ids, names, LUNs, sizes and caching); then `vm restore`, where there is a restore point, gives the VM's
first state back bit by bit. After every {again}th kill (and the last) the command is first given again and
must succeed; two prunes must leave no Index that nothing names and nothing that waits, and what the restore
points need. How many calls a run makes varies a little, with its threads.

- points: {points}, of which everything held: **{good}**
- {machine}
- time: {seconds} s

| command | its calls | killed at | found after the kill |
|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A command to kill, and how its installation is prepared from a used VM."""

    arguments: tuple[str, ...]
    prepare: Callable[[Context], None]


def _nothing(_context: Context) -> None:
    """The used VM alone."""


def _point(context: Context) -> None:
    """A restore point, and much written since."""
    take_restore_point(context, "web", "a test")
    _spoil(context)


def _generalized(context: Context) -> None:
    """Generalized in place; then a disk went, another came, and what is left was written to."""
    generalize_vm(context, "web")
    _spoil(context)
    machines.detach(context, "web", "web-lun0")
    machines.delete_disk(context, "web-lun0")
    attach_new(context, "web", "new", 0)


def _spoil(context: Context) -> None:
    """Write to every disk."""
    for disk in context.catalog.vm("web").disks:
        write(context, disk, 2 * MIB, 65_536, 0xEE)


CASES = {
    "generalize": Case(("vm", "generalize", "web", "--yes"), _nothing),
    "restore": Case(("vm", "restore", "web", "--yes"), _generalized),
    "restore-point create": Case(("vm", "restore-point", "create", "web"), _nothing),
    "restore of a used VM": Case(("vm", "restore", "web", "--yes"), _point),
    "delete": Case(("vm", "delete", "web"), _point),
}


@dataclass(frozen=True, slots=True)
class State:
    """What of the VM a command may change: its disks' contents, its mark, and how many restore points."""

    disks: dict[str, str]
    generalized: bool
    points: int
    others: dict[str, str]  # managed disks that are attached to nothing


def state_of(context: Context) -> State:
    """The state of the VM ``web``."""
    others = {d.name: digest_of(context, d) for d in context.catalog.list_disks() if not d.vm_id}
    if "web" not in {vm.name for vm in context.catalog.list_vms()}:
        return State({}, generalized=False, points=0, others=others)
    vm = context.catalog.vm("web")
    points = len(list_points(context, "web"))
    return State(contents(context, "web"), vm.generalized, points, others)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one point: what was ``found`` after the kill, or what was ``wrong``."""

    command: str
    calls: int  # that a whole run makes
    point: int
    found: str = ""
    wrong: str = ""


class Trial:
    """One command, killed at any of its ``calls`` on a fresh copy of its installation."""

    def __init__(self, tripwire: Tripwire, case: Case, disk: Path, room: Path) -> None:
        self._tripwire = tripwire
        self._case = case
        self._home = room / "home"
        self._template = room / "template"
        with opened(self._template) as context:
            used_vm(context, disk)
            self.origin = contents(context, "web")
            case.prepare(context)
            self.before = state_of(context)
        whole = self._run()
        assert whole.status == 0
        with opened(self._home) as context:
            self.after = state_of(context)
        self.calls = whole.calls

    def _run(self, at: int = 0) -> Outcome:
        shutil.rmtree(self._home, ignore_errors=True)
        shutil.copytree(self._template, self._home, symlinks=True)
        return self._tripwire.run(self._home, *self._case.arguments, at=at)

    def at(self, point: int, *, again: bool) -> str:
        """Kill it right before a call; what was found then. Raises AssertionError for what is wrong."""
        while not self._run(point).killed:
            point -= 1  # its threads made fewer calls this time
        await_end(self._home)
        expire_leases(self._home)
        with opened(self._home) as context:
            found = self._look(context)
        if again and found != "done":
            assert self._tripwire.run(self._home, *self._case.arguments).status == 0
            await_end(self._home)
        with opened(self._home) as context:
            if again:
                self._lean(context)
            self._back(context)
        shutil.rmtree(self._home)
        return found

    def _look(self, context: Context) -> str:
        """Which of the states that may be is there; nothing may be left over, or damaged."""
        clear_up(context)
        found = state_of(context)
        if found == self.before:
            return "as before"
        if found == self.after or self._is_generalized(found):
            return "done"
        half = State(
            self.before.disks, self.before.generalized, self.before.points + 1, found.others
        )
        assert found == half, f"{found} is neither {self.before} nor {self.after}"
        return "as before, with a restore point"

    def _is_generalized(self, found: State) -> bool:
        """A general OS disk differs by what the clock said; all else must be as it was to be."""
        if not (found.generalized and self.after.generalized):
            return False
        return self._data(found) == self._data(self.after) and found.points == self.after.points

    @staticmethod
    def _data(state: State) -> dict[str, str]:
        return {key: value for key, value in state.disks.items() if " None " not in key}

    def _back(self, context: Context) -> None:
        """Go back to the VM's first state, where a restore point says so."""
        if not context.catalog.list_vms():
            assert context.catalog.restore_points.indexes() == set()
        elif list_points(context, "web"):
            restore(context, "web")
            assert contents(context, "web") == self.origin
            assert not context.catalog.vm("web").generalized
        else:
            assert contents(context, "web") == self.before.disks
        clear_up(context)

    @staticmethod
    def _lean(context: Context) -> None:
        for _ in range(2):
            storage.prune(context, grace=timedelta(), empty=True)
        assert set(context.repository.indexes()) == context.catalog.indexes_in_use()
        usage = storage.stats(context)
        assert usage.condemned == 0, f"{usage.condemned} bytes wait for a prune"
        assert usage.unreferenced <= usage.stored * (1 - SHARE), "packs are mostly garbage"
        assert storage.check(context).ok


def clear_up(context: Context) -> None:
    """Do an operation, which clears up after killed ones; nothing may be left, all must be whole."""
    machines.create_disk(context, "tidy", MIB)
    machines.delete_disk(context, "tidy")
    observer = Observer(context)
    observer.observe()
    assert observer.problems == []
    assert observer.left_over() == []


def await_end(home: Path) -> None:
    """Wait for the end of all processes that name an installation."""
    for pid in _users(home):
        with suppress(ProcessLookupError):
            ended = os.pidfd_open(pid)
            try:
                poll = select.poll()
                poll.register(ended, select.POLLIN)
                assert poll.poll(_PATIENCE), f"process {pid} is left"
            finally:
                os.close(ended)
    assert _users(home) == []


def _users(home: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if os.fsencode(home) + b"/" in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def expire_leases(home: Path) -> None:
    """Let the leases of killed commands run out, as two minutes would."""
    with closing(sqlite3.connect(home / "catalog.db")) as db:
        db.execute("UPDATE ledger_operations SET until = 0")
        db.commit()


@contextmanager
def workshop() -> Iterator[tuple[Path, Path, Tripwire]]:
    """A room (in memory where there is one: nothing here cuts the power), a disk, a warm interpreter."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as name, Tripwire() as tripwire:
        room = Path(name)
        yield room, os_disk(room / "os.raw"), tripwire


def spread(calls: int, points: int) -> list[int]:
    """``points`` of the calls 1 to ``calls``, evenly; the first and the last among them."""
    points = min(points, calls)
    return sorted({1 + number * (calls - 1) // (points - 1) for number in range(points)})


def kill(
    name: str,
    points: int | None,
    *,
    share: int = 0,
    shares: int = 1,
    done: Collection[int] = (),
    log: Path | None = None,
) -> list[Result]:
    """Kill a command at ``points`` points (None: at all), but those that are ``done``.

    Every ``shares``-th point is this share's. Each result is added to ``log`` at once. The order is a
    shuffled one, so that a part of the points is a fair sample of all.
    """
    results = []
    with workshop() as (room, disk, tripwire):
        trial = Trial(tripwire, CASES[name], disk, room)
        at = spread(trial.calls, points or trial.calls)
        random.Random(1).shuffle(at)
        for number, point in enumerate(at):
            if point % shares != share or point in done:
                continue
            result = Result(name, trial.calls, point)
            try:
                found = trial.at(point, again=number % _AGAIN == 0 or point == trial.calls)
                result = replace(result, found=found)
            except (AssertionError, CalotypeError, OSError) as error:
                result = replace(result, wrong=f"{type(error).__name__}: {error}"[:2000])
            results.append(result)
            if log is not None:
                with log.open("a") as lines:
                    lines.write(json.dumps(asdict(result)) + "\n")
    return results


def campaign(names: Collection[str], points: int | None, jobs: int, log: Path) -> list[Result]:
    """Kill the commands of these names, ``jobs`` at once; go on where ``log`` ends."""
    before = [Result(**json.loads(line)) for line in log.read_text().splitlines()]
    with ProcessPoolExecutor(jobs) as pool:
        parts = [
            pool.submit(
                kill,
                name,
                points,
                share=share,
                shares=jobs,
                done={result.point for result in before if result.command == name},
                log=log,
            )
            for name in names
            for share in range(jobs)
        ]
        return before + [result for part in parts for result in part.result()]


def report(results: list[Result], seconds: float) -> str:
    """The report for people."""
    text = REPORT.format(
        again=_AGAIN,
        points=len(results),
        good=sum(not result.wrong for result in results),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        seconds=f"{seconds:.0f}",
    )
    for name in CASES:
        mine = [result for result in results if result.command == name]
        if mine:
            found = Counter(result.found for result in mine if result.found)
            told = "; ".join(f"{count} {what}" for what, count in sorted(found.items()))
            calls = max(result.calls for result in mine)
            text += f"| {name} | {calls} | {len({result.point for result in mine})} | {told} |\n"
            for result in mine:
                if result.wrong:
                    text += f"|  |  | {result.point} | wrong: {result.wrong} |\n"
    return text


def summary(results: list[Result]) -> dict[str, Any]:
    """By command and by what was found: how often, and the first and the last point of it."""
    told: dict[str, Any] = {}
    for result in results:
        case = told.setdefault(result.command, {"calls": 0, "found": {}, "wrong": []})
        case["calls"] = max(case["calls"], result.calls)
        if result.wrong:
            case["wrong"].append(asdict(result))
            continue
        seen = case["found"].setdefault(
            result.found, {"kills": 0, "first": result.point, "last": result.point}
        )
        seen["kills"] += 1
        seen["first"] = min(seen["first"], result.point)
        seen["last"] = max(seen["last"], result.point)
    return told


def main() -> int:
    """Run the campaign; the exit status says whether everything held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, help="of each command (default: all)")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--log", type=Path, help="results so far: what is in it is not done again")
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as room:
        log = arguments.log or Path(room) / "log"
        log.touch()
        results = campaign(arguments.cases, arguments.points, arguments.jobs, log)
    text = report(results, time.monotonic() - started)
    sys.stdout.write(text)
    if arguments.report is not None:
        arguments.report.with_suffix(".md").write_text(text)
        record = json.dumps(summary(results), indent=1)
        arguments.report.with_suffix(".json").write_text(record + "\n")
    return 1 if any(result.wrong for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
