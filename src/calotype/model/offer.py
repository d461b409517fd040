"""Plans, their terms, and who is entitled to what."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class PurchasePlan:
    """What an image is bought as: its terms must be accepted before the first VM."""

    publisher: str
    product: str  # Azure's word for the offer
    name: str  # of the plan; Azure's word for the SKU

    def __str__(self) -> str:
        return f"{self.publisher}:{self.product}:{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance:
    """That somebody accepted the terms of a plan for a subscription."""

    subscription: str
    plan: PurchasePlan
    digest: str  # SHA-256 (hex) of the text that was accepted
    text: str
    principal: str
    accepted_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Entitlement:
    """That a subscription may use offers that are not for everybody, such as ``msdn``."""

    subscription: str
    name: str
    expires_at: datetime | None = None
    granted_by: str
    granted_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class MarketCatalog:
    """A catalogue of offers that was added beside the one that ships."""

    name: str
    location: str  # URL or path
    kind: str  # how it is written: "offers" (TOML), "simplestreams"
    publisher: str | None = None  # simplestreams: under which publisher its products stand
    keyring: str | None = None  # OpenPGP keys (armored) that must have signed it
    allow_addresses: tuple[
        str, ...
    ] = ()  # networks that may be reached although they are not public
    added_at: datetime
