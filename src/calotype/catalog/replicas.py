"""In which regions versions are, and what was brought there for them."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, exists, insert, select, update

from calotype.catalog.audit import Act, append
from calotype.catalog.part import Part
from calotype.catalog.tables import (
    definitions,
    image_disks,
    replica_indexes,
    replicas,
    versions,
)
from calotype.errors import NotFound
from calotype.model import Replica, ReplicationState, Role

_REGIONS = "keep the books of regions"


class Replicas(Part):
    """The replicas of versions in a catalogue; each method is one transaction."""

    def add(self, image_id: str, regions: Collection[str], act: Act) -> None:
        """Write down that a version is to be in regions; those that it is in stay as they are.

        Raises:
            NotFound, Forbidden: there is no such version, or the caller may not change it.
        """
        with self._write() as db:
            self._require(db, Role.CONTRIBUTOR, image_id)
            mine = select(replicas.c.region).where(replicas.c.image_id == image_id)
            for region in sorted(set(regions) - set(db.scalars(mine))):
                new = Replica(
                    region=region, state=ReplicationState.UNKNOWN, updated_at=datetime.now(UTC)
                )
                db.execute(insert(replicas), {"image_id": image_id, **_row(new)})
            append(db, act)

    def of(self, image_id: str) -> Sequence[Replica]:
        """A version's replicas by region.

        Raises:
            NotFound: there is no such version, or the caller may not see it.
        """
        query = select(replicas).where(replicas.c.image_id == image_id)
        with self._read() as db:
            self._require(db, Role.READER, image_id)
            rows = db.execute(query.order_by(replicas.c.region)).mappings()
            return [_replica(row) for row in rows]

    def remove(self, image_id: str, regions: Collection[str], act: Act) -> None:
        """Write down that a version is to be in these regions no more.

        Raises:
            NotFound, Forbidden: there is no such version, or the caller may not change it.
        """
        with self._write() as db:
            self._require(db, Role.CONTRIBUTOR, image_id)
            here = (replicas.c.image_id == image_id, replicas.c.region.in_(regions))
            db.execute(delete(replicas).where(*here))
            append(db, act)

    # -- housekeeping, by who holds the region

    def note(self, image_id: str, replica: Replica) -> bool:
        """Write down how far a replica is; whether it is still wanted."""
        self._access.require_all(_REGIONS)
        here = (replicas.c.image_id == image_id, replicas.c.region == replica.region)
        with self._write() as db:
            return db.execute(update(replicas).where(*here).values(**_row(replica))).rowcount > 0

    def interrupt(self, region: str, detail: str) -> None:
        """Write down that nobody works on a region's replicas any more."""
        self._access.require_all(_REGIONS)
        working = replicas.c.state == ReplicationState.REPLICATING.value
        values = {"state": ReplicationState.FAILED.value, "detail": detail}
        with self._write() as db:
            db.execute(
                update(replicas).where(replicas.c.region == region, working).values(**values)
            )

    def claim(self, region: str, indexes: Collection[str]) -> None:
        """Write down Indexes that are about to be brought to a region."""
        self._access.require_all(_REGIONS)
        there = select(replica_indexes.c.index).where(replica_indexes.c.region == region)
        with self._write() as db:
            new = sorted(set(indexes) - set(db.scalars(there)))
            if new:
                rows = [{"region": region, "index": index} for index in new]
                db.execute(insert(replica_indexes), rows)

    def unneeded(self) -> Mapping[str, Sequence[str]]:
        """What was brought to each region and no version needs there any more."""
        self._access.require_all(_REGIONS)
        needed = exists().where(
            replicas.c.region == replica_indexes.c.region,
            replicas.c.image_id == image_disks.c.image_id,
            image_disks.c.index == replica_indexes.c.index,
        )
        query = select(replica_indexes).where(~needed).order_by(*replica_indexes.c)
        found: dict[str, list[str]] = {}
        with self._read() as db:
            for row in db.execute(query).mappings():
                found.setdefault(row["region"], []).append(row["index"])
        return found

    def forget(self, region: str, index: str) -> None:
        """Write down that an Index was removed from a region."""
        self._access.require_all(_REGIONS)
        here = (replica_indexes.c.region == region, replica_indexes.c.index == index)
        with self._write() as db:
            db.execute(delete(replica_indexes).where(*here))

    def _require(self, db: Connection, role: Role, image_id: str) -> None:
        query = select(definitions.c.gallery_id).join(
            versions, versions.c.definition_id == definitions.c.id
        )
        gallery = db.scalar(query.where(versions.c.image_id == image_id))
        if gallery is None:
            raise NotFound(
                f"'{image_id}' is no image version",
                hint="calotype gallery image-version list GALLERY/DEFINITION shows them",
            )
        self._access.find(db, "gallery", gallery, role)


def _row(replica: Replica) -> dict[str, Any]:
    return {
        "region": replica.region,
        "state": replica.state.value,
        "progress": replica.progress,
        "detail": replica.detail,
        "bytes_stored": replica.bytes_stored,
        "updated_at": replica.updated_at,
    }


def _replica(row: RowMapping) -> Replica:
    return Replica(
        region=row["region"],
        state=ReplicationState(row["state"]),
        progress=row["progress"],
        detail=row["detail"],
        bytes_stored=row["bytes_stored"],
        updated_at=row["updated_at"],
    )
