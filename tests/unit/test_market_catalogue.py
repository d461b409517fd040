"""Catalogues: what is written strictly, found by name and by words, and what the one that ships says."""

import re
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype import recipe
from calotype.errors import CalotypeError, Conflict, InvalidInput, NotFound
from calotype.market import Urn, combine, keyring, load_default, parse_catalogue
from calotype.market.offer import Checksums, FromRecipe, Pinned, SimpleStreams
from calotype.model import PurchasePlan, Version

OFFER = """
[[offers]]
publisher = "acme"
offer = "os"
sku = "small"
title = "A small OS"
os_type = "Linux"
"""
PINNED = """
[offers.source]
kind = "url"
format = "raw"
files = [{ version = "1.0.0", url = "https://example.org/os.raw", sha256 = "%s" }]
""" % ("0" * 64)
GOOD = "format = 1\n" + OFFER + PINNED


def sums(**fields):
    """A catalogue of one offer whose source is a checksum file."""
    source = {
        "kind": "checksums",
        "url": "https://example.org/SHA256SUMS",
        "name": "os-{version}.qcow2",
        "versions": "two-numbers",
        **fields,
    }
    lines = "\n".join(f'{name} = "{value}"' for name, value in source.items())
    return f"format = 1\n{OFFER}\n[offers.source]\n{lines}\n"


# -- names


@pytest.mark.parametrize(
    ("text", "urn"),
    [
        ("debian:debian-12:cloud", Urn("debian", "debian-12", "cloud")),
        ("Debian:DEBIAN-12:Cloud:LATEST", Urn("debian", "debian-12", "cloud")),
        ("a:b:c:1.10.0", Urn("a", "b", "c", Version(1, 10, 0))),
    ],
)
def test_urns(text, urn):
    assert Urn.parse(text) == urn
    assert Urn.parse(str(urn)) == urn


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a:b",
        "a:b:c:d:e",
        "a:b:c:1.0",
        "a:b:c:01.0.0",
        "a:b:c:",
        ":b:c",
        "a b:c:d",
        "a:b:../c",
        "ä:b:c",
    ],
)
def test_what_is_no_urn(text):
    with pytest.raises(InvalidInput) as caught:
        Urn.parse(text)
    assert caught.value.hint


@given(st.text())
def test_any_text_is_a_urn_or_refused(text):
    try:
        urn = Urn.parse(text)
    except InvalidInput:
        return
    assert Urn.parse(str(urn)) == urn


# -- the file


def test_a_catalogue_of_a_user():
    (offer,) = parse_catalogue(GOOD)
    assert str(offer.urn) == "acme:os:small:latest"
    assert isinstance(offer.source, Pinned)


