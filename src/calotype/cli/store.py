"""``calotype store``: what the store holds."""

from typing import Annotated

from cyclopts import App, Parameter

from calotype.cli import GROUPS
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit, for_people
from calotype.cli.text import size as show_size
from calotype.engine import storage

app = App(name="store", help=GROUPS["store"])

COLUMNS: Columns = {
    "Image": lambda r: r["image"],
    "Logical": lambda r: show_size(r["logical"]),
    "Stored": lambda r: show_size(r["stored"]),
    "Shared": lambda r: show_size(r["shared"]),
    "Its own": lambda r: show_size(r["unique"]),
}


@app.command
def stats(*, common: Common | None = None) -> None:
    """Logical, stored and shared bytes; and what is each image's own: what its deletion would free."""
    with session(common) as context:
        result = storage.stats(context)
        if not for_people(common):
            emit(common, result)
            return
        emit(common, result.images, COLUMNS)
        print(
            f"{len(result.images)} images: {show_size(result.logical)} logical, "
            f"{show_size(result.stored)} on disk in {result.packs} packs; "
            f"{show_size(result.unreferenced)} of it no image needs (there is no prune yet)"
        )
        print(f"bases for VMs, made again when needed: {show_size(result.bases)}")


@app.command
def check(
    *, quick: Annotated[bool, Parameter(negative="")] = False, common: Common | None = None
) -> int:
    """Read everything and hold it against its checksums; name the images that damage touches.

    Parameters
    ----------
    quick
        Only indexes and leaves, not the data.
    """
    with session(common) as context:
        result = storage.check(context, read_data=not quick)
        emit(common, result)
        return 0 if result.ok else 7
