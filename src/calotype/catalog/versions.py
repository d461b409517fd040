"""Image versions: an image each, its number, and whether it may be the latest.

``eligible`` follows from what stands beside it (promoted, not excluded, active, not deleted) and is written
in the same transaction, so the latest version is one step in an index, however many there are.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from calotype.catalog import rows
from calotype.catalog.access import HIDDEN
from calotype.catalog.audit import Act, append
from calotype.catalog.images import disk_rows_by_image, drop_image, image_disk_rows_of, put_image
from calotype.catalog.lineage import mark_revoked, revocation
from calotype.catalog.part import Part
from calotype.catalog.tables import definitions, images, lineage, versions, vms
from calotype.errors import Conflict, NotAllowed, NotFound
from calotype.model import ImageVersion, Lifecycle, PurchasePlan, Role, Stage, Version

_PAGE = 500  # versions that one statement reads, with their disks


@dataclass(frozen=True, slots=True)
class Standing:
    """A version inside the transaction that may change it."""

    version: ImageVersion
    last_good: bool  # the latest; where none is any more, the best there is
    users: tuple[str, ...]  # the VMs that were made of it


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of a version (``None``: it is gone for good), and what the audit tells of it."""

    to: ImageVersion | None
    act: Act


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The latest version after a roll-back, and the references of those that it went back behind."""

    latest: ImageVersion
    excluded: tuple[str, ...]


class Versions(Part):
    """The image versions in a catalogue; each method is one transaction."""

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
            db.execute(insert(versions), _row(db, version))
            for act in acts:
                append(db, act)

    def get(self, definition_id: str, version: Version, *, deleted: bool = False) -> ImageVersion:
        """A version of a definition; with ``deleted`` one that was deleted and can come back.

        Raises:
            NotFound: there is none.
        """
        with self._read() as db:
            owner = self._require(db, Role.READER, definition_id)
            return _version(db, _found(db, owner, definition_id, version, deleted=deleted))

    def of_image(self, image_id: str) -> ImageVersion:
        """The version that an image is.

        Raises:
            NotFound: it is none.
        """
        with self._read() as db:
            return self._of_image(db, image_id, Role.READER)

    def latest(
        self, definition_id: str, *, region: str | None = None, now: datetime | None = None
    ) -> ImageVersion:
        """The highest version that is promoted, active, not excluded, not over, and not barred in ``region``.

        Raises:
            NotFound: there is none; the message says what there is instead.
        """
        at = now or datetime.now(UTC)
        with self._read() as db:
            owner = self._require(db, Role.READER, definition_id)
            row = next(_good(db, definition_id, region, at), None)
            if row is None:
                raise self._no_latest(db, owner, definition_id, region, at)
            return _version(db, row)

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
            disks = disk_rows_by_image(db, [row["id"] for row in found])
            return [_with_disks(row, disks[row["id"]]) for row in found]

    def each(self, definition_id: str) -> Iterator[ImageVersion]:
        """All versions of a definition that are not deleted, the highest first."""
        before: Version | None = None
        while page := self.list(definition_id, limit=_PAGE, before=before):
            yield from page
            before = page[-1].version

    def change(
        self,
        image_id: str,
        decide: Callable[[Standing], Change | None],
        *,
        region: str | None = None,
        now: datetime | None = None,
    ) -> ImageVersion | None:
        """Change a version as ``decide`` says, which sees it as it is in this transaction.

        Args:
            image_id: the version's image.
            decide: what becomes of it, ``None`` for nothing; when it raises, nothing changes.
            region: what the latest version must not be barred from.
            now: when it is.

        Returns:
            The version as it is then; ``None`` when it is gone for good.

        Raises:
            NotFound, Forbidden: there is none, or the caller may not change it.
        """
        with self._write() as db:
            before = self._of_image(db, image_id, Role.CONTRIBUTOR)
            good = last_good(db, before.definition_id, region, now or datetime.now(UTC))
            users = self._users(db, vms.c.image_id == image_id).get(image_id, ())
            change = decide(Standing(before, image_id in good, users))
            if change is None:
                return before
            append(db, change.act)
            if change.to is None:
                drop_image(db, image_id)
                return None
            _put(db, before, change.to)
            return self._of_image(db, image_id, Role.CONTRIBUTOR)

    def roll_back(
        self,
        definition_id: str,
        to: Version | None,
        *,
        region: str | None = None,
        now: datetime | None = None,
    ) -> RolledBack:
        """Make ``to`` the latest version, by excluding all above it; without it, the one below the latest.

        Raises:
            NotAllowed: that would leave the definition without a latest version.
            NotFound, Forbidden: there is no such version, or the caller may not change it.
        """
        at = now or datetime.now(UTC)
        with self._write() as db:
            owner = self._require(db, Role.CONTRIBUTOR, definition_id)
            if to is None:
                good = _good(db, definition_id, region, at)
                row = next(islice(good, 1, None), None)
            else:
                row = _found(db, owner, definition_id, to)
            if row is None or not _is_good(row, region, at):
                raise _no_way_back(db, owner, row, region=region, now=at)
            latest = _version(db, row)
            excluded = _exclude_above(db, latest)
            if excluded:
                detail = {"to": latest.reference, "excluded": excluded}
                append(db, Act("definition.rollback", f"image definition {owner}", detail))
            return RolledBack(latest, tuple(excluded))

    def users(self, definition_id: str) -> dict[str, tuple[str, ...]]:
        """The VMs that were made of a definition's versions: image id to their names."""
        with self._read() as db:
            self._require(db, Role.READER, definition_id)
            of_it = select(versions.c.image_id).where(versions.c.definition_id == definition_id)
            return self._users(db, vms.c.image_id.in_(of_it))

    def to_purge(self, now: datetime, definition_id: str) -> Sequence[ImageVersion]:
        """The deleted versions of a definition whose time to come back is over."""
        here = versions.c.definition_id == definition_id
        with self._read() as db:
            self._require(db, Role.READER, definition_id)
            found = db.execute(_joined().where(here, versions.c.purge_at <= now)).mappings().all()
            return [_version(db, row) for row in found]

    def heritage(self, image_ids: Collection[str]) -> tuple[PurchasePlan | None, str | None]:
        """The plan and the entitlement that what descends from images inherits, also when they are gone.

        Raises:
            NotAllowed: they have several plans, or several entitlements.
        """
        query = select(lineage.c.plan, lineage.c.entitlement).where(lineage.c.id.in_(image_ids))
        with self._read() as db:
            found = db.execute(query).all()
        plans = {plan for row in found if (plan := rows.to_plan(row.plan)) is not None}
        entitlements = {row.entitlement for row in found if row.entitlement is not None}
        named = {"plans": {str(plan) for plan in plans}, "entitlements": entitlements}
        for what, several in named.items():
            if len(several) > 1:
                raise NotAllowed(
                    f"the disks come from images of two {what}: {' and '.join(sorted(several))}",
                    hint="an image has one: detach or leave out the data disks of the other",
                )
        return next(iter(plans), None), next(iter(entitlements), None)

    def _of_image(self, db: Connection, image_id: str, role: Role) -> ImageVersion:
        """The version that an image is, for whom has the role for it."""
        row = db.execute(_joined().where(versions.c.image_id == image_id)).mappings().first()
        if row is None:
            raise NotFound(f"'{image_id}' is no image version")
        self._require(db, role, row["definition_id"])
        return _version(db, row)

    def _require_free(self, db: Connection, definition_id: str, version: Version) -> None:
        owner = self._require(db, Role.CONTRIBUTOR, definition_id)
        here = (versions.c.definition_id == definition_id, *_numbered(version))
        found = db.execute(select(versions.c.deleted_at).where(*here)).first()
        if found is not None:
            raise _taken(f"{owner}/{version}", deleted=found.deleted_at is not None)

    def _users(self, db: Connection, where: ColumnElement[bool]) -> dict[str, tuple[str, ...]]:
        """The names of VMs by the images they were made of; those of others have none that is told."""
        seen = self._access.visible(db, vms).label("seen")
        found: dict[str, tuple[str, ...]] = {}
        query = select(vms.c.image_id, vms.c.name, seen).where(where).order_by(vms.c.name)
        for row in db.execute(query):
            others = found.get(row.image_id, ())
            found[row.image_id] = (*others, row.name if row.seen else HIDDEN)
        return found

    def _require(self, db: Connection, role: Role, definition_id: str) -> str:
        """Refuse what the caller may not do; ``GALLERY/DEFINITION``."""
        found = select(definitions).where(definitions.c.id == definition_id)
        definition = db.execute(found).mappings().first()
        if definition is None:
            raise NotFound(f"there is no image definition '{definition_id}'")
        row = self._access.find(db, "gallery", definition["gallery_id"])
        name = f"{row['name']}/{definition['name']}"
        if role is not Role.READER:
            self._access.require(db, role, row, f"image definition '{name}'")
        return name

    def _no_latest(
        self, db: Connection, owner: str, definition_id: str, region: str | None, now: datetime
    ) -> NotFound:
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
        why, cure = _obstacle(db, version, region, now)
        return NotFound(
            f"there is no latest version of '{owner}': {version.version}, the highest, {why}",
            hint=cure,
        )


