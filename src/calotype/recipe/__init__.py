"""Recipes: disk images built from a distribution's own packages."""

from calotype.recipe.builder import Built, build
from calotype.recipe.record import Recipe, load, names

__all__ = ["Built", "Recipe", "build", "load", "recipes"]


def recipes() -> list[Recipe]:
    """Every recipe there is, by name."""
    return [load(name) for name in names()]
