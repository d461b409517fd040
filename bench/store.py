"""The store against its peers, all in one run.

    python -m bench.store [ROW...] [--runs 3] [--quick] [--fresh]

Rows: limits, stored, image (which is ingest, reingest and hydrate), capture, and hot and cold, which
`bench.launch` measures; all when none is named. A row that fails is told of, and the others go on.
Every finished sample is kept outside of the repository: after a crash the same command goes on where it
was, and when all is there it only writes the reports in docs/reports. ``--fresh`` begins anew. With
``--quick`` (few tools, one run, the smallest disk) the table is only printed.
"""

import argparse
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import glance, report
from bench.capture import capture
from bench.images import cache, image, images
from bench.log import Log
from bench.measure import machine
from bench.works import Bench, rates, space, stored
from bench.works import image as image_rows

ROOT = Path(__file__).parents[1]
ROWS = ("limits", "image", "capture", "stored", "hot", "cold")
QUICK = ("limits", "image", "capture")
_SPACE = 12 << 30


def alone(scratch: Path) -> None:
    """Hold the scratch directory until this process ends: two runs at once would measure each other.

    Raises:
        SystemExit: another run is at work.
    """
    fd = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"bench: another run is at work in {scratch}") from None


def identity(*, quick: bool, runs: int) -> dict[str, object]:
    """What a campaign must have in common to be one run."""
    head = subprocess.run(
        ["git", "rev-parse", "HEAD:src"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {"sources": head.stdout.strip(), "quick": quick, "runs": runs}


def measured(bench: Bench, row: str) -> bool:
    """Measure a row, or what of it is missing; says so when it fails."""
    subjects = [image("base")] if bench.quick else images()
    works: dict[str, Callable[[], None]] = {
        "limits": lambda: rates(bench, subjects[0]),
        "image": lambda: image_rows(bench, subjects[0]),
        "capture": lambda: capture(bench, subjects),
        "stored": lambda: stored(bench, subjects, cache() / "peers.json"),
        "hot": lambda: launch(bench, row),
        "cold": lambda: launch(bench, row),
    }
    print(f"{row}:", flush=True)
    try:
        works[row]()
    except (SystemExit, OSError, subprocess.SubprocessError) as error:
        print(f"bench: {row} failed: {error}", flush=True)
        return False
    return True


def launch(bench: Bench, part: str) -> None:
    """Have ``bench.launch`` write its part of docs/reports/launch.json."""
    if not bench.log.has(part):
        argv = [sys.executable, "-m", "bench.launch", part, "--scratch", str(bench.scratch)]
        subprocess.run(argv, cwd=ROOT, check=True)
        bench.log.add(part, [{"part": part}])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a rehearsal of some two minutes")
    parser.add_argument("--fresh", action="store_true", help="forget what a former run measured")
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp/calotype-bench"))
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    runs = 1 if args.quick else args.runs
    args.scratch.mkdir(parents=True, exist_ok=True)
    alone(args.scratch)
    space(args.scratch, _SPACE)
    started = time.monotonic()
    log = Log(
        cache() / ("quick" if args.quick else "results"), identity(quick=args.quick, runs=runs)
    )
    rows = args.rows or (QUICK if args.quick else ROWS)
    if args.fresh:
        for row in rows:
            log.forget(row)
    bench = Bench(log=log, scratch=args.scratch, runs=runs, quick=args.quick)
    failed = [row for row in rows if not measured(bench, row)]
    print(f"measured in {time.monotonic() - started:.0f} s", flush=True)
    about = {
        "measured": log.started,
        "load when it ended": f"{os.getloadavg()[0]:.1f}",
        **machine(args.scratch),
        "glance": glance.version(),
    }
    report.write(log, about, quick=args.quick)
    if failed:
        raise SystemExit(f"bench: failed, and may be tried again: {', '.join(failed)}")


if __name__ == "__main__":
    main()