def _no_way_back(
    db: Connection,
    owner: str,
    row: RowMapping | None,
    *,
    region: str | None,
    now: datetime,
) -> NotAllowed:
    """Why ``owner`` cannot be rolled back to the version of a row (``None``: to any), and what to do."""
    if row is None:
        return NotAllowed(
            f"'{owner}' cannot be rolled back: no other version could be the latest",
            hint=f"calotype gallery image-version list {owner} shows them; promote makes one a candidate",
        )
    why, cure = _obstacle(db, _version(db, row), region, now)
    return NotAllowed(f"'{owner}' cannot be rolled back to {_number(row)}: it {why}", hint=cure)


def last_good(db: Connection, definition_id: str, region: str | None, now: datetime) -> set[str]:
    """The versions (image ids) without which people who name no version would get another one, or none.

    That is the latest one, anywhere and in ``region``; where all that could be it are over, the highest.
    """
    found = [next(_good(db, definition_id, place, now), None) for place in (None, region)]
    if not any(found):
        found = [db.execute(_newest_first(_candidates(definition_id)).limit(1)).mappings().first()]
    return {row["id"] for row in found if row is not None}


def refresh_eligible(db: Connection, image_id: str) -> None:
    """Write ``eligible`` anew after the image's stage changed; nothing for an image that is no version."""
    row = db.execute(_joined().where(versions.c.image_id == image_id)).mappings().first()
    if row is not None:
        value = _eligible(db, _version(db, row))
        here = versions.c.image_id == image_id
        db.execute(update(versions).where(here).values(eligible=value))


