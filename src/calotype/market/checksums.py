"""Files of checksums: what they say, and which of their files are an offer's versions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from urllib.parse import quote, unquote, urljoin, urlsplit

from calotype.errors import InvalidInput, NotFound
from calotype.market.check import REVISION, VERSION, listed
from calotype.market.offer import Checksums, File, Offer, Release
from calotype.market.reader import Reader
from calotype.market.signature import Vouched
from calotype.market.version import Scheme
from calotype.model import Version

_MAX_FILE = 4 << 20
_MAX_PAGE = 8 << 20
#: Where a publisher has a directory for each version, as many of the newest are looked into.
NEWEST = 6

_GNU = re.compile(r"([0-9A-Fa-f]{64}|[0-9A-Fa-f]{128}) [ *]?(?:\./)?([^/\\\s]{1,255})")
_BSD = re.compile(
    r"(SHA256|SHA512) ?\((?:\./)?([^/\\\s]{1,255})\) ?= ?([0-9A-Fa-f]{64}|[0-9A-Fa-f]{128})"
)
_BARE = re.compile(r"[0-9A-Fa-f]{64}|[0-9A-Fa-f]{128}")
_SIZE = re.compile(r"# ([^/\\\s]{1,255}): ([0-9]{1,18}) bytes")
_NAME = re.compile(r"(?!\.{1,2}$)[^/\\?#\s]{1,255}")
_HREF = re.compile(r"""href\s*=\s*["']([^"'<>]{1,1024})["']""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sums:
    """What a checksum file says of one file."""

    sha256: str | None = None
    sha512: str | None = None
    size: int | None = None


def parse(data: bytes, alone: str | None = None) -> dict[str, Sums]:
    """The files that a checksum file names; GNU's style, BSD's, or a digest alone.

    Lines of other algorithms and other text are passed over. ``alone`` is the name of the file that a digest
    without a name is of.

    Raises:
        InvalidInput: it is no text, or gives one file two digests.
    """
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise InvalidInput("the checksum file is not UTF-8") from None
    found: dict[str, dict[str, str]] = {}
    sizes: dict[str, int] = {}
    for line in (line.strip() for line in lines):
        if sized := _SIZE.fullmatch(line):
            sizes[sized[1]] = int(sized[2])
            continue
        entry = _entry(line, alone)
        if entry is None:
            continue
        name, digest = entry
        known = found.setdefault(name, {})
        if known.setdefault(_algorithm(digest), digest) != digest:
            raise InvalidInput(f"the checksum file gives '{name}' two digests")
    return {
        name: Sums(sums.get("sha256"), sums.get("sha512"), sizes.get(name))
        for name, sums in found.items()
    }


def _entry(line: str, alone: str | None) -> tuple[str, str] | None:
    if gnu := _GNU.fullmatch(line):
        return gnu[2], gnu[1].lower()
    if bsd := _BSD.fullmatch(line):
        return (bsd[2], bsd[3].lower()) if _algorithm(bsd[3]) == bsd[1].lower() else None
    if alone is not None and _BARE.fullmatch(line):
        return alone, line.lower()
    return None


def _algorithm(digest: str) -> str:
    return "sha256" if len(digest) == 64 else "sha512"


def links(page: bytes, url: str) -> list[str]:
    """The names (without a slash) that a directory's page lists as standing below its own ``url``."""
    names: dict[str, None] = {}
    for found in _HREF.finditer(page.decode("utf-8", "replace")):
        try:
            target = urljoin(url, unescape(found[1]))
        except ValueError:
            continue
        name = unquote(target.removeprefix(url).removesuffix("/"))
        if target.startswith(url) and _NAME.fullmatch(name):
            names[name] = None
    return list(names)


def releases(offer: Offer, source: Checksums, reader: Reader, at: Version | None) -> list[Release]:
    """The versions that an offer's checksum files name."""
    if VERSION not in source.url:
        vouched = reader.text(source.url, _MAX_FILE, source.signature, offer.keys)
        return list(_named(source, source.url, vouched))
    return list(_listed(offer, source, reader, at))


def _listed(
    offer: Offer, source: Checksums, reader: Reader, at: Version | None
) -> Iterator[Release]:
    """Of publishers with one checksum file for each version."""
    directory, segment = listed(source)
    shape = _shape(segment, source.versions)
    names = links(reader.page(directory, _MAX_PAGE), directory)
    labels = {"-".join(m.groups()): None for name in names if (m := shape.fullmatch(name))}
    known = [(version, label) for label in labels if (version := source.versions.read(label))]
    wanted = (
        sorted(known, reverse=True)[:NEWEST] if at is None else [k for k in known if k[0] == at]
    )
    for version, label in wanted:
        url = _filled(source.url, label, source.versions)
        signature = source.signature and _filled(source.signature, label, source.versions)
        try:
            vouched = reader.text(url, _MAX_FILE, signature, offer.keys)
        except NotFound:  # of an old release all may be gone but its directory
            continue
        name = _filled(source.name, label, source.versions)
        sums = parse(vouched.text, alone=_beside(url, name)).get(name)
        if sums is not None:
            disk = _disk(source, url, label, name, sums)
            yield _release(source, version, label, disk, vouched)


def _named(source: Checksums, url: str, vouched: Vouched) -> Iterator[Release]:
    """Of publishers with all versions in one checksum file."""
    shape = _shape(source.name, source.versions)
    for name, sums in parse(vouched.text).items():
        match = shape.fullmatch(name)
        label = "-".join(match.groups()) if match else ""
        version = source.versions.read(label)
        if version is not None:
            disk = _disk(source, url, label, name, sums)
            yield _release(source, version, label, disk, vouched)


def _disk(source: Checksums, url: str, label: str, name: str, sums: Sums) -> File:
    images = source.images and _filled(source.images, label, source.versions)
    base = images or url.rpartition("/")[0] + "/"
    return File(
        name=name,
        urls=(base + quote(name),),
        size=sums.size,
        sha256=sums.sha256,
        sha512=sums.sha512,
    )


def _release(
    source: Checksums, version: Version, label: str, disk: File, vouched: Vouched
) -> Release:
    return Release(
        version=version,
        label=label,
        os_disk=disk,
        format=source.format,
        signed_by=vouched.fingerprint,
    )


def _filled(template: str, label: str, scheme: Scheme) -> str:
    """A template with a version in it."""
    version, revision = label, ""
    if scheme.revision is not None:
        version, _, revision = label.rpartition("-")
    return template.replace(VERSION, version).replace(REVISION, revision)


def _shape(template: str, scheme: Scheme) -> re.Pattern[str]:
    pattern = re.escape(template)
    pattern = pattern.replace(re.escape(VERSION), f"(?P<version>{scheme.pattern})", 1)
    if scheme.revision is not None:
        pattern = pattern.replace(re.escape(REVISION), f"(?P<revision>{scheme.revision})", 1)
    return re.compile(pattern)


def _beside(url: str, name: str) -> str | None:
    """``name``, if the checksum file is about it alone: NAME.sha256 and the like."""
    own = unquote(urlsplit(url).path).rpartition("/")[2]
    return name if own.rpartition(".")[0] == name else None
