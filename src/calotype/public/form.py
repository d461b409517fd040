"""The documents of a public tree (docs/design/community.md), and what they say in the words of the model.

They come from strangers: every name has an alphabet, every number a limit, every text a length.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from calotype.errors import NotFound, Untrusted
from calotype.model import (
    Architecture,
    Caching,
    CommunityInfo,
    Generation,
    ImageDefinition,
    Lifecycle,
    OsState,
    OsType,
    PublicGallery,
    PublicImage,
    PublicVersion,
    PurchasePlan,
    Verdict,
    Version,
)

#: The largest documents that are read, in bytes.
MAX_GALLERY = 32 << 20
MAX_PACKS = 256 << 20
MAX_REPORT = 64 << 20
ANCESTORS = 64  # that a version names

PACKS = "packs.json"  # the target that lists the repository's objects
_GALLERIES = "galleries/"
_REPORTS = "reports/"
_MAX_SIZE = 1 << 56

PublicName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,79}\Z")]
_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,78}[A-Za-z0-9_])?\Z")]
_Triple = Annotated[str, Meta(pattern=r"^[^\x00-\x20/:][^\x00-\x1f/:]{0,127}\Z")]
_Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Number = Annotated[str, Meta(pattern=r"^[0-9]{1,10}\.[0-9]{1,10}\.[0-9]{1,10}\Z")]
_Text = Annotated[str, Meta(max_length=16384)]
_When = Annotated[datetime, Meta(tz=True)]
_Line = Annotated[str, Meta(max_length=2048)]
_Size = Annotated[int, Meta(ge=0, le=_MAX_SIZE)]
_Count = Annotated[int, Meta(ge=0, le=1 << 40)]


class Disk(Struct, frozen=True, rename="camel", omit_defaults=True):
    """A disk of a version: its Index in the domain ``community``; ``lun`` None: the OS disk."""

    index: _Hex
    size: _Size
    caching: Caching = Caching.READ_WRITE
    lun: Annotated[int, Meta(ge=0, le=63)] | None = None


class Plan(Struct, frozen=True, rename="camel"):
    """What an image is bought as."""

    publisher: _Triple
    product: _Triple
    name: _Triple


class PublishedVersion(Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """A version; one that makes no VMs any more has no disks, and says why."""

    version: _Number
    published_at: _When
    disks: Annotated[tuple[Disk, ...], Meta(max_length=65)] = ()
    state: Lifecycle = Lifecycle.ACTIVE
    exclude_from_latest: bool = False
    replacement: _Line | None = None
    reason: _Text | None = None
    end_of_life: _When | None = None
    verdict: Verdict | None = None
    report: _Hex | None = None  # SHA-256 of the evidence report, a target
    plan: Plan | None = None
    entitlement: _Line | None = None
    descends_from: Annotated[tuple[_Line, ...], Meta(max_length=ANCESTORS)] = ()  # nearest first

    @property
    def number(self) -> Version:
        """The version."""
        parsed = Version.parse(self.version)
        if parsed is None:
            raise Untrusted(f"the gallery has a version '{self.version}', which is none")
        return parsed


class Definition(Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """An image definition, and its versions, the newest first."""

    name: _Name
    publisher: _Triple
    offer: _Triple
    sku: _Triple
    os_type: OsType
    os_state: OsState
    generation: Generation
    architecture: Architecture
    features: dict[_Line, _Line] = field(default_factory=dict)
    description: _Text | None = None
    eula: _Text | None = None
    privacy_uri: _Line | None = None
    release_notes_uri: _Line | None = None
    vcpus: tuple[_Count | None, _Count | None] = (None, None)
    memory: tuple[_Count | None, _Count | None] = (None, None)  # bytes
    plan: Plan | None = None
    end_of_life: _When | None = None
    versions: tuple[PublishedVersion, ...] = ()

    def latest(self, now: datetime | None = None) -> PublishedVersion | None:
        """The highest version that is active, not excluded and not over."""
        at = now or datetime.now(UTC)
        fit = [
            v
            for v in self.versions
            if v.disks
            and v.state is Lifecycle.ACTIVE
            and not v.exclude_from_latest
            and (v.end_of_life is None or v.end_of_life > at)
        ]
        return max(fit, key=lambda v: v.number, default=None)


class GalleryDocument(Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """A public gallery: the target ``galleries/PUBLIC_NAME.json``."""

    format: Literal["calotype gallery"] = field(default="calotype gallery")
    format_version: Literal[1] = 1
    public_name: PublicName
    publisher_uri: _Line
    publisher_contact: _Line
    eula: _Line
    description: _Text | None = None
    definitions: tuple[Definition, ...] = ()

    def find(self, name: str, version: Version | None) -> tuple[Definition, PublishedVersion]:
        """A definition and a version of it; without ``version`` the latest.

        Raises:
            NotFound: there is none.
        """
        whole = f"community/{self.public_name}/{name}"
        definition = next((d for d in self.definitions if d.name.lower() == name.lower()), None)
        if definition is None:
            raise NotFound(
                f"there is no image '{whole}'",
                hint=f"calotype community show {self.public_name} shows what there is",
            )
        if version is None:
            found = definition.latest()
        else:
            found = next((v for v in definition.versions if v.number == version), None)
        if found is None:
            what = "no version that is the latest" if version is None else f"no version {version}"
            raise NotFound(
                f"there is {what} of '{whole}'",
                hint=f"calotype community show {self.public_name} shows what there is; "
                "calotype community update asks its publisher again",
            )
        return definition, found

    def shown(self, origin: str) -> PublicGallery:
        """The gallery as the community sees it; ``origin`` is the installation's name here."""
        return PublicGallery(
            info=CommunityInfo(
                publisher_uri=self.publisher_uri,
                publisher_contact=self.publisher_contact,
                eula=self.eula,
                public_name=self.public_name,
            ),
            origin=origin,
            description=self.description,
            images=tuple(_image(self.public_name, d) for d in self.definitions),
        )


