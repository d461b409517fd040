"""Bases: the read-only raw file of an Index that all its VMs on this host share.

``bases/INDEX.raw`` is whole, durable and never changes. While the Index is only in the store, a server
(see :mod:`calotype.engine.base.keeper`) fills ``bases/INDEX.partial`` and VMs run on it meanwhile.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from calotype.disk.durable import fsync_directory
from calotype.engine.base.partial import Partial
from calotype.engine.context import Context
from calotype.errors import CalotypeError, StoreDamaged
from calotype.machine import DiskSpec
from calotype.machine.spec import LazyBase
from calotype.model import ManagedDisk

#: What a disk is stacked on: a file, or what a server serves until there is one.
Base = Path | LazyBase

_POLL = 0.05


def ensure(context: Context, index: str, scratch: Path) -> Path:
    """The whole base of ``index``; made from the store when it is not there yet.

    Two commands that want the same base wait for one that makes it. A base appears under its name only
    whole, on disk, and read-only.

    Raises:
        NotFound: there is no such Index.
        StoreDamaged: something that it needs is damaged.
    """
    path = context.base_path(index)
    while not path.exists():
        with context.lock(f"base-{index}"):
            if path.exists():
                break
            partial = Partial.of(context.home, index)
            if not partial.exists():
                _make(context, index, path, scratch)
                break
            (partial.root / "hurry").touch()
            serve(context, partial)
        _await(context, partial, path)
    return path


@contextmanager
def held(context: Context, indexes: Iterable[str], scratch: Path) -> Iterator[Mapping[str, Base]]:
    """The bases of ``indexes``, ready to start a VM on: whole ones, and others that are being filled.

    Within the block no server of one of them ends.

    Raises:
        NotFound: there is no such Index.
        StoreDamaged: something that is needed at once is damaged.
    """
    users: list[int] = []
    try:
        found: dict[str, Base] = {}
        for index in set(indexes):
            found[index] = path = context.base_path(index)
            if path.exists():
                continue
            with context.lock(f"base-{index}"):
                if path.exists():
                    continue
                partial = Partial.of(context.home, index)
                if not partial.exists() and not _is_lazy(context, index):
                    _make(context, index, path, scratch)
                    continue
                partial.root.mkdir(mode=0o700, exist_ok=True)
                users.append(partial.use())
                serve(context, partial)
                found[index] = partial.base
        yield found
    finally:
        for descriptor in users:
            os.close(descriptor)


def serve(context: Context, partial: Partial) -> None:
    """Start the server of a partial base unless it lives, and lead its VMs to it."""
    if not partial.serve(context.home):
        return
    for disk in context.system.every_disk():
        if disk.index == partial.index and disk.vm_id is not None:
            # Another command may work on that VM: the server tries again.
            with suppress(CalotypeError):
                spec = disk_specification(context, disk, partial.base)
                context.driver.reconnect(context.vm_path(disk.vm_id), spec)


def revive(context: Context) -> None:
    """Start the servers that disks need and that have ended, as after a crash of the host."""
    for partial in Partial.all(context.home):
        if partial.alive() or partial.index not in context.indexes_of_disks():
            continue
        with context.lock(f"base-{partial.index}"):
            if partial.exists():
                serve(context, partial)


def publish(new: Path, path: Path) -> None:
    """Give a whole, synced base its name."""
    new.chmod(0o444)
    new.rename(path)
    fsync_directory(path.parent)


def disk_specification(context: Context, disk: ManagedDisk, base: Base | None) -> DiskSpec:
    """What the driver needs to know of a disk."""
    return DiskSpec(
        id=disk.id,
        path=context.disk_path(disk.file),
        base=base,
        size=disk.size,
        lun=disk.lun,
        caching=disk.caching,
    )


def _make(context: Context, index: str, path: Path, scratch: Path) -> None:
    new = scratch / f"{index}.raw"
    context.repository.materialize(index, new, progress=context.progress)
    publish(new, path)


def _is_lazy(context: Context, index: str) -> bool:
    """Whether a base is worth a server: a small one is made as quickly, from a store on this host."""
    context.repository.size(index)  # an Index that is missing is an error of this command
    from calotype.store import DirectoryStore  # noqa: PLC0415 (not needed for a base that is there)

    if not isinstance(context.objects, DirectoryStore):
        return True
    limit: int = context.settings.values["vm.lazy_above"]
    return context.repository.holds_more(index, limit)


def _await(context: Context, partial: Partial, path: Path) -> None:
    """Wait until a server has made the base whole, or has ended."""
    problem = partial.root / "problem"
    with context.progress.phase("fetching", None):
        while not path.exists() and partial.alive():
            if problem.exists():
                raise StoreDamaged(problem.read_text("utf-8", "replace"))
            time.sleep(_POLL)
