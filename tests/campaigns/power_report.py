"""What the power-loss campaign says in the end: a page for people, and the same as JSON."""

import json
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

_SHOWN = 10  # examples of each list

_METHOD = (
    "Real commands worked in an installation on a disk whose every write and flush was recorded "
    "(`qemu-storage-daemon`, `blklogwrites`). The disk was then rebuilt as a power cut at that point leaves "
    "it, mounted (the kernel replays the journal), and the installation opened and read in full: every byte "
    "of each image, disk and base by fingerprint, the store by its checksums, the catalogue against what "
    "had been acknowledged. *Prefix*: all writes up to a point of the log. *Reordered*: a random part of "
    "those that no flush had made durable, down to 4 KiB blocks. At one point in twelve the installation "
    "was also worked on: the interrupted uploads again, a new upload, clearing up."
)
_NAMES = (
    "A directory that is not synced need not show: on ext4 and XFS a sync of any later file takes earlier "
    "names with it, on btrfs those of files that were synced themselves; and an Index whose name is lost is "
    "put back from the catalogue's copy. The directory of a new VM shows it, on btrfs. What a strict reading "
    "of POSIX would lose is cut away in `tests/unit/test_store_crash.py`."
)
_FOUND = (
    (
        "The directory of a new VM was made without a sync of the directory above it: on btrfs, after a "
        "power cut, an acknowledged VM had no directory (199 of 671 points; ext4 hides it). Now it is synced."
    ),
    (
        "The same reading of the code showed that the SSH key pair of an installation was not synced at "
        "all. Now it is, and the fingerprint of a VM has the key in it."
    ),
    (
        "A command killed between the commit of a root and the writing of its object left a store whose "
        "check spoke of damage, although nothing was lost. Now a check puts that object back."
    ),
)
MODES = ("prefix", "reordered")


class Session(Protocol):
    """What is reported of: a recorded session."""

    @property
    def name(self) -> str:
        """Which workload."""

    @property
    def file_system(self) -> str:
        """On what."""

    @property
    def weakness(self) -> str | None:
        """The promise that was broken in it."""

    @property
    def directory(self) -> str:
        """What it is called."""


class Room(Protocol):
    """Where the results are."""

    def of(self, session: Any) -> Path:
        """The directory of a session."""

    def results(self, session: Any) -> list[dict[str, Any]]:
        """The points that were tried."""


def write(
    room: Room,
    own: Sequence[Session],
    broken: Sequence[Session],
    kinds: Sequence[str],
    target: Path,
) -> int:
    """Write ``target.md`` and ``target.json``; 0 when nothing was lost and each broken promise shows."""
    sessions = [_session(room, session) for session in own]
    controls = [_session(room, session) for session in broken]
    tried = [(session, point) for session in own for point in _points(room, session)]
    points = [point for _, point in tried]
    table = {
        kind: {mode: sum(p["kind"] == kind and _mode(p) == mode for p in points) for mode in MODES}
        for kind in kinds
    }
    red = [(session, point) for session, point in tried if point["problems"]]
    report = {
        "kernel": platform.release(),
        "points": len(points),
        "by_kind": table,
        "by_file_system": _sum((s["file_system"], s["points"]) for s in sessions),
        "with_a_command_under_way": sum(point["running"] > 0 for point in points),
        "acknowledged_images_read": sum(point["acknowledged"] for point in points),
        "gone_on_from": sum(point["went_on"] for point in points),
        "acknowledged_images_at_risk": sum(_at_risk(point["problems"]) for point in points),
        "points_with_a_finding": len(red),
        "findings": [{"session": s.directory, **p} for s, p in red[:_SHOWN]],
        "sessions": sessions,
        "controls": controls,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    target.with_suffix(".md").write_text(_page(report))
    blind = [one["session"] for one in controls if one["must_show"] and not one["red"]]
    return 1 if red or blind else 0


def _sum(pairs: Iterable[tuple[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for key, number in pairs:
        total[key] += number
    return total


def _mode(point: dict[str, Any]) -> str:
    return MODES[point["variant"] > 0]


def _at_risk(problems: Iterable[str]) -> int:
    return sum(problem.startswith("image/") for problem in problems)


def _points(room: Room, session: Session) -> list[dict[str, Any]]:
    """Each point once, however often it was tried."""
    return list({(p["entry"], p["variant"]): p for p in room.results(session)}.values())


def _session(room: Room, session: Session) -> dict[str, Any]:
    story = json.loads((room.of(session) / "session.json").read_text())
    points = _points(room, session)
    red = [point for point in points if point["problems"]]
    return {
        "session": session.directory,
        "file_system": session.file_system,
        "commit": story["commit"],
        "commands": len(story["commands"]),
        "points": len(points),
        "red": len(red),
        "example": red[0]["problems"][0] if red else None,
        "weakness": session.weakness,
        "must_show": session.weakness != "no_directory_fsync"
        or (session.name, session.file_system) == ("captures", "btrfs"),
    }


def _page(report: dict[str, Any]) -> str:
    lines = [
        "# Power loss",
        "",
        _METHOD,
        "",
        (
            f"**{report['points']:,} points; {report['points_with_a_finding']} with a finding; "
            f"{report['acknowledged_images_at_risk']} acknowledged images lost or torn.** "
            f"At {report['with_a_command_under_way']:,} points a command was under way; acknowledged images "
            f"were read {report['acknowledged_images_read']:,} times; {report['gone_on_from']:,} points were "
            f"gone on from. Kernel {report['kernel']}. `make campaign-powerloss` repeats it."
        ),
        "",
        "| work | prefix | reordered |",
        "|---|---:|---:|",
        *(
            f"| {kind} | {modes['prefix']:,} | {modes['reordered']:,} |"
            for kind, modes in report["by_kind"].items()
        ),
        "",
        "| session | version | commands | points | with a finding |",
        "|---|---|---:|---:|---:|",
        *(
            f"| {s['session']} | {s['commit']} | {s['commands']} | {s['points']:,} | {s['red']} |"
            for s in report["sessions"]
        ),
        "",
        "## Can it fail?",
        "",
        "The same with one promise broken on purpose (`tests/campaigns/power_weak.py`):",
        "",
        "| session | points | with a finding | the first one |",
        "|---|---:|---:|---|",
        *(
            f"| {s['session']} | {s['points']} | {s['red']} | {s['example'] or 'none'} |"
            for s in report["controls"]
        ),
        "",
        _NAMES,
        "",
        "## Found by this, and mended",
        "",
        *(f"- {text}" for text in _FOUND),
    ]
    if report["findings"]:
        lines += ["", "## Not mended", ""]
        lines += [
            f"- {p['session']}, entry {p['entry']}.{p['variant']}: {p['problems']}"
            for p in report["findings"]
        ]
    return "\n".join(lines) + "\n"
