"""What was seen, in the words of a report: every text on one line, every list with an end."""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from calotype.catalog.audit import Head
from calotype.engine.proof import statement as form
from calotype.engine.proof.statement import MAX_LINES, Evidence
from calotype.errors import InvalidInput
from calotype.guest.generalize import GeneralizeReport
from calotype.guest.inspect import Inspection
from calotype.guest.proof import Finding, Proof
from calotype.guest.steps import STEPS
from calotype.guest.windows_checks import CHECKS
from calotype.model import Image
from calotype.units import one_line, visible

if TYPE_CHECKING:
    from calotype.engine.boot.bootreport import Artifact, BootReport, CloneReport, Difference

#: Kind of an artifact -> how its file's name ends.
_ENDING = {"screenshot": ".png", "serial-log": ".log"}
#: Name of a check -> its heading and concern, for those that found nothing.
_CHECKS = {check.name: (check.heading, check.concern.value) for check in CHECKS} | {
    step.name: (step.heading, step.concern.value) for step in STEPS
}
_MAX_SECRETS = 1000
_MAX_VALUE = 16384  # characters of a fact of a clone


def describe(
    image: Image,
    proof: Proof | None,
    last: Evidence | None,
    *,
    at: datetime,
    producer: form.Producer,
    generalized: GeneralizeReport | None,
    boot: form.Boot | None,
    certification: Iterable[form.Rule] | None,
    forced: str | None,
    head: Head | None,
) -> Evidence:
    """The predicate; what is ``None`` stays as it was in the ``last`` one.

    Raises:
        InvalidInput: there is no proof, neither given nor in the last one.
    """
    if proof is not None:
        seen = _seen(proof, at)
    elif last is not None:
        seen = last.proof
    else:
        raise InvalidInput(
            f"nobody has looked at image '{image.name}'", hint=f"calotype image verify {image.name}"
        )
    overrides, rules = (last.overrides, last.certification) if last else ((), ())
    reason = one_line(forced or "")
    if reason and reason not in {override.reason for override in overrides}:
        overrides += (form.Override(reason=reason, actor=producer.actor, at=_time(at)),)
    kept, tested = (last.generalized, last.boot) if last else (None, None)
    return Evidence(
        at=_time(at),
        producer=producer,
        image=_image(image),
        proof=seen,
        certification=tuple(certification) if certification is not None else rules,
        generalized=_generalized(generalized) if generalized else kept,
        boot=boot or tested,
        overrides=overrides,
        audit=form.Head(number=head.number, digest=head.digest) if head else None,
    )


def describe_boot(report: "BootReport") -> form.Boot:
    """A boot test; its files have the names that they get beside the report."""
    return form.Boot(
        started_at=one_line(report.started_at),
        duration_ms=math.ceil(report.seconds * 1000),
        acceleration=one_line(report.acceleration),
        passed=report.passed,
        clones=tuple(_clone(number, clone) for number, clone in enumerate(report.clones, 1)),
        differences=tuple(_difference(item) for item in report.differences),
        problems=_lines(report.problems),
        notes=_lines(report.notes),
    )


def _seen(proof: Proof, at: datetime) -> form.Seen:
    found = {finding.step: finding for finding in proof.findings}
    return form.Seen(
        at=_time(at),
        verdict=form.Judgement(state=proof.verdict.value, reasons=_lines(proof.reasons)),
        checks=tuple(_check(step, found.get(step)) for step in proof.checked),
        system=_system(proof.seen),
        secrets=tuple(
            form.SecretFile(kind=one_line(secret.kind), path=one_line(secret.path))
            for secret in proof.secrets[:_MAX_SECRETS]
        ),
        notes=_lines(proof.notes),
    )


def _check(name: str, finding: Finding | None) -> form.Check:
    heading, concern = _CHECKS.get(name, (name, ""))
    if finding is None:
        return form.Check(step=name, heading=heading, concern=concern, passed=True)
    return form.Check(
        step=name,
        heading=finding.heading,
        concern=finding.concern.value,
        passed=False,
        left=tuple(one_line(left) for left in finding.left[:MAX_LINES]),
        count=len(finding.left),
    )


def _system(seen: Inspection) -> form.System:
    return form.System(
        os_type=seen.os_type.value if seen.os_type else None,
        os_id=one_line(seen.os_id),
        os_name=one_line(seen.os_name),
        os_version=one_line(seen.os_version),
        hostname=one_line(seen.hostname),
        architecture=seen.architecture.value if seen.architecture else None,
        generations=tuple(generation.value for generation in seen.generations),
        users=_lines(seen.users),
        passwords=_lines(seen.passwords),
        host_keys=_lines(seen.host_keys),
        cloud_init=seen.cloud_init,
        waagent=seen.waagent,
        guest_agent=seen.guest_agent,
        packages=seen.packages,
        kernels=_lines(seen.kernels),
        time_zone=one_line(seen.time_zone),
        stale=seen.stale,
        notes=_lines(seen.notes),
    )


def _image(image: Image) -> form.ImageFacts:
    origin = image.provenance
    return form.ImageFacts(
        id=image.id,
        name=one_line(image.name),
        os_type=image.os_type.value,
        declared_state=image.os_state.value,
        generation=image.generation.value,
        architecture=image.architecture.value,
        created_at=_time(image.created_at),
        provenance=form.Source(
            kind=origin.kind.value,
            source=one_line(origin.source),
            source_format=origin.source_format,
            sha256=origin.sha256,
            vm_id=origin.vm_id,
            image_id=origin.image_id,
            consistency=origin.consistency.value if origin.consistency else None,
            notes=_lines(origin.notes),
        ),
    )


def _generalized(report: GeneralizeReport) -> form.Generalized:
    return form.Generalized(
        steps=tuple(
            form.Performed(name=step.name, heading=step.heading, edits=len(step.edits))
            for step in report.steps
        ),
        wiped_bytes=report.wiped,
        filesystem=one_line(report.filesystem),
        disabled=_lines(report.disabled),
        notes=_lines(report.notes),
    )


def _clone(number: int, clone: "CloneReport") -> form.Clone:
    return form.Clone(
        name=one_line(clone.name),
        reached=clone.reached,
        answered_after_ms=_milliseconds(clone.answered_after),
        ready_after_ms=_milliseconds(clone.ready_after),
        login=clone.login,
        clean=clone.clean,
        problem=one_line(clone.problem) if clone.problem else None,
        files=tuple(_file(number, artifact) for artifact in clone.artifacts),
    )


def _file(clone: int, artifact: "Artifact") -> form.File:
    ending = _ENDING[artifact.kind]
    return form.File(
        name=f"clone-{clone}-{artifact.kind}-{artifact.sha256[:16]}{ending}",
        kind=artifact.kind,
        size=artifact.size,
        sha256=artifact.sha256,
    )


def _difference(item: "Difference") -> form.Difference:
    return form.Difference(
        what=one_line(item.what),
        ok=item.ok,
        must_differ=item.must_differ,
        values=tuple(
            None if value is None else visible(value)[:_MAX_VALUE] for value in item.values
        ),
    )


def _lines(texts: Sequence[str]) -> tuple[str, ...]:
    shown = tuple(one_line(text) for text in texts[:MAX_LINES])
    more = len(texts) - len(shown)
    return (*shown, f"… and {more} more") if more else shown


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else math.ceil(seconds * 1000)


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
