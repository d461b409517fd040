"""Checks a report anywhere: no home, no store, no catalogue; the file, keys and disks are all it asks for."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from calotype.disk import open_image
from calotype.disk.base import Disk
from calotype.disk.content import BLAKE3, SHA256, content_digests, is_zero
from calotype.engine.proof import statement as form
from calotype.engine.proof.signing import MAX_ENVELOPE, PublicKey, open_envelope
from calotype.engine.proof.statement import File, Statement, Subject
from calotype.errors import CalotypeError, InvalidInput
from calotype.progress import SILENT, Progress

#: What is written after the end of a disk to make its size one that Azure takes.
_PADDING = 1 << 20
_PIECE = 1 << 20


class Outcome(StrEnum):
    """What came of one question."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_ASKED = "not asked"  # nothing was given to check it with


@dataclass(frozen=True, slots=True)
class Answer:
    """One thing that was checked, and what came of it."""

    what: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True, slots=True)
class Verification:
    """A report whose signature is right, and what else was checked.

    ``unknown_keys`` are those that it says have signed it too, and nobody named.
    """

    statement: Statement
    signed_by: tuple[str, ...]
    unknown_keys: tuple[str, ...]
    answers: tuple[Answer, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing that was asked failed."""
        return all(answer.outcome is not Outcome.FAILS for answer in self.answers)


def verify_report(
    report: Path,
    *,
    keys: Sequence[PublicKey],
    disks: Sequence[Path] = (),
    declared: str | None = None,
    progress: Progress = SILENT,
) -> Verification:
    """Check a report's signature, its form, and whatever is there to check it against.

    Args:
        report: the DSSE envelope.
        keys: those that are believed.
        disks: files that must be disks of the report, in any format: what they hold counts.
        declared: the format of those files, where their content could be taken for another.
        progress: is told of bytes.

    Raises:
        ReportRefused: it was changed, or none of the keys signed it.
        InvalidInput: it is no report, or cannot be read.
    """
    signed = open_envelope(_read(report), form.PAYLOAD, keys)
    statement = form.decode(signed.payload)
    answers = [*_disks(statement, disks, declared, progress)]
    answers += [_beside(report.parent, file) for file in statement.predicate.files]
    return Verification(
        statement=statement,
        signed_by=tuple(key.id for key in signed.keys),
        unknown_keys=signed.others,
        answers=tuple(answers),
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_ENVELOPE + 1)
    except OSError as error:
        raise InvalidInput(f"cannot read '{path}': {error.strerror}") from error


def _disks(
    statement: Statement, disks: Sequence[Path], declared: str | None, progress: Progress
) -> list[Answer]:
    """Each file is one of the subjects, and no two files are the same one."""
    answers: list[Answer] = []
    found: dict[str, Path] = {}
    for path in disks:
        name, answer = _disk(statement.subject, path, declared, progress)
        if name in found:
            detail = f"it is {name}, as {found[name]} is: nothing was said of another disk"
            answer = Answer(str(path), Outcome.FAILS, detail)
        elif name:
            found[name] = path
        answers.append(answer)
    left = [subject.name for subject in statement.subject if subject.name not in found]
    return answers + [Answer(name, Outcome.NOT_ASKED, "no file of it was given") for name in left]


def _disk(
    subjects: Sequence[Subject], path: Path, declared: str | None, progress: Progress
) -> tuple[str, Answer]:
    """The name of the subject that a file holds ('' for none), and the answer."""
    try:
        # The digest decides; no second opinion is needed on where the bytes are.
        with open_image(path, declared=declared, second_opinion=False) as image:
            fitting = [s for s in subjects if _fits(image.disk, s.annotations.size)]
            if not fitting:
                sizes = ", ".join(f"{s.name} {s.annotations.size}" for s in subjects)
                detail = f"its size is {image.virtual_size} bytes; the report is of {sizes}"
                return "", Answer(str(path), Outcome.FAILS, detail)
            name = _same(image.disk, fitting, progress)
            image.unchanged()
    except CalotypeError as error:
        return "", Answer(str(path), Outcome.FAILS, error.message)
    if name is None:
        like = " or ".join(subject.name for subject in fitting)
        detail = f"it is as large as {like}, but holds something else"
        return "", Answer(str(path), Outcome.FAILS, detail)
    return name, Answer(str(path), Outcome.HOLDS, f"it is {name}, every byte of it")


def _fits(disk: Disk, size: int) -> bool:
    """Whether a disk is of that size, or was padded with zeros up to a whole MiB."""
    if size == disk.size:
        return True
    padded = size < disk.size == -(-size // _PADDING) * _PADDING
    return padded and is_zero(disk, size, disk.size)


def _same(disk: Disk, subjects: Sequence[Subject], progress: Progress) -> str | None:
    """The subject that a disk is; every digest that we know must agree, and one must be known."""
    for size in {subject.annotations.size for subject in subjects}:
        some = [subject for subject in subjects if subject.annotations.size == size]
        kinds = frozenset(kind for s in some for kind in s.digest) & {SHA256, BLAKE3}
        if not kinds:
            continue
        digests = content_digests(disk, size=size, kinds=kinds, progress=progress)
        for subject in some:
            told = {kind: digest for kind, digest in subject.digest.items() if kind in kinds}
            if told and all(digests[kind] == digest for kind, digest in told.items()):
                return subject.name
    return None


def _beside(directory: Path, file: File) -> Answer:
    """Whether a file that the report names lies beside it unchanged."""
    path = directory / file.name  # a name without a directory, by its form
    if not path.is_file():
        return Answer(file.name, Outcome.NOT_ASKED, "it does not lie beside the report")
    try:
        with path.open("rb") as opened:
            state, size = hashlib.sha256(), 0
            while size <= file.size and (piece := opened.read(_PIECE)):
                state.update(piece)
                size += len(piece)
    except OSError as error:
        return Answer(file.name, Outcome.FAILS, f"it cannot be read: {error.strerror}")
    if size != file.size or state.hexdigest() != file.sha256:
        return Answer(file.name, Outcome.FAILS, "it is not the file that the report names")
    return Answer(file.name, Outcome.HOLDS, "it is as it was when the report was signed")
