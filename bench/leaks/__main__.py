"""The leak table: what generalizing leaves on a disk, by several tools.

    .venv/bin/python -m bench.leaks [--fresh] [--only NAME ...] [--no-boot] [--times] [--report PATH]

Stages are kept in ``/var/tmp/calotype-leaks`` (or ``CALOTYPE_LEAKS``) until what they depend on changes: the
used machine, each tool's result, its first start. Calotype's own results depend on its source, so they are
made anew after every change. Writes ``docs/reports/leaks.json`` and ``.md`` from all that is there.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.leaks import boots, families, report, times
from bench.leaks.guest import Refused
from bench.leaks.picture import picture
from bench.leaks.search import search, whereabouts
from bench.leaks.tools import TOOLS, Calotype, Tool
from bench.leaks.used import Used, used
from bench.measure import machine

from calotype.disk.view import RawSource
from calotype.guest import prove_disk

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "docs" / "reports" / "leaks"


def work_room() -> Path:
    """Where stages are kept."""
    return Path(os.environ.get("CALOTYPE_LEAKS", "/var/tmp/calotype-leaks"))


def stage(path: Path, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``make`` said when it last ran for this ``key``."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        kept = {}
    if kept.get("key") != key:
        kept = {"key": key, "value": make()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=1))
    return dict(kept["value"])


def column(tool: Tool, start: Used, work: Path, *, boot: bool) -> dict[str, Any]:
    """A tool's results: what it left, and the first start of its result."""
    home = work / "results" / "".join(c if c.isalnum() else "-" for c in tool.name.lower())
    key = f"{digest(start.disk.with_name('manifest.json'))} {tool!r}"
    if isinstance(tool, Calotype):
        key += " " + digest(*sorted((ROOT / "src/calotype").rglob("*.py")))
    target = home / "disk.raw"

    def make() -> dict[str, Any]:
        home.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        say(f"{tool.name}: {tool.how}")
        return asdict(tool.run(start, work, target))

    def look() -> dict[str, Any]:
        left = found_on(target, start)
        say(f"{tool.name}: {len(left)} of {len(start.canaries)} left")
        return left

    outcome = stage(home / "result.json", key, make)
    searched = f"{key} {digest(Path(__file__).with_name('search.py'))}"
    left = stage(home / "left.json", searched, look)
    found = {"name": tool.name, "how": tool.how, "left": left, **outcome, **verdict(target)}
    if boot:

        def start_it() -> dict[str, Any]:
            if not target.exists():
                make()
            say(f"{tool.name}: first start as another machine")
            return boots.boot(target, boots.identity(start.disk), work)

        found["boot"] = stage(home / "boot.json", key, start_it)
    elif (home / "boot.json").exists():
        found["boot"] = json.loads((home / "boot.json").read_text())["value"]
    return found


def verdict(disk: Path) -> dict[str, Any]:
    """What Calotype's proof says of a result."""
    with contextlib.closing(RawSource(disk).open()) as opened:
        proof = prove_disk(opened)
    steps = [finding.step for finding in proof.findings]
    return {"verdict": proof.verdict.value, "checked": len(proof.checked), "findings": steps}


def found_on(disk: Path, start: Used) -> dict[str, list[str]]:
    """Where each canary stands that is left: names of files, ``<free>`` and the like."""
    hits = search(disk, start.needles)
    places = whereabouts(disk, start.root, (hit.offset for hit in hits))
    left: dict[str, list[str]] = {}
    for hit in hits:
        place = places.get(hit.offset, "<outside>")
        names = left.setdefault(hit.name, [])
        if place not in names:
            names.append(place)
    return left


def digest(*paths: Path) -> str:
    """A digest of some files' contents."""
    state = hashlib.blake2b(digest_size=8)
    for path in paths:
        state.update(path.read_bytes())
    return state.hexdigest()


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"leaks: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Run what is asked for, and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fresh", action="store_true", help="forget all stages first")
    parser.add_argument("--only", action="append", help="only this tool, or 'families' (repeat it)")
    parser.add_argument("--no-boot", action="store_true", help="do not start the results")
    parser.add_argument("--times", action="store_true", help="measure the times anew, nothing else")
    parser.add_argument("--report", type=Path, default=REPORT)
    given = parser.parse_args()
    work = work_room()
    if given.fresh:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    start = used(work)
    kept = {path.stem: json.loads(path.read_text()) for path in work.glob("kept/*.json")}
    content: dict[str, Any] = {
        "canaries": [
            {"kind": c.kind, "group": c.group.value, "name": c.name, "path": c.path}
            for c in start.canaries
        ],
        "missing": list(start.missing),
        "machine": machine(ROOT),
        "tools": [],
    }
    wanted = set(given.only or ())
    for tool in TOOLS:
        asked = not given.times and (not wanted or tool.name in wanted)
        kept_name = f"tool-{tool.name}"
        if asked:
            try:
                kept[kept_name] = column(tool, start, work, boot=not given.no_boot)
            except Refused as error:
                say(f"{tool.name}: {error}")
        if kept_name in kept:
            content["tools"].append(kept[kept_name])
    if given.times or ("times" not in kept and not wanted):
        kept["times"] = times.measure(start, work)
    if not given.times and (not wanted or "families" in wanted):
        kept["families"] = {"rows": families.rows(work)}
    (work / "kept").mkdir(exist_ok=True)
    for name, value in kept.items():
        (work / "kept" / f"{name}.json").write_text(json.dumps(value))
    content["times"] = kept.get("times")
    content["families"] = kept.get("families", {}).get("rows", [])
    report.write(content, given.report)
    given.report.with_suffix(".svg").write_text(picture(content["canaries"], content["tools"]))
    ours = [tool for tool in content["tools"] if tool["name"].startswith("Calotype")]
    site = {c.name for c in start.canaries if c.group == "site"}
    if any(set(tool["left"]) - site for tool in ours):
        raise SystemExit("Calotype left something: see the report")


if __name__ == "__main__":
    main()
