"""``calotype disk``: managed disks."""

from typing import Any

from cyclopts import App

from calotype import units
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit, plain
from calotype.cli.text import size as show_size
from calotype.engine import machines
from calotype.model import Caching, ManagedDisk

app = App(
    name="disk", help="Managed disks: create, list, show, delete. (Attach: calotype vm disk.)"
)

COLUMNS: Columns = {
    "Name": lambda d: d["name"],
    "Size": lambda d: show_size(d["size"]),
    "VM": lambda d: d["vm"],
    "LUN": lambda d: ("OS" if d["lun"] is None else d["lun"]) if d["vm"] else None,
    "Caching": lambda d: d["caching"],
}


@app.command
def create(
    name: str,
    *,
    size: str | None = None,
    source: str | None = None,
    caching: Caching = Caching.READ_WRITE,
    common: Common | None = None,
) -> None:
    """Create an empty disk, or one of what a snapshot holds.

    Parameters
    ----------
    name
        The disk's name.
    size
        Its size: 10G, 512M. A disk of a snapshot has at least the snapshot's.
    source
        The snapshot.
    caching
        Host caching when attached.
    """
    with session(common) as context:
        wanted = units.size(size) if size is not None else None
        emit(common, machines.create_disk(context, name, wanted, source=source, caching=caching))


@app.command(name="list")
def list_(*, common: Common | None = None) -> None:
    """List the disks."""
    with session(common) as context:
        vms = {vm.id: vm.name for vm in context.catalog.list_vms()}
        emit(common, [_record(disk, vms) for disk in context.catalog.list_disks()], COLUMNS)


@app.command
def show(name: str, *, common: Common | None = None) -> None:
    """Show one disk.

    Parameters
    ----------
    name
        The disk.
    """
    with session(common) as context:
        vms = {vm.id: vm.name for vm in context.catalog.list_vms()}
        emit(common, _record(context.catalog.disk(name), vms))


@app.command
def delete(name: str, *, common: Common | None = None) -> None:
    """Delete a disk that no VM uses.

    Parameters
    ----------
    name
        The disk.
    """
    with session(common) as context:
        machines.delete_disk(context, name)


def _record(disk: ManagedDisk, vms: dict[str, str]) -> dict[str, Any]:
    return {**plain(disk), "vm": vms.get(disk.vm_id or "")}
