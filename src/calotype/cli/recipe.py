"""``calotype recipe``: images built from a distribution's own packages."""

from typing import Annotated, Any

from cyclopts import App, Parameter

from calotype import units
from calotype.cli import GROUPS
from calotype.cli.common import Common, session
from calotype.cli.image import summary
from calotype.cli.output import Columns, emit, for_people
from calotype.engine.marketplace import recipes
from calotype.model import Generation

app = App(name="recipe", help=GROUPS["recipe"])

_Flag = Annotated[bool, Parameter(negative="")]

COLUMNS: Columns = {
    "Name": lambda r: r["name"],
    "Description": lambda r: r["description"],
}


@app.command(name="list")
def list_(*, common: Common | None = None) -> None:
    """List the recipes."""
    emit(common, recipes.available(), COLUMNS)


@app.command
def build(
    name: str,
    *,
    image: str | None = None,
    generation: Generation | None = None,
    fresh: _Flag = False,
    common: Common | None = None,
) -> None:
    """Build a recipe, or take it from the cache; a raw disk, or with --image an image.

    Parameters
    ----------
    name
        The recipe.
    image
        Upload what was built as an image of this name.
    generation
        V1 (BIOS) or V2 (UEFI), where the recipe starts by both (default: V1).
    fresh
        Build from the newest packages although the cache has an image.
    """
    with session(common) as context:
        if image is None:
            built = recipes.build_file(context, name, fresh=fresh)
            emit(common, str(built.path) if for_people(common) else built)
            return
        imported = recipes.build_image(context, name, image, generation=generation, fresh=fresh)
        made = imported.image
        emit(common, summary(made) if for_people(common) else made)


@app.command
def rebuild(
    *definitions: str,
    all_: Annotated[bool, Parameter(name="--all", negative="")] = False,
    dry_run: _Flag = False,
    timeout: str = "10m",
    common: Common | None = None,
) -> int:
    """Build the recipes of image definitions anew, and publish a version where something changed.

    Each is built from the newest packages, looked into, compared with the latest version file by file,
    boot-tested and promoted; then retention is applied. Where nothing changed nothing is left. Ends with
    status 1 when the rebuild of one of them failed.

    Parameters
    ----------
    definitions
        GALLERY/DEFINITION, which must name a recipe.
    all_
        All definitions that name a recipe.
    dry_run
        Say what would be built.
    timeout
        How long each clone of the boot test may take to start (90s, 10m).
    """
    from calotype.engine.marketplace.rebuild import rebuild  # noqa: PLC0415 (loads much)

    seconds = units.duration(timeout).total_seconds()
    with session(common) as context:
        run = rebuild(context, definitions, every=all_, dry_run=dry_run, timeout=seconds)
        told = list(run)
    emit(common, told, REBUILT)
    return int(any(one.problem for one in told))


def _words(told: dict[str, Any]) -> str:
    """What there is to say of a definition."""
    if told["problem"]:
        return f"{told['problem']}\n{told['hint'] or ''}".rstrip()
    parts = []
    if changes := told["changes"]:
        counts = {name: len(found) for name, found in changes["packages"].items()}
        parts += [f"{count} packages {name}" for name, count in counts.items() if count]
        parts += [f"{len(changes['paths'])} files differ"] if changes["paths"] else []
        parts += [f"{disk} differs" for disk in changes["disks"]]
    parts += [f"{reference} deleted" for reference in told["retired"]]
    return ", ".join(parts)


REBUILT: Columns = {
    "Definition": lambda r: r["definition"],
    "Recipe": lambda r: r["recipe"],
    "Outcome": lambda r: r["outcome"],
    "Version": lambda r: r["version"],
    "Before": lambda r: r["before"],
    "Changes": _words,
}
