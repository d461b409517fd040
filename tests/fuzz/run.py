"""Fuzz one reader with atheris: ``python -m tests.fuzz.run TARGET CORPUS [libFuzzer's options]``.

The corpus is a directory; the first run fills it from the committed one.
"""

import sys

import atheris

with atheris.instrument_imports(include=["calotype.store.files"]):
    from tests.fuzz import targets

from tests.fuzz.corpus import unpack


def main() -> None:
    """Never returns."""
    target, directory, *options = sys.argv[1:]
    unpack(target, directory)
    read = targets.TARGETS[target]
    arguments = [sys.argv[0], directory, *options]
    atheris.Setup(arguments, lambda data: targets.one(read, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
