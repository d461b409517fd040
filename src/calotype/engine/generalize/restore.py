"""Restore points of a VM: all its disks at one instant in the store, and the way back to them.

A restore point costs what the disks hold that the store does not have yet. Going back gives every disk a
new, empty overlay over what the point holds; the catalogue changes from the old overlays to the new ones in
one transaction, and only after it the old ones go.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from calotype.catalog.restore_points import elsewhere
from calotype.disk import blank
from calotype.engine import names
from calotype.engine.base import bases
from calotype.engine.context import Context
from calotype.engine.machines import indexes, power
from calotype.engine.moment import Freeze, Moment, moment, take
from calotype.errors import NotAllowed, NotFound
from calotype.model import ManagedDisk, PowerState, RestoreDisk, RestorePoint, VirtualMachine


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """A VM that is back at a restore point; names of the disks that did not simply stay with it.

    ``detached`` were attached since, and are kept; ``returned`` had been detached since; ``remade`` had been
    deleted since.
    """

    vm: VirtualMachine
    point: RestorePoint
    detached: tuple[str, ...]
    returned: tuple[str, ...]
    remade: tuple[str, ...]


def take_restore_point(
    context: Context, vm_name: str, reason: str, *, freeze: Freeze = "auto"
) -> RestorePoint:
    """Keep all disks of a VM as they are at one instant; a running VM goes on.

    Raises:
        NotAllowed: the VM is generalized: there is no machine to go back to.
        GuestError: ``freeze`` is ``require`` and the guest cannot be frozen.
    """
    with context.vm_lock(vm_name) as vm, context.operation() as operation:
        if vm.generalized:
            raise NotAllowed(
                f"VM '{vm.name}' is generalized: that is no state to go back to",
                hint=f"make an image of it: calotype vm capture {vm.name} --image IMAGE",
            )
        with moment(context, vm, operation, freeze=freeze) as found:
            return keep(context, vm, found, reason)


def keep(context: Context, vm: VirtualMachine, found: Moment, reason: str) -> RestorePoint:
    """Make a restore point of a moment, inside the operation that holds it; durable on return."""
    point = RestorePoint(
        id=names.new_id(),
        vm_id=vm.id,
        reason=reason,
        consistency=found.consistency,
        disks=tuple(
            _kept(disk, take(context, disk, found.sources[disk.id]).ingested.index)
            for disk in (vm.os_disk, *vm.data_disks)
        ),
        created_at=datetime.now(UTC),
    )
    context.catalog.restore_points.add(point)
    return point


def _kept(disk: ManagedDisk, index: str) -> RestoreDisk:
    return RestoreDisk(
        disk_id=disk.id,
        name=disk.name,
        index=index,
        size=disk.size,
        image_id=disk.image_id,
        lun=disk.lun,
        caching=disk.caching,
        tags=disk.tags,
    )


def list_points(context: Context, vm_name: str) -> list[RestorePoint]:
    """The restore points of a VM, the newest first."""
    return context.catalog.restore_points.list(context.catalog.vm(vm_name).id)


def delete_point(context: Context, vm_name: str, point_id: str) -> None:
    """Delete a restore point of a VM; what only it needed goes with it.

    Raises:
        NotFound: the VM has no such restore point.
    """
    with context.vm_lock(vm_name) as vm, context.operation():
        point = _chosen(context, vm, point_id)
        context.catalog.restore_points.delete(point.id)
    context.drop_unused(disk.index for disk in point.disks)


def restore(
    context: Context, vm_name: str, point_id: str | None = None, *, force_stop: bool = False
) -> Restored:
    """Bring a VM back to a restore point (the newest, unless ``point_id`` names one), which stays.

    All that was written to the point's disks since is lost, but for what other restore points and images
    hold. The bases are whole and verified before anything is given up.

    Raises:
        NotFound: there is no such restore point.
        NotAllowed: the VM runs, and ``force_stop`` does not say to pull the plug.
        Conflict: a disk is attached to another VM by now.
        StoreDamaged: the store does not hold the disks any more.
    """
    with context.vm_lock(vm_name) as vm, context.operation() as operation:
        point = _chosen(context, vm, point_id)
        running = power(context, vm) in (PowerState.RUNNING, PowerState.PAUSED)
        if running and not force_stop:
            raise NotAllowed(
                f"VM '{vm.name}' runs",
                hint=f"calotype vm stop {vm.name}; or pull the plug with --force-stop",
            )
        before = {disk.id: disk for disk in context.system.every_disk()}
        _refuse_others(vm, point, before)
        for disk in point.disks:
            bases.ensure(context, disk.index, operation.directory)
        directory = context.vm_path(vm.id)
        if running:
            context.driver.kill(directory)
        overlays = {disk.disk_id: names.new_id() for disk in point.disks}
        old = [before[disk_id].file for disk_id in overlays if disk_id in before]
        operation.claim_all(("disk", file) for file in (*overlays.values(), *old))
        for disk in point.disks:
            blank.create(context.disk_path(overlays[disk.disk_id]), disk.size)
        context.driver.release(directory)
        context.catalog.restore_points.go_back(point, overlays)
    context.drop_unused([*indexes(vm), *_indexes(before, point)])
    return _told(context, vm, point, before)


def _chosen(context: Context, vm: VirtualMachine, point_id: str | None) -> RestorePoint:
    points = context.catalog.restore_points.list(vm.id)
    if point_id is not None:
        points = [point for point in points if point.id == point_id]
    if not points:
        which = f"no restore point '{point_id}'" if point_id else "no restore point"
        raise NotFound(
            f"VM '{vm.name}' has {which}", hint=f"calotype vm restore-point list {vm.name}"
        )
    return points[0]


def _refuse_others(
    vm: VirtualMachine, point: RestorePoint, before: Mapping[str, ManagedDisk]
) -> None:
    for disk in point.disks:
        now = before.get(disk.disk_id)
        if now is not None and now.vm_id not in (None, vm.id):
            raise elsewhere(now.name)


def _indexes(before: Mapping[str, ManagedDisk], point: RestorePoint) -> list[str]:
    """The Indexes that the point's disks were over before."""
    found = (before.get(disk.disk_id) for disk in point.disks)
    return [disk.index for disk in found if disk is not None and disk.index is not None]


def _told(
    context: Context, vm: VirtualMachine, point: RestorePoint, before: Mapping[str, ManagedDisk]
) -> Restored:
    now = context.catalog.vm(vm.id)
    ids = {disk.disk_id for disk in point.disks}
    return Restored(
        vm=now,
        point=point,
        detached=tuple(disk.name for disk in vm.disks if disk.id not in ids),
        returned=tuple(
            disk.name for disk in now.disks if disk.id in before and before[disk.id].vm_id is None
        ),
        remade=tuple(disk.name for disk in now.disks if disk.id not in before),
    )
