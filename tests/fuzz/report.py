"""The report of a campaign: ``python -m tests.fuzz.report WORK …`` writes docs/reports/fuzz.{json,md}.

A campaign in several parts (of the same code, each with the corpus of the one before) has several work
directories, in order; times and executions are added. After ``--beside`` come those of processes that ran at
the same time, which are named but not added.
"""

import argparse
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.fuzz.campaign import TARGETS
from tests.fuzz.corpus import inputs

_ROOT = Path(__file__).parents[2]
_REPORTS = _ROOT / "docs" / "reports"
_FINDINGS = Path(__file__).with_name("findings.json")
_COLUMNS = {
    "target": "reader",
    "wall_seconds": "wall, s",
    "cpu_seconds": "CPU, s",
    "executions": "executions",
    "corpus_inputs": "corpus, inputs",
    "corpus_bytes": "corpus, bytes",
    "coverage": "cov",
    "features": "ft",
    "exit_code": "exit code",
}


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("works", nargs="+", type=Path)
    parser.add_argument("--beside", nargs="*", type=Path, default=[])
    options = parser.parse_args()
    runs = [_run(target, options.works) for target in TARGETS]
    beside = [
        json.loads(path.read_text()) for work in options.beside for path in work.glob("*.json")
    ]
    said = json.loads(_FINDINGS.read_text())
    sources = "src/calotype/store/files"
    content: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared; nice 15",
        "python": platform.python_version(),
        "atheris": version("atheris"),
        "code": _git("log", "-1", "--format=%h", "--", sources),
        "tree": _git("rev-parse", f"HEAD:{sources}"),
        "runs": runs,
        "beside": beside,
        **said,
    }
    (_REPORTS / "fuzz.json").write_text(json.dumps(content, indent=1) + "\n")
    (_REPORTS / "fuzz.md").write_text(_markdown(content))


def _run(target: str, works: list[Path]) -> dict[str, Any]:
    paths = [work / f"{target}.json" for work in works]
    parts = [json.loads(path.read_text()) for path in paths if path.exists()]
    added = ("wall_seconds", "cpu_seconds", "executions", "rounds")
    return {
        **parts[-1],
        **{key: round(sum(part[key] for part in parts)) for key in added},
        "parts": parts,
        "committed_inputs": len(list(inputs(target))),
    }


def _git(*command: str) -> str:
    return subprocess.run(
        ["git", *command], cwd=_ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def _markdown(content: dict[str, Any]) -> str:
    rows = [[str(run.get(key, "")) for key in _COLUMNS] for run in content["runs"]]
    table = [list(_COLUMNS.values()), ["---"] * len(_COLUMNS), *rows]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    findings = [
        f"- **{f['reader']}** ({f['found_by']}): {f['what']} *{f['then']}*"
        for f in content["findings"]
    ]
    notes = [*content["notes"], *map(_said_beside, content["beside"])]
    return _TEXT.format(
        table="\n".join(lines),
        notes="\n".join(f"- {note}" for note in notes),
        findings="\n".join(findings),
        **{key: content[key] for key in _KEYS},
    )


def _said_beside(run: dict[str, Any]) -> str:
    return (
        f"Beside it ran another process for {run['target']}: {run['wall_seconds']} s, of the processor "
        f"{round(run['cpu_seconds'])} s, {run['executions']} executions, exit code {run['exit_code']}."
    )


_KEYS = ("machine", "python", "atheris", "code", "tree")
_TEXT = """# Fuzzing of the readers of file systems

`make fuzz` runs this: libFuzzer through atheris {atheris}, one process for each reader, all at once
({machine}; Python {python}). Code: `src/calotype/store/files` as of {code} (tree {tree}).

{table}

*volumes* is partition tables, LVM and the areas of a whole disk. `cov` and `ft` are libFuzzer's counts of
covered edges and features of the Python code, at the end; the code is mostly numpy, so an edge stands for
much. An input describes a sparse disk: its size, and bytes at places (tests/fuzz/sparse.py).

For every input: no exception, at most 30 s of processor time, at most 240 MiB more than before it, at most
the budget read, and a map that is ascending, apart and inside; the areas cover the disk. atheris keeps every
input that it tries, so a target runs in rounds of 30,000 executions, and memory counts from the start of each
input. Wall times are those of a busy machine at low priority: the processor time says what was done.

{notes}

## Findings

{findings}

The seeds come from mkfs (ext2/3/4, XFS, NTFS), from a kernel that fragmented XFS, and from a physical volume
written by hand; with what broke a law they are `tests/fuzz/corpus/*.zip`, which a unit test replays.
"""


if __name__ == "__main__":
    main()
