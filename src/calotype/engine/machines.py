"""A VM's life after it was made: start, stop, delete, disks."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from calotype.disk import blank
from calotype.engine import names
from calotype.engine.base import bases
from calotype.engine.context import Context
from calotype.errors import Conflict, InvalidInput, NotAllowed, NotFound
from calotype.machine import MachineSpec
from calotype.model import (
    MAX_LUN,
    MIB,
    Caching,
    ManagedDisk,
    PowerState,
    Role,
    Snapshot,
    VirtualMachine,
)


@dataclass(frozen=True, slots=True)
class VmView:
    """A VM and what it does now."""

    vm: VirtualMachine
    power: PowerState


def show(context: Context, name: str) -> VmView:
    """The VM of that name, with its power state asked of its process."""
    vm = context.catalog.vm(name)
    return VmView(vm, power(context, vm))


def list_all(context: Context) -> list[VmView]:
    """The VMs in the caller's group, with their power states."""
    return [VmView(vm, power(context, vm)) for vm in context.catalog.list_vms()]


def power(context: Context, vm: VirtualMachine) -> PowerState:
    """What a VM does now."""
    state = context.driver.state(context.vm_path(vm.id))
    if state is PowerState.STOPPED and vm.deallocated:
        return PowerState.DEALLOCATED
    return state


def running(context: Context, name: str) -> Path:
    """The directory of a running VM.

    Raises:
        NotAllowed: it does not run.
        Forbidden: the caller may not change it, and so not talk to it.
    """
    view = _changeable(context, name)
    if view.power not in (PowerState.RUNNING, PowerState.PAUSED):
        raise NotAllowed(
            f"VM '{view.vm.name}' is {view.power}", hint=f"calotype vm start {view.vm.name}"
        )
    return context.vm_path(view.vm.id)


def _changeable(context: Context, name: str) -> VmView:
    """As :func:`show`, for those who may change the VM."""
    vm = context.catalog.vm(name, Role.CONTRIBUTOR)
    return VmView(vm, power(context, vm))


def specification(
    context: Context, vm: VirtualMachine, found: Mapping[str, bases.Base]
) -> MachineSpec:
    """What the driver needs to know of a VM; ``found`` has the bases of its disks by Index."""
    directory = context.vm_path(vm.id)
    seed = seed_path(directory)
    return MachineSpec(
        id=vm.id,
        name=vm.name,
        directory=directory,
        vcpus=vm.vcpus,
        memory=vm.memory,
        generation=vm.generation,
        disks=tuple(
            bases.disk_specification(context, disk, found[disk.index] if disk.index else None)
            for disk in vm.disks
        ),
        seed=seed if seed.exists() else None,
        mac=vm.mac,
        forwards=((vm.ssh_port, 22), *vm.forwards),
        network=vm.network,
        uid=vm.uid,
    )


def seed_path(directory: Path) -> Path:
    """The seed of the VM in ``directory``; specialized VMs have none."""
    return directory / "seed.iso"


def indexes(vm: VirtualMachine) -> list[str]:
    """The Indexes that the disks of a VM started from."""
    return [disk.index for disk in vm.disks if disk.index is not None]


def start(context: Context, name: str) -> VirtualMachine:
    """Start a stopped VM; one that runs is left alone.

    Raises:
        NotAllowed: it was generalized in place.
    """
    bases.revive(context)
    with context.vm_lock(name) as vm, context.operation() as operation:
        if vm.generalized:
            raise NotAllowed(
                f"VM '{vm.name}' is generalized and cannot start again",
                hint=f"make an image of it: calotype vm capture {vm.name} --image IMAGE; or have it "
                f"back as it was: calotype vm restore {vm.name}",
            )
        if power(context, vm) in (PowerState.RUNNING, PowerState.PAUSED):
            return vm
        with bases.held(context, indexes(vm), operation.directory) as found:
            if vm.deallocated:
                context.catalog.update_vm(vm.id, deallocated=False)
            context.driver.start(specification(context, vm, found))
    return replace(vm, deallocated=False)


def stop(context: Context, name: str, *, force: bool = False, timeout: float = 120.0) -> None:
    """Shut a VM down (``force`` pulls the plug); one that is stopped is left alone.

    Raises:
        TimedOut: the guest did not shut down within ``timeout`` seconds.
    """
    view = _changeable(context, name)
    directory = context.vm_path(view.vm.id)
    if view.power not in (PowerState.RUNNING, PowerState.PAUSED):
        return
    if force:
        context.driver.kill(directory)
    else:
        context.driver.shutdown(directory, timeout=timeout)


def restart(context: Context, name: str, *, force: bool = False, timeout: float = 120.0) -> None:
    """Reboot a running VM (``force``: pull the plug and start); start a stopped one."""
    view = _changeable(context, name)
    directory = context.vm_path(view.vm.id)
    if view.power is PowerState.RUNNING and not force:
        context.driver.restart(directory, timeout=timeout)
        return
    context.driver.kill(directory)
    start(context, name)


def deallocate(context: Context, name: str, *, force: bool = False, timeout: float = 120.0) -> None:
    """Stop, and give back what a stopped VM still holds on this host: links to its bases, logs stay."""
    stop(context, name, force=force, timeout=timeout)
    with context.vm_lock(name) as vm:
        context.driver.release(context.vm_path(vm.id))
        context.catalog.update_vm(vm.id, deallocated=True)


