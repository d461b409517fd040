"""The reference page of the marketplace, made from the records that the program runs on."""

from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec import Struct

from calotype.market.catalogue import load_default
from calotype.market.offer import (
    Checksums,
    FromRecipe,
    Key,
    Offer,
    Pinned,
    PinnedFile,
    Plan,
    SimpleStreams,
    Source,
)
from calotype.market.version import Scheme

_HEAD = """# The marketplace

<!-- Generated from the records in src/calotype/market by calotype.market.reference; do not edit. -->

An image of the marketplace is called `PUBLISHER:OFFER:SKU:VERSION`, or `:latest`, or by an alias; case does
not count. Catalogues say who offers what, and how to know that it is theirs: `calotype marketplace search`
looks through them, `pull` fetches or builds an image, `catalog add` takes in one of yours.

## The catalogue that ships

"Nobody" under *signed by* means that HTTPS to the publisher's server is all that vouches for the digests;
what was pulled is held against them all the same. The addresses were taken in November 2026 from public
sources, named below; the publishers' servers themselves could not be asked where this was written.

"""
_KEYS = """
## Keys

Each is a file of its own in `src/calotype/market/data/keys`; a test holds each file against its fingerprint.
A key is trusted for the offers that name it, and for nothing else.

"""
_SIGNATURES = """
## Signatures

`gpgv` checks them, in the sandbox, with the offer's own keys as its only keyring. The fingerprint of the
primary key must be one that the offer names. Refused, with nothing of the file used: no signature, one by
another key, of another text, expired, by an expired or revoked key, over MD5, SHA-1 or RIPEMD-160. Of a
clearsigned file only the text that gpgv gives out is read. A further signature by a key that is not named
does no harm: publishers sign twice while they change keys.

An index or checksum file that is older than one that was seen before, by its signature's time or by the time
that a simplestreams index gives itself, is refused: somebody would hide newer versions. So is one that says
it was made more than a day from now. What was seen is kept apart for each publisher: nobody makes another's
index look old.

## Versions

A version of Calotype is three numbers below 2147483648. Each offer has one scheme, which reads one shape of
version and no other; within it two versions never become one, and later versions are larger. What has
another shape is not listed. `DATE` is year, month and day in one number.

| scheme | a publisher's version | here | rule |
|---|---|---|---|
"""
_FORMAT = """
A version that a recipe builds is named after the day (UTC): packages change daily.

## A catalogue of your own

A TOML file, on this host or behind a URL: `calotype marketplace catalog add NAME LOCATION`. Keys that are
not listed here are refused, and so are publishers that another catalogue has. With `--keyring` the file must
be signed.

```toml
format = 1

[keys.acme]
fingerprint = "0123456789ABCDEF0123456789ABCDEF01234567"
armored = \"\"\"
-----BEGIN PGP PUBLIC KEY BLOCK-----
...
-----END PGP PUBLIC KEY BLOCK-----
\"\"\"

[[offers]]
publisher = "acme"
offer = "os-1"
sku = "server"
title = "Acme OS 1"
os_type = "Linux"

[offers.source]
kind = "checksums"
url = "https://download.example.com/os/{version}/SHA256SUMS"
name = "acme-os-{version}.qcow2"
versions = "date"
signature = ".asc"
signed_by = ["acme"]
```

"""
_EXCLUDED = "versions (three numbers) that are never the latest"
_SIGNATURE = "`clear` (clearsigned), or what is added to a file's URL, such as `.asc`"
_SIGNED_BY = "names of keys; any one of them will do"
_FIELDS: Mapping[type[Struct], Mapping[str, str]] = {
    Key: {
        "fingerprint": "of the primary key: 40 hex digits in upper case",
        "armored": "the key itself, as `gpg --armor --export` writes it, and no other",
        "origin": "where it was taken from",
    },
    Offer: {
        "publisher": "who offers it: lower-case letters, digits, `.`, `_`, `-`; so are all names",
        "offer": "what it is",
        "sku": "which kind of it",
        "title": "one line",
        "os_type": "`Linux` or `Windows`",
        "source": "where its versions come from; below",
        "description": "what is on it",
        "os_state": "`Generalized` or `Specialized`",
        "architecture": "`x64` or `Arm64`",
        "generations": "`V1` (BIOS), `V2` (UEFI)",
        "aliases": "short names",
        "plan": "what it is bought as: a table, below",
        "entitlement": "that a subscription must hold, such as `msdn`",
        "excluded": _EXCLUDED,
        "homepage": "URL",
        "facts": "where its addresses and keys are known from, and what nobody signs",
    },
    Plan: {
        "name": "of the plan",
        "terms": "the text that must be accepted before the first VM",
        "terms_url": "where the publisher has them",
    },
    Checksums: {
        "url": "of a file in the style of `sha256sum` or of BSD (SHA-256, SHA-512). With `{version}` there "
        "is one for each version, and the page of the directory above lists them",
        "name": "of an image, with `{version}` (and `{revision}`, where the scheme has one). If only `url` "
        "has it, the signature does not say of which version it is",
        "versions": "a scheme; above",
        "listing": "where versions are looked for instead: a URL with `{version}`",
        "images": "the directory of the images, if it is another than the file's",
        "format": "`qcow2`, `raw`, `vhd`, `vhdx`, `vmdk` or `iso`; `.xz`, `.gz`, `.zst` are understood",
        "signature": _SIGNATURE + ", or a URL",
        "signed_by": _SIGNED_BY,
    },
    SimpleStreams: {
        "url": "of the index: `…/streams/v1/index.json` or `index.sjson`",
        "product": "its name there",
        "items": "kinds of item (`ftype`) that are an OS disk, the best one first",
        "versions": "a scheme; without it, that of the newest version",
        "hosts": "other hosts that the index may lead to",
        "signature": _SIGNATURE + "; of the index and of each file of products",
        "signed_by": _SIGNED_BY,
    },
    FromRecipe: {"recipe": "the name of a recipe that ships; the image is built on this host"},
    Pinned: {"files": "versions: tables, below", "format": "of the disks"},
    PinnedFile: {
        "version": "three numbers",
        "url": "of the image",
        "sha256": "64 hex digits in lower case",
        "size": "in bytes",
        "data_disks": "tables `{ lun, url, sha256, size }`: its data disks, in the format of the OS disk",
    },
}
_TITLES = {
    Key: "`[keys.NAME]`: OpenPGP keys",
    Offer: "`[[offers]]`",
    Plan: "`[offers.plan]`",
    Checksums: '`[offers.source]`, `kind = "checksums"`: images beside a file of checksums',
    SimpleStreams: '`[offers.source]`, `kind = "simplestreams"`: a product of an index',
    FromRecipe: '`[offers.source]`, `kind = "recipe"`: built here',
    Pinned: '`[offers.source]`, `kind = "url"`: fixed addresses',
    PinnedFile: "`[[offers.source.files]]`",
}
#: Fields that no user writes: filled in by the catalogue, or for the one that ships.
_OURS = {Offer: {"keys"}, Key: {"file"}}


