"""Who works, in which scope, and what they may do there."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

#: The subscription that every installation has.
DEFAULT_SUBSCRIPTION = "00000000-0000-4000-8000-000000000000"
#: The group of resources that nobody put into another.
DEFAULT_GROUP = "default"
#: What belongs to the whole installation, such as images that were pulled; everybody may read it.
INSTALLATION = "installation"


class Role(StrEnum):
    """What somebody may do in a scope; each one includes those after it."""

    OWNER = "Owner"  # also give roles, and share
    CONTRIBUTOR = "Contributor"  # make, change and delete
    READER = "Reader"  # see and use


class QuotaKind(StrEnum):
    """What of a subscription can be limited."""

    IMAGES = "images"  # managed images
    VERSIONS = "versions"  # image versions in galleries, deleted ones that can come back included
    GALLERIES = "galleries"
    BYTES = "bytes"  # virtual sizes of images and versions: the same for bytes that were known and new ones
    VMS = "vms"


@dataclass(frozen=True, slots=True)
class Quota:
    """What a subscription has of a kind, and may have (``None``: as much as it likes); counts, or bytes."""

    kind: QuotaKind
    used: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a resource is: a subscription's id, and a resource group in it."""

    subscription: str = DEFAULT_SUBSCRIPTION
    group: str = DEFAULT_GROUP


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a command works for; ``principal`` ``None`` is the installation's owner, who may do all."""

    principal: str | None = None
    scope: Scope = Scope()  # where names are looked up, and new resources are made


@dataclass(frozen=True, kw_only=True, slots=True)
class Subscription:
    """Whom resources, quotas and entitlements belong to."""

    id: str
    name: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleAssignment:
    """That a principal has a role in a subscription, a group of it, or for one resource (by id)."""

    id: str
    principal: str
    role: Role
    subscription: str
    group: str | None = None
    resource: str | None = None
    created_at: datetime
