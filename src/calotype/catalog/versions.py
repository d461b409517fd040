"""Image versions: an image each, its number, and whether it may be the latest.

``eligible`` follows from what stands beside it (promoted, not excluded, active, not deleted) and is written
in the same transaction, so the latest version is one step in an index, however many there are.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, insert, select, tuple_, update

from calotype.catalog import rows
from calotype.catalog.audit import Act, append
from calotype.catalog.galleries import Galleries
from calotype.catalog.images import drop_image, image_disk_rows_of, put_image
from calotype.catalog.tables import definitions, images, lineage, versions
from calotype.errors import Conflict, NotFound
from calotype.model import ImageVersion, Lifecycle, PurchasePlan, Role, Stage, Version

Transaction = Callable[[], AbstractContextManager[Connection]]


class Versions:
    """The image versions in a catalogue; each method is one transaction."""

    def __init__(self, read: Transaction, write: Transaction, galleries: Galleries) -> None:
        """Use the database whose transactions ``read`` and ``write`` begin."""
        self._read = read
        self._write = write
        self._galleries = galleries

    def require_free(self, definition_id: str, version: Version) -> None:
        """Refuse a number that is taken, or a caller who may not publish.

        Raises:
            Conflict, Forbidden: as :meth:`add`.
        """
        with self._read() as db:
            self._require_free(db, definition_id, version)

    def add(self, version: ImageVersion, *acts: Act) -> None:
        """Make a version and its image exist.

        Raises:
            Conflict: there is such a version, or a deleted one that can come back.
            Forbidden: the caller may not change the gallery.
        """
        with self._write() as db:
            self._require_free(db, version.definition_id, version.version)
            put_image(db, version.image)
            db.execute(insert(versions), _row(version))
            for act in acts:
                append(db, act)

    def get(self, definition_id: str, version: Version, *, deleted: bool = False) -> ImageVersion:
        """A version of a definition; with ``deleted`` one that was deleted and can come back.

        Raises:
            NotFound: there is none.
        """
        here = (versions.c.definition_id == definition_id, *_numbered(version))
        with self._read() as db:
            owner = self._require(db, Role.READER, definition_id)
            row = db.execute(_joined().where(*here)).mappings().first()
            if row is None or (row["deleted_at"] is not None and not deleted):
                raise _missing(f"{owner}/{version}", deleted=row is not None)
            return _version(db, row)

    def of_image(self, image_id: str) -> ImageVersion:
        """The version that an image is.

        Raises:
            NotFound: it is none.
        """
        with self._read() as db:
            row = db.execute(_joined().where(versions.c.image_id == image_id)).mappings().first()
            if row is None:
                raise NotFound(f"'{image_id}' is no image version")
            self._require(db, Role.READER, row["definition_id"])
            return _version(db, row)

    def latest(
        self, definition_id: str, *, region: str | None = None, now: datetime | None = None
    ) -> ImageVersion:
        """The highest version that is promoted, active, not excluded, not over, and not barred in ``region``.

        Raises:
            NotFound: there is none; the message says what there is instead.
        """
        at = now or datetime.now(UTC)
        mine = (versions.c.definition_id == definition_id, versions.c.eligible)
        with self._read() as db:
            owner = self._require(db, Role.READER, definition_id)
            for row in db.execute(_newest_first(_joined().where(*mine))).mappings():
                over = row["end_of_life"] is not None and row["end_of_life"] <= at
                if not over and region not in row["excluded_regions"]:
                    return _version(db, row)
            raise self._no_latest(db, owner, definition_id)

    def list(
        self,
        definition_id: str,
        *,
        limit: int = 100,
        before: Version | None = None,
        deleted: bool = False,
    ) -> Sequence[ImageVersion]:
        """A page of a definition's versions, the highest first, below ``before``; or of the deleted ones."""
        gone = versions.c.deleted_at
        query = _joined().where(
            versions.c.definition_id == definition_id,
            gone.isnot(None) if deleted else gone.is_(None),
        )
        if before is not None:
            numbers = tuple_(versions.c.major, versions.c.minor, versions.c.patch)
            query = query.where(numbers < tuple_(*before))
        with self._read() as db:
            self._require(db, Role.READER, definition_id)
            found = db.execute(_newest_first(query).limit(limit)).mappings().all()
            return [_version(db, row) for row in found]

    def update(self, *changed: ImageVersion, act: Act) -> None:
        """Change what can change of versions (not their numbers, not their images), all at once.

        Raises:
            NotFound, Forbidden: there is none, or the caller may not change it.
        """
        with self._write() as db:
            for version in changed:
                self._require(db, Role.CONTRIBUTOR, version.definition_id)
                fresh = _joined().where(versions.c.image_id == version.id)
                stage = db.execute(fresh).mappings().one()["stage"]  # as it is now
                image = replace(version.image, stage=Stage(stage))
                values = _row(replace(version, image=image))
                here = versions.c.image_id == version.id
                db.execute(update(versions).where(here).values(**values))
            append(db, act)

    def purge(self, image_id: str, act: Act) -> None:
        """Take a version and its image out of the catalogue for good."""
        with self._write() as db:
            found = select(versions.c.definition_id).where(versions.c.image_id == image_id)
            definition_id = db.scalar(found)
            if definition_id is None:
                raise NotFound(f"'{image_id}' is no image version")
            self._require(db, Role.CONTRIBUTOR, definition_id)
            drop_image(db, image_id)
            append(db, act)

    def to_purge(self, now: datetime) -> Sequence[ImageVersion]:
        """The deleted versions whose time to come back is over."""
        with self._read() as db:
            found = db.execute(_joined().where(versions.c.purge_at <= now)).mappings().all()
            return [_version(db, row) for row in found]

    def heritage(self, image_id: str) -> tuple[PurchasePlan | None, str | None]:
        """The plan and the entitlement that what descends from an image inherits, also when it is gone."""
        query = select(lineage.c.plan, lineage.c.entitlement).where(lineage.c.id == image_id)
        with self._read() as db:
            row = db.execute(query).first()
            return (None, None) if row is None else (rows.to_plan(row.plan), row.entitlement)

    def _require_free(self, db: Connection, definition_id: str, version: Version) -> None:
        owner = self._require(db, Role.CONTRIBUTOR, definition_id)
        here = (versions.c.definition_id == definition_id, *_numbered(version))
        found = db.execute(select(versions.c.deleted_at).where(*here)).first()
        if found is not None:
            raise _taken(f"{owner}/{version}", deleted=found.deleted_at is not None)

    def _require(self, db: Connection, role: Role, definition_id: str) -> str:
        """Refuse what the caller may not do; ``GALLERY/DEFINITION``."""
        found = select(definitions).where(definitions.c.id == definition_id)
        definition = db.execute(found).mappings().first()
        if definition is None:
            raise NotFound(f"there is no image definition '{definition_id}'")
        row = self._galleries.row(db, definition["gallery_id"])
        name = f"{row['name']}/{definition['name']}"
        if role is not Role.READER:
            self._galleries.access.require(db, role, row, f"image definition '{name}'")
        return name

    def _no_latest(self, db: Connection, owner: str, definition_id: str) -> NotFound:
        """Why there is no latest version, and what to do."""
        query = _joined().where(
            versions.c.definition_id == definition_id, versions.c.deleted_at.is_(None)
        )
        row = db.execute(_newest_first(query).limit(1)).mappings().first()
        if row is None:
            return NotFound(
                f"there is no version of '{owner}'",
                hint=f"calotype gallery image-version create {owner}/1.0.0 --image IMAGE makes one",
            )
        version = _version(db, row)
        if version.image.stage is Stage.STAGED:
            why, cure = "is staged", f"calotype gallery image-version promote {version.reference}"
        elif version.exclude_from_latest:
            why = "is excluded from latest"
            cure = f"calotype gallery image-version update {version.reference} --exclude-from-latest false"
        elif version.state is not Lifecycle.ACTIVE:
            why, cure = f"is {version.state}", "publish a newer one, or name one by its number"
        else:
            why, cure = "is past its end of life, or not for this region", "publish a newer one"
        return NotFound(
            f"there is no latest version of '{owner}': {version.version}, the highest, {why}",
            hint=cure,
        )


