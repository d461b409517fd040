"""``PUBLISHER:OFFER:SKU[:VERSION|:latest]``: how Azure, and so we, name an image of the marketplace."""

import re
from dataclasses import dataclass
from typing import Self

from calotype.errors import InvalidInput
from calotype.model import Version
from calotype.units import one_line

#: Publishers, offers, SKUs and aliases; case does not count, so records are in lower case.
NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Urn:
    """A name in the marketplace, in lower case; without a version it is the latest one's."""

    publisher: str
    offer: str
    sku: str
    version: Version | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """The urn that ``text`` spells.

        Raises:
            InvalidInput: it is none.
        """
        parts = text.lower().split(":") if len(text) <= 256 else []
        if len(parts) not in (3, 4) or not all(NAME.fullmatch(part) for part in parts[:3]):
            raise InvalidInput(
                f"'{one_line(text, 80)}' is no name of the marketplace",
                hint="write PUBLISHER:OFFER:SKU or PUBLISHER:OFFER:SKU:VERSION, such as "
                "debian:debian-12:cloud:latest",
            )
        number = parts[3] if len(parts) == 4 else _LATEST
        version = None if number == _LATEST else Version.parse(number)
        if version is None and number != _LATEST:
            raise InvalidInput(
                f"'{one_line(number, 80)}' is not a version",
                hint="three numbers below 2147483648, such as 20240507.1740.0, or latest",
            )
        return cls(parts[0], parts[1], parts[2], version)

    @property
    def base(self) -> str:
        """The name without the version."""
        return f"{self.publisher}:{self.offer}:{self.sku}"

    def __str__(self) -> str:
        return f"{self.base}:{self.version or _LATEST}"
