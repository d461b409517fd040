"""How a publisher's version becomes three numbers.

Each scheme knows one shape of version and no other, and within a scheme two versions never become one;
larger versions become larger numbers. What has another shape is not a version of that offer.
"""

import re
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from calotype.model import Version

_N = r"(?:0|[1-9][0-9]{0,5})"
_DATE = r"(?:19|20)[0-9]{2}[01][0-9][0-3][0-9]"


class Scheme(StrEnum):
    """The shapes of version that publishers use."""

    DATE = "date"
    DATE_BUILD = "date-build"
    DATE_TIME = "date-time"
    RELEASE_DATE = "release-date"
    RELEASE_DATE_RESPIN = "release-date-respin"
    RELEASE_COMPOSE = "release-compose"
    RELEASE_REVISION = "release-revision"
    TWO_NUMBERS = "two-numbers"
    THREE_NUMBERS = "three-numbers"

    @property
    def pattern(self) -> str:
        """A regular expression of the version's spelling, without groups."""
        return _RULES[self].pattern

    @property
    def revision(self) -> str | None:
        """A regular expression of what file names may carry apart from the version; None: nothing."""
        return _RULES[self].revision

    @property
    def example(self) -> tuple[str, str]:
        """A version of this shape, and how its numbers come about."""
        return _RULES[self].example, _RULES[self].rule

    def read(self, text: str) -> Version | None:
        """The three numbers of a publisher's version; ``None``: it has not this shape."""
        rule = _RULES[self]
        whole = rule.pattern if rule.revision is None else f"{rule.pattern}-{rule.revision}"
        if re.fullmatch(whole, text) is None:
            return None
        return Version(*rule.numbers([int(digits) for digits in re.findall(r"[0-9]+", text)]))


def scheme_of(text: str) -> Scheme | None:
    """The scheme of a version in an index that does not say which it uses."""
    return next((scheme for scheme in Scheme if scheme.read(text) is not None), None)


class _Rule(NamedTuple):
    pattern: str
    revision: str | None
    numbers: Callable[[list[int]], tuple[int, int, int]]
    example: str
    rule: str


_RULES = {
    Scheme.DATE: _Rule(
        rf"{_DATE}(?:\.[1-9][0-9]{{0,5}})?",  # never ".0", which would be the same three numbers
        None,
        lambda n: (n[0], n[1] if len(n) > 1 else 0, 0),
        "20240101.1",
        "DATE[.N] becomes DATE.N.0; without N, DATE.0.0",
    ),
    Scheme.DATE_BUILD: _Rule(
        rf"{_DATE}-{_N}",
        None,
        lambda n: (n[0], n[1], 0),
        "20231210-1591",
        "DATE-BUILD becomes DATE.BUILD.0",
    ),
    Scheme.DATE_TIME: _Rule(
        rf"{_DATE}_[0-2][0-9]:[0-5][0-9]",
        None,
        lambda n: (n[0], n[1] * 100 + n[2], 0),
        "20240101_07:42",
        "DATE_HH:MM becomes DATE.HHMM.0",
    ),
    Scheme.RELEASE_DATE: _Rule(
        rf"{_N}\.{_N}-{_DATE}",
        None,
        lambda n: (n[0], n[1], n[2]),
        "9.5-20241120",
        "X.Y-DATE becomes X.Y.DATE",
    ),
    Scheme.RELEASE_DATE_RESPIN: _Rule(
        rf"{_N}\.{_N}-{_DATE}\.[0-9]",
        None,
        lambda n: (n[0], n[1], n[2] * 10 + n[3]),
        "9.5-20241118.0",
        "X.Y-DATE.N (N is one digit) becomes X.Y.DATEN",
    ),
    Scheme.RELEASE_COMPOSE: _Rule(
        rf"{_N}-{_N}\.{_N}",
        None,
        lambda n: (n[0], n[1], n[2]),
        "41-1.4",
        "RELEASE-A.B becomes RELEASE.A.B",
    ),
    Scheme.RELEASE_REVISION: _Rule(
        rf"{_N}\.{_N}\.{_N}",
        r"r(?:0|[1-9][0-9]?)",
        lambda n: (n[0], n[1], n[2] * 100 + n[3]),
        "3.21.2-r0",
        "X.Y.Z-rN (N below 100) becomes X.Y.(100 Z + N)",
    ),
    Scheme.TWO_NUMBERS: _Rule(
        rf"{_N}\.{_N}", None, lambda n: (n[0], n[1], 0), "14.2", "X.Y becomes X.Y.0"
    ),
    Scheme.THREE_NUMBERS: _Rule(
        rf"{_N}\.{_N}\.{_N}", None, lambda n: (n[0], n[1], n[2]), "1.2.3", "X.Y.Z stays"
    ),
}
