"""What must hold of a record beyond its types."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from calotype.errors import InvalidInput
from calotype.market import keyring
from calotype.market.offer import (
    Checksums,
    FromRecipe,
    Key,
    Offer,
    Pinned,
    PinnedDisk,
    PinnedFile,
    SimpleStreams,
)
from calotype.market.urn import NAME
from calotype.market.version import Scheme
from calotype.model import Version
from calotype.units import one_line, visible

_FORMATS = frozenset({"qcow2", "raw", "vhd", "vhdx", "vmdk", "iso"})
_MAX_TEXT = 1 << 16
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
_NAME = re.compile(r"[^/\\\s]{1,255}")
VERSION = "{version}"
REVISION = "{revision}"


def require_key(name: str, key: Key) -> None:
    """Refuse a key that is another than its fingerprint says, or does not come alone.

    Raises:
        InvalidInput: the message names the key.
    """
    if not re.fullmatch(r"[0-9A-F]{40}|[0-9A-F]{64}", key.fingerprint):
        raise InvalidInput(
            f"the key '{one_line(name, 80)}' has no whole fingerprint",
            hint="write 40 hex digits in upper case, without spaces",
        )
    found = [other.fingerprint for other in keyring.keys(key.armored)]
    if found != [key.fingerprint]:
        raise InvalidInput(
            f"the key '{one_line(name, 80)}' is {' and '.join(found[:4])}, not {key.fingerprint}",
            hint="gpg --armor --export-options export-minimal --export FINGERPRINT",
        )


def require_offer(offer: Offer) -> None:
    """Refuse an offer that no engine could serve.

    Raises:
        InvalidInput: the message names the offer and the field.
    """
    names = (offer.publisher, offer.offer, offer.sku, *offer.aliases)
    if offer.entitlement is not None:
        names += (offer.entitlement,)
    for name in names:
        if not NAME.fullmatch(name):
            raise _wrong(
                offer,
                f"'{one_line(name, 80)}' is no name: lower-case letters, digits, '.', '_' and '-'",
            )
    _require_words(offer)
    for text in offer.excluded:
        _version(offer, text)
    _require_source(offer)


def _require_source(offer: Offer) -> None:
    match offer.source:
        case Checksums():
            _require_checksums(offer, offer.source)
        case SimpleStreams():
            _require_streams(offer, offer.source)
        case Pinned():
            _require_pinned(offer, offer.source)
        case FromRecipe(recipe=recipe):
            if not NAME.fullmatch(recipe):
                raise _wrong(offer, "recipe is no name of a recipe")


def _require_words(offer: Offer) -> None:
    texts = [offer.title, offer.description, offer.facts]
    if offer.plan is not None:
        texts += [offer.plan.name, offer.plan.terms]
        if not NAME.fullmatch(offer.plan.name):
            raise _wrong(offer, "plan.name is no name")
        if not offer.plan.terms.strip():
            raise _wrong(offer, "plan.terms is empty: a plan without terms needs no plan")
        if offer.plan.terms_url is not None:
            _require_url(offer, offer.plan.terms_url, "plan.terms_url")
    if offer.homepage is not None:
        _require_url(offer, offer.homepage, "homepage")
    if not offer.title.strip():
        raise _wrong(offer, "title is empty")
    if not offer.generations:
        raise _wrong(offer, "generations is empty")
    if any(len(text) > _MAX_TEXT or visible(text) != text for text in texts):
        raise _wrong(offer, "a text is longer than 65536 characters, or has control characters")


def _require_checksums(offer: Offer, source: Checksums) -> None:
    signature = source.signature if source.signature and "://" in source.signature else None
    urls = {
        "url": source.url,
        "listing": source.listing,
        "images": source.images,
        "signature": signature,
    }
    for field, url in urls.items():
        if url is not None:
            _require_url(offer, url, field)
            _require_template(offer, field, url, source.versions)
            if VERSION in url and (VERSION in url.split("/", 3)[2] or VERSION not in source.url):
                raise _wrong(
                    offer, f"{field} may have {VERSION} in its path, and only where url has it"
                )
    if source.listing is not None and VERSION not in source.listing:
        raise _wrong(offer, f"listing is the address of a version: it has {VERSION}")
    if VERSION in source.url:
        _require_part(offer, listed(source)[1], source.versions)
    if source.images is not None and not source.images.endswith("/"):
        raise _wrong(offer, "images is a directory: it ends with /")
    if not _NAME.fullmatch(source.name) or source.name.count(VERSION) > 1:
        raise _wrong(offer, f"name is the name of a file, with {VERSION} once")
    # Without the version somewhere nobody could tell two of them apart.
    if VERSION not in source.name + source.url:
        raise _wrong(offer, f"neither name nor url has {VERSION}")
    _require_template(offer, "name", source.name, source.versions)
    _require_format(offer, source.format)
    _require_signature(offer, source.signature, source.signed_by)


def _require_part(offer: Offer, part: str, versions: Scheme) -> None:
    """Refuse a part of a path in which no version could be recognized."""
    if part.count(VERSION) > 1:
        raise _wrong(
            offer, f"{VERSION} stands twice in one part of the path where versions are looked for"
        )
    if (REVISION in part) != (versions.revision is not None):
        raise _wrong(
            offer, f"{REVISION} stands in another part of the path where versions are looked for"
        )


def listed(source: Checksums) -> tuple[str, str]:
    """The directory whose page lists the versions, and the part of the path below it that has one."""
    before, _, after = (source.listing or source.url).partition(VERSION)
    directory, _, start = before.rpartition("/")
    return directory + "/", start + VERSION + after.split("/", 1)[0]


def _require_template(offer: Offer, field: str, text: str, versions: Scheme) -> None:
    """What file names carry apart from the version exactly where the scheme has that."""
    if REVISION in text and VERSION not in text:
        raise _wrong(offer, f"{field} has {REVISION} without {VERSION}")
    if VERSION in text and text.count(REVISION) != (versions.revision is not None):
        raise _wrong(
            offer, f"{field}: {REVISION} stands beside {VERSION} exactly if the scheme has one"
        )


def _require_streams(offer: Offer, source: SimpleStreams) -> None:
    _require_url(offer, source.url, "url")
    if VERSION in source.url or not re.search(r"/streams/v1/[^/]+\.s?json$", source.url):
        raise _wrong(offer, "url is that of an index: …/streams/v1/index.json or index.sjson")
    if not source.items or not source.product:
        raise _wrong(offer, "product or items is empty")
    _require_signature(offer, source.signature, source.signed_by)
    if source.signature is not None and "://" in source.signature:
        raise _wrong(offer, "signature is 'clear' or what is added to each file's URL")


def _require_signature(offer: Offer, signature: str | None, signed_by: Iterable[str]) -> None:
    if (signature is None) != (not tuple(signed_by)):
        raise _wrong(offer, "signature and signed_by belong together")
    if signature is None or signature == "clear" or "://" in signature:
        return
    if not _SUFFIX.fullmatch(signature):
        raise _wrong(offer, "signature is 'clear', a suffix such as .asc, or a URL")


def _require_pinned(offer: Offer, source: Pinned) -> None:
    _require_format(offer, source.format)
    if not source.files:
        raise _wrong(offer, "files is empty")
    for file in source.files:
        luns = [disk.lun for disk in file.data_disks]
        if len(set(luns)) != len(luns) or not all(0 <= lun <= 63 for lun in luns):
            raise _wrong(offer, "two data disks have one LUN, or a LUN is not 0 to 63")
        disks: list[PinnedFile | PinnedDisk] = [file, *file.data_disks]
        for disk in disks:
            _require_url(offer, disk.url, "url")
            if not re.fullmatch(r"[0-9a-f]{64}", disk.sha256):
                raise _wrong(offer, "sha256 is not 64 hex digits in lower case")
            if disk.size is not None and disk.size <= 0:
                raise _wrong(offer, "size is not a number of bytes")
    if len({_version(offer, file.version) for file in source.files}) != len(source.files):
        raise _wrong(offer, "a version comes twice")


def _require_format(offer: Offer, text: str) -> None:
    if text not in _FORMATS:
        raise _wrong(offer, f"format is none of {', '.join(sorted(_FORMATS))}")


def _require_url(offer: Offer, url: str, field: str) -> None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    plain = re.fullmatch(r"[!-~]{1,2048}", url) is not None
    if not plain or not host or parts.scheme not in ("http", "https") or parts.username is not None:
        raise _wrong(offer, f"{field} is not an http or https URL")
    if port == 0 or parts.fragment:
        raise _wrong(offer, f"{field} is not the URL of a file")


def _version(offer: Offer, text: str) -> Version:
    version = Version.parse(text)
    if version is None:
        raise _wrong(offer, f"'{one_line(text, 80)}' is not three numbers")
    return version


def _wrong(offer: Offer, what: str) -> InvalidInput:
    return InvalidInput(
        f"the offer '{one_line(offer.urn.base, 200)}': {what}",
        hint="docs/reference/marketplace.md describes the format",
    )
