"""Evidence reports: written when an image was looked at, kept beside it, signed.

``evidence/IMAGE-ID/report.json`` is the DSSE envelope; its one rename is the commit point. The files that
it names (screenshots, logs) are written before it under names that hold their digests, so that a report
and its files never disagree: after a crash the last good report stands with all that belongs to it. The
page for people is made from it when asked. What no report names goes with the next one, and a report
whose image is gone goes as unused bases do.
"""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from calotype import __version__
from calotype.catalog.audit import Act, Head, current_actor
from calotype.disk.content import BLAKE3, content_digests, digest_kinds
from calotype.disk.durable import fsync_directory, write_private
from calotype.engine.context import Context
from calotype.engine.proof import statement as form
from calotype.engine.proof.describe import describe, describe_boot
from calotype.engine.proof.statement import Boot, Evidence, Statement, Subject
from calotype.errors import Conflict, InvalidInput, NotFound, ReportRefused
from calotype.guest.generalize import GeneralizeReport
from calotype.guest.proof import Proof
from calotype.model import Image

if TYPE_CHECKING:
    from calotype.engine.boot.bootreport import BootReport
    from calotype.engine.proof.signing import Keys

REPORT = "report.json"
_MAX_FILE = 32 << 20


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was read back: what it says, who signed it, and where it and its files are."""

    statement: Statement
    key_id: str
    path: Path

    @property
    def evidence(self) -> Evidence:
        """What was seen."""
        return self.statement.predicate

    def require_place(self, target: Path, *, overwrite: bool) -> None:
        """Refuse to replace another report beside an exported file.

        Raises:
            Conflict: one is there, and ``overwrite`` is not set.
        """
        beside = _beside(target)
        if not overwrite and beside.exists() and beside.read_bytes() != self.path.read_bytes():
            raise Conflict(f"'{beside}' exists already", hint="say --overwrite, or --no-report")

    def put_beside(self, target: Path) -> Path:
        """Write the report beside an exported file, as ``FILE.report.json``."""
        beside = _beside(target)
        write_private(beside, self.path.read_bytes())
        beside.chmod(0o644)
        return beside


def write_evidence(
    context: Context,
    image: Image,
    proof: Proof | None = None,
    *,
    generalized: GeneralizeReport | None = None,
    boot: "BootReport | None" = None,
    certification: Iterable[form.Rule] | None = None,
    forced: str | None = None,
    quick: bool = False,
    source: Image | None = None,
) -> Path:
    """Sign and keep what was seen of an image; the path of the report.

    What is ``None`` is taken from the image's last report: its disks have not changed since. A last report
    that does not hold gives nothing, and gives way to a new proof, which the audit tells.

    Args:
        context: the installation. Of an image that is not in the catalogue yet, hold an operation.
        image: the image.
        proof: what its OS disk shows.
        generalized: what was done to make it general, if Calotype did it.
        boot: what its clones did.
        certification: what gates elsewhere would say.
        forced: what the evidence spoke against, and was ordered all the same.
        quick: leave SHA-256, which must see every zero of the disks, to the next report.
        source: an image with the same disks, whose report is continued instead of the image's own.

    Raises:
        InvalidInput: there is no proof, neither given nor in an earlier report.
        ReportRefused: there is no new proof, and the last report was changed by somebody.
    """
    with context.lock(f"evidence-{image.id}"):
        last = _last(context, source or image, replace=proof is not None)
        directory = context.home.evidence / image.id
        context.home.prepare()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fsync_directory(directory.parent)
        fsync_directory(context.home.root)
        if last is not None and source is not None:
            for file in last.evidence.files:
                write_private(directory / file.name, (last.path.parent / file.name).read_bytes())
        known = last.evidence if last else None
        evidence = describe(
            image,
            proof,
            known,
            at=datetime.now(UTC),
            producer=form.Producer(
                actor=current_actor(context.caller.principal), version=__version__
            ),
            generalized=generalized,
            boot=_keep(boot, directory) if boot else None,
            certification=certification,
            forced=forced,
            head=context.catalog.audit.head(),
        )
        subjects = _subjects(context, image, last.statement.subject if last else (), quick=quick)
        payload = form.encode(Statement(subject=subjects, predicate=evidence))
        envelope = _keys(context).sign(payload, form.PAYLOAD)
        write_private(directory / REPORT, envelope)
        _sweep(directory, {REPORT, *(file.name for file in evidence.files)})
    return directory / REPORT


def read_evidence(context: Context, image: Image) -> Report:
    """The report of an image, if a key that is trusted here signed it and it is of these disks.

    Raises:
        NotFound: nobody has proved the image.
        ReportRefused: it was changed, is of other disks, or no trusted key signed it.
    """
    report = find_evidence(context, image)
    if report is None:
        raise NotFound(
            f"there is no evidence of image '{image.name}'",
            hint=f"calotype image verify {image.name}",
        )
    return report


def find_evidence(context: Context, image: Image) -> Report | None:
    """As :func:`read_evidence`; ``None`` where there is no report."""
    path = context.home.evidence / image.id / REPORT
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    from calotype.engine.proof.signing import open_envelope  # noqa: PLC0415 (0.1 s that others do without)

    signed = open_envelope(data, form.PAYLOAD, _keys(context).known())
    statement = form.decode(signed.payload)
    told = [(s.annotations.lun, s.annotations.index) for s in statement.subject]
    same_disks = told == [(disk.lun, disk.index) for disk in image.disks]
    if not same_disks or statement.predicate.image.id != image.id:
        raise ReportRefused(
            f"the report that is kept with image '{image.name}' is of another image",
            hint=f"calotype image verify {image.name} makes a new one",
        )
    return Report(statement, signed.keys[0].id, path)


def _last(context: Context, image: Image, *, replace: bool) -> Report | None:
    """The last report; one that does not hold is none if a new proof may ``replace`` it."""
    try:
        return find_evidence(context, image)
    except InvalidInput as error:
        if not replace:
            raise
        detail = {"image": image.id, "problem": error.message}
        context.catalog.audit.append(Act("report.discard", f"image {image.name}", detail))
        return None


def audit_head(context: Context, path: Path) -> Head:
    """The newest entry of the audit when a report (of this installation) was signed.

    Raises:
        ReportRefused: it was changed, or no key that is trusted here signed it.
        InvalidInput: it is no report, or was made before anything was recorded.
    """
    from calotype.engine.proof.signing import open_envelope  # noqa: PLC0415 (0.1 s that others do without)

    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read '{path}': {error.strerror}") from error
    signed = open_envelope(data, form.PAYLOAD, _keys(context).known())
    noted = form.decode(signed.payload).predicate.audit
    if noted is None:
        raise InvalidInput("the report was made before anything was recorded in the audit")
    return Head(noted.number, noted.digest)


def _beside(target: Path) -> Path:
    return target.with_name(target.name + ".report.json")


def _subjects(
    context: Context, image: Image, last: Sequence[Subject], *, quick: bool
) -> tuple[Subject, ...]:
    """The image's disks; digests of an Index never change, and so are computed once."""
    known = {subject.annotations.index: dict(subject.digest) for subject in last}
    found = []
    for disk in image.disks:
        wanted = frozenset({BLAKE3}) if quick else digest_kinds(disk.size)
        digests = known.setdefault(disk.index, {})
        if missing := wanted - digests.keys():
            with closing(context.repository.open(disk.index)) as opened:
                computed = content_digests(opened, kinds=missing, progress=context.progress)
            digests.update(computed)
        name = "os-disk" if disk.lun is None else f"lun-{disk.lun}"
        about = form.Disk(index=disk.index, size=disk.size, lun=disk.lun)
        found.append(Subject(name=name, digest=digests, annotations=about))
    return tuple(found)


def _keep(boot: "BootReport", directory: Path) -> Boot:
    """The boot test as the report has it, after its files were put beside the report."""
    told = describe_boot(boot)
    for clone, kept in zip(boot.clones, told.clones, strict=True):
        for artifact, file in zip(clone.artifacts, kept.files, strict=True):
            if artifact.path is None:
                continue
            data = Path(artifact.path).read_bytes()
            if hashlib.sha256(data).hexdigest() != artifact.sha256 or len(data) > _MAX_FILE:
                raise InvalidInput(f"{artifact.path} is not the file that the boot test made")
            if not (directory / file.name).exists():
                write_private(directory / file.name, data)
    return told


def _sweep(directory: Path, wanted: set[str]) -> None:
    for path in directory.iterdir():
        if path.name not in wanted:
            with suppress(IsADirectoryError):
                path.unlink()


def _keys(context: Context) -> "Keys":
    from calotype.engine.proof.signing import Keys  # noqa: PLC0415 (0.1 s that others do without)

    return Keys(context.home)


def as_json(statement: Statement) -> object:
    """The statement as JSON's own types."""
    return msgspec.to_builtins(statement)
