"""The power-loss campaign: is what was acknowledged whole after a power cut at any moment?

    python -m tests.campaigns.powerloss [--points 700] [--room DIR] [--report docs/reports/powerloss]

Sessions of real commands run on a recorded disk (:mod:`tests.campaigns.power_disk`). Then the disk is built
anew as of each write in its log: with all writes until then ("prefix"), or with a random part of those that
no flush had made durable ("reordered", down to single 4 KiB blocks). Each time the file system is mounted,
which replays its journal, and the installation is opened and read in full. Needs root. Deterministic by its
seeds but for what the kernel writes when; can be interrupted and goes on where it was.
"""

import argparse
import gc
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tests.campaigns import power_report
from tests.campaigns.power_check import Ledger, converge, judge
from tests.campaigns.power_disk import (
    BLOCK,
    FILE_SYSTEMS,
    Bench,
    Log,
    Rebuilder,
    Recorder,
    leads_to,
    possible,
    private_mounts,
)
from tests.campaigns.power_work import record

KINDS = ("upload", "capture", "delete", "prune", "create", "guest")
#: What a session is about: each of its writes counts as so many others when points are spread.
WEIGHT = 4
ABOUT = {"uploads": "upload", "captures": "capture", "deletes": "delete", "prunes": "prune"}
#: One point in so many is also gone on from: uploads again, clears up, checks.
GO_ON = 12
#: At one in so many also the chunks are read that nothing names.
READ_ALL = 3


@dataclass(frozen=True, slots=True)
class Session:
    """A recorded session: which, on which file system, with what weakness."""

    name: str
    seed: int
    file_system: str = "ext4"
    weakness: str | None = None

    @property
    def directory(self) -> str:
        """The name of its directory in the room."""
        return "-".join(
            [
                self.name,
                str(self.seed),
                self.file_system,
                *([self.weakness] if self.weakness else []),
            ]
        )


@dataclass(frozen=True, order=True, slots=True)
class Point:
    """A power cut after an entry of the log; ``variant`` 0 is the prefix, others are random parts."""

    entry: int
    variant: int
    kind: str


def sessions() -> list[Session]:
    """Everything that is recorded for the campaign itself."""
    names = ("uploads", "captures", "deletes", "prunes", "together")
    disks = (("ext4", 1), ("ext4", 2), ("btrfs", 3), ("xfs", 3))
    return [Session(name, seed, kind) for kind, seed in disks for name in names]


def controls() -> list[Session]:
    """Sessions with a promise broken: here the campaign must find something."""
    return [
        Session("uploads", 4, "ext4", "no_file_fsync"),
        Session("deletes", 4, "ext4", "no_catalogue_sync"),
        Session("uploads", 4, "ext4", "no_directory_fsync"),
        Session("uploads", 4, "btrfs", "no_directory_fsync"),
        Session("together", 4, "xfs", "no_directory_fsync"),
        Session("captures", 4, "btrfs", "no_directory_fsync"),
        Session("captures", 4, "ext4", "no_sync"),
    ]


class Room:
    """Where a campaign keeps its logs and results, and mounts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mountpoint = root / "mnt"
        self.home = self.mountpoint / "home"

    def of(self, session: Session) -> Path:
        """The directory of a session."""
        return self.root / session.directory

    def record(self, session: Session) -> None:
        """Record a session, unless that was done."""
        directory = self.of(session)
        if (directory / "session.json").exists():
            return
        shutil.rmtree(directory, ignore_errors=True)
        sources = directory / "sources"
        sources.mkdir(parents=True)
        kind = FILE_SYSTEMS[session.file_system]
        with Recorder(directory, self.mountpoint, kind) as recorder:
            record(session.name, recorder, self.home, sources, session.seed, session.weakness)
        end = directory / "end.raw"
        if not leads_to(self.log(session), directory / "start.raw", end):
            raise RuntimeError(f"{directory}: the log does not lead to the disk that was there")
        end.unlink()
        (sources / "session.json").rename(directory / "session.json")

    def results(self, session: Session) -> list[dict[str, Any]]:
        """What was found at the points that were tried; a line that is being written is left out."""
        return [
            json.loads(line)
            for path in sorted(self.of(session).glob("results-*.jsonl"))
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]

    def log(self, session: Session) -> Log:
        """A recorded session's log."""
        return Log(self.of(session) / "log", FILE_SYSTEMS[session.file_system].size)


# -- which points


