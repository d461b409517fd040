"""What descends from what: every image that ever was, its parents, and whether it was revoked.

Rows stay when images go, so a chain holds although images between are deleted. Each image is visited once,
so a search ends whatever the rows say.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    Connection,
    RowMapping,
    Select,
    func,
    literal,
    select,
    union,
    update,
)

from calotype.catalog.part import Part
from calotype.catalog.tables import descent, disks, images, lineage, versions, vms


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
    parent: str  # the name of an image that it was made of, by which it is found
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
        """What an image descends from, its parents first, and of those its OS disk's."""
        with self._read() as db:
            return [Ancestor(row["id"], row["name"]) for row in _upwards(db, image_id)][1:]

    def descendants(self, image_id: str) -> Descendants:
        """The images, then the VMs, that come from an image and exist, by name."""
        parts = ((images, _images(image_id)), (vms, _vms(image_id)))
        found: list[Descendant] = []
        count = 0
        with self._read() as db:
            for table, query in parts:
                seen = query.where(self._access.visible(db, table))
                found += [Descendant(*row) for row in db.execute(seen)]
                count += db.scalar(select(func.count()).select_from(query.subquery())) or 0
        return Descendants(tuple(found), count - len(found))


def revocation(db: Connection, image_id: str) -> Revocation | None:
    """As :meth:`Lineage.revocation`, in an open transaction."""
    for row in _upwards(db, image_id):
        if row["revoked"] is not None:
            instead = select(versions.c.replacement).where(versions.c.image_id == row["id"])
            return Revocation(row["id"], row["name"], row["revoked"], db.scalar(instead))
    return None


def _upwards(db: Connection, image_id: str) -> Iterator[RowMapping]:
    """The rows of an image and of its ancestors, the nearest first."""
    up = select(literal(image_id).label("id")).cte("up", recursive=True)
    up = up.union(select(descent.c.parent_id).join(up, descent.c.child_id == up.c.id))
    query = (
        select(lineage, descent.c.parent_id)
        .join(up, lineage.c.id == up.c.id)
        .join(descent, descent.c.child_id == lineage.c.id, isouter=True)
        .order_by(descent.c.position)
    )
    found: dict[str | None, list[RowMapping]] = {}
    for row in db.execute(query).mappings():
        found.setdefault(row["id"], []).append(row)
    waiting: deque[str | None] = deque([image_id])
    while waiting:
        several = found.pop(waiting.popleft(), [])  # one for each parent
        yield from several[:1]
        waiting.extend(row["parent_id"] for row in several)


def mark_revoked(db: Connection, image_id: str, reason: str | None) -> list[str]:
    """Write down why an image is revoked, or (``None``) that it is not; the versions below it, by id."""
    db.execute(update(lineage).where(lineage.c.id == image_id).values(revoked=reason))
    below = _below(image_id)
    return list(db.scalars(select(below.c.id).join(versions, versions.c.image_id == below.c.id)))


def _below(image_id: str) -> CTE:
    """The ids of an image and of all that descend from it."""
    down = select(literal(image_id).label("id")).cte("down", recursive=True)
    return down.union(select(descent.c.child_id).join(down, descent.c.parent_id == down.c.id))


def _images(image_id: str) -> Select[Any]:
    """The images that come from one, each with one of its parents, as fields of :class:`Descendant`."""
    below = _below(image_id)
    return (
        select(images.c.shelf, images.c.id, images.c.name, func.min(lineage.c.name))
        .add_columns(versions.c.deleted_at.isnot(None))
        .join(descent, descent.c.child_id == images.c.id)
        .join(below, below.c.id == descent.c.parent_id)
        .join(lineage, lineage.c.id == below.c.id)
        .join(versions, versions.c.image_id == images.c.id, isouter=True)
        .where(images.c.id != image_id)
        .group_by(images.c.id)
        .order_by(images.c.name, images.c.id)
    )


def _vms(image_id: str) -> Select[Any]:
    """The VMs that were made of what comes from an image, or have a disk of it; as :func:`_images`."""
    below = _below(image_id)
    of_disks = select(disks.c.vm_id, disks.c.image_id)
    sources = union(select(vms.c.id.label("vm_id"), vms.c.image_id), of_disks).subquery()
    return (
        select(literal("VM"), vms.c.id, vms.c.name, func.min(lineage.c.name))
        .join(sources, sources.c.vm_id == vms.c.id)
        .join(below, below.c.id == sources.c.image_id)
        .join(lineage, lineage.c.id == below.c.id)
        .group_by(vms.c.id)
        .order_by(vms.c.name, vms.c.id)
    )