def refresh_eligible(db: Connection, image_id: str) -> None:
    """Write ``eligible`` anew after the image's stage changed; nothing for an image that is no version."""
    row = db.execute(_joined().where(versions.c.image_id == image_id)).mappings().first()
    if row is not None:
        value = _eligible(_version(db, row))
        here = versions.c.image_id == image_id
        db.execute(update(versions).where(here).values(eligible=value))


def _eligible(version: ImageVersion) -> bool:
    return (
        version.image.stage is Stage.PROMOTED
        and not version.exclude_from_latest
        and version.state is Lifecycle.ACTIVE
        and version.deleted_at is None
    )


def _joined() -> Select[Any]:
    kept = [c for c in versions.c if c.name != "image_id"]
    return select(images, *kept).join(versions, versions.c.image_id == images.c.id)


def _newest_first(query: Select[Any]) -> Select[Any]:
    return query.order_by(versions.c.major.desc(), versions.c.minor.desc(), versions.c.patch.desc())


def _numbered(version: Version) -> tuple[Any, ...]:
    numbers = (versions.c.major, versions.c.minor, versions.c.patch)
    return tuple(column == number for column, number in zip(numbers, version, strict=True))


def _row(version: ImageVersion) -> dict[str, Any]:
    return {
        "image_id": version.id,
        "definition_id": version.definition_id,
        "major": version.version.major,
        "minor": version.version.minor,
        "patch": version.version.patch,
        "eligible": _eligible(version),
        "exclude_from_latest": version.exclude_from_latest,
        "state": version.state.value,
        "replacement": version.replacement,
        "reason": version.reason,
        "end_of_life": version.end_of_life,
        "block_deletion": version.block_deletion_before_end_of_life,
        "excluded_regions": list(version.excluded_regions),
        "deleted_at": version.deleted_at,
        "purge_at": version.purge_at,
    }


