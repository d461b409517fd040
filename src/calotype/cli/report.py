"""``calotype image report`` and ``calotype verify-report``: what was proved, and whether it holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from calotype.cli.arguments import Repeat
from calotype.cli.common import Common, session
from calotype.cli.exits import STATUS
from calotype.cli.output import emit, for_people
from calotype.cli.text import size, visible
from calotype.config import Home
from calotype.disk.durable import write_private
from calotype.engine import references
from calotype.engine.proof.evidence import Report, as_json, read_evidence
from calotype.engine.proof.page import MEANING, agents, groups, render
from calotype.engine.proof.signing import Keys, PublicKey, read_key
from calotype.engine.proof.statement import Boot, Evidence, Statement
from calotype.engine.proof.verify_report import Answer, Outcome, Verification
from calotype.engine.proof.verify_report import verify_report as check_report
from calotype.errors import Conflict, InvalidInput, NotFound, ReportRefused

_MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("-", "dim")}
_OUTCOMES = {Outcome.HOLDS: True, Outcome.FAILS: False, Outcome.NOT_ASKED: None}
_COLOURS = {"Generalized": "green", "Mixed": "yellow", "Specialized": "blue"}
#: As many lines as one check has in the terminal.
_SHOWN = 5

Line = Text | str


def image_report(
    name: str,
    *,
    html: Path | None = None,
    json: Path | None = None,
    path: Annotated[bool, Parameter(negative="")] = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> None:
    """Show what was proved of an image: verdict, checks, boot test, digests, and who signed it.

    Parameters
    ----------
    name
        The image.
    html
        Write the page for people to this file.
    json
        Write the signed report (a DSSE envelope) to this file.
    path
        Print only where the signed report is kept, with its screenshots and logs.
    overwrite
        Replace existing files.
    """
    with session(common) as context:
        report = read_evidence(context, references.find(context, name))
        if html is not None:
            _write(html, render(report).encode(), overwrite=overwrite)
        if json is not None:
            _write(json, report.path.read_bytes(), overwrite=overwrite)
        if path:
            emit(common, str(report.path))
        elif not for_people(common):
            emit(common, {**_plain(report.statement), "keyId": report.key_id})
        elif html is None and json is None:
            _show(_summary(report))


def verify_report(
    report: Path,
    *,
    disk: Annotated[tuple[Path, ...], Repeat] = (),
    key: Annotated[tuple[Path, ...], Repeat] = (),
    format: Annotated[str | None, Parameter(name="--format")] = None,  # noqa: A002 (the option's name)
    common: Common | None = None,
) -> int:
    """Check a signed report anywhere: its signature, its form, the disks and files that it is about.

    Parameters
    ----------
    report
        The report: FILE.report.json beside an exported disk.
    disk
        A disk that must be of this report, in any format: what it holds counts (repeat it).
    key
        The signer's public key in PEM (repeat it). Without it: the keys that this installation trusts.
    format
        The disks' format, where a raw disk's content could be taken for another format.
    """
    keys = [read_key(path) for path in key] if key else _trusted_here()
    with session(common) as context:
        verified = check_report(
            report, keys=keys, disks=disk, declared=format, progress=context.progress
        )
    if for_people(common):
        _show(_verified(verified, named=bool(key)))
    else:
        emit(common, _record(verified))
    return 0 if verified.holds else STATUS[ReportRefused]


def _trusted_here() -> list[PublicKey]:
    home = Home.from_environment()
    keys = Keys(home).known() if home.keys.exists() else []
    if not keys:
        raise InvalidInput(
            "nothing says whose signature to believe",
            hint="name the signer's public key with --key; `calotype keys show` prints it there",
        )
    return keys


def _write(path: Path, data: bytes, *, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise NotFound(f"there is no directory '{path.parent}'")
    if path.exists() and not overwrite:
        raise Conflict(f"'{path}' exists already", hint="say --overwrite, or choose another name")
    write_private(path, data)
    path.chmod(0o644)


def _plain(statement: Statement) -> dict[str, object]:
    value = as_json(statement)
    return dict(value) if isinstance(value, dict) else {}


def _record(verified: Verification) -> dict[str, object]:
    return {
        "holds": verified.holds,
        "signedBy": verified.signed_by,
        "unknownKeys": verified.unknown_keys,
        "answers": verified.answers,
        "statement": as_json(verified.statement),
    }


# -- for people


def _show(lines: Iterator[Line]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for line in lines:
        plain = line.plain if isinstance(line, Text) else line
        if visible(plain) == plain:
            console.print(line if isinstance(line, Text) else Text(line))
        else:
            console.print(Text(visible(plain)))


def _marked(passed: bool | None, text: str, *, indent: int = 2) -> Text:
    sign, colour = _MARKS[passed]
    return Text.assemble(" " * indent, (sign, colour), " ", text)


def _title(text: str) -> Iterator[Line]:
    yield ""
    yield Text(text, style="bold")


def _summary(report: Report) -> Iterator[Line]:
    evidence = report.evidence
    yield from _head(evidence)
    for group in groups(evidence.proof.checks):
        passed = sum(check.passed for check in group.checks)
        yield from _title(f"{group.title}: {group.meaning}")
        yield _marked(passed == len(group.checks), f"{passed} of {len(group.checks)} checks passed")
        for check in group.checks:
            if not check.passed:
                yield _marked(False, f"{check.heading} ({check.step})", indent=4)
                yield from (f"        {line}" for line in check.left[:_SHOWN])
                if check.count > _SHOWN:
                    yield f"        … {check.count} in all"
    yield from _parts(evidence)
    yield from _title("Disks")
    for subject in report.statement.subject:
        yield f"  {subject.name}: {size(subject.annotations.size)}"
        yield from (f"    {kind} {digest}" for kind, digest in subject.digest.items())
    yield from _title(f"Signed by key {report.key_id}")
    yield f"  {evidence.at}, by {evidence.producer.actor}, with Calotype {evidence.producer.version}"
    yield f"  {report.path}"


def _head(evidence: Evidence) -> Iterator[Line]:
    verdict, system = evidence.proof.verdict, evidence.proof.system
    colour = f"bold {_COLOURS.get(verdict.state, 'dim')}"
    yield Text.assemble(f"{evidence.image.name}: ", (verdict.state, colour))
    yield f"  {MEANING.get(verdict.state, '')}"
    yield from (f"  {reason}" for reason in verdict.reasons[: 2 * _SHOWN])
    yield from (_marked(False, f"overruled: {o.reason} ({o.actor})") for o in evidence.overrides)
    told = [system.os_name or (system.os_type or ""), f"declared {evidence.image.declared_state}"]
    told += agents(system)
    yield "  " + "; ".join(filter(None, told))


def _parts(evidence: Evidence) -> Iterator[Line]:
    if evidence.proof.secrets:
        yield from _title("Secrets of applications that stayed")
        yield from (f"  {secret.path} ({secret.kind})" for secret in evidence.proof.secrets)
    if done := evidence.generalized:
        edits = sum(step.edits for step in done.steps)
        yield from _title("Generalized by Calotype, on a copy")
        yield f"  {len(done.steps)} steps, {edits} changes, {size(done.wiped_bytes)} of deleted files erased"
    if evidence.boot:
        yield from _boot(evidence.boot)
    if evidence.certification:
        yield from _title("What gates elsewhere would say")
        for rule in evidence.certification:
            yield _marked(rule.passed, rule.name + (f": {rule.detail}" if rule.detail else ""))


def _boot(boot: Boot) -> Iterator[Line]:
    yield from _title("Boot test")
    yield _marked(
        boot.passed,
        f"{len(boot.clones)} clones started side by side, {boot.duration_ms // 1000} s, {boot.started_at}",
    )
    yield from (_marked(False, problem, indent=4) for problem in boot.problems)
    for item in boot.differences:
        if item.must_differ is not None:
            must = "differs" if item.must_differ else "is equal"
            yield _marked(
                item.ok, f"{item.what} {must if item.ok else 'does not, as it must'}", indent=4
            )


def _verified(verified: Verification, *, named: bool) -> Iterator[Line]:
    evidence = verified.statement.predicate
    for key_id in verified.signed_by:
        whose = "which you named" if named else "which this installation trusts"
        yield _marked(True, f"signed by key {key_id}, {whose}")
    for key_id in verified.unknown_keys:
        yield _marked(
            None, f"it names key {key_id} too, which nobody vouches for: that proves nothing"
        )
    yield _marked(True, "its form is right")
    yield from (_answer(answer) for answer in verified.answers)
    yield ""
    yield f"It says of image {evidence.image.name}, looked at on {evidence.proof.at}:"
    yield f"  {evidence.proof.verdict.state}. {MEANING.get(evidence.proof.verdict.state, '')}"
    yield from (f"  {reason}" for reason in evidence.proof.verdict.reasons[: 2 * _SHOWN])
    yield from (f"  overruled: {o.reason} ({o.actor})" for o in evidence.overrides)
    yield ""
    if not verified.holds:
        yield Text("It does not hold: see the lines with ✗.", style="bold red")
        return
    yield "It proves that the holder of the key said this, of disks with these digests."
    if any(answer.outcome is Outcome.NOT_ASKED for answer in verified.answers):
        yield "It proves nothing of what was not checked here (-): disks are named with --disk."
    yield "It does not prove that nothing else is on them: a check finds what it looks for."


def _answer(answer: Answer) -> Text:
    return _marked(_OUTCOMES[answer.outcome], f"{answer.what}: {answer.detail}")
