"""Generalizing and proving, Calotype against virt-sysprep: the same disk, in turns."""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.leaks import appliance
from bench.leaks.tools import Cli, generalized
from bench.leaks.used import Used, copy

from calotype.disk.view import RawSource, writable
from calotype.guest import generalize, prove_disk

_QUIET = 0.7  # load average of a machine on which nothing else runs


def measure(used: Used, work: Path, runs: int = 3) -> dict[str, Any]:
    """Medians of ``runs`` runs: ours and theirs first, then the parts."""
    load = os.getloadavg()[0]
    cli = Cli(work / "home")
    generalized(cli, used)  # the upload and the VM are not measured, nor is the first run
    _parts(used, work)
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "ours": lambda: {
            "`calotype vm capture --generalize`: copy, generalize, check every step, store": (
                generalized(cli, used)["seconds"]
            )
        },
        "theirs": lambda: _virt_sysprep(used, work),
        "parts": lambda: _parts(used, work),
        "verify": lambda: {
            "`calotype image verify` of the result, the whole command": _timed(
                lambda: cli("image", "verify", "golden")
            )
        },
        "start": lambda: {"a `calotype` command that does nothing": _timed(_start)},
    }
    found: dict[str, list[float]] = {}
    for _ in range(runs):
        for way in ways.values():
            for what, seconds in way().items():
                found.setdefault(what, []).append(seconds)
    rows = [
        {"what": what, "median": statistics.median(all_), "all": all_}
        for what, all_ in found.items()
    ]
    return {"rows": rows, "load": load, "quiet": load < _QUIET, "notes": _NOTES}


_NOTES = (
    (
        "virt-sysprep changes a copy of the disk that was made before and is not in its time; Calotype's"
        " command makes its own copy-on-write view, checks the file system before and after, overwrites all"
        " free blocks, checks every step, and stores the result."
    ),
    (
        "virt-sysprep proves nothing and leaves free blocks as they are: nothing of its time is spent on"
        " either."
    ),
)


def _virt_sysprep(used: Used, work: Path) -> dict[str, float]:
    target = work / "times.raw"
    started = time.perf_counter()
    copy(used.disk, target)
    copied = time.perf_counter() - started
    environment = {**os.environ, **appliance.environment(work)}
    argv = ["virt-sysprep", "--format", "raw", "-a", str(target)]
    started = time.perf_counter()
    subprocess.run(argv, env=environment, check=True, capture_output=True)
    seconds = time.perf_counter() - started
    target.unlink()
    return {
        "`virt-sysprep` (defaults), on a copy of the disk": seconds,
        "the copy of the disk that virt-sysprep works on (`cp --sparse`)": copied,
    }


def _parts(used: Used, work: Path) -> dict[str, float]:
    """Our work without the command and the store: on a throw-away view of the disk."""
    overlay = work / "times.qcow2"
    overlay.unlink(missing_ok=True)
    with writable(RawSource(used.disk), overlay, work) as view:
        started = time.perf_counter()
        generalize(view)
        done = time.perf_counter()
    closed = time.perf_counter()
    with contextlib.closing(view.disk()) as disk:
        prove_disk(disk)
    proved = time.perf_counter()
    overlay.unlink(missing_ok=True)
    return {
        "of ours: generalize and check (the library's call)": done - started,
        "of ours: prove the result once more, from outside": proved - closed,
    }


def _start() -> None:
    subprocess.run([sys.executable, "-m", "calotype", "--version"], check=True, capture_output=True)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
