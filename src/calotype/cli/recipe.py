"""``calotype recipe``: images built from a distribution's own packages."""

from cyclopts import App

from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit
from calotype.engine import recipes

app = App(name="recipe", help="Recipes: build an image from a distribution's own packages.")

COLUMNS: Columns = {
    "Name": lambda r: r["name"],
    "Description": lambda r: r["description"],
}


@app.command(name="list")
def list_(*, common: Common | None = None) -> None:
    """List the recipes."""
    emit(common, recipes.available(), COLUMNS)


@app.command
def build(name: str, *, image: str | None = None, common: Common | None = None) -> None:
    """Build a recipe (or take it from the cache) and make an image of it.

    Parameters
    ----------
    name
        The recipe.
    image
        The image's name (default: the recipe's).
    """
    with session(common) as context:
        emit(common, recipes.build_image(context, name, image or name).image)
