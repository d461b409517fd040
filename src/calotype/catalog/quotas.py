"""What a subscription has, counted in the transactions that change it, and how much it may have.

One row for each kind, so that it takes the same time however much there is. Sizes are virtual: an image
counts in full although the store knew its bytes, and goes on counting when others share them.
"""

from collections.abc import Mapping
from types import MappingProxyType

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from calotype import units
from calotype.catalog.tables import quotas, subscriptions, usage
from calotype.errors import QuotaExceeded
from calotype.model import INSTALLATION, Image, QuotaKind, Shelf

#: What people call a kind, and how they make room.
_WORDS: Mapping[QuotaKind, tuple[str, str]] = MappingProxyType(
    {
        QuotaKind.IMAGES: ("images", "calotype image delete"),
        QuotaKind.VERSIONS: ("image versions", "calotype gallery image-version delete --purge"),
        QuotaKind.GALLERIES: ("galleries", "calotype gallery delete"),
        QuotaKind.BYTES: ("of images and image versions", "calotype image delete"),
        QuotaKind.VMS: ("VMs", "calotype vm delete"),
    }
)


def of_image(image: Image) -> dict[QuotaKind, int]:
    """What an image counts for."""
    return counted(image.shelf, image.size)


def counted(shelf: Shelf, size: int) -> dict[QuotaKind, int]:
    """What an image on a shelf counts for; ``size`` is the sum of its disks' virtual sizes in bytes."""
    kind = QuotaKind.IMAGES if shelf is Shelf.MANAGED else QuotaKind.VERSIONS
    return {kind: 1, QuotaKind.BYTES: size}


def require(db: Connection, subscription: str, asked: Mapping[QuotaKind, int]) -> None:
    """Refuse what would be more than a subscription may have.

    Raises:
        QuotaExceeded: it would.
    """
    for kind, more in asked.items():
        used, most = _used(db, subscription, kind), _most(db, subscription, kind)
        if most is not None and used + more > most:
            raise _exceeded(db, subscription, kind, used=used, most=most, asked=more)


def charge(db: Connection, subscription: str, asked: Mapping[QuotaKind, int]) -> None:
    """Count what is about to be in a subscription, in the transaction that puts it there.

    What is pulled for the whole installation counts for nobody.

    Raises:
        QuotaExceeded: it would be more than the subscription may have.
    """
    if subscription == INSTALLATION:
        return
    require(db, subscription, asked)
    for kind, more in asked.items():
        _set(db, subscription, kind, _used(db, subscription, kind) + more)


def give_back(db: Connection, subscription: str, freed: Mapping[QuotaKind, int]) -> None:
    """Count what is no longer in a subscription, in the transaction that takes it away."""
    if subscription == INSTALLATION:
        return
    for kind, less in freed.items():
        _set(db, subscription, kind, _used(db, subscription, kind) - less)


def _used(db: Connection, subscription: str, kind: QuotaKind) -> int:
    here = (usage.c.subscription == subscription, usage.c.kind == kind.value)
    return db.scalar(select(usage.c.used).where(*here)) or 0


def _most(db: Connection, subscription: str, kind: QuotaKind) -> int | None:
    here = (quotas.c.subscription == subscription, quotas.c.kind == kind.value)
    return db.scalar(select(quotas.c.most).where(*here))


def _set(db: Connection, subscription: str, kind: QuotaKind, used: int) -> None:
    row = {"subscription": subscription, "kind": kind.value, "used": used}
    query = insert(usage).values(row)
    db.execute(query.on_conflict_do_update(index_elements=["subscription", "kind"], set_=row))


def _exceeded(
    db: Connection, subscription: str, kind: QuotaKind, *, used: int, most: int, asked: int
) -> QuotaExceeded:
    there = subscriptions.c.id == subscription
    name = db.scalar(select(subscriptions.c.name).where(there)) or subscription
    words, cure = _WORDS[kind]
    show = units.human_size if kind is QuotaKind.BYTES else str
    return QuotaExceeded(
        f"quota '{kind}': subscription '{name}' may have {show(most)} {words}; {show(used)} are used, "
        f"and {show(asked)} more asked for",
        hint=f"make room ({cure}); or the installation's owner gives more: "
        f"calotype subscription quota set {kind} LIMIT --subscription {name}",
    )
