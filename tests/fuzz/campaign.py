"""A fuzzing campaign: ``python -m tests.fuzz.campaign --seconds 3600 [TARGET …]``, all targets at once.

Each target leaves its log, its corpus, what broke it and a summary (JSON) in the work directory.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.fuzz.corpus import inputs
from tests.fuzz.targets import MAX_MEMORY

_TARGETS = ("ext4", "xfs", "ntfs", "volumes")
_STATUS = re.compile(
    r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/(\S+).*?exec/s: (\d+) rss: (\d+)Mb"
)


def start(target: str, work: Path, seconds: int) -> subprocess.Popen[bytes]:
    """Start fuzzing a target at low priority."""
    (work / "found").mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-rss_limit_mb={MAX_MEMORY >> 20}",
        "-timeout=900",  # real time; the target itself limits processor time
        "-max_len=65536",
        "-print_final_stats=1",
        f"-artifact_prefix={work / 'found' / target}-",
    ]
    command = ["nice", "-n", "15", sys.executable, "-m", "tests.fuzz.run", target]
    with (work / f"{target}.log").open("wb") as log:
        return subprocess.Popen(
            [*command, str(work / target), *options], stdout=log, stderr=subprocess.STDOUT
        )


def summary(target: str, work: Path) -> dict[str, Any]:
    """What libFuzzer's log says at its end."""
    log = (work / f"{target}.log").read_text(errors="replace")
    status = [match.groups() for match in _STATUS.finditer(log)]
    executions, coverage, features, corpus, corpus_bytes, rate, _rss = status[-1]
    peak = re.search(r"stat::peak_rss_mb:\s+(\d+)", log)
    return {
        "executions": int(executions),
        "coverage": int(coverage),
        "features": int(features),
        "corpus_inputs": int(corpus),
        "corpus_bytes": corpus_bytes,
        "executions_per_second": int(rate),
        "peak_rss_mib": int(peak[1]) if peak else None,
        "seeds": len(list(inputs(target))),
    }


def main() -> None:
    """Run the campaign; fails when an input broke a law."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=_TARGETS, metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--work", type=Path, default=Path("/tmp/calotype-fuzz"))
    options = parser.parse_args()
    begun = time.time()
    running = {start(t, options.work, options.seconds).pid: t for t in options.targets}
    failed = False
    while running:
        pid, status, usage = os.wait3(0)
        target = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        failed |= code != 0
        content = {
            "target": target,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun)),
            "wall_seconds": round(time.time() - begun),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
            "exit_code": code,
            **summary(target, options.work),
        }
        (options.work / f"{target}.json").write_text(json.dumps(content, indent=1) + "\n")
        sys.stdout.write(json.dumps(content) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
