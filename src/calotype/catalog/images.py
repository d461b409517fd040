"""Rows of images, for everything that is one: managed images, image versions, pulled images."""

from collections.abc import Collection, Iterator, Sequence

from sqlalchemy import Connection, delete, func, insert, select

from calotype.catalog import quotas, rows
from calotype.catalog.access import require_name
from calotype.catalog.tables import descent, image_disks, images, lineage
from calotype.model import Image, Shelf

#: As many values as one statement asks for.
_TOGETHER = 500


def put_image(db: Connection, image: Image) -> None:
    """Insert an image, its disks and its lineage, and count it.

    Raises:
        Conflict: the name is taken.
        QuotaExceeded: its subscription may not have so much.
    """
    require_name(db, "image", image.name, image.scope)
    quotas.charge(db, image.scope.subscription, quotas.of_image(image))
    row = rows.image_row(image)
    db.execute(insert(images), row)
    db.execute(insert(image_disks), rows.image_disk_rows(image))
    kept = {key: row[key] for key in ("id", "name", "plan", "entitlement")}
    db.execute(insert(lineage), kept)
    if image.parents:
        db.execute(insert(descent), rows.descent_rows(image))


def drop_image(db: Connection, image_id: str) -> None:
    """Delete an image, its disks, and what makes it a version; its lineage stays. It counts no more."""
    where = select(images.c.subscription, images.c.shelf).where(images.c.id == image_id)
    found = db.execute(where).first()
    if found is None:
        return
    size = select(func.sum(image_disks.c.size)).where(image_disks.c.image_id == image_id)
    freed = quotas.counted(Shelf(found.shelf), db.scalar(size) or 0)
    quotas.give_back(db, found.subscription, freed)
    db.execute(delete(image_disks).where(image_disks.c.image_id == image_id))
    db.execute(delete(images).where(images.c.id == image_id))


def disk_rows_by_image(db: Connection, image_ids: Sequence[str]) -> dict[str, list[rows.Row]]:
    """The rows of several images' disks by image, the OS disk first."""
    found: dict[str, list[rows.Row]] = {image_id: [] for image_id in image_ids}
    for some in batches(image_ids):
        query = select(image_disks).where(image_disks.c.image_id.in_(some))
        order = (image_disks.c.image_id, image_disks.c.position)
        for row in db.execute(query.order_by(*order)).mappings():
            found[row["image_id"]].append(dict(row))
    return found


def image_disk_rows_of(db: Connection, image_id: str) -> list[rows.Row]:
    """The rows of an image's disks, the OS disk first."""
    query = select(image_disks).where(image_disks.c.image_id == image_id)
    return [dict(row) for row in db.execute(query.order_by(image_disks.c.position)).mappings()]


def batches(values: Collection[str]) -> Iterator[Sequence[str]]:
    """The values, as many at a time as one statement asks for."""
    ordered = list(values)
    for first in range(0, len(ordered), _TOGETHER):
        yield ordered[first : first + _TOGETHER]
