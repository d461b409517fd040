"""Simplestreams, in Ubuntu's layout and in Incus's, and what is refused of an index."""

import hashlib
import json
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import market_server as publishers
from tests.openpgp import BORN, Signer
from tests.unit.test_market_checksums import fetching

from calotype.errors import CalotypeError, InvalidInput, NotFound, Untrusted
from calotype.market import Offer, releases
from calotype.market.offer import SimpleStreams
from calotype.model import OsType, Version

INDEX = publishers.UBUNTU + "streams/v1/index.json"
STREAM = publishers.UBUNTU + "streams/v1/com.ubuntu.cloud:released:download.json"


@pytest.fixture(scope="module")
def signer():
    return Signer()


def unsigned(**more):
    """Ubuntu's record, of an index that nobody signs."""
    offer = publishers.offer("ubuntu2404")
    source = msgspec.structs.replace(offer.source, url=INDEX, signature=None, signed_by=(), **more)
    return msgspec.structs.replace(offer, source=source, keys=())


def incus(url=publishers.INCUS + "streams/v1/index.json", **more):
    source = SimpleStreams(url=url, product="debian:bookworm:amd64:cloud", **more)
    return Offer(
        publisher="lxc",
        offer="debian-12",
        sku="cloud",
        title="Debian",
        os_type=OsType.LINUX,
        source=source,
    )


def test_ubuntu_clearsigned(signer):
    layout = publishers.ubuntu(
        {"20240101": b"old", "20240126": b"new", "20240126.1": b"fix"}, signer
    )
    found = releases(publishers.offer("ubuntu2404", signer), fetching(layout))
    assert [str(release.version) for release in found] == [
        "20240126.1.0",
        "20240126.0.0",
        "20240101.0.0",
    ]
    newest = found[0]
    assert newest.signed_by == signer.fingerprint
    assert newest.format == "qcow2"
    assert newest.os_disk is not None
    assert newest.os_disk.size == 3
    assert newest.os_disk.sha256 == hashlib.sha256(b"fix").hexdigest()
    assert layout[newest.os_disk.urls[0]] == b"fix"


def test_ubuntu_signed_beside(signer):
    offer = unsigned()
    source = msgspec.structs.replace(offer.source, signature=".gpg", signed_by=("k",))
    offer = msgspec.structs.replace(offer, source=source, keys=(publishers.key(signer),))
    layout = publishers.ubuntu({"20240126": b"new"}, signer, clear=False)
    assert releases(offer, fetching(layout))[0].signed_by == signer.fingerprint
    del layout[STREAM + ".gpg"]
    with pytest.raises(Untrusted, match="has no signature"):
        releases(offer, fetching(layout))


def test_incus():
    layout = publishers.incus({"20240101_07:42": b"old", "20240101_13:00": b"new"})
    newest, _old = releases(incus(), fetching(layout))
    assert (newest.version, newest.label) == (Version(20240101, 1300, 0), "20240101_13:00")
    assert newest.os_disk is not None
    assert newest.os_disk.name == "disk.qcow2"
    assert layout[newest.os_disk.urls[0]] == b"new"


def test_one_of_the_two_files_by_another_key(signer):
    layout = publishers.ubuntu({"20240126": b"new"}, signer)
    others = publishers.ubuntu({"20240126": b"evil"}, Signer())
    stream = STREAM.replace(".json", ".sjson")
    layout[stream] = others[stream]
    with pytest.raises(Untrusted, match="is signed by the key"):
        releases(publishers.offer("ubuntu2404", signer), fetching(layout))


# -- time


def test_an_older_index_than_was_seen():
    seen: dict[str, int] = {}
    new = publishers.ubuntu({"20240126": b"x"}, at=BORN + 9000)
    old = publishers.ubuntu({"20240101": b"x"}, at=BORN + 8000)
    releases(unsigned(), fetching(new), seen=seen)
    assert seen == {INDEX + "#updated": BORN + 9000, STREAM + "#updated": BORN + 9000}
    releases(unsigned(), fetching(new), seen=seen)
    with pytest.raises(Untrusted, match="older than what was there before"):
        releases(unsigned(), fetching(old), seen=seen)
    mixed = {**new, STREAM: old[STREAM]}
    with pytest.raises(Untrusted, match="older than what was there before"):
        releases(unsigned(), fetching(mixed), seen=seen)
    assert seen[STREAM + "#updated"] == BORN + 9000


def test_an_index_that_no_longer_says_when():
    seen = {INDEX + "#updated": BORN}
    layout = publishers.ubuntu({"20240126": b"x"})
    timeless = json.loads(layout[INDEX])
    del timeless["updated"]
    layout[INDEX] = json.dumps(timeless).encode()
    releases(unsigned(), fetching(layout))
    with pytest.raises(Untrusted, match="older"):
        releases(unsigned(), fetching(layout), seen=seen)


