"""Catalogues: files of offers, read strictly; what is in them found by name or by words."""

import functools
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources

import msgspec
from msgspec import Struct

from calotype.errors import Conflict, InvalidInput, NotFound
from calotype.market.check import require_key, require_offer
from calotype.market.offer import Checksums, Key, Offer, SimpleStreams
from calotype.market.urn import Urn
from calotype.strict import require_shallow
from calotype.units import one_line

MAX_CATALOGUE = 4 << 20
_MAX_OFFERS = 10_000


class Catalogue:
    """Offers, in the order of their names."""

    def __init__(self, offers: Iterable[Offer]) -> None:
        """Take offers in.

        Raises:
            Conflict: two have one name, or one alias.
        """
        self.offers = tuple(sorted(offers, key=lambda o: (o.publisher, o.offer, o.sku)))
        self._known: dict[str, Offer] = {}
        for offer in self.offers:
            for name in (offer.urn.base, *offer.aliases):
                if self._known.setdefault(name, offer) is not offer:
                    raise Conflict(
                        f"the name '{name}' stands for two offers",
                        hint="give one of them another name or alias",
                    )

    def __iter__(self) -> Iterator[Offer]:
        return iter(self.offers)

    def __len__(self) -> int:
        return len(self.offers)

    @property
    def publishers(self) -> frozenset[str]:
        """Everybody whose offers are in it."""
        return frozenset(offer.publisher for offer in self.offers)

    @property
    def aliases(self) -> dict[str, Urn]:
        """Every alias, and what it stands for."""
        return {alias: offer.urn for offer in self.offers for alias in sorted(offer.aliases)}

    def urn(self, text: str) -> Urn:
        """The urn that ``text``, an alias or a urn, stands for; with its version, if it names one.

        Raises:
            NotFound: no such alias.
            InvalidInput: ``text`` is no name.
        """
        if ":" in text:
            return Urn.parse(text)
        found = self._known.get(text.lower())
        if found is None:
            raise NotFound(
                f"the marketplace knows no alias '{one_line(text, 80)}'", hint=_HOW_TO_FIND
            )
        return found.urn

    def find(self, text: str) -> Offer:
        """The offer of a urn (its version does not matter) or an alias; case does not count.

        Raises:
            NotFound: there is none.
            InvalidInput: ``text`` is no name.
        """
        urn = self.urn(text)
        found = self._known.get(urn.base)
        if found is None:
            raise NotFound(f"the marketplace has no offer '{urn.base}'", hint=_HOW_TO_FIND)
        return found

    def search(
        self,
        words: Sequence[str] = (),
        *,
        publisher: str | None = None,
        offer: str | None = None,
        sku: str | None = None,
    ) -> list[Offer]:
        """The offers in which every one of ``words`` occurs, and that are of what else is asked for."""
        wanted = {"publisher": publisher, "offer": offer, "sku": sku}
        return [
            found
            for found in self.offers
            if all(text is None or getattr(found, f) == text.lower() for f, text in wanted.items())
            and all(word.lower() in _text(found) for word in words)
        ]


_HOW_TO_FIND = "calotype marketplace search WORD finds what there is"


def _text(offer: Offer) -> str:
    parts = (offer.urn.base, *offer.aliases, offer.title, offer.description, offer.os_type)
    return "\n".join(parts).lower()


def combine(catalogues: Iterable[Catalogue]) -> Catalogue:
    """All offers of several catalogues; a publisher belongs to the first catalogue that names it.

    Raises:
        Conflict: a later one names a publisher, or an alias, that another has.
    """
    offers: list[Offer] = []
    taken: set[str] = set()
    for catalogue in catalogues:
        if shared := sorted(taken & catalogue.publishers):
            raise Conflict(
                f"the publisher '{shared[0]}' is in two catalogues",
                hint="nobody may speak for another's publisher: "
                "remove one catalogue, or rename its publisher",
            )
        taken |= catalogue.publishers
        offers += catalogue.offers
    return Catalogue(offers)


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A catalogue as it is written."""

    format: int
    offers: tuple[Offer, ...]
    keys: dict[str, Key] = {}


@functools.cache
def load_default() -> Catalogue:
    """The catalogue that ships."""
    data = resources.files("calotype.market") / "data"
    text = (data / "catalogue.toml").read_text("utf-8")
    return parse_catalogue(text, key_file=lambda name: (data / "keys" / name).read_text("ascii"))


def parse_catalogue(
    text: str | bytes, *, key_file: Callable[[str], str] | None = None
) -> Catalogue:
    """A catalogue's file; ``key_file`` gives the text of keys that stand beside it (none may, else).

    Raises:
        InvalidInput: it cannot be read, or says what no catalogue says; the message names the place.
        Conflict: two offers have one name.
    """
    if len(text) > MAX_CATALOGUE:
        raise InvalidInput(f"the catalogue is larger than {MAX_CATALOGUE} bytes")
    try:
        plain = text if isinstance(text, str) else text.decode()
        require_shallow(plain.encode(), "the catalogue", toml=True)
        file = msgspec.convert(tomllib.loads(plain), _File)
    except UnicodeDecodeError:
        raise InvalidInput("the catalogue is not UTF-8") from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, ValueError) as error:
        raise InvalidInput(
            f"the catalogue cannot be read: {one_line(str(error), 200)}",
            hint="docs/reference/marketplace.md describes the format",
        ) from None
    if file.format != 1:
        raise InvalidInput(f"the catalogue has format {file.format}; this Calotype knows 1")
    if len(file.offers) > _MAX_OFFERS:
        raise InvalidInput(f"the catalogue has more than {_MAX_OFFERS} offers")
    keys = {name: _key(name, key, key_file) for name, key in file.keys.items()}
    return Catalogue([_checked(offer, keys) for offer in file.offers])


def _key(name: str, key: Key, key_file: Callable[[str], str] | None) -> Key:
    if key.file is not None:
        if key_file is None:
            raise InvalidInput(
                f"the key '{one_line(name, 80)}' names a file; only the catalogue that ships may",
                hint="write the armored key into the catalogue",
            )
        key = msgspec.structs.replace(key, armored=key_file(key.file))
    require_key(name, key)
    return key


def _checked(offer: Offer, keys: dict[str, Key]) -> Offer:
    """The offer, with the keys that it names."""
    if offer.keys:
        raise InvalidInput(
            f"the offer '{one_line(offer.urn.base, 200)}' has keys of its own",
            hint="write them as [keys.NAME], and their names in signed_by",
        )
    require_offer(offer)
    names = offer.source.signed_by if isinstance(offer.source, Checksums | SimpleStreams) else ()
    for name in names:
        if name not in keys:
            raise InvalidInput(
                f"the offer '{offer.urn.base}' names the key '{one_line(name, 80)}', which is none"
            )
    return msgspec.structs.replace(offer, keys=tuple(keys[name] for name in names))
