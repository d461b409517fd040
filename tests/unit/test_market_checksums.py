"""Checksum files and pages of directories, in the layouts of the publishers that ship."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import market_server as publishers
from tests.openpgp import BORN, Signer

from calotype.errors import CalotypeError, InvalidInput, NotFound, Untrusted
from calotype.market import checksums, releases
from calotype.market.checksums import Sums
from calotype.model import Version

A, B = hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()
LONG = hashlib.sha512(b"a").hexdigest()


@pytest.fixture(scope="module")
def signer():
    return Signer()


def fetching(layout, asked=None):
    def fetch(url, most):
        if asked is not None:
            asked.append(url)
        if url not in layout:
            raise NotFound(f"{url} answers 404 Not Found")
        assert len(layout[url]) <= most
        return layout[url]

    return fetch


# -- the files


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{A}  os.img\n{B} *other.img\n", {"os.img": Sums(A), "other.img": Sums(B)}),
        (f"{A} os.img\r\n", {"os.img": Sums(A)}),
        (f"{A}  ./os.img\n", {"os.img": Sums(A)}),
        (f"{LONG}  os.img\n{A}  os.img\n", {"os.img": Sums(A, LONG)}),
        (f"SHA256 (os.img) = {A.upper()}\n", {"os.img": Sums(A)}),
        (f"# os.img: 12 bytes\nSHA512 (os.img) = {LONG}\n", {"os.img": Sums(None, LONG, 12)}),
        (f"MD5 (os.img) = {'0' * 32}\n{'0' * 40}  os.img\n", {}),
        (f"SHA512 (os.img) = {A}\n", {}),  # another algorithm's length
        (f"{A}  ../os.img\n{A}  /etc/passwd\n{A}  a\\b\n", {}),
        (f"<html>{A}  os.img</html>", {}),
        (f"{A}\n", {}),
        ("", {}),
    ],
)
def test_what_a_file_says(text, found):
    assert checksums.parse(text.encode()) == found


def test_a_digest_alone_is_of_the_file_that_it_is_about():
    assert checksums.parse(f"{A}\n".encode(), alone="os.img") == {"os.img": Sums(A)}


@pytest.mark.parametrize("data", [f"{A}  os.img\n{B}  os.img\n".encode(), b"\xff\xfe"])
def test_files_that_contradict_themselves(data):
    with pytest.raises(InvalidInput, match="the checksum file"):
        checksums.parse(data)


@given(st.binary(max_size=300), st.text(max_size=40))
def test_any_bytes_are_read_or_refused(data, name):
    line = f"{A}  {name}\nSHA256 ({name}) = {A}\n# {name}: 1 bytes\n".encode("utf-8", "replace")
    for whole in (data, data + line, line + data):
        try:
            found = checksums.parse(whole)
        except CalotypeError:
            continue
        assert all("/" not in name and "\\" not in name for name in found)


URL = "https://example.org/images/"


@pytest.mark.parametrize(
    "page",
    [
        publishers.apache(["20240101-1/", "latest/"]),
        publishers.nginx(["20240101-1/", "latest/"]),
        publishers.absolute(["20240101-1/", "latest/"], "/images/"),
        publishers.absolute(["20240101-1", "latest"], URL),
    ],
)
def test_pages_of_directories(page):
    assert checksums.links(page, URL) == ["20240101-1", "latest"]


def test_pages_lead_nowhere_else():
    names = [
        "../up/",
        "/etc/",
        "https://evil.example/images/x/",
        "a/b/",
        "x/../y/../../z/",
        "..",
        "%2e%2e/",
        "%2fetc",
        "x?y",
        "//evil/z",
    ]
    page = publishers.nginx(names)
    assert checksums.links(page, URL) == []


@given(st.binary(max_size=200), st.text(max_size=30))
def test_any_page_is_read(data, name):
    page = data + f'<a href="{name}">'.encode("utf-8", "replace")
    for found in checksums.links(page, URL):
        assert "/" not in found


# -- the publishers


def test_debian():
    layout = publishers.debian({"20240507-999": b"old", "20240507-1740": b"new"})
    new, old = releases(publishers.offer("debian:debian-12:genericcloud"), fetching(layout))
    assert (new.version, new.label) == (Version(20240507, 1740, 0), "20240507-1740")
    assert old.version == Version(20240507, 999, 0)
    assert new.signed_by is None
    assert new.format == "qcow2"
    assert new.os_disk is not None
    assert new.os_disk.sha512 == hashlib.sha512(b"new").hexdigest()
    assert layout[new.os_disk.urls[0]] == b"new"


def test_only_the_newest_directories_are_looked_into():
    layout = publishers.debian({f"20240507-{n}": b"x" for n in range(1, 31)})
    asked: list[str] = []
    found = releases(publishers.offer("debian:debian-12:generic"), fetching(layout, asked))
    assert [release.version.minor for release in found] == [30, 29, 28, 27, 26, 25]
    assert len(asked) == 1 + checksums.NEWEST


def test_an_older_version_by_its_number():
    layout = publishers.debian({f"20240507-{n}": b"x" for n in range(1, 31)})
    asked: list[str] = []
    at = Version(20240507, 3, 0)
    (release,) = releases(publishers.offer("debian:debian-12:generic"), fetching(layout, asked), at)
    assert release.label == "20240507-3"
    assert len(asked) == 2
    with pytest.raises(NotFound, match=r"no version 20240507\.31\.0"):
        releases(
            publishers.offer("debian:debian-12:generic"), fetching(layout), Version(20240507, 31, 0)
        )


def test_a_directory_without_its_files_is_passed_over():
    layout = publishers.debian({"20240507-1": b"x", "20240508-1": b"x"})
    del layout[f"{publishers.CLOUD}20240508-1/SHA512SUMS"]
    (release,) = releases(publishers.offer("debian:debian-12:generic"), fetching(layout))
    assert release.label == "20240507-1"


def test_fedora(signer):
    layout = publishers.fedora({"44-1.7": b"disk"}, signer)
    (release,) = releases(publishers.offer("fedora44", signer), fetching(layout))
    assert release.version == Version(44, 1, 7)
    assert release.signed_by == signer.fingerprint
    assert release.os_disk is not None
    assert release.os_disk.size == 4
    assert layout[release.os_disk.urls[0]] == b"disk"


def test_almalinux(signer):
    layout = publishers.almalinux({"9.8-20260526": b"a", "9.8-20260810": b"b"}, signer)
    newest = releases(publishers.offer("almalinux9", signer), fetching(layout))[0]
    assert newest.version == Version(9, 8, 20260810)
    assert newest.signed_by == signer.fingerprint


def test_rocky():
    layout = publishers.rocky({"9.8-20260525.0": b"a", "9.8-20260525.1": b"b"})
    newest, older = releases(publishers.offer("rocky9"), fetching(layout))
    assert newest.version == Version(9, 8, 202605251)
    assert older.version == Version(9, 8, 202605250)


def test_opensuse(signer):
    layout = publishers.opensuse({"18.7": b"a", "18.72": b"b"}, signer)
    newest = releases(publishers.offer("opensuse-leap", signer), fetching(layout))[0]
    assert newest.version == Version(18, 72, 0)
    assert newest.signed_by == signer.fingerprint


def test_alpine():
    layout = publishers.alpine({"3.24.2-r0": b"a", "3.24.2-r1": b"b"})
    newest, _older = releases(publishers.offer("alpine"), fetching(layout))
    assert (newest.version, newest.label) == (Version(3, 24, 201), "3.24.2-r1")
    assert newest.os_disk is not None
    assert layout[newest.os_disk.urls[0]] == b"b"


def test_freebsd(signer):
    layout = publishers.freebsd({"14.4": b"a", "15.1": b"b"}, signer)
    newest, _older = releases(publishers.offer("freebsd", signer), fetching(layout))
    assert newest.version == Version(15, 1, 0)
    assert newest.os_disk is not None
    assert newest.os_disk.urls[0].startswith("https://download.freebsd.org/")
    assert layout[newest.os_disk.urls[0]] == b"b"


# -- what is refused


def test_a_signature_that_is_missing(signer):
    layout = publishers.almalinux({"9.8-20260526": b"a"}, signer)
    del layout[publishers.ALMA + "CHECKSUM.asc"]
    with pytest.raises(Untrusted, match="has no signature: there is no https://repo") as caught:
        releases(publishers.offer("almalinux9", signer), fetching(layout))
    assert "try again later" in (caught.value.hint or "")


def test_checksums_that_were_changed(signer):
    layout = publishers.almalinux({"9.8-20260526": b"a"}, signer)
    layout[publishers.ALMA + "CHECKSUM"] += f"{A}  evil\n".encode()
    with pytest.raises(Untrusted, match="it was changed"):
        releases(publishers.offer("almalinux9", signer), fetching(layout))


def test_an_older_file_than_was_seen(signer):
    offer = publishers.offer("almalinux9", signer)
    seen: dict[str, int] = {}
    old = publishers.almalinux({"9.8-20260526": b"a"}, signer)
    new = dict(old)
    new[publishers.ALMA + "CHECKSUM.asc"] = signer.detached(
        old[publishers.ALMA + "CHECKSUM"], at=BORN + 2000
    )
    releases(offer, fetching(new), seen=seen)
    assert seen == {publishers.ALMA + "CHECKSUM": BORN + 2000}
    releases(offer, fetching(new), seen=seen)
    with pytest.raises(Untrusted, match="older than what was there before"):
        releases(offer, fetching(old), seen=seen)


def test_a_file_of_the_future(signer):
    offer = publishers.offer("fedora44", signer)
    layout = publishers.fedora({"44-1.7": b"a"}, signer)
    name = publishers.FEDORA + "Fedora-Cloud-44-1.7-x86_64-CHECKSUM"
    layout[name] = signer.clear(b"x\n", at=4_000_000_000)
    with pytest.raises(Untrusted):
        releases(offer, fetching(layout))


def test_nothing_there():
    with pytest.raises(NotFound, match="answers 404"):
        releases(publishers.offer("rocky9"), fetching({}))
    layout = publishers.rocky({"9.8-20260525.0": b"a"})
    layout[publishers.ROCKY + "CHECKSUM"] = b"\n"
    with pytest.raises(NotFound, match="has no version today") as caught:
        releases(publishers.offer("rocky9"), fetching(layout))
    assert caught.value.hint


def test_versions_that_are_never_the_latest():
    offer = msgspec.structs.replace(publishers.offer("rocky9"), excluded=("9.8.202605251",))
    layout = publishers.rocky({"9.8-20260525.0": b"a", "9.8-20260525.1": b"b"})
    newest, older = releases(offer, fetching(layout))
    assert (newest.excluded, older.excluded) == (True, False)
