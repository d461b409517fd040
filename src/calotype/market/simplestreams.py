"""Simplestreams: an index, a file of products for each stream, versions and their files in it.

The format is Ubuntu's; Incus and LXC publish in it too. Each of the files is signed by itself.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

from calotype.errors import InvalidInput, NotFound
from calotype.market.offer import File, Key, Offer, Release, SimpleStreams
from calotype.market.reader import Reader
from calotype.market.version import Scheme, scheme_of
from calotype.strict import read_json
from calotype.units import one_line

_MAX_INDEX = 4 << 20
_MAX_PRODUCTS = 48 << 20
_MAX_VERSIONS = 10_000
_MAX_FILES = 4  # that say they have one product
_PART = re.compile(r"[A-Za-z0-9._:+~@=-]{1,255}")
_DATA_TYPE = "image-downloads"

Table = Mapping[str, Any]


def releases(offer: Offer, source: SimpleStreams, reader: Reader) -> list[Release]:
    """The versions that an index has of an offer's product.

    Raises:
        NotFound: the product is not in it.
        InvalidInput: it is no index, or leads to where it must not.
        Untrusted: a signature, or the order of time, does not hold.
    """
    index = Index(source.url, reader, source.signature, offer.keys, source.hosts)
    listed = [entry for entry in index.downloads() if _lists(entry, source.product)]
    for entry in listed[:_MAX_FILES]:
        products, signer = index.products(entry)
        if source.product in products:
            product = _table(products[source.product], "a product")
            return list(_Versions(source, index).of(product, signer))
    raise NotFound(
        f"{source.url} has no product '{one_line(source.product, 80)}'",
        hint="the publisher may have ended it; calotype marketplace search finds others",
    )


class Index:
    """An index and its files of products: fetched, held against signatures and times; where paths lead.

    Its methods raise ``InvalidInput`` for what is no index, or leads to where it must not, and ``Untrusted``
    where a signature, or the order of time, does not hold.
    """

    def __init__(
        self,
        url: str,
        reader: Reader,
        signature: str | None = None,
        keys: Sequence[Key] = (),
        hosts: Collection[str] = (),
    ) -> None:
        self._index = url
        self._reader = reader
        self._signature = signature
        self._keys = keys
        self._hosts = hosts
        self._root = url[: url.rindex("streams/v1/")]

    def downloads(self) -> list[Table]:
        """What the index says of each file of products that has images to be downloaded."""
        file, _ = self._read(self._index, _MAX_INDEX, "index:1.0")
        entries = _table(file.get("index"), "the index").values()
        tables = [_table(entry, "an entry of the index") for entry in entries]
        return [entry for entry in tables if entry.get("datatype", _DATA_TYPE) == _DATA_TYPE]

    def products(self, entry: Table) -> tuple[Table, str | None]:
        """The products in the file that an entry of the index is about, by name, and who signed the file."""
        file, signer = self._read(self.url(entry.get("path")), _MAX_PRODUCTS, "products:1.0")
        return _table(file.get("products"), "products"), signer

    def _read(self, url: str, limit: int, form: str) -> tuple[Table, str | None]:
        vouched = self._reader.text(url, limit, self._signature, self._keys)
        file = _table(read_json(vouched.text, limit=limit, what=url), url)
        if file.get("format") != form:
            raise _wrong(f"{url} is not of the format {form}")
        self._reader.require_newer(url + "#updated", _time(file.get("updated")))
        return file, vouched.fingerprint

    def url(self, path: object) -> str:
        """Where a path of the index leads: below the index's own root, or to a host that is allowed."""
        if not isinstance(path, str) or len(path) > 1024:
            raise _wrong("a path is no text")
        if "://" in path:
            return self._elsewhere(path)
        parts = path.split("/")
        if any(not _PART.fullmatch(part) or part in (".", "..") for part in parts):
            raise _wrong(f"the path '{one_line(path, 200)}' is refused")
        return self._root + "/".join(quote(part, safe=":+~@=") for part in parts)

    def _elsewhere(self, url: str) -> str:
        if not self._allowed(url):
            raise InvalidInput(
                f"the index leads to {one_line(url, 200)}, which its record does not allow",
                hint="if the publisher means it, name the host under hosts in a catalogue of your own",
            )
        return url

    def _allowed(self, url: str) -> bool:
        try:
            parts = urlsplit(url)
        except ValueError:
            return False
        own = urlsplit(self._root)
        return (
            re.fullmatch(r"[!-~]+", url) is not None
            and not (parts.query or parts.fragment)
            and parts.scheme in {own.scheme, "https"}
            and parts.netloc in {own.netloc, *self._hosts}
        )


