"""A fuzzing campaign: ``python -m tests.fuzz.campaign --seconds 3600 [TARGET …]``, all targets at once.

Each target leaves its log, its corpus, what broke it and a summary (JSON) in the work directory. It runs in
rounds, because atheris keeps every input that it tried in memory.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tests.fuzz.corpus import inputs

TARGETS = ("ext4", "xfs", "ntfs", "volumes")
_ROUND = 30_000  # executions
_STATUS = re.compile(r"#\d+\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/(\S+)")
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s+(\d+)")


def fuzz(target: str, work: Path, seconds: int) -> dict[str, Any]:
    """Fuzz a target at low priority for so long, or until an input breaks a law."""
    begun = time.monotonic()
    total: dict[str, Any] = {
        "target": target,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seeds": len(list(inputs(target))),
        "wall_seconds": 0,
        "cpu_seconds": 0,
        "executions": 0,
        "rounds": 0,
        "exit_code": 0,
    }
    while total["wall_seconds"] < seconds and total["exit_code"] == 0:
        left = seconds - total["wall_seconds"]
        code, cpu, log = _round(target, work, left)
        executed, status = _EXECUTED.findall(log), _STATUS.findall(log)
        total["rounds"] += 1
        total["exit_code"] = code
        total["wall_seconds"] = round(time.monotonic() - begun)
        total["cpu_seconds"] = round(total["cpu_seconds"] + cpu, 1)
        total["executions"] += int(executed[-1]) if executed else 0
        if status:
            coverage, features, corpus, corpus_bytes = status[-1]
            total |= {"coverage": int(coverage), "features": int(features)}
            total |= {"corpus_inputs": int(corpus), "corpus_bytes": corpus_bytes}
        (work / f"{target}.json").write_text(json.dumps(total, indent=1) + "\n")
    return total


def _round(target: str, work: Path, seconds: int) -> tuple[int, float, str]:
    """One process: its exit code, its processor time and its log."""
    options = [
        f"-max_total_time={seconds}",
        f"-runs={_ROUND}",
        "-rss_limit_mb=2048",  # the target limits what an input takes
        "-timeout=900",  # real time; the target limits processor time
        "-max_len=65536",
        "-print_final_stats=1",
        f"-artifact_prefix={work / 'found' / target}-",
    ]
    command = ["nice", "-n", "15", sys.executable, "-m", "tests.fuzz.run", target]
    path = work / f"{target}.log"
    with path.open("ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            [*command, str(work / target), *options], stdout=log, stderr=subprocess.STDOUT
        )
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    text = path.read_bytes()[start:].decode(errors="replace")
    return process.returncode, usage.ru_utime + usage.ru_stime, text


def main() -> None:
    """Run the campaign; fails when an input broke a law."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=TARGETS, metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--work", type=Path, default=Path("/tmp/calotype-fuzz"))
    options = parser.parse_args()
    (options.work / "found").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(len(options.targets)) as threads:
        work = partial(fuzz, work=options.work, seconds=options.seconds)
        done = list(threads.map(work, options.targets))
    for total in done:
        sys.stdout.write(json.dumps(total) + "\n")
    sys.exit(any(total["exit_code"] for total in done))


if __name__ == "__main__":
    main()
