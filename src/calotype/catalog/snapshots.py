"""Snapshots: what managed disks held at one instant."""

from typing import Any

from sqlalchemy import Connection, delete, insert, select

from calotype.catalog import rows
from calotype.catalog.access import require_name
from calotype.catalog.part import Part
from calotype.catalog.tables import disks, snapshots
from calotype.model import Consistency, ManagedDisk, OsType, Role, Scope, Snapshot


class Snapshots(Part):
    """The snapshots in a catalogue; each method is one transaction."""

    def require_free(self, name: str) -> None:
        """Refuse a name that is taken in the caller's group, or a caller who may not make a snapshot there.

        Raises:
            Conflict, Forbidden: it cannot be made.
        """
        with self._read() as db:
            self._require_free(db, name, self._access.caller.scope)

    def add(self, snapshot: Snapshot, taken_of: ManagedDisk) -> bool:
        """Make a snapshot exist; ``False`` if the disk is not any more where it was when it was read.

        Raises:
            Conflict: the name is taken.
            NotFound, Forbidden: the caller may not make resources there, or not change the disk.
        """
        here = (disks.c.id == taken_of.id, disks.c.vm_id.is_not_distinct_from(taken_of.vm_id))
        same = disks.c.overlay.is_not_distinct_from(taken_of.overlay)
        with self._write() as db:
            self._require_free(db, snapshot.name, snapshot.scope)
            if db.scalar(select(disks.c.id).where(*here, same)) is None:
                return False
            self._access.find(db, "disk", taken_of.id, Role.CONTRIBUTOR)
            db.execute(insert(snapshots), _row(snapshot))
            return True

    def get(self, name_or_id: str) -> Snapshot:
        """The snapshot of that id, or of that name in the caller's group.

        Raises:
            NotFound: there is none, or the caller may not read it.
        """
        with self._read() as db:
            return _snapshot(self._access.find(db, "snapshot", name_or_id))

    def list(self) -> list[Snapshot]:
        """The snapshots in the caller's group, by name."""
        with self._read() as db:
            found = db.execute(self._access.listed(db, snapshots)).mappings()
            return [_snapshot(dict(row)) for row in found]

    def delete(self, snapshot_id: str) -> None:
        """Take a snapshot out of the catalogue.

        Raises:
            NotFound, Forbidden: there is none, or the caller may not delete it.
        """
        with self._write() as db:
            self._access.find(db, "snapshot", snapshot_id, Role.CONTRIBUTOR)
            db.execute(delete(snapshots).where(snapshots.c.id == snapshot_id))

    def indexes(self) -> set[str]:
        """Every Index that a snapshot refers to: for housekeeping."""
        self._access.require_all("see every disk")
        with self._read() as db:
            return set(db.scalars(select(snapshots.c.index).distinct()))

    def _require_free(self, db: Connection, name: str, scope: Scope) -> None:
        self._access.require_in(db, Role.CONTRIBUTOR, scope, f"snapshot '{name}'")
        require_name(db, "snapshot", name, scope)


def _row(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "id": snapshot.id,
        **rows.scope_row(snapshot.scope),
        "name": snapshot.name,
        "size": snapshot.size,
        "index": snapshot.index,
        "disk_id": snapshot.disk_id,
        "image_id": snapshot.image_id,
        "os_type": snapshot.os_type.value if snapshot.os_type else None,
        "consistency": snapshot.consistency.value,
        "tags": snapshot.tags,
        "created_at": snapshot.created_at,
    }


def _snapshot(row: rows.Row) -> Snapshot:
    return Snapshot(
        id=row["id"],
        name=row["name"],
        size=row["size"],
        index=row["index"],
        disk_id=row["disk_id"],
        image_id=row["image_id"],
        os_type=OsType(row["os_type"]) if row["os_type"] else None,
        consistency=Consistency(row["consistency"]),
        tags=dict(row["tags"]),
        created_at=row["created_at"],
        scope=rows.to_scope(row),
    )