def test_an_index_of_the_future():
    layout = publishers.ubuntu({"20240126": b"x"}, at=BORN + 10 * 86400)
    seen: dict[str, int] = {}
    with pytest.raises(Untrusted, match="in the future") as caught:
        releases(unsigned(), fetching(layout), seen=seen, now=datetime.fromtimestamp(BORN, UTC))
    assert "clock" in (caught.value.hint or "")
    assert seen == {}


# -- what leads elsewhere, and what is broken


def changed(change):
    """Ubuntu's layout with something changed in the products."""
    layout = publishers.ubuntu({"20240126": b"x"})
    value = json.loads(layout[STREAM])
    product = value["products"]["com.ubuntu.cloud:server:24.04:amd64"]
    change(value, product, product["versions"]["20240126"]["items"]["disk1.img"])
    layout[STREAM] = json.dumps(value).encode()
    return layout


PATHS = [
    "../../../etc/passwd",
    "/etc/passwd",
    "server/../../x.img",
    "server//x.img",
    "./x.img",
    "",
    "file:///etc/passwd",
    "https://evil.example/x.img",
    "http://cloud-images.ubuntu.com/x.img",
    "https://cloud-images.ubuntu.com@evil.example/x.img",
    "https://[::1/x.img",
    "//evil.example/x.img",
    "x.img?token=1",
    "x.img#a",
    "a\\b.img",
    "x\n.img",
    "%2e%2e/x.img",
    "x" * 2000,
    7,
    None,
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_lead_elsewhere(path):
    layout = changed(lambda _value, _product, item: item.update(path=path))
    with pytest.raises(InvalidInput) as caught:
        releases(unsigned(), fetching(layout))
    assert caught.value.hint


def test_another_host_that_the_record_allows():
    url = "https://mirror.example/ubuntu/x.img"
    layout = changed(lambda _value, _product, item: item.update(path=url))
    (release,) = releases(unsigned(hosts=("mirror.example",)), fetching(layout))
    assert release.os_disk is not None
    assert release.os_disk.urls == (url,)


BROKEN = {
    "no digest": lambda _v, _p, item: item.pop("sha256"),
    "a short digest": lambda _v, _p, item: item.update(sha256="00"),
    "MD5 only": lambda _v, _p, item: (item.pop("sha256"), item.update(md5="0" * 32)),
    "a size that is none": lambda _v, _p, item: item.update(size="3"),
    "a negative size": lambda _v, _p, item: item.update(size=-3),
    "a size that is true": lambda _v, _p, item: item.update(size=True),
    "another format": lambda value, _p, _i: value.update(format="products:2.0"),
    "no products": lambda value, _p, _i: value.pop("products"),
    "a list": lambda _v, product, _i: product.update(versions=[]),
    "items that are text": lambda _v, product, _i: product["versions"]["20240126"].update(
        items="x"
    ),
    "two OS disks": lambda _v, product, item: product["versions"]["20240126"]["items"].update(
        b=dict(item)
    ),
    "no time": lambda value, _p, _i: value.update(updated="yesterday"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_index(case):
    with pytest.raises(InvalidInput):
        releases(unsigned(), fetching(changed(BROKEN[case])))


def test_a_product_that_is_not_there():
    with pytest.raises(NotFound, match="has no product"):
        releases(
            unsigned(product="com.ubuntu.cloud:server:04.10:amd64"),
            fetching(changed(lambda *_: None)),
        )


def test_an_index_that_is_huge_deep_or_double():
    layout = publishers.ubuntu({"20240126": b"x"})
    for text in (
        b"[" * 100_000,
        b'{"format": "index:1.0", "format": "index:1.0"}',
        b"",
        b"\xff",
        b"1.5",
    ):
        with pytest.raises(InvalidInput):
            releases(unsigned(), fetching({**layout, INDEX: text}))


def test_labels_of_another_shape_are_passed_over():
    layout = publishers.ubuntu({"20240126": b"x", "latest": b"y"})
    assert [r.label for r in releases(unsigned(), fetching(layout))] == ["20240126"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.data())
def test_any_index_is_read_or_refused(data):
    """Some part of a good index becomes another value."""
    layout = publishers.ubuntu({"20240126": b"x"})
    name = data.draw(st.sampled_from([INDEX, STREAM]))
    value = json.loads(layout[name])
    at = value
    while True:
        where = data.draw(st.sampled_from(sorted(at)))
        if not isinstance(at[where], dict) or not at[where] or data.draw(st.booleans()):
            at[where] = data.draw(JSON)
            break
        at = at[where]
    layout[name] = json.dumps(value).encode()
    try:
        found = releases(unsigned(), fetching(layout))
    except CalotypeError:
        return
    assert all(r.os_disk is None or r.os_disk.urls[0].startswith("https://") for r in found)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_index_or_refused(data):
    with pytest.raises(CalotypeError):
        releases(unsigned(), fetching({INDEX: data}))
