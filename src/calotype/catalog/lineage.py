"""What descends from what: every image that ever was, its parent, and whether it was revoked.

Rows stay when images go, so a chain holds although images between are deleted. Each image is visited once,
so a search ends whatever the rows say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import CTE, ColumnElement, Connection, RowMapping, func, select, update

from calotype.catalog.part import Part
from calotype.catalog.tables import images, lineage, versions, vms


class Revocation(NamedTuple):
    """A revoked image that another one descends from, or is."""

    id: str
    name: str
    reason: str
    replacement: str | None  # what to use instead; nobody knows it any more once it was purged


class Ancestor(NamedTuple):
    """An image that another one descends from; it may be gone."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Descendant:
    """Something that comes from an image: another image, or a VM."""

    kind: str  # the image's shelf, or "VM"
    id: str
    name: str
    parent: str  # the name of the image that it was made of
    deleted: bool = False  # a version that can still come back


@dataclass(frozen=True, slots=True)
class Descendants:
    """What comes from an image, as far as the caller may see it, and how much else does."""

    found: tuple[Descendant, ...]
    hidden: int = 0


class Lineage(Part):
    """The lineage of the images in a catalogue; each method is one transaction."""

    def revocation(self, image_id: str) -> Revocation | None:
        """The nearest revoked one among an image and its ancestors."""
        with self._read() as db:
            return revocation(db, image_id)

    def ancestors(self, image_id: str) -> Sequence[Ancestor]:
        """What an image descends from, its parent first."""
        with self._read() as db:
            return [Ancestor(row["id"], row["name"]) for row in _upwards(db, image_id)][1:]

    def descendants(self, image_id: str) -> Descendants:
        """The images, then the VMs, that come from an image and exist, by name."""
        with self._read() as db:
            of_images = self._access.visible(db, images)
            of_vms = self._access.visible(db, vms)
            found = (*_images(db, image_id, of_images), *_vms(db, image_id, of_vms))
            return Descendants(found, _count(db, image_id) - len(found))


def revocation(db: Connection, image_id: str) -> Revocation | None:
    """As :meth:`Lineage.revocation`, in an open transaction."""
    for row in _upwards(db, image_id):
        if row["revoked"] is not None:
            instead = select(versions.c.replacement).where(versions.c.image_id == row["id"])
            return Revocation(row["id"], row["name"], row["revoked"], db.scalar(instead))
    return None


def _upwards(db: Connection, image_id: str) -> Iterator[RowMapping]:
    """The rows of an image and of its ancestors, the nearest first."""
    up = select(lineage).where(lineage.c.id == image_id).cte("up", recursive=True)
    above = select(lineage).join(up, lineage.c.id == up.c.parent_id)
    known = {row["id"]: row for row in db.execute(select(up.union(above))).mappings()}
    row = known.pop(image_id, None)
    while row is not None:
        yield row
        row = known.pop(row["parent_id"], None)


def mark_revoked(db: Connection, image_id: str, reason: str | None) -> list[str]:
    """Write down why an image is revoked, or (``None``) that it is not; the versions below it, by id."""
    db.execute(update(lineage).where(lineage.c.id == image_id).values(revoked=reason))
    below = _below(image_id)
    return list(db.scalars(select(below.c.id).join(versions, versions.c.image_id == below.c.id)))


def _below(image_id: str) -> CTE:
    """The ids of an image and of all that descend from it."""
    down = select(lineage.c.id).where(lineage.c.id == image_id).cte("down", recursive=True)
    children = select(lineage.c.id).join(down, lineage.c.parent_id == down.c.id)
    return down.union(children)


def _images(db: Connection, image_id: str, where: ColumnElement[bool]) -> Iterator[Descendant]:
    below, parents = _below(image_id), lineage.alias("parents")
    query = (
        select(images.c.id, images.c.name, images.c.shelf, parents.c.name.label("parent"))
        .add_columns(versions.c.deleted_at)
        .join(below, images.c.id == below.c.id)
        .join(lineage, lineage.c.id == images.c.id)
        .join(parents, parents.c.id == lineage.c.parent_id)
        .join(versions, versions.c.image_id == images.c.id, isouter=True)
        .where(images.c.id != image_id, where)
    )
    for row in db.execute(query.order_by(images.c.name, images.c.id)):
        yield Descendant(row.shelf, row.id, row.name, row.parent, row.deleted_at is not None)


def _vms(db: Connection, image_id: str, where: ColumnElement[bool]) -> Iterator[Descendant]:
    below = _below(image_id)
    query = (
        select(vms.c.id, vms.c.name, lineage.c.name.label("parent"))
        .join(below, vms.c.image_id == below.c.id)
        .join(lineage, lineage.c.id == vms.c.image_id)
        .where(where)
    )
    for row in db.execute(query.order_by(vms.c.name, vms.c.id)):
        yield Descendant("VM", row.id, row.name, row.parent)


def _count(db: Connection, image_id: str) -> int:
    below = _below(image_id)
    of_images = select(func.count()).select_from(images).join(below, images.c.id == below.c.id)
    of_vms = select(func.count()).select_from(vms).join(below, vms.c.image_id == below.c.id)
    others = of_images.where(images.c.id != image_id)
    return (db.scalar(others) or 0) + (db.scalar(of_vms) or 0)
