"""What is not for everybody: the reasons why a version must not be shown to the community.

They hold wherever a version came from and however it was promoted, because they are asked for whenever the
community looks. What may be overruled is noted in the version by whoever published it.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from calotype.engine.context import Context
from calotype.errors import CalotypeError, ReportRefused
from calotype.model import ImageDefinition, ImageVersion, OsState, Verdict
from calotype.units import one_line, some

#: The line in an image's provenance that says that its owner knows what is in it.
OVERRULED: Final = "shown to the community although it may hold secrets (recorded)"


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a version is not for everybody; what is ``grave`` nobody can overrule."""

    reference: str
    reason: str
    cure: str
    grave: bool = True

    def __str__(self) -> str:
        return f"{self.reference} {self.reason}"


def objections(
    context: Context, definition: ImageDefinition, version: ImageVersion
) -> Iterator[Objection]:
    """Why a version is not for everybody; nobody looked into it, it is looked into now."""
    reference = version.reference
    if definition.os_state is OsState.SPECIALIZED:
        yield Objection(
            reference,
            "is specialized: it is one machine, and everybody would have its keys and users",
            "generalize it (calotype generalize), and keep it in a gallery of its own",
        )
    if (entitlement := version.image.entitlement) is not None:
        yield Objection(
            reference,
            f"is for subscriptions with the entitlement '{entitlement}'",
            "keep what comes from such offers in a gallery that is not public",
        )
    if definition.os_state is OsState.GENERALIZED and OVERRULED not in _notes(version):
        yield from _of_its_content(context, version)


def _of_its_content(context: Context, version: ImageVersion) -> Iterator[Objection]:
    from calotype.engine.proof.evidence import find_evidence  # noqa: PLC0415 (loads much)

    try:
        report = None
        with suppress(ReportRefused):  # a new one takes its place
            report = find_evidence(context, version.image)
        if report is None:
            _look(context, version)
            report = find_evidence(context, version.image)
    except CalotypeError as error:
        yield Objection(
            version.reference, f"cannot be looked into: {error.message}", error.hint or ""
        )
        return
    if report is None:
        return
    proof = report.evidence.proof
    if proof.verdict.state in (Verdict.SPECIALIZED, Verdict.MIXED):
        yield Objection(
            version.reference,
            f"holds what is one machine's or person's: {one_line(some(proof.verdict.reasons))}",
            f"calotype generalize {version.reference} --image NAME makes a clean copy; or --force (recorded)",
            grave=False,
        )
    if proof.secrets:
        paths = [f"{secret.path} ({secret.kind})" for secret in proof.secrets]
        yield Objection(
            version.reference,
            f"holds what looks like secrets of applications: {one_line(some(paths))}",
            "remove them and make a new version; or --force if everybody may have them (recorded)",
            grave=False,
        )


def _look(context: Context, version: ImageVersion) -> None:
    from calotype.engine.proof.evidence import write_evidence  # noqa: PLC0415 (loads much)
    from calotype.engine.proof.look import prove_index  # noqa: PLC0415 (loads much)

    with context.progress.phase(f"looking into {version.reference}", None):
        proof = prove_index(context, version.image.os_disk.index)
        write_evidence(context, version.image, proof, quick=True)


def _notes(version: ImageVersion) -> tuple[str, ...]:
    return version.image.provenance.notes
