"""A whole simplestreams index as a catalogue: an offer for each product with a VM's disk.

The names are made of what the index says: ``PUBLISHER:OS-RELEASE:VARIANT``, such as ``ours:debian-12:cloud``.
"""

import re
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct

from calotype.errors import InvalidInput
from calotype.market.catalogue import Catalogue
from calotype.market.check import require_offer
from calotype.market.offer import Key, Offer, SimpleStreams
from calotype.market.reader import CLEAR, Reader
from calotype.market.simplestreams import Index
from calotype.market.urn import NAME
from calotype.model import Architecture, OsType
from calotype.units import one_line

_MAX_FILES = 8
_ITEMS = ("disk1.img", "disk-kvm.img", "uefi1.img")
_ARCHITECTURES = {
    "amd64": Architecture.X64,
    "x86_64": Architecture.X64,
    "arm64": Architecture.ARM64,
    "aarch64": Architecture.ARM64,
}


class _Item(Struct):
    ftype: str = ""


class _Version(Struct):
    items: dict[str, _Item] = {}


class _Product(Struct):
    arch: str = ""
    os: str = ""
    release: str = ""
    release_title: str = ""
    version: str = ""
    variant: str = ""
    versions: dict[str, _Version] = {}


def catalogue(url: str, publisher: str, keys: Sequence[Key], reader: Reader) -> Catalogue:
    """The offers of an index at ``url``; with ``keys``, each of its files must be signed by one of them.

    Raises:
        InvalidInput: it is no index, or has no disk of a VM.
        NotFound, ToolFailed, Untrusted: it cannot be had, or is not to be believed.
    """
    if re.search(r"/streams/v1/[^/]+\.s?json$", url) is None:
        raise InvalidInput(
            f"{one_line(url, 200)} is not the URL of an index",
            hint="such as https://images.example.com/streams/v1/index.json",
        )
    signature = _signature(url) if keys else None
    index = Index(url, reader, signature, keys)
    files = index.downloads()
    if len(files) > _MAX_FILES:
        raise InvalidInput(
            f"{one_line(url, 200)} names more than {_MAX_FILES} files of products",
            hint="write a catalogue of your own that names the products that you want",
        )
    offers: dict[str, Offer] = {}
    for file in files:
        products, _ = index.products(file)
        for name in sorted(products):
            source = SimpleStreams(
                url=url,
                product=name,
                items=_ITEMS,
                signature=signature,
                signed_by=tuple(key.fingerprint for key in keys),
            )
            for offer in _offers(publisher, _product(products[name]), source, tuple(keys)):
                offers.setdefault(offer.urn.base, offer)
    if not offers:
        raise InvalidInput(f"{one_line(url, 200)} has no product with the disk of a VM")
    return Catalogue(offers.values())


def _signature(url: str) -> str:
    """How the files of an index are signed: ``.sjson`` is clearsigned, ``.json`` has a ``.gpg`` beside it."""
    return CLEAR if url.endswith(".sjson") else ".gpg"


def _product(value: object) -> _Product:
    try:
        return msgspec.convert(value, _Product)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the index cannot be used: {one_line(str(error), 200)}") from None


def _offers(
    publisher: str, product: _Product, source: SimpleStreams, keys: tuple[Key, ...]
) -> Iterator[Offer]:
    """The offer of a product, if it has a disk for a processor that is known here."""
    architecture = _ARCHITECTURES.get(product.arch)
    kinds = {i.ftype for version in product.versions.values() for i in version.items.values()}
    if architecture is None or kinds.isdisjoint(_ITEMS):
        return
    release = product.version or product.release_title.split(" ")[0] or product.release
    variant = product.variant or _kind(source.product)
    sku = variant if architecture is Architecture.X64 else f"{variant}-{architecture.lower()}"
    title = " ".join(t for t in (product.os, product.release_title or release, variant) if t)
    names = (publisher, _name(f"{product.os or 'linux'}-{release}"), _name(sku))
    if all(NAME.fullmatch(name) for name in names):
        offer = Offer(
            publisher=names[0],
            offer=names[1],
            sku=names[2],
            title=one_line(title, 200),
            os_type=OsType.WINDOWS if "windows" in product.os.lower() else OsType.LINUX,
            architecture=architecture,
            source=source,
            keys=keys,
        )
        require_offer(offer)
        yield offer


def _kind(product: str) -> str:
    """The kind in a product's name where it has no variant: ``com.ubuntu.cloud:server:24.04:amd64``."""
    parts = product.split(":")
    return parts[1] if len(parts) > 3 else "default"


def _name(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")
