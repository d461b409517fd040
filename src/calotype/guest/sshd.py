"""What OpenSSH's server is told: its configuration with all that it includes."""

from collections.abc import Iterator
from typing import NamedTuple

from calotype.guest.guest import Tree, glob, lines

_BASES = ("/etc/ssh/sshd_config", "/usr/etc/ssh/sshd_config")
_MOST_FILES = 256
_MOST_PATTERNS = 256  # of Include; each may go through a directory


class Setting(NamedTuple):
    """A line: the file that it is in, its key in small letters, and the words after it.

    ``always``: it does not hang on a Match before it.
    """

    path: str
    key: str
    words: tuple[str, ...]
    always: bool


def configuration(tree: Tree) -> str | None:
    """The file that the server begins with; None where there is none."""
    return next((path for path in _BASES if tree.stat(path) is not None), None)


def settings(tree: Tree) -> Iterator[Setting]:
    """All settings in the order in which the server reads them; each file is read once.

    (A second reading says nothing that the first did not; and files that include each other would have no
    end.)
    """
    base = configuration(tree)
    if base is not None:
        yield from _settings(tree, base, set(), set())


def _settings(tree: Tree, path: str, files: set[str], patterns: set[str]) -> Iterator[Setting]:
    files.add(path)
    always = True
    for line in lines(tree, path):
        words = parsed(line)
        if not words:
            continue
        key = words[0].lower()
        if key == "match":
            always = False
        elif key == "include":
            for included in _included(tree, words[1:], patterns):
                if included not in files and len(files) < _MOST_FILES:
                    inner = _settings(tree, included, files, patterns)
                    yield from (s if always else s._replace(always=False) for s in inner)
        else:
            yield Setting(path, key, tuple(words[1:]), always)


def parsed(line: str) -> list[str]:
    """The key and the values of a line, without quotes; empty for a comment."""
    words = line.strip().replace("=", " ", 1).split()
    return [word.strip('"') for word in words] if len(words) > 1 and words[0][0] != "#" else []


def _included(tree: Tree, words: list[str], patterns: set[str]) -> Iterator[str]:
    for word in words:
        pattern = word if word.startswith("/") else f"/etc/ssh/{word}"
        deep = sum("*" in name or "?" in name or "[" in name for name in pattern.split("/")) > 2
        if pattern not in patterns and len(patterns) < _MOST_PATTERNS and not deep:
            patterns.add(pattern)
            yield from list(glob(tree, pattern))