def reference_markdown() -> str:
    """The reference page: docs/reference/marketplace.md."""
    offers = load_default()
    parts = [
        _HEAD,
        "| name | what it is | aliases | signed by |\n|---|---|---|---|\n",
        *(_offer_row(offer) for offer in offers),
        "\n### Where this is known from\n\n",
        *_facts(offers),
        _KEYS,
        "| key | fingerprint | taken from |\n|---|---|---|\n",
        *_key_rows(offers),
        _SIGNATURES,
        *(_scheme_row(scheme) for scheme in Scheme),
        _FORMAT,
        *(_fields(kind) for kind in _FIELDS),
    ]
    return "".join(parts).rstrip("\n") + "\n"


def _offer_row(offer: Offer) -> str:
    aliases = ", ".join(f"`{alias}`" for alias in offer.aliases)
    return f"| `{offer.urn.base}` | {offer.title} | {aliases} | {_signers(offer)} |\n"


def _signers(offer: Offer) -> str:
    if isinstance(offer.source, FromRecipe):
        return "built here"
    return ", ".join(_name(key) for key in offer.keys) or "nobody"


def _name(key: Key) -> str:
    return (key.file or "").removesuffix(".asc")


def _facts(offers: Iterable[Offer]) -> Iterator[str]:
    """What is known of each offer, said once for those of which the same is known."""
    said: dict[tuple[str, str], list[Offer]] = {}
    for offer in offers:
        said.setdefault((offer.facts, offer.homepage or ""), []).append(offer)
    for (facts, homepage), same in said.items():
        names = ", ".join(f"`{offer.urn.base}`" for offer in same)
        yield f"- {names}: {facts}" + (f" <{homepage}>" if homepage else "") + "\n"
        yield from sorted({f"  - <{url}>\n" for offer in same for url in _urls(offer.source)})


def _urls(source: Source) -> list[str]:
    match source:
        case Checksums():
            return [url for url in (source.url, source.listing, source.images) if url is not None]
        case SimpleStreams():
            return [source.url]
        case Pinned():
            return [file.url for file in source.files]
        case FromRecipe():
            return []


def _key_rows(offers: Iterable[Offer]) -> Iterator[str]:
    keys = {key.fingerprint: key for offer in offers for key in offer.keys}
    for key in sorted(keys.values(), key=_name):
        yield f"| {_name(key)} | `{key.fingerprint}` | {key.origin} |\n"


def _scheme_row(scheme: Scheme) -> str:
    text, rule = scheme.example
    return f"| `{scheme}` | {text} | {scheme.read(text)} | {rule} |\n"


def _fields(kind: type[Struct]) -> str:
    said = _FIELDS[kind]
    known = {field.name: field for field in msgspec.structs.fields(kind)}
    rows = [
        f"| `{name}` | {'yes' if known[name].required else ''} | {said[name]} |\n"
        for name in known
        if name not in _OURS.get(kind, ())
    ]
    head = f"### {_TITLES[kind]}\n\n| key | required | |\n|---|---|---|\n"
    return head + "".join(rows) + "\n"
