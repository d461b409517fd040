"""``calotype recipe``: images built from a distribution's own packages."""

from cyclopts import App

from calotype.cli import GROUPS
from calotype.cli.common import Common, session
from calotype.cli.image import summary
from calotype.cli.output import Columns, emit, for_people
from calotype.engine import recipes
from calotype.model import Generation

app = App(name="recipe", help=GROUPS["recipe"])

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
    """
    with session(common) as context:
        if image is None:
            built = recipes.build_file(context, name)
            emit(common, str(built.path) if for_people(common) else built)
            return
        made = recipes.build_image(context, name, image, generation=generation).image
        emit(common, summary(made) if for_people(common) else made)