class _Versions:
    """The versions of an offer's product in an index."""

    def __init__(self, source: SimpleStreams, index: Index) -> None:
        self._source = source
        self._index = index

    def of(self, product: Table, signer: str | None) -> Iterator[Release]:
        """Every version that has an OS disk of the wanted kind; labels of another shape are passed over."""
        versions = _table(product.get("versions"), "versions")
        if len(versions) > _MAX_VERSIONS:
            raise _wrong(f"a product has more than {_MAX_VERSIONS} versions")
        scheme = self._source.versions or _scheme(versions)
        for label, version in versions.items():
            number = scheme.read(label) if scheme else None
            if number is None:
                continue
            disk = self._disk(_table(_table(version, "a version").get("items"), "items"))
            if disk is not None:
                yield Release(
                    version=number,
                    label=label,
                    os_disk=disk,
                    format=_format(disk.name),
                    signed_by=signer,
                )

    def _disk(self, items: Table) -> File | None:
        """The OS disk of a version: of the kinds that are one, the best."""
        tables = [_table(value, "an item") for value in items.values()]
        for kind in self._source.items:
            match [item for item in tables if item.get("ftype") == kind]:
                case [item]:
                    return self._file(item)
                case [_, _, *_]:
                    raise _wrong(f"a version has two items of the kind '{one_line(kind, 40)}'")
        return None

    def _file(self, item: Table) -> File:
        url = self._index.url(item.get("path"))
        size, digests = item.get("size"), {}
        for name, length in (("sha256", 64), ("sha512", 128)):
            digest = item.get(name)
            if digest is None:
                continue
            if not isinstance(digest, str) or not re.fullmatch(rf"[0-9a-fA-F]{{{length}}}", digest):
                raise _wrong(f"{name} is no digest")
            digests[name] = digest.lower()
        if not digests:
            raise _wrong("an item has neither sha256 nor sha512")
        if size is not None and (type(size) is not int or not 0 < size < 1 << 50):
            raise _wrong("size is no number of bytes")
        return File(name=url.rpartition("/")[2], urls=(url,), size=size, **digests)


def _lists(entry: Table, product: str) -> bool:
    products = entry.get("products", [])
    if not isinstance(products, list):
        raise _wrong("products is no list")
    return product in products


def _scheme(versions: Table) -> Scheme | None:
    """The shape of the newest label that has one."""
    return next((s for label in sorted(versions, reverse=True) if (s := scheme_of(label))), None)


def _format(name: str) -> str:
    """Of a disk by its file's name: ``.img`` is Ubuntu's for qcow2."""
    plain = re.sub(r"\.(?:xz|gz|zst)$", "", name)
    end = plain.rpartition(".")[2]
    return {"img": "qcow2", "qcow2": "qcow2", "raw": "raw", "vhd": "vhd", "vmdk": "vmdk"}.get(
        end, "raw"
    )


def _time(text: object) -> int | None:
    if text is None:
        return None
    try:
        return int(parsedate_to_datetime(str(text)).timestamp())
    except (ValueError, OverflowError, TypeError):
        raise _wrong("updated is no time") from None


def _table(value: object, what: str) -> Table:
    if not isinstance(value, dict):
        raise _wrong(f"{one_line(what, 200)} is no table")
    return value


def _wrong(what: str) -> InvalidInput:
    return InvalidInput(
        f"the index cannot be used: {what}", hint="tell its publisher; nothing of it was used"
    )
