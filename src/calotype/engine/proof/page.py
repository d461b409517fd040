"""The evidence report as a page for people: one HTML file that loads nothing and runs nothing."""

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from calotype.engine.proof.evidence import Report
from calotype.engine.proof.statement import PREDICATE, Boot, Check, File, System
from calotype.units import human_size, visible

_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_PICTURE = 4 << 20

#: What each verdict means, in a sentence.
MEANING: Mapping[str, str] = {
    "Generalized": "Nothing of one machine or one person was found on its OS disk.",
    "Specialized": "Its OS disk is one machine: two VMs of it would be the same machine twice.",
    "Mixed": "Some of one machine is gone from its OS disk, and some is left.",
    "Unknown": "Nobody could look into its OS disk.",
}
_CONCERNS: Mapping[str, tuple[str, str]] = {
    "identity": ("Identity", "what would make two clones one machine"),
    "credential": ("Credentials", "what would let somebody in"),
    "trace": ("Traces", "what tells of the old machine, and opens nothing"),
}


class Group(NamedTuple):
    """The checks of one concern."""

    title: str
    meaning: str
    checks: tuple[Check, ...]


class Picture(NamedTuple):
    """A screenshot, as an address that holds it."""

    clone: str
    url: str


def render(report: Report) -> str:
    """The page of a report. Every text of it is the guest's or a stranger's, and is escaped."""
    evidence = report.evidence
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            e=evidence,
            subjects=report.statement.subject,
            key_id=report.key_id,
            meaning=MEANING.get(evidence.proof.verdict.state, ""),
            agents=", ".join(agents(evidence.proof.system)),
            groups=groups(evidence.proof.checks),
            failed=[check for check in evidence.proof.checks if not check.passed],
            pictures=pictures(evidence.boot, report.path.parent) if evidence.boot else (),
            predicate=PREDICATE,
        )
    )


def agents(system: System) -> list[str]:
    """The agents that are installed."""
    named = {
        "cloud-init": system.cloud_init,
        "Azure Linux Agent": system.waagent,
        "QEMU guest agent": system.guest_agent,
    }
    return [name for name, there in named.items() if there]


def groups(checks: tuple[Check, ...]) -> list[Group]:
    """The checks by concern, the gravest first; what failed stands before what did not."""
    found = []
    for concern in (*_CONCERNS, ""):
        some = [c for c in checks if (c.concern if c.concern in _CONCERNS else "") == concern]
        title, meaning = _CONCERNS.get(concern, ("Others", "other checks"))
        if some:
            found.append(Group(title, meaning, tuple(sorted(some, key=lambda c: c.passed))))
    return found


def pictures(boot: Boot, directory: Path) -> list[Picture]:
    """The screenshots that lie beside the report and are what was signed."""
    found = []
    for clone in boot.clones:
        for file in clone.files:
            if file.kind == "screenshot" and (data := _picture(directory, file)):
                url = "data:image/png;base64," + base64.b64encode(data).decode()
                found.append(Picture(clone.name, url))
    return found


def _picture(directory: Path, file: File) -> bytes | None:
    path = directory / file.name
    if file.size > _MAX_PICTURE or not path.is_file():
        return None
    with path.open("rb") as opened:
        data = opened.read(file.size + 1)
    right = hashlib.sha256(data).hexdigest() == file.sha256
    return data if right and data.startswith(_PNG) else None


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("calotype.engine.proof"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = human_size
    environment.filters["seconds"] = _seconds
    environment.filters["moment"] = _moment
    environment.filters["state"] = _state
    return environment


def _shown(value: Any) -> Any:
    """No control character of a guest gets into the page; what the template itself made stays."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _seconds(milliseconds: int | None) -> str:
    return "" if milliseconds is None else f"{milliseconds / 1000:.0f} s"


def _moment(text: str) -> str:
    """``2026-11-23T09:41:07Z`` for people; what is no time stays as it is."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return text


def _state(passed: bool | None) -> str:
    return "open" if passed is None else "good" if passed else "bad"
