"""Snapshots: what a managed disk holds at one instant, kept in the store."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from calotype.engine import names
from calotype.engine.context import Context
from calotype.engine.moment import CapturedDisk, Freeze, Moment, moment, resting, take
from calotype.errors import Conflict, NotFound
from calotype.model import ManagedDisk, OsType, Role, Snapshot


@dataclass(frozen=True, slots=True)
class Taken:
    """A new snapshot, and what it took."""

    snapshot: Snapshot
    disk: CapturedDisk


@dataclass(frozen=True, slots=True)
class _Held:
    """A disk that holds still; ``os_type`` if one starts from it."""

    disk: ManagedDisk
    moment: Moment
    os_type: OsType | None


def create(
    context: Context,
    name: str,
    disk_name: str,
    *,
    freeze: Freeze = "auto",
    tags: Mapping[str, str] | None = None,
) -> Taken:
    """Keep what a managed disk holds now. Only what changed is read; a VM that it is attached to goes on.

    Raises:
        InvalidInput, Conflict: the name is none, or is taken.
        Conflict: the disk was attached, detached or written to meanwhile.
        GuestError: ``freeze`` is ``require`` and the guest cannot be frozen.
    """
    names.resource(name, "a snapshot")
    context.catalog.snapshots.require_free(name)
    disk = context.catalog.disk(disk_name, Role.CONTRIBUTOR)
    with _held(context, disk, freeze) as held:
        path = context.disk_path(held.disk.file)
        before = _state(path)
        taken = take(context, held.disk, held.moment.sources[disk.id])
        if held.disk.vm_id is None and _state(path) != before:
            raise _moved(disk)
        snapshot = Snapshot(
            id=names.new_id(),
            name=name,
            size=taken.ingested.size,
            index=taken.ingested.index,
            disk_id=disk.id,
            image_id=disk.image_id,
            os_type=held.os_type,
            consistency=held.moment.consistency,
            tags=dict(tags or {}),
            created_at=datetime.now(UTC),
            scope=context.scope,
        )
        if not context.catalog.snapshots.add(snapshot, held.disk):
            raise _moved(disk)
    return Taken(snapshot, taken)


def delete(context: Context, name: str) -> None:
    """Delete a snapshot; disks that were made of it go on.

    Raises:
        NotFound: there is none.
    """
    snapshot = context.catalog.snapshots.get(name)
    context.catalog.snapshots.delete(snapshot.id)
    context.drop_unused([snapshot.index])


@contextmanager
def _held(context: Context, disk: ManagedDisk, freeze: Freeze) -> Iterator[_Held]:
    """Hold a disk at an instant: with the VM that it is attached to, or by itself."""
    if disk.vm_id is None:
        with context.operation() as operation, resting(context, disk, operation) as found:
            yield _Held(disk, found, _os_type(context, disk))
        return
    with context.vm_lock(disk.vm_id) as vm, context.operation() as operation:
        now = next((one for one in vm.disks if one.id == disk.id), None)
        if now is None:
            raise _moved(disk)
        with moment(context, vm, operation, freeze=freeze) as found:
            yield _Held(now, found, vm.os_type if now.lun is None else None)


def _os_type(context: Context, disk: ManagedDisk) -> OsType | None:
    """What starts from a disk that no VM has, as far as its image is there to tell."""
    try:
        image = context.system.image(disk.image_id or "")
    except NotFound:
        return None
    return image.os_type if image.os_disk.index == disk.index else None


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written to; ``None`` when it is gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return (status.st_ino, status.st_size, status.st_blocks, status.st_mtime_ns)


def _moved(disk: ManagedDisk) -> Conflict:
    return Conflict(
        f"disk '{disk.name}' was attached, detached or restored meanwhile",
        hint="take the snapshot again",
    )
