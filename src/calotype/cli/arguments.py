"""Arguments that several commands read in one way."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from calotype.errors import InvalidInput

#: For a file name that may be ``-``: standard input.
StdinPath = Annotated[str, Parameter(allow_leading_hyphen=True)]
#: For options that may be repeated.
Repeat = Parameter(negative_iterable="", consume_multiple=True)


def _seconds(_type: object, value: float | None) -> None:
    if value is not None and not 0 <= value <= 10_000_000:  # not a number is neither
        raise ValueError("is no number of seconds")


#: For how long to wait.
Seconds = Annotated[float, Parameter(validator=_seconds)]


def pair(text: str) -> tuple[str, str]:
    """``KEY=VALUE`` taken apart."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise InvalidInput(f"'{text}' is not KEY=VALUE")
    return key, value


def read(path: str) -> bytes:
    """The bytes of a file; ``-`` is standard input."""
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read '{path}': {error.strerror}") from error
