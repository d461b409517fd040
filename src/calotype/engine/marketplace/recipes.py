"""From a recipe to an image."""

from calotype.engine.context import Context
from calotype.engine.import_ import ImageRequest, Imported, import_image
from calotype.engine.sources import Upload
from calotype.model import Generation, OsState
from calotype.recipe import Built, Recipe, build
from calotype.recipe import recipes as known


def available() -> list[Recipe]:
    """The recipes that ship."""
    return known()


def build_file(context: Context, recipe: str, *, fresh: bool = False) -> Built:
    """Build a recipe, or (unless ``fresh``) take what was built before; a raw disk in the cache.

    Raises:
        NotFound: no such recipe.
        ToolFailed: a package could not be had, or the build failed.
    """
    return build(recipe, context.home.recipes, fresh=fresh, progress=context.progress)


def build_image(
    context: Context,
    recipe: str,
    name: str,
    *,
    generation: Generation | None = None,
    fresh: bool = False,
) -> Imported:
    """Build a recipe, or (unless ``fresh``) take what was built before, and upload it as an image."""
    built = build_file(context, recipe, fresh=fresh)
    request = ImageRequest(
        name=name,
        os_type=built.os_type,
        os_state=OsState.GENERALIZED,
        generation=generation or built.generations[0],
        label=built.name,
        description=built.description,
    )
    return import_image(
        context, request, Upload(location=str(built.path), format="raw", recipe=built.name), {}
    )