class PacksDocument(Struct, frozen=True, rename="camel", kw_only=True):
    """The objects of the repository: the target ``packs.json``.

    A pack is its id, its size and the length of its footer, in bytes. An Index is the size of its root, and
    the places in ``packs`` of those that hold its leaves and chunks.
    """

    format: Literal["calotype packs"] = field(default="calotype packs")
    format_version: Literal[1] = 1
    config: Annotated[str, Meta(max_length=4096)]
    packs: tuple[tuple[_Hex, _Size, Annotated[int, Meta(ge=0, le=64 << 20)]], ...]
    indexes: dict[_Hex, tuple[_Size, tuple[Annotated[int, Meta(ge=0)], ...]]]
    retired: dict[str, _When] = field(
        default_factory=dict
    )  # objects on their way out, and since when


def target_of_gallery(public_name: str) -> str:
    """The name of the target that is a gallery; the case of public names makes no difference."""
    return f"{_GALLERIES}{public_name.lower()}.json"


def target_of_report(sha256: str) -> str:
    """The name of the target that is an evidence report; an object's key holds the whole digest before it."""
    return f"{_REPORTS}{sha256[:32]}.json"


def galleries_in(targets: Sequence[str]) -> Iterator[str]:
    """The public names, in lower case, of the galleries among the names of targets.

    Raises:
        Untrusted: a target's name is none: such as one that would lead out of a directory.
    """
    for target in targets:
        parts = target.split("/")
        if len(parts) > 4 or not all(_safe(part) for part in parts):
            raise Untrusted(
                f"the signed list has a target {target[:80]!r}, which is no name of a file",
                hint="tell the publisher; nothing of it was used",
            )
        if target.startswith(_GALLERIES) and target.endswith(".json"):
            yield target.removeprefix(_GALLERIES).removesuffix(".json")


def _safe(part: str) -> bool:
    alphabet = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    return 0 < len(part) <= 128 and set(part) <= alphabet and part[0] not in ".-"


T = TypeVar("T", GalleryDocument, PacksDocument)