def _eligible(db: Connection, version: ImageVersion) -> bool:
    return (
        version.image.stage is Stage.PROMOTED
        and not version.exclude_from_latest
        and version.state is Lifecycle.ACTIVE
        and version.deleted_at is None
        and revocation(db, version.id) is None
    )


def _found(
    db: Connection, owner: str, definition_id: str, version: Version, *, deleted: bool = False
) -> RowMapping:
    """The row of a version; of a deleted one only with ``deleted``."""
    here = (versions.c.definition_id == definition_id, *_numbered(version))
    row = db.execute(_joined().where(*here)).mappings().first()
    if row is None or (row["deleted_at"] is not None and not deleted):
        raise _missing(f"{owner}/{version}", deleted=row is not None)
    return row


def _candidates(definition_id: str) -> Select[Any]:
    return _joined().where(versions.c.definition_id == definition_id, versions.c.eligible)


def _good(
    db: Connection, definition_id: str, region: str | None, now: datetime
) -> Iterator[RowMapping]:
    """The eligible versions that are not over, and not barred in ``region``; the highest first.

    Those that are over are stepped over in the index: a millisecond for thousands.
    """
    ends = versions.c.end_of_life
    current = _candidates(definition_id).where(or_(ends.is_(None), ends > now))
    for row in db.execute(_newest_first(current)).mappings():
        if _is_good(row, region, now):
            yield row


def _is_good(row: RowMapping, region: str | None, now: datetime) -> bool:
    over = row["end_of_life"] is not None and row["end_of_life"] <= now
    return row["eligible"] and not over and region not in row["excluded_regions"]


