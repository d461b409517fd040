"""Restore points: what a VM's disks held at an instant, and the way back to it in one transaction."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from calotype.catalog.access import free_name
from calotype.catalog.audit import Act, append
from calotype.catalog.part import Part
from calotype.catalog.rows import scope_row, to_scope
from calotype.catalog.tables import disks, restore_point_disks, restore_points, vms
from calotype.errors import Conflict, NotFound
from calotype.model import Caching, Consistency, RestoreDisk, RestorePoint, Role, Scope


class RestorePoints(Part):
    """The restore points in a catalogue, under the roles of their VMs; each method is one transaction."""

    def add(self, point: RestorePoint) -> None:
        """Make a restore point exist.

        Raises:
            NotFound, Forbidden: its VM does not exist (any more), or the caller may not change it.
        """
        row = {
            "id": point.id,
            "vm_id": point.vm_id,
            "reason": point.reason,
            "consistency": point.consistency.value,
            "created_at": point.created_at,
        }
        rows = [
            {**asdict(disk), "caching": disk.caching.value, "point_id": point.id, "position": at}
            for at, disk in enumerate(point.disks)
        ]
        with self._write() as db:
            self._access.find(db, "VM", point.vm_id, Role.CONTRIBUTOR)
            db.execute(insert(restore_points), row)
            db.execute(insert(restore_point_disks), rows)

    def list(self, vm_id: str) -> list[RestorePoint]:
        """The restore points of a VM, the newest first.

        Raises:
            NotFound: there is no such VM, or the caller may not see it.
        """
        query = select(restore_points).where(restore_points.c.vm_id == vm_id)
        order = (restore_points.c.created_at.desc(), restore_points.c.id)
        with self._read() as db:
            self._access.find(db, "VM", vm_id)
            return [_point(db, row) for row in db.execute(query.order_by(*order)).mappings()]

    def delete(self, point_id: str) -> None:
        """Take a restore point out of the catalogue.

        Raises:
            NotFound, Forbidden: there is none, or the caller may not change its VM.
        """
        with self._write() as db:
            self._require_point(db, point_id)
            db.execute(delete(restore_points).where(restore_points.c.id == point_id))

    def indexes(self) -> set[str]:
        """Every Index that a restore point refers to: for housekeeping."""
        self._access.require_all("see every disk")
        with self._read() as db:
            return set(db.scalars(select(restore_point_disks.c.index).distinct()))

    def go_back(self, point: RestorePoint, overlays: Mapping[str, str]) -> None:
        """Give a VM the disks of a restore point, over new ``overlays`` (file names by disk id).

        Disks that were attached since become unattached, those that were deleted since exist again. The VM
        is not marked as generalized any more. The audit tells of it.

        Raises:
            Conflict: a disk is attached to another VM by now.
            NotFound, Forbidden: the VM was deleted; or the caller may not change it, and what was its disk.
        """
        mine = disks.c.vm_id == point.vm_id
        with self._write() as db:
            vm = self._access.find(db, "VM", point.vm_id, Role.CONTRIBUTOR)
            name, scope = vm["name"], to_scope(vm)
            for disk in point.disks:
                self._require(db, disk, scope)
            db.execute(update(disks).where(mine).values(vm_id=None, lun=None))
            for disk in point.disks:
                _put_back(db, point, disk, overlays[disk.disk_id], scope)
            db.execute(update(vms).where(vms.c.id == point.vm_id).values(generalized=False))
            detail = {"vm": point.vm_id, "restorePoint": point.id}
            append(db, Act("vm.restore", f"vm {name}", detail))

    def _require_point(self, db: Connection, point_id: str) -> None:
        """Refuse whoever may not change the VM of a restore point; whoever may not see it learns nothing."""
        query = select(restore_points.c.vm_id).where(restore_points.c.id == point_id)
        vm_id = db.scalar(query)
        if vm_id is None:
            raise _missing(point_id)
        try:
            self._access.find(db, "VM", vm_id, Role.CONTRIBUTOR)
        except NotFound:
            raise _missing(point_id) from None

    def _require(self, db: Connection, disk: RestoreDisk, scope: Scope) -> None:
        """Refuse to overwrite a disk, or make one again, that the caller may not change or make."""
        if db.scalar(select(disks.c.id).where(disks.c.id == disk.disk_id)) is not None:
            self._access.find(db, "disk", disk.disk_id, Role.CONTRIBUTOR)
        else:
            self._access.require_in(db, Role.CONTRIBUTOR, scope, f"disk '{disk.name}'")


def _put_back(
    db: Connection, point: RestorePoint, disk: RestoreDisk, overlay: str, scope: Scope
) -> None:
    here = disks.c.id == disk.disk_id
    values = {
        "size": disk.size,
        "index": disk.index,
        "image_id": disk.image_id,
        "vm_id": point.vm_id,
        "lun": disk.lun,
        "caching": disk.caching.value,
        "overlay": overlay,
    }
    found = db.execute(select(disks).where(here)).mappings().first()
    if found is None:
        made = {"id": disk.disk_id, "tags": disk.tags, "created_at": datetime.now(UTC)}
        place = {**scope_row(scope), "name": free_name(db, "disk", disk.name, scope)}
        db.execute(insert(disks), {**values, **made, **place})
        return
    if found["vm_id"] is not None:  # this VM's own were taken off it just before
        raise elsewhere(found["name"])
    db.execute(update(disks).where(here).values(**values))


def elsewhere(name: str) -> Conflict:
    """The error for a disk that another VM has by now."""
    return Conflict(
        f"disk '{name}' belongs to the restore point, but is attached to another VM by now",
        hint="detach it there; what was written to it since will be lost",
    )


def _point(db: Connection, row: RowMapping) -> RestorePoint:
    here = restore_point_disks.c.point_id == row["id"]
    query = select(restore_point_disks).where(here).order_by(restore_point_disks.c.position)
    found = [_disk(dict(disk)) for disk in db.execute(query).mappings()]
    fields = {**row, "consistency": Consistency(row["consistency"])}
    return RestorePoint(**fields, disks=tuple(found))


def _disk(row: dict[str, Any]) -> RestoreDisk:
    del row["point_id"], row["position"]
    return RestoreDisk(**{**row, "caching": Caching(row["caching"]), "tags": dict(row["tags"])})


def _missing(point_id: str) -> NotFound:
    return NotFound(
        f"there is no restore point '{point_id}'",
        hint="calotype vm restore-point list VM shows them",
    )