def encode(document: Struct) -> bytes:
    """A document's bytes: the same ones for the same document."""
    data: bytes = msgspec.json.encode(document, order="deterministic")
    return data


def decode(data: bytes, form: type[T], what: str) -> T:
    """The document in these bytes.

    Raises:
        Untrusted: it is none.
    """
    try:
        return msgspec.json.decode(data, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Untrusted(
            f"{what} is signed, and is not what Calotype knows: {error}",
            hint="it may be of a newer version of Calotype; else tell the publisher",
        ) from None


def decode_gallery(data: bytes, public_name: str) -> GalleryDocument:
    """A gallery whose target has this public name, in whatever case.

    Raises:
        Untrusted: it is none, or calls itself otherwise.
    """
    document = decode(data, GalleryDocument, f"the gallery {public_name}")
    if document.public_name.lower() != public_name.lower():
        raise Untrusted(
            f"the gallery that is listed as {public_name} calls itself {document.public_name}",
            hint="tell the publisher; nothing of it was used",
        )
    _require_once("image", [definition.name.lower() for definition in document.definitions])
    for definition in document.definitions:
        _require_once("version", [version.number for version in definition.versions])
        for version in definition.versions:
            _require_shape(definition, version)
    return document


def _require_once(what: str, names: Sequence[object]) -> None:
    if len(set(names)) != len(names):
        raise Untrusted(f"the gallery has one {what} twice", hint="tell the publisher")


def _require_shape(definition: Definition, version: PublishedVersion) -> None:
    luns = [disk.lun for disk in version.disks]
    number = version.number
    if (
        bool(luns) != version.state.usable
        or (luns and luns.count(None) != 1)
        or len(set(luns)) != len(luns)
    ):
        raise Untrusted(
            f"version {number} of '{definition.name}' has not the disks of an image",
            hint="tell the publisher",
        )


def decode_packs(data: bytes) -> PacksDocument:
    """The list of a repository's objects.

    Raises:
        Untrusted: it is none.
    """
    document = decode(data, PacksDocument, "the list of packs")
    count = len(document.packs)
    if any(place >= count for _size, places in document.indexes.values() for place in places):
        raise Untrusted("the list of packs names one that it does not have")
    return document


def plan_of(plan: PurchasePlan | None) -> Plan | None:
    """A plan as it is published."""
    return None if plan is None else Plan(plan.publisher, plan.product, plan.name)


def to_plan(plan: Plan | None) -> PurchasePlan | None:
    """A plan that was published."""
    return None if plan is None else PurchasePlan(plan.publisher, plan.product, plan.name)


def as_json(document: Struct) -> Mapping[str, Any]:
    """A document as JSON's own types."""
    found: Mapping[str, Any] = msgspec.to_builtins(document)
    return found


def public_image(
    described: ImageDefinition | Definition,
    reference: str,
    latest: Version | None,
    versions: Iterable[PublicVersion],
) -> PublicImage:
    """A definition, of a gallery here or of a followed one, as the community sees it."""
    plan = described.plan
    return PublicImage(
        reference=reference,
        name=described.name,
        publisher=described.publisher,
        offer=described.offer,
        sku=described.sku,
        os_type=described.os_type,
        os_state=described.os_state,
        architecture=described.architecture,
        generation=described.generation,
        description=described.description,
        eula=described.eula,
        plan=to_plan(plan) if isinstance(plan, Plan) else plan,
        latest=latest,
        versions=tuple(versions),
    )


def _image(public_name: str, definition: Definition) -> PublicImage:
    reference = f"community/{public_name}/{definition.name}"
    latest = definition.latest()
    versions = (
        PublicVersion(
            reference=f"{reference}/{version.number}",
            version=version.number,
            state=version.state,
            end_of_life=version.end_of_life,
            size=sum(disk.size for disk in version.disks),
            published_at=version.published_at,
            descends_from=version.descends_from,
        )
        for version in sorted(definition.versions, key=lambda v: v.number, reverse=True)
    )
    return public_image(definition, reference, latest.number if latest else None, versions)
