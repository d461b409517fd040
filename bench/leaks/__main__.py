"""The leak table: what generalizing leaves on a disk, by several tools.

    .venv/bin/python -m bench.leaks [--fresh] [--only NAME] [--boot all|some|none] [--times] [--write]

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
from functools import partial
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
_STARTED = ("virt-sysprep", "Calotype")


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
    home = work / "results" / slug(tool.name)
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


def slug(name: str) -> str:
    """A name as that of a file."""
    return "".join(c if c.isalnum() else "-" for c in name.lower())


class Kept:
    """The parts of the report, each kept as soon as it is measured."""

    def __init__(self, home: Path) -> None:
        self._home = home
        home.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> dict[str, Any] | None:
        """A part, when it was measured."""
        try:
            return dict(json.loads(self._path(name).read_text()))
        except (OSError, ValueError):
            return None

    def measure(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Measure a part anew; one that cannot be had leaves what was there."""
        try:
            made = make()
        except Refused as error:
            say(f"{name}: {error}")
        else:
            self._path(name).write_text(json.dumps(made))

    def _path(self, name: str) -> Path:
        return self._home / f"{slug(name)}.json"


def main() -> None:
    """Run what is asked for, and write the report."""
    given = _arguments()
    work = work_room()
    if given.fresh:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    start = used(work)
    kept = Kept(work / "kept")

    def asked(name: str) -> bool:
        return not (given.times or given.write) and (not given.only or name in given.only)

    for tool in TOOLS:
        if asked(tool.name):
            boot = given.boot == "all" or (given.boot == "some" and tool.name in _STARTED)
            kept.measure(tool.name, partial(column, tool, start, work, boot=boot))
    for family in families.FAMILIES:
        if asked(family.name) or asked("families"):
            say(family.name)
            kept.measure(family.name, partial(families.row, family, work))
    if given.times or (asked("times") and kept.get("times") is None):
        kept.measure("times", partial(times.measure, start, work))
    content = _content(start, kept)
    report.write(content, given.report)
    drawn = picture(content["canaries"], content["tools"])
    given.report.with_suffix(".svg").write_text(drawn)
    _judge(content)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fresh", action="store_true", help="forget all stages first")
    parser.add_argument(
        "--only",
        action="append",
        help="only this column, family, 'families' or 'times' (repeat it)",
    )
    parser.add_argument(
        "--boot",
        choices=["all", "some", "none"],
        default="some",
        help=f"whose results are started as another machine (some: {', '.join(_STARTED)})",
    )
    parser.add_argument("--times", action="store_true", help="measure the times anew, nothing else")
    parser.add_argument("--write", action="store_true", help="only write the report anew")
    parser.add_argument("--report", type=Path, default=REPORT)
    return parser.parse_args()


def _content(start: Used, kept: Kept) -> dict[str, Any]:
    canaries = [
        {"kind": c.kind, "group": c.group.value, "name": c.name, "path": c.path}
        for c in start.canaries
    ]
    columns = [kept.get(tool.name) for tool in TOOLS]
    rows = [kept.get(family.name) for family in families.FAMILIES]
    return {
        "canaries": canaries,
        "missing": list(start.missing),
        "machine": machine(ROOT),
        "tools": [found for found in columns if found],
        "families": [found for found in rows if found],
        "times": kept.get("times"),
    }


def _judge(content: dict[str, Any]) -> None:
    """Nothing but the site's own may be left by Calotype."""
    site = {c["name"] for c in content["canaries"] if c["group"] == "site"}
    for tool in content["tools"]:
        if tool["name"].startswith("Calotype") and set(tool["left"]) - site:
            raise SystemExit("Calotype left something: see the report")
    for row in content["families"]:
        if row["left"]:
            raise SystemExit(f"Calotype left something in {row['name']}: see the report")


if __name__ == "__main__":
    main()
