"""Gallery, image definition, image version. Names, enum values and limits are Azure's where it has them."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Self

from calotype.model.access import Scope
from calotype.model.image import Architecture, Generation, Image, OsState, OsType
from calotype.model.offer import PurchasePlan

#: The largest number in a version: 32 bits, signed.
MAX_NUMBER = (1 << 31) - 1
_VERSION = re.compile(r"(0|[1-9][0-9]{0,9})\.(0|[1-9][0-9]{0,9})\.(0|[1-9][0-9]{0,9})")


class Version(NamedTuple):
    """Three numbers; they compare as numbers, so 1.10.0 is after 1.9.0."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The version that ``text`` spells, or ``None``: three numbers below 2³¹, without leading zeros."""
        match = _VERSION.fullmatch(text)
        if match is None or max(numbers := [int(part) for part in match.groups()]) > MAX_NUMBER:
            return None
        return cls(*numbers)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


class Sharing(StrEnum):
    """Who else may use a gallery's images; Azure's ``sharingProfile.permissions``."""

    PRIVATE = "Private"  # whoever has a role there
    GROUPS = "Groups"  # also the subscriptions it names, or all of the installation
    COMMUNITY = "Community"  # everybody, under its public name


class Lifecycle(StrEnum):
    """How a version may be used. The words are Google's; Azure has the first two."""

    ACTIVE = "Active"
    DEPRECATED = "Deprecated"  # works, with a warning; no longer the latest
    OBSOLETE = "Obsolete"  # makes no new VMs
    REVOKED = "Revoked"  # makes no new VMs, nor does anything that descends from it

    @property
    def usable(self) -> bool:
        """Whether VMs can be made of it."""
        return self in (Lifecycle.ACTIVE, Lifecycle.DEPRECATED)


class ReplicationState(StrEnum):
    """Whether a region has a version; Azure's values."""

    UNKNOWN = "Unknown"
    REPLICATING = "Replicating"
    COMPLETED = "Completed"
    FAILED = "Failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class CommunityInfo:
    """What the community is told of a gallery; all but the name are mandatory on Azure too."""

    publisher_uri: str
    publisher_contact: str
    eula: str  # URL
    public_name: str  # PREFIX-SUFFIX; the suffix is random, and stays for ever


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """A shelf for image definitions that can be shared as a whole."""

    id: str
    name: str
    description: str | None = None
    sharing: Sharing = Sharing.PRIVATE
    subscriptions: tuple[str, ...] = ()  # that it is shared with (ids)
    everyone: bool = False  # it is shared with all subscriptions of the installation
    community: CommunityInfo | None = None  # kept when it is withdrawn: a name never changes hands
    soft_delete_days: int = 7  # for which deleted versions can come back; 0: not at all
    tags: dict[str, str] = field(default_factory=dict)
    created_at: datetime
    scope: Scope = Scope()


@dataclass(frozen=True, slots=True)
class Range:
    """The least and the most of something that is recommended; memory in bytes."""

    min: int | None = None
    max: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """Which versions go by themselves; the last good one never does."""

    keep: int | None = None  # as many of the newest good ones stay
    days: int | None = None  # younger ones stay


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDefinition:
    """What all versions of an image have in common. The first seven properties never change."""

    id: str
    gallery_id: str
    gallery: str  # its name
    name: str
    publisher: str
    offer: str
    sku: str
    os_type: OsType
    os_state: OsState
    generation: Generation = Generation.V2
    architecture: Architecture = Architecture.X64
    features: dict[str, str] = field(default_factory=dict)
    description: str | None = None
    eula: str | None = None
    privacy_uri: str | None = None
    release_notes_uri: str | None = None
    vcpus: Range = Range()
    memory: Range = Range()
    plan: PurchasePlan | None = None
    end_of_life: datetime | None = None
    recipe: str | None = None  # that rebuilds it
    retention: Retention | None = None
    tags: dict[str, str] = field(default_factory=dict)
    created_at: datetime
    scope: Scope = Scope()

    @property
    def reference(self) -> str:
        """``GALLERY/DEFINITION``."""
        return f"{self.gallery}/{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """A version in a region, which is a configured store."""

    region: str
    state: ReplicationState
    progress: int = 0  # percent
    detail: str = ""  # why it failed
    bytes_stored: int = 0
    updated_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageVersion:
    """A version of a definition: an image, and how long it is to be used."""

    definition_id: str
    reference: str  # GALLERY/DEFINITION/VERSION
    version: Version
    image: Image
    exclude_from_latest: bool = False
    state: Lifecycle = Lifecycle.ACTIVE
    replacement: str | None = None  # the reference to use instead
    reason: str | None = None  # why it is not active
    end_of_life: datetime | None = None
    block_deletion_before_end_of_life: bool = False
    excluded_regions: tuple[str, ...] = ()
    deleted_at: datetime | None = None  # it can come back until ``purge_at``
    purge_at: datetime | None = None
    eligible: bool = False  # the catalogue's own word: it may be the latest, while it is not over

    @property
    def id(self) -> str:
        """The image's id."""
        return self.image.id
