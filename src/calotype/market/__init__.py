"""The marketplace's catalogues: which publishers offer what, and how to know that it is theirs."""

from typing import TYPE_CHECKING

from calotype.late import late

if TYPE_CHECKING:
    from calotype.market.catalogue import Catalogue, combine, load_default, parse_catalogue
    from calotype.market.offer import Fetch, File, Key, Offer, Plan, Release
    from calotype.market.reader import Seen
    from calotype.market.resolve import releases
    from calotype.market.urn import Urn

__all__ = [
    "Catalogue",
    "Fetch",
    "File",
    "Key",
    "Offer",
    "Plan",
    "Release",
    "Seen",
    "Urn",
    "combine",
    "load_default",
    "parse_catalogue",
    "releases",
]

#: Where each name is defined: a command loads what it needs, and is quick.
_PLACES = {
    "Catalogue": "catalogue",
    "Fetch": "offer",
    "File": "offer",
    "Key": "offer",
    "Offer": "offer",
    "Plan": "offer",
    "Release": "offer",
    "Seen": "reader",
    "Urn": "urn",
    "combine": "catalogue",
    "load_default": "catalogue",
    "parse_catalogue": "catalogue",
    "releases": "resolve",
}

__getattr__ = late(__name__, _PLACES)
