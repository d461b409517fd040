"""The publishers' layouts behind a web server that is slow, breaks, lies, redirects or changes its files."""

import pytest
from tests import market_server as publishers
from tests.openpgp import Signer
from tests.unit.web import File, serving

from calotype.engine.base import fetch
from calotype.errors import InvalidInput, NotFound, ToolFailed, Untrusted
from calotype.market import releases
from calotype.model import Version


@pytest.fixture(scope="module")
def signer():
    return Signer()


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(fetch, "_PAUSES", (0, 0))
    with serving() as web:
        yield web


def ask(web, name, signer=None):
    record = publishers.rebased(publishers.offer(name, signer), web.url(""))
    return releases(record, lambda url, most: fetch.get(url, most, allow=("127.0.0.0/8",)))


def test_every_layout_from_a_server(web, signer):
    layouts = {
        "debian:debian-12:genericcloud": publishers.debian({"20240507-1740": b"x"}),
        "fedora44": publishers.fedora({"44-1.7": b"x"}, signer),
        "almalinux9": publishers.almalinux({"9.8-20260526": b"x"}, signer),
        "rocky9": publishers.rocky({"9.8-20260525.0": b"x"}),
        "opensuse-leap": publishers.opensuse({"18.72": b"x"}, signer),
        "alpine": publishers.alpine({"3.24.2-r0": b"x"}),
        "freebsd": publishers.freebsd({"15.1": b"x"}, signer),
        "ubuntu2404": publishers.ubuntu({"20240126.1": b"x"}, signer),
    }
    found = {}
    for name, layout in layouts.items():
        publishers.put(web, layout)
        (release,) = ask(web, name, signer)
        assert release.os_disk is not None
        assert fetch.get(release.os_disk.urls[0], 10, allow=("127.0.0.0/8",)) == b"x"
        found[name] = release.version
    assert found["ubuntu2404"] == Version(20240126, 1, 0)
    assert len(set(found.values())) == len(layouts)


def checksum_path(url=publishers.ALMA + "CHECKSUM"):
    return url.replace("https://", "/")


@pytest.fixture
def alma(web, signer):
    publishers.put(web, publishers.almalinux({"9.8-20260526": b"x"}, signer))
    return web


def test_a_redirect(alma, signer):
    path = checksum_path()
    alma.files["/mirror/CHECKSUM"] = alma.files.pop(path)
    alma.redirects[path] = alma.url("/mirror/CHECKSUM")
    assert ask(alma, "almalinux9", signer)[0].signed_by == signer.fingerprint


def test_a_file_that_comes_slowly(alma, signer):
    waits: list[int] = []
    alma.files[checksum_path()].pace = waits.append
    assert ask(alma, "almalinux9", signer)[0].signed_by == signer.fingerprint
    assert waits


def test_a_connection_that_breaks(alma, signer):
    alma.files[checksum_path()].cut = 40
    with pytest.raises(ToolFailed):
        ask(alma, "almalinux9", signer)


def test_a_file_that_is_cut_off(alma, signer):
    file = alma.files[checksum_path()]
    alma.files[checksum_path()] = File(file.body[:-20])
    with pytest.raises(Untrusted, match="it was changed"):
        ask(alma, "almalinux9", signer)


def test_a_file_that_changed_between_it_and_its_signature(alma, signer):
    layout = publishers.almalinux({"9.8-20260810": b"y"}, signer)
    alma.files[checksum_path()] = File(layout[publishers.ALMA + "CHECKSUM"])
    with pytest.raises(Untrusted, match="it was changed") as caught:
        ask(alma, "almalinux9", signer)
    assert "try again later" in (caught.value.hint or "")


def test_a_server_that_is_gone(alma, signer):
    alma.failing = [503] * 99
    with pytest.raises(ToolFailed):
        ask(alma, "almalinux9", signer)


def test_a_publisher_who_took_it_away(web, signer):
    with pytest.raises(NotFound):
        ask(web, "almalinux9", signer)


def test_a_file_without_an_end(alma, signer):
    alma.files[checksum_path()] = File(b"0" * (5 << 20))
    with pytest.raises(InvalidInput, match="larger than"):
        ask(alma, "almalinux9", signer)