BROKEN = {
    "no TOML": ("format = ", "cannot be read"),
    "another format": (GOOD.replace("format = 1", "format = 2"), "has format 2"),
    "an unknown key": (GOOD.replace("title", "titel"), "titel"),
    "a wrong type": (GOOD.replace('"A small OS"', "7"), "title"),
    "an unknown OS": (GOOD.replace('"Linux"', '"BeOS"'), "BeOS"),
    "an unknown kind": (GOOD.replace('"url"', '"ftp"'), "ftp"),
    "capitals": (GOOD.replace('"acme"', '"Acme"'), "is no name"),
    "a colon": (GOOD.replace('"acme"', '"a:b"'), "is no name"),
    "an empty title": (GOOD.replace("A small OS", " "), "title is empty"),
    "a terminal's escape": (GOOD.replace("A small OS", "\\u001b[2J"), "control characters"),
    "keys of its own": (
        GOOD.replace("[offers.source]", "keys = []\nexcluded = ['1.0']\n[offers.source]"),
        "three numbers",
    ),
    "two numbers": (GOOD.replace("1.0.0", "1.0"), "three numbers"),
    "no digest": (GOOD.replace("0" * 64, "0" * 40), "sha256"),
    "no URL": (GOOD.replace("https://example.org/os.raw", "file:///etc/passwd"), "not an http"),
    "a password": (
        GOOD.replace("https://example.org", "https://me:you@example.org"),
        "not an http",
    ),
    "a port that is none": (GOOD.replace("example.org", "example.org:99999"), "not an http"),
    "an unknown disk": (GOOD.replace('"raw"', '"vdi"'), "format is none of"),
    "a plan without terms": (
        GOOD.replace("[offers.source]", "[offers.plan]\nname = 'p'\nterms = ' '\n[offers.source]"),
        "terms is empty",
    ),
    "no version anywhere": (sums(name="os.qcow2"), "neither name nor url"),
    "a version in the host": (sums(url="https://{version}.example.org/SUMS"), "in its path"),
    "a directory in a name": (sums(name="../os-{version}.qcow2"), "name of a file"),
    "a name that no file has": (sums(name="os {version}"), "name of a file"),
    "a name without an end": (sums(name="{version}" + "x" * 5000), "name of a file"),
    "a revision where no version is looked for": (
        sums(
            url="https://example.org/{version}/{revision}/S",
            name="os-{version}-{revision}",
            versions="release-revision",
        ),
        "versions are looked for",
    ),
    "a version twice in one part": (
        sums(url="https://example.org/{version}-{version}/S"),
        "stands twice",
    ),
    "a revision that the scheme has not": (
        sums(name="os-{version}-{revision}.qcow2"),
        "exactly if",
    ),
    "no revision": (sums(versions="release-revision"), "exactly if"),
    "images only": (sums(images="https://example.org/{version}/"), "only where url has it"),
    "images without a slash": (sums(images="https://example.org/a"), "ends with /"),
    "a signature of nobody": (sums(signature=".asc"), "belong together"),
    "a placeholder left": (sums(kind="simplestreams"), "name"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_catalogue(case):
    text, words = BROKEN[case]
    with pytest.raises(InvalidInput, match=re.escape(words)) as caught:
        parse_catalogue(text)
    assert "\x1b" not in caught.value.message


def test_keys_beside_a_catalogue_are_for_the_one_that_ships():
    key = f'[keys.k]\nfile = "/etc/passwd"\nfingerprint = "{"A" * 40}"\n'
    with pytest.raises(InvalidInput, match="names a file"):
        parse_catalogue(f"{GOOD}\n{key}")


def test_a_key_is_the_one_that_its_fingerprint_names():
    armored = load_default().find("almalinux9").keys[0].armored
    key = f'[keys.k]\narmored = """\n{armored}"""\nfingerprint = "{"A" * 40}"\n'
    with pytest.raises(InvalidInput, match="BF18AC28"):
        parse_catalogue(f"{GOOD}\n{key}")


def test_a_key_that_is_not_there():
    text = sums(signature=".asc") + 'signed_by = ["k"]\n'
    with pytest.raises(InvalidInput, match="names the key 'k', which is none"):
        parse_catalogue(text)


def test_two_offers_of_one_name():
    with pytest.raises(Conflict, match="acme:os:small"):
        parse_catalogue(GOOD + OFFER + PINNED)


def test_nobody_speaks_for_anothers_publisher():
    ours = parse_catalogue(GOOD)
    theirs = parse_catalogue(GOOD.replace('"small"', '"large"'))
    with pytest.raises(Conflict, match="'acme' is in two catalogues"):
        combine([ours, theirs])
    others = parse_catalogue(GOOD.replace('"acme"', '"other"'))
    assert len(combine([ours, others])) == 2


@given(st.text(max_size=300))
def test_any_text_is_a_catalogue_or_refused(text):
    for whole in (text, f"format = 1\noffers = [{text}]", GOOD + text, GOOD.replace("small", text)):
        try:
            parse_catalogue(whole)
        except CalotypeError:
            continue


@given(st.binary(max_size=100))
def test_any_bytes_are_a_catalogue_or_refused(data):
    try:
        parse_catalogue(data)
    except CalotypeError:
        return


def test_nesting_is_bounded():
    with pytest.raises(InvalidInput):
        parse_catalogue("a = " + "[" * 5000)


# -- the one that ships


def test_found_by_name_and_alias():
    catalogue = load_default()
    cloud = catalogue.find("Debian:debian-12:CLOUD:latest")
    assert catalogue.find("Debian12") is cloud
    assert isinstance(cloud.source, FromRecipe)
    assert catalogue.urn("debian:debian-12:cloud:1.2.3").version == Version(1, 2, 3)
    with pytest.raises(NotFound, match="no offer 'debian:debian-1:cloud'"):
        catalogue.find("debian:debian-1:cloud")
    with pytest.raises(NotFound, match="no alias"):
        catalogue.find("beos")


def test_searched():
    catalogue = load_default()
    assert {o.publisher for o in catalogue.search(["cloud-init", "FREEBSD"])} == {"freebsd"}
    assert {o.sku for o in catalogue.search(["windows"])} == {"2022-eval", "2025-eval"}
    assert len(catalogue.search(publisher="Debian", offer="debian-12")) == 7
    assert catalogue.search(["no such thing"]) == []


def test_the_recipes_that_it_names_are_there():
    known = {made.name for made in recipe.recipes()}
    named = {o.source.recipe for o in load_default() if isinstance(o.source, FromRecipe)}
    assert named <= known


def test_each_key_file_holds_exactly_the_stated_key():
    directory = resources.files("calotype.market") / "data" / "keys"
    files = {file.name: file.read_text() for file in directory.iterdir()}
    used = {key.fingerprint: key for offer in load_default() for key in offer.keys}
    held = {name: [key.fingerprint for key in keyring.keys(text)] for name, text in files.items()}
    assert sorted(fingerprint for (fingerprint,) in held.values()) == sorted(used)
    for key in used.values():
        assert held[key.file or ""] == [key.fingerprint]
        assert key.origin
        assert "PRIVATE" not in key.armored


def test_each_offer_says_where_its_facts_come_from_and_who_signs():
    for offer in load_default():
        assert offer.facts
        assert offer.description
        match offer.source:
            case Checksums() | SimpleStreams():
                unsigned = offer.source.signature is None
                assert offer.source.url.startswith("https://")
                assert ("all that vouches" in offer.facts) == unsigned
                assert bool(offer.keys) != unsigned
            case Pinned():
                assert "no signature file" in offer.facts


def test_windows_has_terms():
    offer = load_default().find("microsoft:windows-server:2022-eval")
    assert offer.purchase_plan == PurchasePlan("microsoft", "windows-server", "2022-eval")
    assert offer.plan is not None
    assert "180 days" in offer.plan.terms
    assert (offer.plan.terms_url or "").startswith("https://www.microsoft.com/en-us/evalcenter/")
