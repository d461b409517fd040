"""``calotype snapshot``: what managed disks held at an instant."""

from typing import Annotated, Literal

from cyclopts import App

from calotype.cli import GROUPS
from calotype.cli.arguments import Repeat, pairs
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit, for_people
from calotype.cli.text import size as show_size
from calotype.engine import snapshots

app = App(name="snapshot", help=GROUPS["snapshot"])

COLUMNS: Columns = {
    "Name": lambda s: s["name"],
    "Size": lambda s: show_size(s["size"]),
    "OS": lambda s: s["osType"],
    "Consistency": lambda s: s["consistency"],
    "Created": lambda s: s["createdAt"][:19],
}


@app.command
def create(
    name: str,
    *,
    source: str,
    freeze: Literal["auto", "require", "never"] = "auto",
    tags: Annotated[tuple[str, ...], Repeat] = (),
    common: Common | None = None,
) -> None:
    """Create a snapshot of a managed disk; a VM that it is attached to goes on.

    Parameters
    ----------
    name
        The snapshot's name.
    source
        The disk.
    freeze
        Freeze the guest's file systems for the instant: when it can be done, or else refuse, or never.
    tags
        KEY=VALUE.
    """
    with session(common) as context:
        words = pairs(tags)
        taken = snapshots.create(context, name, source, freeze=freeze, tags=words)
    emit(common, taken.snapshot)
    if for_people(common):
        cost = taken.disk.ingested
        print(f"{show_size(taken.disk.changed)} read, {show_size(cost.stored_bytes)} stored")


@app.command(name="list")
def list_(*, common: Common | None = None) -> None:
    """List the snapshots."""
    with session(common) as context:
        emit(common, context.catalog.snapshots.list(), COLUMNS)


@app.command
def show(name: str, *, common: Common | None = None) -> None:
    """Show one snapshot.

    Parameters
    ----------
    name
        The snapshot.
    """
    with session(common) as context:
        emit(common, context.catalog.snapshots.get(name))


@app.command
def delete(name: str, *, common: Common | None = None) -> None:
    """Delete a snapshot; disks that were made of it go on.

    Parameters
    ----------
    name
        The snapshot.
    """
    with session(common) as context:
        snapshots.delete(context, name)
