"""The marketplace's catalogues: the one that ships and those that were added, and what publishers have today.

What was fetched from publishers is kept for an hour. The newest time that each signed index gave is kept
for good: an older one is refused. It is kept apart for each publisher and each catalogue: nobody says how new
another's index is.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import msgspec

from calotype.catalog import Act
from calotype.disk.durable import write_private
from calotype.engine import names
from calotype.engine.base import fetch
from calotype.engine.context import Context
from calotype.errors import CalotypeError, Conflict, InvalidInput, NotFound, ToolFailed, Untrusted
from calotype.market import (
    Catalogue,
    Key,
    Offer,
    Release,
    Urn,
    combine,
    load_default,
    parse_catalogue,
    products,
)
from calotype.market import keyring as keyrings
from calotype.market import releases as published
from calotype.market.catalogue import MAX_CATALOGUE
from calotype.market.reader import CLEAR, Reader
from calotype.model import MarketCatalog, Version
from calotype.units import one_line

log = logging.getLogger("calotype.marketplace")

#: Seconds for which what publishers said is not asked for again.
FRESH = 3600.0
#: Bytes of what they said that are kept, the newest.
MAX_KEPT = 256 << 20
_CLEARSIGNED = b"-----BEGIN PGP SIGNED MESSAGE-----"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Offers:
    """All offers that this installation knows, and which added catalogue each publisher is from."""

    catalogue: Catalogue
    added: Mapping[str, MarketCatalog]

    def urn(self, text: str) -> Urn:
        """The name that ``text``, a urn or an alias, stands for.

        Raises:
            NotFound: no such alias; InvalidInput: ``text`` is no name.
        """
        try:
            return self.catalogue.urn(text)
        except NotFound:
            near = get_close_matches(text.lower(), self.catalogue.aliases, 3)
            hint = "calotype image list shows yours, calotype marketplace aliases the others'"
            raise NotFound(
                f"there is no image '{one_line(text, 80)}'",
                hint=f"near names of the marketplace are {', '.join(near)}; {hint}"
                if near
                else hint,
            ) from None

    def find(self, urn: Urn) -> Offer:
        """The offer of that name.

        Raises:
            NotFound: there is none; names that are near are said, for a publisher's look-alike may be
                somebody else.
        """
        try:
            return self.catalogue.find(urn.base)
        except NotFound as error:
            raise NotFound(error.message, hint=self._near(urn) or error.hint) from None

    def _near(self, urn: Urn) -> str | None:
        if urn.publisher not in self.catalogue.publishers:
            near = get_close_matches(urn.publisher, sorted(self.catalogue.publishers), 3)
            return (
                f"nobody here publishes as '{urn.publisher}'; near names are {', '.join(near)}: a name "
                "that looks alike may be somebody else's"
                if near
                else None
            )
        bases = [o.urn.base for o in self.catalogue if o.publisher == urn.publisher]
        near = get_close_matches(urn.base, bases, 3, 0.5)
        return f"near names are {', '.join(near)}" if near else None

    def allowed(self, offer: Offer) -> tuple[str, ...]:
        """The networks that files of an offer may come from although they are not public."""
        added = self.added.get(offer.publisher)
        return () if added is None else added.allow_addresses


def load(context: Context, *, ask: bool = True) -> Offers:
    """Every catalogue's offers; one that cannot be had, or claims another's names, is left out and named.

    Without ``ask`` nobody is asked: catalogues are as they were when somebody was.
    """
    whole = load_default()
    added: dict[str, MarketCatalog] = {}
    for catalog in context.catalog.marketplace.catalogs():
        try:
            more = _read(context, catalog, age=FRESH if ask else math.inf)
            whole = combine([whole, more])
        except CalotypeError as error:
            log.warning("catalogue '%s' is left out: %s", catalog.name, one_line(error.message))
        else:
            added |= dict.fromkeys(more.publishers, catalog)
    return Offers(whole, added)


def releases(
    context: Context, offers: Offers, offer: Offer, at: Version | None = None
) -> list[Release]:
    """The versions of an offer that its publisher has, newest first; ``at``: that one alone.

    Raises:
        NotFound: there is none.
        Untrusted: a signature does not hold, or an index is older than one that was seen.
        InvalidInput: what the publisher says cannot be understood.
        ToolFailed: the publisher's server does not deliver.
    """

    def question(pages: _Pages) -> list[Release]:
        who = f"publisher {offer.publisher}"
        return _remembering(context, who, lambda seen: published(offer, pages, at, seen=seen))

    with context.progress.phase(f"asking {offer.publisher}"):
        return _asked(context, offers.allowed(offer), question, age=FRESH)


# -- catalogues that are added


@dataclass(frozen=True, slots=True)
class Updated:
    """A catalogue, and how many offers it has; or why it cannot be used."""

    name: str
    offers: int
    error: str | None = None


def add(context: Context, catalog: MarketCatalog) -> Catalogue:
    """Take a catalogue in, after it was read; its offers.

    Raises:
        Forbidden: the caller is not the installation's owner.
        InvalidInput: it cannot be read; Untrusted: nobody of its keyring has signed it.
        Conflict: the name is taken, or it has a publisher or an alias that another has.
    """
    context.require_all("add a catalogue of offers")
    names.resource(catalog.name, "a catalogue")
    if (catalog.kind == "simplestreams") != (catalog.publisher is not None):
        raise InvalidInput(
            "products of simplestreams stand under a publisher, whom the index does not name; a "
            "catalogue of offers names its own",
            hint="--kind simplestreams --publisher NAME",
        )
    known = load(context).catalogue
    found = _read(context, catalog, age=0)
    combine([known, found])
    for publisher in found.publishers:
        if near := get_close_matches(publisher, sorted(known.publishers), 1, 0.8):
            log.warning("the publisher '%s' is called much like '%s'", publisher, near[0])
    detail = {"location": fetch.plain(catalog.location), "signed": catalog.keyring is not None}
    act = Act("marketplace.catalog.add", f"catalogue {catalog.name}", detail)
    context.catalog.marketplace.add_catalog(catalog, act)
    return found


def remove(context: Context, name: str) -> None:
    """Forget a catalogue; what was pulled from it stays.

    Raises:
        NotFound: there is none; Forbidden: the caller is not the installation's owner.
    """
    act = Act("marketplace.catalog.remove", f"catalogue {name}")
    context.catalog.marketplace.remove_catalog(name, act)


def update(context: Context) -> list[Updated]:
    """Ask for every catalogue again, and forget what publishers said."""
    context.require_all("update the catalogues of offers")
    for path in _directory(context).glob("*.page"):
        os.utime(path, (0, 0))  # old, and still better than none where nobody can be asked
    known = [load_default()]
    report = [Updated("default", len(known[0]))]
    for catalog in context.catalog.marketplace.catalogs():
        try:
            found = _read(context, catalog, age=0)
            combine([*known, found])
        except CalotypeError as error:
            report.append(Updated(catalog.name, 0, error.message))
        else:
            known.append(found)
            report.append(Updated(catalog.name, len(found)))
    return report


def record(
    name: str,
    location: str,
    kind: str,
    *,
    publisher: str | None = None,
    keyring: Path | None = None,
    allow_addresses: tuple[str, ...] = (),
) -> MarketCatalog:
    """A catalogue as it is kept: files by their whole paths, and the text of its keyring.

    Raises:
        NotFound, InvalidInput: there is no such keyring, or it is none.
    """
    armored = None
    if keyring is not None:
        armored = _file(keyring, keyrings.MAX).decode("ascii", "replace")
        keyrings.keys(armored)
    return MarketCatalog(
        name=name,
        location=location if "://" in location else str(Path(location).absolute()),
        kind=kind,
        publisher=publisher,
        keyring=armored,
        allow_addresses=allow_addresses,
        added_at=datetime.now(UTC),
    )


def _read(context: Context, catalog: MarketCatalog, *, age: float) -> Catalogue:
    """The offers of an added catalogue, as they were less than ``age`` seconds ago.

    Unless that is 0, what is here already is better than nothing, and than what is not to be believed.

    Raises:
        InvalidInput, NotFound, ToolFailed, Untrusted, Conflict: it cannot be had, or is not to be believed.
    """
    keys = keyrings.keys(catalog.keyring) if catalog.keyring is not None else ()

    def question(pages: _Pages) -> Catalogue:
        who = f"catalogue {catalog.name}"
        return _remembering(context, who, lambda seen: _parsed(catalog, keys, pages, seen))

    try:
        return _asked(context, catalog.allow_addresses, question, age=age)
    except CalotypeError as error:
        if age == 0:
            raise
        try:
            old = question(_Pages(_directory(context), catalog.allow_addresses, age=math.inf))
        except CalotypeError:
            raise error from None
        log.warning("%s; catalogue '%s' is as it was", one_line(error.message), catalog.name)
        return old


def _parsed(
    catalog: MarketCatalog, keys: tuple[Key, ...], pages: "_Pages", seen: MutableMapping[str, int]
) -> Catalogue:
    reader = Reader(pages, seen, datetime.now(UTC))
    if catalog.publisher is not None:
        return products.catalogue(catalog.location, catalog.publisher, keys, reader)
    signature = None
    if keys:
        text = reader.page(catalog.location, MAX_CATALOGUE)
        signature = CLEAR if text.startswith(_CLEARSIGNED) else ".asc"
    return parse_catalogue(reader.text(catalog.location, MAX_CATALOGUE, signature, keys).text)


# -- what was fetched


class _Pages:
    """Fetches what stands at a URL or a path, or gives what was there less than ``age`` seconds ago.

    With an infinite ``age`` nothing is fetched.
    """

    def __init__(self, directory: Path, allow: tuple[str, ...], *, age: float) -> None:
        self._directory = directory
        self._allow = allow
        self._age = age
        self._now: dict[str, bytes] = {}
        self._new: dict[str, bytes] = {}  # of these, what was fetched
        self.old = False  # something was given that was fetched before

    def __call__(self, url: str, limit: int) -> bytes:
        """All of it, at most ``limit`` bytes."""
        if url.startswith("/"):  # an owner's own catalogue; what catalogues name are URLs
            return _file(Path(url), limit)
        if url not in self._now:
            self._now[url] = self._kept(url, limit) or self._fetched(url, limit)
        return self._now[url]

    def _path(self, url: str) -> Path:
        return self._directory / f"{hashlib.sha256(url.encode()).hexdigest()}.page"

    def _kept(self, url: str, limit: int) -> bytes | None:
        path = self._path(url)
        try:
            stat = path.stat()
            if not 0 <= time.time() - stat.st_mtime < self._age or stat.st_size > limit:
                return None
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        self.old = True
        return data

    def _fetched(self, url: str, limit: int) -> bytes:
        if self._age == math.inf:
            raise ToolFailed(f"{fetch.plain(url)} was never fetched")
        return self._new.setdefault(url, fetch.get(url, limit, allow=self._allow))

    def keep(self) -> None:
        """Keep what was fetched; to be called when it was found to be good."""
        for url, data in self._new.items():
            write_private(self._path(url), data, durable=False)
        if self._new:
            self._sweep()

    def _sweep(self) -> None:
        """Remove what was fetched longest ago, where all of it takes too much room."""
        kept: list[tuple[float, int, Path]] = []
        for path in self._directory.glob("*.page"):
            with suppress(FileNotFoundError):  # another command removes as well
                stat = path.stat()
                kept.append((stat.st_mtime, stat.st_size, path))
        room = MAX_KEPT
        for _time, size, path in sorted(kept, reverse=True):
            room -= size
            if room < 0:
                path.unlink(missing_ok=True)


def _asked(
    context: Context, allow: tuple[str, ...], question: Callable[[_Pages], _T], *, age: float
) -> _T:
    """The answer to a question; what does not fit together because some of it is old is fetched again."""
    directory = _directory(context)
    pages = _Pages(directory, allow, age=age)
    try:
        answer = question(pages)
    except (Untrusted, NotFound, InvalidInput):
        if not pages.old or age == math.inf:
            raise
        pages = _Pages(directory, allow, age=0)
        answer = question(pages)
    pages.keep()
    return answer


def _remembering(
    context: Context, who: str, question: Callable[[MutableMapping[str, int]], _T]
) -> _T:
    """The answer to a question that reads, and moves on, the newest time of each of somebody's indexes."""
    path = _directory(context) / "seen.json"
    before = _seen(path).get(who, {})
    seen = dict(before)
    answer = question(seen)
    if seen != before:
        with context.lock("marketplace-seen"):
            written = _seen(path)
            others = written.get(who, {})  # of commands that asked meanwhile
            newest = {url: max(at, others.get(url, at)) for url, at in seen.items()}
            written[who] = others | newest
            write_private(path, json.dumps(written).encode())
    return answer


def _seen(path: Path) -> dict[str, dict[str, int]]:
    """The newest time (Unix seconds) of each index by its URL, of each who names it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, int]])
    except FileNotFoundError:
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Conflict(
            f"{path} is damaged",
            hint="it holds how new publishers' indexes were; remove it to begin anew",
        ) from None


def _directory(context: Context) -> Path:
    directory = context.home.prepare().market
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def _file(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"there is no file '{path}'") from None
    except OSError as error:
        raise ToolFailed(f"'{path}' cannot be read: {error.strerror or error}") from None
    if len(data) > limit:
        raise InvalidInput(f"'{path}' is larger than the {limit} bytes that it may have")
    return data
