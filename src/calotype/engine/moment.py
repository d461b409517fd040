"""All disks of a VM at one instant, and how one of them gets into the store."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Literal

from calotype.disk import Disk, Extent
from calotype.disk.overlay import stack
from calotype.disk.view import NbdSource, OverlaySource, writable
from calotype.engine.base import bases
from calotype.engine.context import Context
from calotype.engine.generalize.steps import DEFAULT, Steps
from calotype.engine.machines import indexes, power
from calotype.engine.operation import Operation
from calotype.engine.proof import look
from calotype.guest import GeneralizeReport, Proof
from calotype.machine import LazyBase
from calotype.model import Consistency, ManagedDisk, PowerState, VirtualMachine
from calotype.store import Ingested

Freeze = Literal["auto", "require", "never"]

#: A disk at an instant: of a stopped VM, or of a running one.
Source = OverlaySource | NbdSource


@dataclass(frozen=True, slots=True)
class Moment:
    """All disks of a VM as they were at one instant, by disk id."""

    sources: Mapping[str, Source]
    consistency: Consistency
    frozen_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CapturedDisk:
    """What one disk took: ``changed`` bytes were read, the rest is shared with the base."""

    lun: int | None
    changed: int
    ingested: Ingested


@dataclass(frozen=True, slots=True)
class GeneralizedDisk:
    """An OS disk of which a generalized copy was taken: what was done to it, and what it shows now."""

    disk: CapturedDisk
    report: GeneralizeReport
    proof: Proof


@contextmanager
def moment(
    context: Context, vm: VirtualMachine, operation: Operation, *, freeze: Freeze = "auto"
) -> Iterator[Moment]:
    """Hold an instant of a VM: its overlays when it is stopped, copy-before-write views when it runs.

    The caller holds the VM's lock.

    Raises:
        GuestError: ``freeze`` is ``require`` and the guest cannot be frozen.
    """
    if power(context, vm) in (PowerState.RUNNING, PowerState.PAUSED):
        ids = [disk.id for disk in vm.disks]
        operation.claim("capture", vm.id)
        directory = context.vm_path(vm.id)
        with context.driver.point_in_time(directory, ids, freeze=freeze) as snapshot:
            sources: dict[str, Source] = {
                disk_id: NbdSource(end.path, end.export)
                for disk_id, end in snapshot.exports.items()
            }
            yield Moment(sources, snapshot.consistency, snapshot.frozen_seconds)
        return
    with bases.held(context, indexes(vm), operation.directory) as found:
        stopped = {disk.id: _stopped_source(context, disk, found) for disk in vm.disks}
        yield Moment(stopped, _consistency_of_stopped(stopped[vm.os_disk.id]))


@contextmanager
def resting(context: Context, disk: ManagedDisk, operation: Operation) -> Iterator[Moment]:
    """Hold a managed disk that no VM has; who attaches it meanwhile is not kept from it."""
    with bases.held(context, [disk.index] if disk.index else [], operation.directory) as found:
        source = _stopped_source(context, disk, found)
        yield Moment({disk.id: source}, _consistency_of_stopped(source))


def take(context: Context, disk: ManagedDisk, source: Source) -> CapturedDisk:
    """Bring a disk into the store."""
    with closing(source.open()) as opened:
        return _ingest(context, disk, opened, opened.changed())


def take_generalized(
    context: Context,
    operation: Operation,
    disk: ManagedDisk,
    source: Source,
    steps: Steps = DEFAULT,
) -> GeneralizedDisk:
    """Generalize a throw-away overlay on an OS disk; only the result reaches the store.

    The proof is of that result, read anew.

    Raises:
        GuestError: this guest cannot be generalized, or something was left.
    """
    overlay_path = operation.directory / "generalized.qcow2"
    with closing(source.open()) as opened:
        changed = opened.changed()
    with writable(source, overlay_path, operation.directory) as view:
        report = look.generalize(context, view, steps)
    with closing(view.disk()) as result:
        proof = look.prove(context, result)
        taken = _ingest(context, disk, result, list(stack([view.changed(), changed])))
    return GeneralizedDisk(taken, report, proof)


def _stopped_source(
    context: Context, disk: ManagedDisk, found: Mapping[str, bases.Base]
) -> OverlaySource:
    base = found[disk.index] if disk.index else None
    beneath = NbdSource(base.socket, base.export) if isinstance(base, LazyBase) else base
    return OverlaySource(context.disk_path(disk.file), beneath)


def _consistency_of_stopped(source: Source) -> Consistency:
    """A disk's own file systems say whether its VM was shut down or cut off."""
    with closing(source.open()) as disk:
        clean = look.was_shut_down(disk)
    return Consistency.APPLICATION if clean else Consistency.CRASH


def _ingest(
    context: Context, disk: ManagedDisk, opened: Disk, changed: list[Extent]
) -> CapturedDisk:
    ingested = context.repository.ingest(
        opened, base=disk.index, changed=changed, progress=context.progress
    )
    return CapturedDisk(disk.lun, sum(extent.length for extent in changed), ingested)
