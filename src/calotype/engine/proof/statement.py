"""The signed statement: an in-toto Statement v1 whose predicate is what was seen of an image.

The records here are the format (docs/design/evidence.md): field names are camelCase in JSON, unknown
fields of a predicate are passed over, so that a newer Calotype may say more under the same version.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from calotype.errors import InvalidInput
from calotype.strict import canonical, read_json

STATEMENT = "https://in-toto.io/Statement/v1"
#: Names no domain, for the project may move; the number is that of the predicate's version.
PREDICATE = "urn:calotype:evidence:v1"
PAYLOAD = "application/vnd.in-toto+json"
#: The largest statement that is written or read, in bytes.
MAX_STATEMENT = 32 << 20
#: The most lines that one check may have in a report; it says how many there were.
MAX_LINES = 200

Line = Annotated[str, Meta(max_length=4096)]
Text = Annotated[str, Meta(max_length=1 << 20)]
Hex = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
Whole = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
#: Without a directory; a bare ``$`` would let a line end follow.
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$(?!\n)", max_length=100)]


class _Record(Struct, frozen=True, kw_only=True, rename="camel"):
    """Of the statement; equal when all fields are."""


class Disk(_Record, frozen=True, kw_only=True):
    """What the annotations of a subject say: the store's Index, the size in bytes, the LUN."""

    index: Hex
    size: Whole
    lun: Whole | None = None  # None: the OS disk


class Subject(_Record, frozen=True, kw_only=True):
    """A disk: its name here, the digests of its raw content, and what else is known of it."""

    name: Line
    digest: dict[Line, Hex]
    annotations: Disk


class Producer(_Record, frozen=True, kw_only=True):
    """Who made the report, and with what."""

    actor: Line
    version: Line
    name: Line = "calotype"


class Source(_Record, frozen=True, kw_only=True):
    """Where the image came from (as :class:`calotype.model.Provenance`)."""

    kind: Line
    source: Line
    source_format: Line | None = None
    sha256: Hex | None = None
    vm_id: Line | None = None
    image_id: Line | None = None
    consistency: Line | None = None
    notes: tuple[Line, ...] = ()


class ImageFacts(_Record, frozen=True, kw_only=True):
    """The image as its author declared it."""

    id: Line
    name: Line
    os_type: Line
    declared_state: Line
    generation: Line
    architecture: Line
    created_at: Line
    provenance: Source


class Judgement(_Record, frozen=True, kw_only=True):
    """The verdict (Generalized, Specialized, Mixed, Unknown), and why."""

    state: Line
    reasons: tuple[Line, ...] = ()


class Check(_Record, frozen=True, kw_only=True):
    """One step's check: what it found ``left``, at most 200 lines of ``count``."""

    step: Line
    heading: Line
    concern: Line
    passed: bool
    left: tuple[Line, ...] = ()
    count: Whole = 0


class SecretFile(_Record, frozen=True, kw_only=True):
    """A file that looks as if it held an application's secret. Never its content."""

    kind: Line
    path: Line


class System(_Record, frozen=True, kw_only=True):
    """What stands on the OS disk."""

    os_type: Line | None = None
    os_id: Line = ""
    os_name: Line = ""
    os_version: Line = ""
    hostname: Line = ""
    architecture: Line | None = None
    generations: tuple[Line, ...] = ()
    users: tuple[Line, ...] = ()
    passwords: tuple[Line, ...] = ()  # the names of those who have one
    host_keys: tuple[Line, ...] = ()  # paths
    cloud_init: bool = False
    waagent: bool = False
    guest_agent: bool = False
    packages: Whole = 0
    kernels: tuple[Line, ...] = ()
    time_zone: Line = ""
    stale: bool = False
    notes: tuple[Line, ...] = ()


class Seen(_Record, frozen=True, kw_only=True):
    """The proof: what the OS disk shows, whatever anybody says of it."""

    at: Line  # ISO 8601, UTC
    verdict: Judgement
    checks: tuple[Check, ...]
    system: System
    secrets: tuple[SecretFile, ...] = ()
    notes: tuple[Line, ...] = ()


