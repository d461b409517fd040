"""What the community is shown: public galleries, of this installation and of others."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from calotype.model.gallery import CommunityInfo, Lifecycle, Version
from calotype.model.image import Architecture, Generation, OsState, OsType
from calotype.model.offer import PurchasePlan


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicVersion:
    """A version that everybody may use; ``size`` is virtual, in bytes."""

    reference: str  # community/PUBLIC_NAME/DEFINITION/VERSION
    version: Version
    state: Lifecycle = Lifecycle.ACTIVE
    end_of_life: datetime | None = None
    size: int
    published_at: datetime
    descends_from: tuple[str, ...] = ()  # community and marketplace images, the nearest first


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicImage:
    """A definition in a public gallery; ``versions`` are the newest first."""

    reference: str  # community/PUBLIC_NAME/DEFINITION
    name: str
    publisher: str
    offer: str
    sku: str
    os_type: OsType
    os_state: OsState
    architecture: Architecture
    generation: Generation
    description: str | None = None
    eula: str | None = None
    plan: PurchasePlan | None = None
    latest: Version | None = None
    versions: tuple[PublicVersion, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicGallery:
    """A gallery as the community sees it."""

    info: CommunityInfo
    origin: str | None = None  # the followed installation's name; None: this one
    description: str | None = None
    images: tuple[PublicImage, ...] = ()


class ReportCategory(StrEnum):
    """What is wrong with a community image."""

    MALWARE = "Malware"
    SECRETS = "Secrets"  # somebody's keys, passwords or data are in it
    IMPERSONATION = "Impersonation"  # it pretends to be another publisher's
    LEGAL = "Legal"
    BROKEN = "Broken"
    OTHER = "Other"


@dataclass(frozen=True, kw_only=True, slots=True)
class CommunityReport:
    """What somebody reported of a community gallery."""

    id: str
    public_name: str
    reference: str  # of what was reported: a gallery, a definition or a version
    category: ReportCategory
    reason: str
    reporter: str
    at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class FollowedCommunity:
    """Another installation whose public galleries are seen here."""

    name: str  # what it is called here
    mirrors: tuple[str, ...]  # URLs of its tree, the publisher's own first
    root: str  # the signed root (JSON) that was trusted when it was added
    allow_addresses: tuple[
        str, ...
    ] = ()  # networks that may be reached although they are not public
    added_at: datetime