def _obstacle(
    db: Connection, version: ImageVersion, region: str | None, now: datetime
) -> tuple[str, str]:
    """Why a version that exists is not good, and what to do."""
    command = f"calotype gallery image-version {{}} {version.reference}"
    if version.image.stage is Stage.STAGED:
        return "is staged", command.format("promote")
    if version.state is not Lifecycle.ACTIVE:
        return f"is {version.state}", f"publish a newer one, or {command.format('activate')}"
    if not version.eligible and (revoked := revocation(db, version.id)) is not None:
        return f"descends from '{revoked.name}', which was revoked", "publish a newer one"
    if version.exclude_from_latest:
        return "is excluded from latest", command.format("promote")
    if version.end_of_life is not None and version.end_of_life <= now:
        day = version.end_of_life.date()
        return f"is past its end of life ({day})", "publish a newer one"
    return f"is not for region '{region}'", "publish one that is"


def _exclude_above(db: Connection, latest: ImageVersion) -> list[str]:
    """Exclude all versions above one from being the latest; the references of those that were not yet."""
    numbers = tuple_(versions.c.major, versions.c.minor, versions.c.patch)
    above = (
        versions.c.definition_id == latest.definition_id,
        numbers > tuple_(*latest.version),
        versions.c.exclude_from_latest.is_(False),
    )
    named = select(images.c.name).join(versions, versions.c.image_id == images.c.id).where(*above)
    excluded = list(db.scalars(_newest_first(named)))
    db.execute(update(versions).where(*above).values(exclude_from_latest=True, eligible=False))
    return excluded


def _put(db: Connection, before: ImageVersion, version: ImageVersion) -> None:
    """Write what changed of a version; what descends from it follows its revocation."""
    image = rows.image_row(version.image)
    changed = {"stage": image["stage"], "provenance": image["provenance"]}
    db.execute(update(images).where(images.c.id == version.id).values(**changed))
    if Lifecycle.REVOKED in (before.state, version.state):
        revoked = version.state is Lifecycle.REVOKED
        below = mark_revoked(db, version.id, (version.reason or "") if revoked else None)
    else:
        below = []
    here = versions.c.image_id == version.id
    db.execute(update(versions).where(here).values(**_row(db, version)))
    for image_id in below:
        refresh_eligible(db, image_id)


def _joined() -> Select[Any]:
    kept = [c for c in versions.c if c.name != "image_id"]
    return select(images, *kept).join(versions, versions.c.image_id == images.c.id)


def _number(row: RowMapping) -> Version:
    return Version(row["major"], row["minor"], row["patch"])


def _newest_first(query: Select[Any]) -> Select[Any]:
    return query.order_by(versions.c.major.desc(), versions.c.minor.desc(), versions.c.patch.desc())


def _numbered(version: Version) -> tuple[Any, ...]:
    numbers = (versions.c.major, versions.c.minor, versions.c.patch)
    return tuple(column == number for column, number in zip(numbers, version, strict=True))


def _row(db: Connection, version: ImageVersion) -> dict[str, Any]:
    return {
        "image_id": version.id,
        "definition_id": version.definition_id,
        "major": version.version.major,
        "minor": version.version.minor,
        "patch": version.version.patch,
        "eligible": _eligible(db, version),
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
    return _with_disks(row, image_disk_rows_of(db, row["id"]))


def _with_disks(row: RowMapping, disk_rows: Sequence[rows.Row]) -> ImageVersion:
    return ImageVersion(
        definition_id=row["definition_id"],
        reference=row["name"],
        version=_number(row),
        image=rows.to_image(dict(row), disk_rows),
        exclude_from_latest=row["exclude_from_latest"],
        state=Lifecycle(row["state"]),
        replacement=row["replacement"],
        reason=row["reason"],
        end_of_life=row["end_of_life"],
        block_deletion_before_end_of_life=row["block_deletion"],
        excluded_regions=tuple(row["excluded_regions"]),
        deleted_at=row["deleted_at"],
        purge_at=row["purge_at"],
        eligible=row["eligible"],
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