def kinds_of(log: Log) -> list[str]:
    """For each entry the kind of work that it belongs to."""
    ledger, kinds = Ledger.of(mark.event for mark in log.marks), []
    marks = iter(log.marks)
    following = next(marks, None)
    for entry in range(len(log)):
        if following is not None and following.entry == entry:
            ledger.feed(following.event)
            following = next(marks, None)
        kinds.append(ledger.kind)
    return kinds


def quotas(session: Session, log: Log, points: int) -> dict[str, int]:
    """How many points of each kind of work are tried in a session."""
    counted = Counter(kind for kind in kinds_of(log) if kind in KINDS)
    weights = {
        kind: number * (WEIGHT if ABOUT.get(session.name) == kind else 1)
        for kind, number in counted.items()
    }
    return {kind: points * weight // sum(weights.values()) for kind, weight in weights.items()}


def plan(log: Log, wanted: dict[str, int], seed: int) -> list[Point]:
    """Points of a log in ascending order: ``wanted`` of each kind, half of them prefixes where there are."""
    rng = np.random.default_rng(seed)
    kinds = np.array(kinds_of(log))
    points: list[Point] = []
    for kind, number in wanted.items():
        here = np.flatnonzero((kinds == kind) & (log.is_write | log.is_mark))
        if not len(here):
            continue
        prefixes = here
        if len(here) > number // 2:
            prefixes = np.sort(rng.choice(here, number // 2, replace=False))
        points += [Point(int(entry), 0, kind) for entry in prefixes]
        loose = np.array([entry for entry in here if _freedom(log, int(entry)) > 1])
        rest = number - len(prefixes)
        if len(loose):
            chosen = np.sort(rng.choice(loose, rest))
            points += [Point(int(e), n + 1, kind) for n, e in enumerate(chosen)]
    return sorted(points)


def _freedom(log: Log, entry: int) -> int:
    """How many blocks a power cut after an entry may lose."""
    return sum(-(-int(log.length[number]) // BLOCK) for number in log.unflushed(entry))


def choose(log: Log, point: Point, seed: int) -> dict[int, npt.NDArray[np.bool_]] | None:
    """Which blocks of the unflushed writes reach the disk at a point; None: all."""
    if not point.variant:
        return None
    rng = np.random.default_rng([seed, point.entry, point.variant])
    writes = log.unflushed(point.entry)
    sizes = [-(-int(log.length[number]) // BLOCK) for number in writes]
    match rng.integers(4):
        case 0:  # one write is lost
            lost = rng.integers(len(writes))
            parts = [np.full(size, n != lost) for n, size in enumerate(sizes)]
        case 1:  # whole writes, in any order
            parts = [np.full(size, rng.random() < 0.5) for size in sizes]
        case 2:  # one write is torn
            torn = rng.integers(len(writes))
            parts = [
                rng.random(s) < 0.5 if n == torn else np.ones(s, bool) for n, s in enumerate(sizes)
            ]
        case _:  # blocks as it comes
            share = rng.choice([0.1, 0.5, 0.9])
            parts = [rng.random(size) < share for size in sizes]
    return dict(zip(writes, parts, strict=True))


# -- going through them


def replay(room: Room, session: Session, points: list[Point], part: int, turn: Any) -> None:
    """Try points of a session, and write one line for each; those that have a line are left out.

    ``turn`` is the number of the next point, shared with the other processes.
    """
    private_mounts()
    os.setpriority(os.PRIO_PROCESS, 0, 15)
    gc.freeze()  # what is loaded now stays
    os.cpu_count = lambda: 1  # the other processor has points of its own
    directory = room.of(session)
    results = directory / f"results-{part}.jsonl"
    done = {(line["entry"], line["variant"]) for line in room.results(session)}
    log = room.log(session)
    story = json.loads((directory / "session.json").read_text())
    scratch = Path(f"/dev/shm/powerloss-{os.getpid()}")
    bench = Bench(scratch, room.mountpoint, FILE_SYSTEMS[session.file_system])
    with bench, results.open("a") as out:
        trial = Trial(room, session, log, story["after"], bench)
        while (point := _take(points, turn)) is not None:
            if (point.entry, point.variant) in done:
                continue
            out.write(json.dumps(trial.at(point)) + "\n")
            out.flush()


def _take(points: list[Point], turn: Any) -> Point | None:
    with turn.get_lock():
        number = turn.value
        turn.value += 1
    return points[number] if number < len(points) else None


class Trial:
    """The points of one session, tried one by one in ascending order."""

    def __init__(self, room: Room, session: Session, log: Log, after: str, bench: Bench) -> None:
        self._room = room
        self._session = session
        self._log = log
        self._after = after
        self._bench = bench
        directory = room.of(session)
        self._source = directory / "sources" / "after.raw"
        self._rebuilder = Rebuilder(log, directory / "start.raw", bench.scratch)
        self._ledger = Ledger.of(mark.event for mark in log.marks)
        self._marks: Iterator[Any] = iter(log.marks)
        self._next = next(self._marks, None)

    def at(self, point: Point) -> dict[str, Any]:
        """Cut the power at a point, and say what is there then."""
        while self._next is not None and self._next.entry <= point.entry:
            self._ledger.feed(self._next.event)
            self._next = next(self._marks, None)
        began = time.monotonic()
        self._rebuilder.rebuild(point.entry, choose(self._log, point, self._session.seed))
        turn = point.entry * 7 + point.variant
        go_on = turn % GO_ON == 0
        problems = self._look(read_data=turn % READ_ALL == 0, go_on=go_on)
        images = [v for k, v in self._ledger.state.items() if k.startswith("image/") and v]
        return {
            "entry": point.entry,
            "variant": point.variant,
            "kind": point.kind,
            "acknowledged": len(images),
            "running": len(self._ledger.running),
            "went_on": go_on,
            "seconds": round(time.monotonic() - began, 3),
            "problems": problems,
        }

    def _look(self, *, read_data: bool, go_on: bool) -> list[str]:
        try:
            with self._bench.mounted():
                try:
                    problems = judge(self._room.home, self._ledger, read_data=read_data)
                    if go_on:
                        problems += converge(
                            self._room.home, self._ledger, self._source, self._after
                        )
                except Exception as error:  # noqa: BLE001 - whatever comes is a finding
                    problems = [f"{type(error).__name__}: {error}"]
        except OSError as error:
            problems = [f"the file system does not come up: {error}"]
        return problems


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines."""
    if not path.exists():
        return []
    text = path.read_text()
    path.write_text(
        text[: text.rfind("\n") + 1]
    )  # a line cut off by an interruption is tried again
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(room: Room, wanted: list[Session], points: int, workers: int) -> None:
    """Record each session and try about ``points`` points of it."""
    for session in wanted:
        began = time.monotonic()
        room.record(session)
        recorded = time.monotonic()
        log = room.log(session)
        chosen = plan(log, quotas(session, log, points), session.seed)
        _spread(room, session, chosen, workers)
        say(
            f"{session.directory}: recorded in {recorded - began:.0f} s, {len(chosen)} points in "
            f"{time.monotonic() - recorded:.0f} s"
        )


def _spread(room: Room, session: Session, points: list[Point], workers: int) -> None:
    """Several processes at a time; each takes the next point."""
    context = multiprocessing.get_context("spawn")
    turn = context.Value("i", 0)
    processes = [
        context.Process(target=replay, args=(room, session, points, part, turn))
        for part in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"{session.directory}: a worker failed")


def say(text: str) -> None:
    """Tell how far it is."""
    sys.stderr.write(text + "\n")


def main() -> int:
    """Run the campaign, or what is left of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--room", type=Path, default=Path("/var/tmp/calotype-powerloss"))
    parser.add_argument("--points", type=int, default=700, help="of each session")
    parser.add_argument("--control-points", type=int, default=100, help="of each control")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[""], help="sessions whose names begin so")
    parser.add_argument("--report", type=Path, default=Path("docs/reports/powerloss"))
    parser.add_argument("--report-only", action="store_true", help="of what was tried until now")
    options = parser.parse_args()
    if not possible():
        say("needs root, loop devices, qemu-storage-daemon and mkfs")
        return 2
    private_mounts()
    room = Room(options.room)
    room.root.mkdir(parents=True, exist_ok=True)
    own, broken = _chosen(sessions(), options.only), _chosen(controls(), options.only)
    if options.report_only:
        own, broken = ([s for s in some if room.results(s)] for some in (own, broken))
    else:
        run(room, own, options.points, options.workers)
        run(room, broken, options.control_points, options.workers)
    return power_report.write(room, own, broken, KINDS, options.report)


def _chosen(some: list[Session], beginnings: list[str]) -> list[Session]:
    """Those whose names begin so, and whose file systems can be made on this machine."""
    return [
        session
        for session in some
        if session.directory.startswith(tuple(beginnings))
        and shutil.which(f"mkfs.{session.file_system}")
    ]


if __name__ == "__main__":
    sys.exit(main())
