"""``calotype image test``: does an image start, and do its clones differ?"""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from calotype import units
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit, for_people, plain
from calotype.cli.text import one_line, say
from calotype.engine.boot.bootreport import BootReport, CloneReport, Difference
from calotype.engine.boot.boottest import boot_test
from calotype.errors import GuestError

_MUST = {True: "yes", False: "no: equal", None: ""}
_WIDEST = 60


def image_test(
    name: str,
    *,
    timeout: str = "10m",
    keep: Path | None = None,
    clones: Annotated[int, Parameter(show_default=True)] = 2,
    common: Common | None = None,
) -> None:
    """Start two clones of an image in throw-away overlays, look at them, and promote the image.

    Parameters
    ----------
    name
        The image.
    timeout
        How long each clone may take to start (90s, 10m).
    keep
        A directory for the clones' screenshots and serial logs.
    clones
        How many clones are started.
    """
    seconds = units.duration(timeout).total_seconds()
    with session(common) as context:
        report = boot_test(context, name, clones=clones, timeout=seconds, keep_artifacts=keep)
    if for_people(common):
        _explain(common, report)
    else:
        emit(common, {**plain(report), "passed": report.passed})
    if not report.passed:
        raise GuestError(
            f"image '{report.image_name}' failed its boot test: {'; '.join(report.problems)}",
            hint=_hint(report, keep),
        )


def _explain(common: Common | None, report: BootReport) -> None:
    for clone in report.clones:
        print(_life(clone))
    rows = [_row(found) for found in report.differences or _alone(report.clones)]
    emit(common, rows, _columns(len(report.clones)) if rows else None)
    for note in report.notes:
        say("note", note)
    for clone in report.clones:
        for artifact in clone.artifacts:
            if artifact.path is not None:
                print(f"kept: {one_line(artifact.path)}")
    if report.passed:
        print(
            f"{report.stage}: {report.image_name}, in {report.seconds:.0f} s ({report.acceleration})"
        )


def _life(clone: CloneReport) -> str:
    """A clone's life in a line."""
    if clone.reached is None:
        return f"clone {clone.name}: did not answer"
    parts = [f"clone {clone.name}: {clone.reached} after {clone.answered_after:.0f} s"]
    if clone.ready_after is not None:
        parts.append(f"ready after {clone.ready_after:.0f} s")
    if clone.login is not None:
        root = " and sudo" if clone.sudo else ""
        parts.append(f"login by key{root}" if clone.login else "no login by key")
    if clone.off_after is not None:
        parts.append(f"off in {clone.off_after:.0f} s")
    return ", ".join(parts)


def _alone(clones: tuple[CloneReport, ...]) -> list[Difference]:
    """What a single clone told, where there is nothing to compare."""
    if len(clones) != 1:
        return []
    keys = [(f"SSH host key ({kind})", (key,)) for kind, key in clones[0].host_keys.items()]
    told = [*keys, *clones[0].facts.items()]
    return [Difference(what, None, ("\n".join(values),), ok=True) for what, values in told]


def _row(found: Difference) -> dict[str, Any]:
    return {
        "what": found.what,
        "values": [_short(value) for value in found.values],
        "must": _MUST[found.must_differ],
        "verdict": "" if found.must_differ is None else "ok" if found.ok else "FAILED",
    }


def _short(value: str | None) -> str:
    """A value in a line of bounded width; ``-o json`` has all of it."""
    if value is None:
        return "-"
    line = ", ".join(value.split("\n"))
    return line if len(line) <= _WIDEST else f"{line[: _WIDEST - 1]}…"


def _columns(clones: int) -> Columns:
    values = {
        f"Clone {'ABCDEFGH'[number]}": lambda row, number=number: row["values"][number]
        for number in range(clones)
    }
    judged: Columns = {
        "Must differ": lambda row: row["must"],
        "Verdict": lambda row: row["verdict"],
    }
    return {"Seen": lambda row: row["what"], **values, **(judged if clones > 1 else {})}


def _hint(report: BootReport, keep: Path | None) -> str:
    """The last words of a clone that failed, else the cure of clones that are one machine."""
    for clone in report.clones:
        if clone.problem and clone.last_words:
            words = "\n  | ".join(clone.last_words)
            more = "" if keep else "\n  --keep DIR keeps its screenshot and its whole log"
            return f"the last that clone {clone.name} printed:\n  | {words}{more}"
    return "generalize it: make a VM of it, then calotype vm capture VM --image NAME --generalize"
