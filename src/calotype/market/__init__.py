"""The marketplace's catalogues: which publishers offer what, and how to know that it is theirs."""

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
