"""The statements, one method for each thing that the engine asks of the catalogue."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, func, insert, select, update

from calotype.catalog import quotas, rows
from calotype.catalog.access import HIDDEN, Access, free_name, require_name
from calotype.catalog.audit import Act, Audit, append
from calotype.catalog.communities import Communities
from calotype.catalog.community import Community
from calotype.catalog.database import Database
from calotype.catalog.galleries import Galleries
from calotype.catalog.images import (
    batches,
    disk_rows_by_image,
    drop_image,
    image_disk_rows_of,
    put_image,
)
from calotype.catalog.ledger import SqlLedger
from calotype.catalog.lineage import Lineage
from calotype.catalog.marketplace import Marketplace
from calotype.catalog.replicas import Replicas
from calotype.catalog.restore_points import RestorePoints
from calotype.catalog.snapshots import Snapshots
from calotype.catalog.subscriptions import Roles, Subscriptions
from calotype.catalog.tables import (
    disks,
    image_disks,
    images,
    lineage,
    restore_point_disks,
    restore_points,
    snapshots,
    vms,
)
from calotype.catalog.versions import Versions, refresh_eligible
from calotype.errors import Conflict, NotAllowed, NotFound
from calotype.model import (
    INSTALLATION,
    Caller,
    Image,
    ManagedDisk,
    OsState,
    QuotaKind,
    Role,
    Scope,
    Shelf,
    Stage,
    Verdict,
    VirtualMachine,
)

#: The installation's owner: who can read the catalogue's file can do everything anyway.
OWNER = Caller()
#: What a resource counts as.
_COUNTED = {"image": QuotaKind.IMAGES, "VM": QuotaKind.VMS}


class Catalog:
    """What images, disks and VMs there are; safe for several processes at once.

    Each method is one transaction. Writers take SQLite's write lock at the start (``BEGIN IMMEDIATE``), so
    that what a method checks still holds when it writes.
    """

    def __init__(self, path: Path, caller: Caller = OWNER) -> None:
        """Open the SQLite catalogue at ``path`` for ``caller``; create or migrate it when needed.

        Raises:
            CalotypeError: it cannot be opened, is damaged, or was written by a newer version. (So does
                every other method.)
        """
        self._database = Database(path)
        self.access = Access(caller)
        self._principal = caller.principal  # housekeeping, too, is done for somebody

    def close(self) -> None:
        """Give back the connections."""
        self._database.close()

    def of(self, caller: Caller) -> "Catalog":
        """The same catalogue for another caller, over the same connections."""
        other = copy.copy(self)
        other.access = Access(caller)
        other._principal = caller.principal or self._principal  # noqa: SLF001 (a copy of this one)
        for name, value in vars(Catalog).items():
            if isinstance(value, cached_property):  # a part, which is made for one caller
                other.__dict__.pop(name, None)
        return other

    def require_free(self, kind: str, name: str) -> None:
        """Refuse early what would be refused when an image or a VM of that name is added here.

        Raises:
            Conflict: the name is taken.
            Forbidden: the caller may not make resources in its group.
            QuotaExceeded: the subscription has as many as it may have.
        """
        scope = self.access.caller.scope
        with self._read() as db:
            self.access.require_in(db, Role.CONTRIBUTOR, scope, f"{kind} '{name}'")
            require_name(db, kind, name, scope)
            quotas.require(db, scope.subscription, {_COUNTED[kind]: 1})

    # -- images

    def add_image(self, image: Image, *, act: Act | None = None) -> None:
        """Make an image exist, and record ``act`` in the same transaction.

        Raises:
            Conflict: the name is taken, or two data disks have one LUN.
            Forbidden: the caller may not make resources there.
            QuotaExceeded: the subscription may not have so much.
        """
        with self._write() as db:
            what = f"image '{image.name}'"
            self.access.require_in(db, Role.CONTRIBUTOR, image.scope, what)
            put_image(db, image)
            _record(db, act)

    def image(self, name_or_id: str, role: Role = Role.READER) -> Image:
        """The image of that name or id, if the caller has the role for it.

        Raises:
            NotFound: there is none that the caller may see.
            Forbidden: the caller may see it, and has not that role.
        """
        with self._read() as db:
            row = self.access.find(db, "image", name_or_id, role)
            return rows.to_image(row, image_disk_rows_of(db, row["id"]))

    def find_image(self, name: str) -> Image | None:
        """The image of that name, or ``None``."""
        try:
            return self.image(name)
        except NotFound:
            return None

    def image_at(self, scope: Scope, name: str) -> Image:
        """The image of that name that stands by itself in a group anywhere.

        Raises:
            NotFound: there is none that the caller may see.
        """
        place = {"subscription": scope.subscription.lower(), "resource_group": scope.group}
        with self._read() as db:
            row = _one(db, images, shelf=Shelf.MANAGED.value, name=name, **place)
            if row is not None and self.access.may(db, Role.READER, images, row):
                return rows.to_image(row, image_disk_rows_of(db, row["id"]))
        raise NotFound(
            f"there is no image '{name}' in resource group '{scope.group}' of subscription "
            f"'{scope.subscription}'",
            hint="or you may not see it; calotype image list shows those of a group",
        )

    def find_on(self, shelf: Shelf, name: str) -> Image | None:
        """The image of that name among those that were pulled for the whole installation, or ``None``."""
        with self._read() as db:
            row = _one(db, images, name=name, subscription=INSTALLATION, resource_group=shelf.value)
            return None if row is None else rows.to_image(row, image_disk_rows_of(db, row["id"]))

    def list_images(self) -> list[Image]:
        """The images in the caller's group that stand by themselves, by name."""
        with self._read() as db:
            managed = self.access.listed(db, images).where(images.c.shelf == Shelf.MANAGED.value)
            return _images(db, managed)

    def every_image(self) -> list[Image]:
        """All images of the installation, versions and pulled ones too, by name: for housekeeping."""
        self.access.require_all("see every image")
        with self._read() as db:
            return _images(db, select(images).order_by(images.c.name))

    def image_names(self) -> dict[str, str]:
        """Names of the images that VMs were made of, by id; also of those that are gone: for housekeeping."""
        self.access.require_all("see every image")
        of_vms = lineage.c.id.in_(select(vms.c.image_id).distinct())
        with self._read() as db:
            found = db.execute(select(lineage.c.id, lineage.c.name).where(of_vms))
            return {row.id: row.name for row in found}

    def image_ids(self, among: Collection[str]) -> set[str]:
        """Those of some ids that images of the installation have: for housekeeping."""
        self.access.require_all("see every image")
        with self._read() as db:
            return _present(db, images.c.id, among)

    def tag_image(self, image_id: str, add: Mapping[str, str], remove: Sequence[str] = ()) -> None:
        """Set and remove tags of an image; tags that other commands set stay.

        Raises:
            NotFound: no such image, or it has no such tag.
            Forbidden: the caller may not change it.
        """
        with self._write() as db:
            row = self.access.find(db, "image", image_id, Role.CONTRIBUTOR)
            for key in remove:
                if key not in row["tags"]:
                    raise NotFound(
                        f"image '{row['name']}' has no tag '{key}'",
                        hint=f"calotype image show {row['name']} lists those that it has",
                    )
            tags = {**row["tags"], **add}
            kept = {key: value for key, value in tags.items() if key not in remove}
            db.execute(update(images).where(images.c.id == image_id).values(tags=kept))

    def promote_image(self, image_id: str, stage: Stage = Stage.PROMOTED) -> None:
        """Say how far an image has come, after a boot test; a change is written into the audit with it.

        Raises:
            NotFound: there is no such image (any more).
            Forbidden: the caller may not change it.
        """
        with self._write() as db:
            row = self.access.find(db, "image", image_id, Role.CONTRIBUTOR)
            if row["stage"] != stage.value:
                db.execute(update(images).where(images.c.id == image_id).values(stage=stage.value))
                refresh_eligible(db, image_id)
                action = "image.promote" if stage is Stage.PROMOTED else "image.demote"
                append(db, Act(action, f"image {row['name']}", {"image": image_id}))

    def record_verdict(self, image_id: str, verdict: Verdict) -> None:
        """Write down what the evidence says of an image.

        Raises:
            NotFound: there is no such image (any more).
            Forbidden: the caller may not change it.
        """
        with self._write() as db:
            self.access.find(db, "image", image_id, Role.CONTRIBUTOR)
            query = update(images).where(images.c.id == image_id)
            db.execute(query.values(verdict=verdict.value))

    def delete_image(self, image_id: str, *, act: Act | None = None) -> None:
        """Take an image out of the catalogue, and record ``act`` in the same transaction.

        Raises:
            NotFound: there is no such image (any more).
            Forbidden: the caller may not delete it.
            NotAllowed: it is a version in a gallery.
        """
        with self._write() as db:
            row = self.access.find(db, "image", image_id, Role.CONTRIBUTOR)
            if row["shelf"] == Shelf.GALLERY.value:
                raise NotAllowed(
                    f"image '{row['name']}' is a version in a gallery",
                    hint=f"calotype gallery image-version delete {row['name']}",
                )
            drop_image(db, image_id)
            _record(db, act)

    def indexes_in_use(self, among: Collection[str] | None = None) -> set[str]:
        """The Indexes that an image, a disk, a snapshot or a restore point needs: for housekeeping.

        ``among`` some: which of these; of few, that is much faster.
        """
        self.access.require_all("see every disk")
        columns = (
            image_disks.c.index,
            disks.c.index,
            snapshots.c.index,
            restore_point_disks.c.index,
        )
        with self._read() as db:
            if among is not None:
                return set().union(*(_present(db, column, among) for column in columns))
            found = (db.scalars(select(column).distinct()) for column in columns)
            return {index for indexes in found for index in indexes if index}

    # -- VMs

    def add_vm(
        self,
        vm: VirtualMachine,
        *,
        allow_second: bool = False,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Make a VM and its new disks exist, in one transaction.

        ``check`` is asked in it: what that reads of the catalogue nobody changes until the VM exists.

        Raises:
            Conflict: a name, port or address is taken.
            NotAllowed: the image is specialized and another VM of it exists (unless ``allow_second``).
            Forbidden: the caller may not make resources there.
            QuotaExceeded: the subscription may not have so many.
        """
        with self._write() as db:
            self.access.require_in(db, Role.CONTRIBUTOR, vm.scope, f"VM '{vm.name}'")
            if check is not None:
                check()
            require_name(db, "VM", vm.name, vm.scope)
            if vm.os_state is OsState.SPECIALIZED and vm.image_id and not allow_second:
                self._refuse_second(db, vm.image_id)
            quotas.charge(db, vm.scope.subscription, {QuotaKind.VMS: 1})
            db.execute(insert(vms), rows.vm_row(vm))
            for disk in vm.disks:
                self._put_disk(db, disk)

    def vm(self, name_or_id: str, role: Role = Role.READER) -> VirtualMachine:
        """The VM of that name or id, with its disks, if the caller has the role for it.

        Raises:
            NotFound: there is none that the caller may see.
            Forbidden: the caller may see it, and has not that role.
        """
        with self._read() as db:
            row = self.access.find(db, "VM", name_or_id, role)
            return rows.to_vm(row, _vm_disks(db, row["id"]))

    def list_vms(self) -> list[VirtualMachine]:
        """The VMs in the caller's group, by name."""
        with self._read() as db:
            found = _all(db, self.access.listed(db, vms))
            return [rows.to_vm(row, _vm_disks(db, row["id"])) for row in found]

    def every_vm(self) -> list[VirtualMachine]:
        """All VMs of the installation, by name: for housekeeping."""
        self.access.require_all("see every VM")
        with self._read() as db:
            found = _all(db, select(vms).order_by(vms.c.name))
            return [rows.to_vm(row, _vm_disks(db, row["id"])) for row in found]

    def vms_of_image(self, image_id: str) -> list[str]:
        """Names of the VMs that came from an image; those that the caller may not see have none."""
        with self._read() as db:
            query = select(vms.c.name, self.access.visible(db, vms).label("seen"))
            found = db.execute(query.where(vms.c.image_id == image_id))
            return [row.name if row.seen else HIDDEN for row in found]

    def update_vm(self, vm_id: str, **values: Any) -> None:
        """Change columns of a VM's row.

        Raises:
            Conflict: a value that must be unique is taken.
            NotFound, Forbidden: there is none, or the caller may not change it.
        """
        with self._write() as db:
            self.access.find(db, "VM", vm_id, Role.CONTRIBUTOR)
            db.execute(update(vms).where(vms.c.id == vm_id).values(**values))

    def delete_vm(self, vm_id: str, *, delete_disks: Sequence[str]) -> None:
        """Take out a VM, its restore points and the disks named by id; other disks become unattached.

        Raises:
            NotFound, Forbidden: there is none, or the caller may not delete it.
        """
        with self._write() as db:
            row = self.access.find(db, "VM", vm_id, Role.CONTRIBUTOR)
            quotas.give_back(db, row["subscription"], {QuotaKind.VMS: 1})
            db.execute(delete(restore_points).where(restore_points.c.vm_id == vm_id))
            db.execute(delete(disks).where(disks.c.vm_id == vm_id, disks.c.id.in_(delete_disks)))
            db.execute(update(disks).where(disks.c.vm_id == vm_id).values(vm_id=None, lun=None))
            db.execute(delete(vms).where(vms.c.id == vm_id))

    def mark_generalized(
        self, vm_id: str, act: Act, *, index: str | None = None, overlay: str | None = None
    ) -> None:
        """Record that a VM's OS disk is general: as it is, or ``index`` and the file ``overlay`` over it.

        ``act`` is recorded in the same transaction.

        Raises:
            NotFound, Forbidden: there is none, or the caller may not change it.
        """
        os_disk = (disks.c.vm_id == vm_id, disks.c.lun.is_(None))
        with self._write() as db:
            self.access.find(db, "VM", vm_id, Role.CONTRIBUTOR)
            if index is not None:
                db.execute(update(disks).where(*os_disk).values(index=index, overlay=overlay))
            db.execute(update(vms).where(vms.c.id == vm_id).values(generalized=True))
            append(db, act)

    @cached_property
    def restore_points(self) -> RestorePoints:
        """The VMs' restore points."""
        return RestorePoints(self._read, self._write, self.access)

    # -- managed disks

    def add_disk(self, disk: ManagedDisk) -> None:
        """Make a managed disk exist.

        Raises:
            Conflict: the name is taken.
            Forbidden: the caller may not make resources there.
        """
        with self._write() as db:
            self._put_disk(db, disk)

    def disk(self, name_or_id: str, role: Role = Role.READER) -> ManagedDisk:
        """The managed disk of that name or id, if the caller has the role for it.

        Raises:
            NotFound: there is none that the caller may see.
            Forbidden: the caller may see it, and has not that role.
        """
        with self._read() as db:
            return rows.to_disk(self.access.find(db, "disk", name_or_id, role))

    def list_disks(self) -> list[ManagedDisk]:
        """The managed disks in the caller's group, by name."""
        with self._read() as db:
            return [rows.to_disk(row) for row in _all(db, self.access.listed(db, disks))]

    def every_disk(self) -> list[ManagedDisk]:
        """All managed disks of the installation, by name: for housekeeping."""
        self.access.require_all("see every disk")
        with self._read() as db:
            found = _all(db, select(disks).order_by(disks.c.name))
            return [rows.to_disk(row) for row in found]

    def free_disk_name(self, wanted: str) -> str:
        """The first of ``wanted``, ``wanted-2``, ``wanted-3``, … that is free in the caller's group.

        Raises:
            Forbidden: the caller may not make resources there.
        """
        scope = self.access.caller.scope
        with self._read() as db:
            self.access.require_in(db, Role.CONTRIBUTOR, scope, f"disk '{wanted}'")
            return free_name(db, "disk", wanted, scope)

    def has_overlay(self, file: str) -> bool:
        """Whether a managed disk's overlay is the file of that name: for housekeeping."""
        self.access.require_all("see every disk")
        named = func.coalesce(disks.c.overlay, disks.c.id) == file
        with self._read() as db:
            return db.scalar(select(disks.c.id).where(named)) is not None

    def attach_disk(self, disk_id: str, vm_id: str, lun: int) -> None:
        """Record that a disk is a VM's data disk at ``lun``.

        Raises:
            Conflict: the disk is attached already, or the LUN is taken.
            NotFound, Forbidden: there is none, or the caller may not change the disk and the VM.
        """
        with self._write() as db:
            self.access.find(db, "VM", vm_id, Role.CONTRIBUTOR)
            row = self.access.find(db, "disk", disk_id, Role.CONTRIBUTOR)
            if row["vm_id"] is not None:
                raise Conflict(f"disk '{row['name']}' is attached already", hint="detach it first")
            if _one(db, disks, vm_id=vm_id, lun=lun) is not None:
                raise Conflict(f"LUN {lun} is taken", hint="name a free one with --lun")
            db.execute(update(disks).where(disks.c.id == disk_id).values(vm_id=vm_id, lun=lun))

    def detach_disk(self, disk_id: str) -> None:
        """Record that a disk belongs to no VM.

        Raises:
            NotFound, Forbidden: there is none, or the caller may not change it.
        """
        with self._write() as db:
            self.access.find(db, "disk", disk_id, Role.CONTRIBUTOR)
            db.execute(update(disks).where(disks.c.id == disk_id).values(vm_id=None, lun=None))

    def delete_disk(self, disk_id: str) -> None:
        """Take an unattached disk out of the catalogue.

        Raises:
            Conflict: a VM uses it.
            NotFound, Forbidden: there is none, or the caller may not delete it.
        """
        with self._write() as db:
            row = self.access.find(db, "disk", disk_id, Role.CONTRIBUTOR)
            if row["vm_id"] is not None:
                raise Conflict(f"disk '{row['name']}' is attached to a VM", hint="detach it first")
            db.execute(delete(disks).where(disks.c.id == disk_id))

    @cached_property
    def galleries(self) -> Galleries:
        """Galleries and image definitions."""
        return Galleries(self._read, self._write, self.access)

    @cached_property
    def versions(self) -> Versions:
        """Image versions."""
        return Versions(self._read, self._write, self.access)

    @cached_property
    def community(self) -> Community:
        """Public galleries, and what people report of them."""
        return Community(self._read, self._write, self.access)

    @cached_property
    def communities(self) -> Communities:
        """Other installations that are followed."""
        return Communities(self._read, self._write, self.access)

    @cached_property
    def replicas(self) -> Replicas:
        """Where versions are."""
        return Replicas(self._read, self._write, self.access)

    @cached_property
    def lineage(self) -> Lineage:
        """What descends from what, and was revoked."""
        return Lineage(self._read, self._write, self.access)

    @cached_property
    def marketplace(self) -> Marketplace:
        """Catalogues of offers, accepted terms, entitlements."""
        return Marketplace(self._read, self._write, self.access)

    @cached_property
    def snapshots(self) -> Snapshots:
        """Snapshots of managed disks."""
        return Snapshots(self._read, self._write, self.access)

    @cached_property
    def subscriptions(self) -> Subscriptions:
        """Subscriptions and their quotas."""
        return Subscriptions(self._read, self._write, self.access)

    @cached_property
    def roles(self) -> Roles:
        """Who has which role where."""
        return Roles(self._read, self._write, self.access)

    @cached_property
    def audit(self) -> Audit:
        """What somebody must answer for."""
        return Audit(self._read, self._write, self.access)

    # -- the store

    @cached_property
    def ledger(self) -> SqlLedger:
        """The ledger of the store whose images are in this catalogue."""
        return SqlLedger(self._read, self._write)

    # -- inside a transaction

    def _put_disk(self, db: Connection, disk: ManagedDisk) -> None:
        self.access.require_in(db, Role.CONTRIBUTOR, disk.scope, f"disk '{disk.name}'")
        if disk.vm_id is not None:
            self.access.find(db, "VM", disk.vm_id, Role.CONTRIBUTOR)
        require_name(db, "disk", disk.name, disk.scope)
        db.execute(insert(disks), rows.disk_row(disk))

    def _refuse_second(self, db: Connection, image_id: str) -> None:
        other = _one(db, vms, image_id=image_id)
        if other is None:
            return
        name = other["name"] if self.access.may(db, Role.READER, vms, other) else HIDDEN
        raise NotAllowed(
            f"the image is specialized, and VM '{name}' was made from it: two of them would be "
            "one machine twice (same host keys, machine-id, users)",
            hint=f"generalize it: calotype vm capture {name} --image NAME --generalize; "
            "or accept the clash with --allow-duplicate-identity (recorded)",
        )

    # -- transactions

    def _read(self) -> AbstractContextManager[Connection]:
        return self._database.read()

    def _write(self) -> AbstractContextManager[Connection]:
        return self._database.write(self._principal)


def _one(db: Connection, table: Any, **where: Any) -> rows.Row | None:
    query = select(table).where(*(table.c[name] == value for name, value in where.items()))
    row = db.execute(query).mappings().first()
    return None if row is None else dict(row)


def _all(db: Connection, query: Select[Any]) -> list[rows.Row]:
    return [dict(row) for row in db.execute(query).mappings()]


def _images(db: Connection, query: Select[Any]) -> list[Image]:
    found = _all(db, query)
    disk_rows = disk_rows_by_image(db, [row["id"] for row in found])
    return [rows.to_image(row, disk_rows[row["id"]]) for row in found]


def _vm_disks(db: Connection, vm_id: str) -> list[rows.Row]:
    query = select(disks).where(disks.c.vm_id == vm_id).order_by(disks.c.lun)
    return _all(db, query)


def _present(db: Connection, column: ColumnElement[str], values: Collection[str]) -> set[str]:
    """Those of the values that a column, which has an index, holds."""
    found: set[str] = set()
    for some in batches(values):
        found.update(db.scalars(select(column).where(column.in_(some)).distinct()))
    return found


def _record(db: Connection, act: Act | None) -> None:
    if act is not None:
        append(db, act)
