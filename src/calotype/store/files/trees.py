"""Trees of blocks, many at once, level by level: extent trees, B+trees, indirect blocks.

A node's level is what its parent says, so a cycle ends by itself; a node is read once for each level.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from calotype.store.digest import Ints
from calotype.store.files.numbers import Table
from calotype.store.files.volume import SLICE, Reader, read_rows

_MAX_NODES = 1 << 17  # on one level

Leaf = TypeVar("Leaf")


class Nodes:
    """Nodes that are to be read, by level: their blocks, and a number (the tag) that belongs to each."""

    def __init__(self) -> None:
        self._parts: defaultdict[int, list[tuple[Ints, Ints]]] = defaultdict(list)
        self._room: defaultdict[int, int] = defaultdict(lambda: _MAX_NODES)

    def add(self, level: int, blocks: Ints, tags: Ints) -> None:
        """Nodes of one level; what exceeds the bound is left out."""
        if room := self._room[level]:
            self._parts[level].append((blocks[:room], tags[:room]))
            self._room[level] -= min(room, len(blocks))

    def take(self, level: int) -> tuple[Ints, Ints]:
        """The nodes of a level, ascending, each once."""
        none = np.zeros(0, dtype=np.int64)
        parts = [(none, none), *self._parts.pop(level, [])]
        blocks, tags = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        blocks, which = np.unique(blocks, return_index=True)
        return blocks, tags[which]

    def levels(self) -> Iterator[int]:
        """From the top down to 0."""
        yield from range(max(self._parts, default=-1), -1, -1)


def walk(
    volume: Reader,
    block: int,
    nodes: Nodes,
    parse: Callable[[Table, Ints, int, Nodes], Leaf],
) -> Iterator[Leaf]:
    """Read all nodes, ``block`` bytes each.

    ``parse`` gets some nodes, their tags and their level, adds their children to the nodes of the level
    below, and returns what is to be yielded.
    """
    step = max(1, SLICE // block)
    for level in nodes.levels():
        blocks, tags = nodes.take(level)
        inside = (blocks > 0) & (blocks < volume.size // block)
        blocks, tags = blocks[inside], tags[inside]
        for at in range(0, len(blocks), step):
            rows = read_rows(volume, blocks[at : at + step] * block, block)
            yield parse(rows, tags[at : at + step], level, nodes)