def _version(db: Connection, row: RowMapping) -> ImageVersion:
    return ImageVersion(
        definition_id=row["definition_id"],
        reference=row["name"],
        version=Version(row["major"], row["minor"], row["patch"]),
        image=rows.to_image(dict(row), image_disk_rows_of(db, row["id"])),
        exclude_from_latest=row["exclude_from_latest"],
        state=Lifecycle(row["state"]),
        replacement=row["replacement"],
        reason=row["reason"],
        end_of_life=row["end_of_life"],
        block_deletion_before_end_of_life=row["block_deletion"],
        excluded_regions=tuple(row["excluded_regions"]),
        deleted_at=row["deleted_at"],
        purge_at=row["purge_at"],
    )


def _taken(reference: str, *, deleted: bool) -> Conflict:
    if deleted:
        return Conflict(
            f"image version '{reference}' was deleted, and can still come back",
            hint=f"calotype gallery image-version undelete {reference}, or delete it with --purge; "
            "better, take the next number",
        )
    return Conflict(
        f"image version '{reference}' exists already",
        hint="versions never change: take the next number",
    )


def _missing(reference: str, *, deleted: bool) -> NotFound:
    if deleted:
        return NotFound(
            f"image version '{reference}' was deleted",
            hint=f"calotype gallery image-version undelete {reference} brings it back",
        )
    group, _, _ = reference.rpartition("/")
    return NotFound(
        f"there is no image version '{reference}'",
        hint=f"calotype gallery image-version list {group} shows them",
    )