class Rule(_Record, frozen=True, kw_only=True):
    """What a gate elsewhere would say; ``passed`` is None where nobody can tell from here."""

    name: Line
    passed: bool | None
    detail: Line = ""
    authority: Line = ""


class Performed(_Record, frozen=True, kw_only=True):
    """A step that was performed, and how many changes it made."""

    name: Line
    heading: Line
    edits: Whole


class Generalized(_Record, frozen=True, kw_only=True):
    """What Calotype did to make the image general."""

    steps: tuple[Performed, ...]
    wiped_bytes: Whole  # of deleted content
    filesystem: Line
    disabled: tuple[Line, ...] = ()
    notes: tuple[Line, ...] = ()


class File(_Record, frozen=True, kw_only=True):
    """A file beside the report."""

    name: FileName
    kind: Line
    size: Whole
    sha256: Hex


class Clone(_Record, frozen=True, kw_only=True):
    """One clone of a boot test; times in milliseconds since its start."""

    name: Line
    reached: Line | None = None
    answered_after_ms: Whole | None = None
    ready_after_ms: Whole | None = None
    login: bool | None = None
    clean: bool | None = None
    problem: Line | None = None
    files: tuple[File, ...] = ()


class Difference(_Record, frozen=True, kw_only=True):
    """A fact of all clones; ``must_differ`` is None where either is right."""

    what: Line
    ok: bool
    must_differ: bool | None = None
    values: tuple[Text | None, ...] = ()


class Boot(_Record, frozen=True, kw_only=True):
    """Clones that were started side by side."""

    started_at: Line
    duration_ms: Whole
    acceleration: Line
    passed: bool
    clones: tuple[Clone, ...]
    differences: tuple[Difference, ...]
    problems: tuple[Line, ...] = ()
    notes: tuple[Line, ...] = ()


class Override(_Record, frozen=True, kw_only=True):
    """What somebody ordered although the evidence spoke against it."""

    reason: Line
    actor: Line
    at: Line


class Head(_Record, frozen=True, kw_only=True):
    """The newest entry of the audit when the report was made."""

    number: Whole
    digest: Hex


class Evidence(_Record, frozen=True, kw_only=True):
    """The predicate. Parts that are None were not done."""

    at: Line  # ISO 8601, UTC
    producer: Producer
    image: ImageFacts
    proof: Seen
    certification: tuple[Rule, ...] = ()
    generalized: Generalized | None = None
    boot: Boot | None = None
    overrides: tuple[Override, ...] = ()
    audit: Head | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """The files that belong to the report."""
        return (
            tuple(file for clone in self.boot.clones for file in clone.files) if self.boot else ()
        )


class Statement(Struct, frozen=True, kw_only=True):
    """The statement: these disks, that evidence."""

    subject: Annotated[tuple[Subject, ...], Meta(min_length=1, max_length=65)]
    predicate: Evidence
    type_: str = field(default=STATEMENT, name="_type")
    predicate_type: str = field(default=PREDICATE, name="predicateType")


def encode(statement: Statement) -> bytes:
    """The statement's bytes.

    Raises:
        InvalidInput: it says more than a report may.
    """
    data = canonical(msgspec.to_builtins(statement))
    decode(data)  # what we sign, we can read
    return data


def decode(data: bytes) -> Statement:
    """Parse a statement, also a hostile one.

    Raises:
        InvalidInput: it is no statement of this kind; the message names the place.
    """
    value = read_json(data, limit=MAX_STATEMENT, what="the statement")
    _require_kind(value)
    try:
        return msgspec.convert(value, Statement, strict=True)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the statement has not the form of a report: {error}") from None


def _require_kind(value: Any) -> None:
    """Say first what it is, when it is something else."""
    if not isinstance(value, dict) or value.get("_type") != STATEMENT:
        raise InvalidInput("what was signed is no in-toto statement")
    if value.get("predicateType") != PREDICATE:
        raise InvalidInput(
            "the statement is of another kind, or of another version of Calotype's reports",
            hint=f"this version reads {PREDICATE}",
        )
