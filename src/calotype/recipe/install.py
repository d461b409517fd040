"""The method *install*."""

from pathlib import Path
from calotype.recipe.record import Recipe
from calotype.recipe.tree import Tree


def fill(recipe: Recipe, tree: Tree, debs: Path, work: Path) -> None:
    raise NotImplementedError