def delete(context: Context, name: str, *, keep_disks: bool = False) -> int:
    """Stop a VM at once and delete it, with its disks unless ``keep_disks``.

    Returns:
        How many restore points went with it.
    """
    with context.vm_lock(name) as vm, context.operation() as operation:
        gone = () if keep_disks else vm.disks
        operation.claim_all([("vm", vm.id), *(("disk", disk.file) for disk in gone)])
        context.driver.kill(context.vm_path(vm.id))
        points = context.catalog.restore_points.list(vm.id)
        context.catalog.delete_vm(vm.id, delete_disks=[disk.id for disk in gone])
    of_points = [disk.index for point in points for disk in point.disks]
    context.drop_unused([*indexes(vm), *of_points])
    return len(points)


# -- managed disks


def create_disk(
    context: Context,
    name: str,
    size: int | None = None,
    *,
    source: str | None = None,
    caching: Caching = Caching.READ_WRITE,
) -> ManagedDisk:
    """Make a managed disk of ``size`` bytes: empty, or of what the snapshot ``source`` holds.

    Raises:
        InvalidInput: the name or the size is none; a snapshot is larger than that.
        NotFound: there is no such snapshot.
    """
    names.resource(name, "a disk")
    with context.operation() as operation:
        snapshot = context.catalog.snapshots.get(source) if source is not None else None
        disk = ManagedDisk(
            id=names.new_id(),
            name=name,
            size=_disk_size(size, snapshot),
            index=snapshot.index if snapshot else None,
            image_id=snapshot.image_id if snapshot else None,
            caching=caching,
            created_at=datetime.now(UTC),
            scope=context.scope,
        )
        operation.claim("disk", disk.id)
        blank.create(context.disk_path(disk.id), disk.size)
        context.catalog.add_disk(disk)
    return disk


def _disk_size(size: int | None, snapshot: Snapshot | None) -> int:
    """The size of a new disk; without one, its snapshot's."""
    if snapshot is not None and size is None:
        return snapshot.size
    if size is None or size < MIB or size % 512:
        given = "nothing" if size is None else f"{size} bytes"
        raise InvalidInput(f"{given} is no size for a disk", hint="1M or more")
    if snapshot is not None and size < snapshot.size:
        raise InvalidInput(
            f"snapshot '{snapshot.name}' has {snapshot.size} bytes and cannot shrink",
            hint="leave the size out, or name a larger one",
        )
    return size


def delete_disk(context: Context, name: str) -> None:
    """Delete a managed disk that no VM uses."""
    disk = context.catalog.disk(name, Role.CONTRIBUTOR)
    with context.operation() as operation:
        operation.claim("disk", disk.file)
        context.catalog.delete_disk(disk.id)
    context.drop_unused([disk.index] if disk.index else [])


def attach(
    context: Context, vm_name: str, disk_name: str, *, lun: int | None = None
) -> ManagedDisk:
    """Attach a managed disk as a data disk; a running VM sees it at once.

    Raises:
        Conflict: the disk is attached already, or the LUN is taken.
    """
    if lun is not None and not 0 <= lun <= MAX_LUN:
        raise InvalidInput(f"{lun} is not a LUN", hint=f"0 to {MAX_LUN}")
    with context.vm_lock(vm_name) as vm, context.operation() as operation:
        disk = context.catalog.disk(disk_name, Role.CONTRIBUTOR)
        if lun is None:
            lun = free_lun({d.lun for d in vm.data_disks})
        context.catalog.attach_disk(disk.id, vm.id, lun)
        attached = replace(disk, vm_id=vm.id, lun=lun)
        try:
            if power(context, vm) in (PowerState.RUNNING, PowerState.PAUSED):
                index = [disk.index] if disk.index else []
                with bases.held(context, index, operation.directory) as found:
                    spec = bases.disk_specification(context, attached, *found.values() or [None])
                    context.driver.attach(context.vm_path(vm.id), spec)
        except BaseException:
            context.catalog.detach_disk(disk.id)
            raise
    return attached


def detach(context: Context, vm_name: str, disk_name: str) -> None:
    """Detach a data disk; a running guest is asked to let go of it first.

    Raises:
        NotAllowed: it is the OS disk.
        Conflict: it is not attached to this VM.
    """
    with context.vm_lock(vm_name) as vm, context.operation():
        disk = context.catalog.disk(disk_name)
        if disk.vm_id != vm.id:
            raise Conflict(f"disk '{disk.name}' is not attached to VM '{vm.name}'")
        if disk.lun is None:
            raise NotAllowed(
                "an OS disk cannot be detached", hint="delete the VM with --keep-disks"
            )
        with suppress(NotFound):  # a command was killed between the VM and the catalogue
            context.driver.detach(context.vm_path(vm.id), disk.id)
        context.catalog.detach_disk(disk.id)


def free_lun(used: Collection[int | None]) -> int:
    """The lowest LUN that is not in ``used``.

    Raises:
        Conflict: all are.
    """
    for lun in range(MAX_LUN + 1):
        if lun not in used:
            return lun
    raise Conflict(f"all {MAX_LUN + 1} LUNs are taken")
