"""The marketplace: catalogues, names, what is pulled and what is not, and who is believed."""

import binascii
import hashlib
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from unittest.mock import Mock

import pytest
from tests.market_server import incus, put, ubuntu
from tests.openpgp import BORN, Signer, armor
from tests.unit import market
from tests.unit.web import File, serving

from calotype import wire
from calotype.engine import images, references, roles
from calotype.engine.base import fetch
from calotype.engine.marketplace import marketplace, offers
from calotype.engine.roles import Where
from calotype.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    ToolFailed,
    Untrusted,
)
from calotype.market import Urn
from calotype.market import keyring as keyrings
from calotype.model import INSTALLATION, Caller, OsState, Role, Scope, Shelf, SourceKind


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    return market.make_disk(tmp_path_factory.mktemp("disk"))


@pytest.fixture(scope="module")
def qcow2(disk, tmp_path_factory):
    room = tmp_path_factory.mktemp("qcow2")
    (room / "os.raw").write_bytes(disk)
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", room / "os.raw", room / "os.qcow2"]
    subprocess.run(argv, check=True)
    return (room / "os.qcow2").read_bytes()


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(fetch, "_PAUSES", (0, 0, 0))
    with serving() as web:
        yield web


@pytest.fixture
def acme(context, web, disk):
    """A catalogue of one publisher with two versions of a small OS."""
    more = 'aliases = ["small"]'
    market.add(context, market.put(web, market.offer(web, disk, ("1.9.0", "1.10.0"), more=more)))
    return web


def gone_offline(context, web):
    """Nobody can be asked any more, and what was asked before is old."""
    web.failing = [503] * 999
    expire(context)


def expire(context):
    for page in context.home.market.glob("*.page"):
        os.utime(page, (0, 0))


def test_the_latest_is_pulled_once(context, acme, disk):
    image = references.find(context, "acme:os:small")
    assert image.name == "acme:os:small:1.10.0"
    assert image.shelf is Shelf.MARKETPLACE
    assert image.scope == Scope(INSTALLATION, "Marketplace")
    assert image.os_state is OsState.GENERALIZED
    assert image.provenance.kind is SourceKind.MARKETPLACE
    assert image.provenance.source == acme.url("/acme/small-1.10.0.raw")
    assert image.provenance.sha256 == hashlib.sha256(disk).hexdigest()
    assert "published by acme, as 1.10.0" in image.provenance.notes
    assert "its digest was signed by nobody" in image.provenance.notes
    assert list((context.home.cache / "downloads").iterdir()) == []
    before = acme.sent
    for name in ("acme:os:small", "ACME:os:small:Latest", "small", "acme:os:small:1.10.0"):
        assert references.find(context, name).id == image.id
    assert acme.sent == before
    assert context.catalog.audit.list(1)[0].action == "marketplace.pull"


def test_versions_of_one_file_share_their_bytes(context, acme):
    first = marketplace.pull(context, Urn.parse("acme:os:small:1.9.0"))
    second = marketplace.pull(context, Urn.parse("acme:os:small"))
    assert not first.existed
    assert not second.existed
    assert first.image.os_disk.index == second.image.os_disk.index
    assert marketplace.pull(context, Urn.parse("acme:os:small")).existed


def test_what_was_pulled_is_deleted_by_its_whole_name(context, acme):
    marketplace.pull(context, Urn.parse("acme:os:small:1.9.0"))
    asked = len(acme.hosts)
    for name in ("acme:os:small", "acme:os:small:1.10.0", "small"):
        with pytest.raises(NotFound):
            images.delete(context, name)
    assert images.delete(context, "acme:os:small:1.9.0").image.name == "acme:os:small:1.9.0"
    assert context.system.find_on(Shelf.MARKETPLACE, "acme:os:small:1.9.0") is None
    assert len(acme.hosts) == asked


def test_a_version_that_is_here_asks_nobody(context, acme):
    image = references.find(context, "acme:os:small:1.9.0")
    gone_offline(context, acme)
    asked = len(acme.hosts)
    assert references.find(context, "acme:os:small:1.9.0").id == image.id
    assert len(acme.hosts) == asked
    offers.remove(context, "acme")  # nor need its catalogue be known
    assert references.find(context, "acme:os:small:1.9.0").id == image.id


def test_offline_the_newest_that_is_here_is_taken_and_said(context, acme, caplog):
    image = references.find(context, "acme:os:small:1.9.0")
    gone_offline(context, acme)
    assert references.find(context, "acme:os:small").id == image.id
    assert "taken instead: acme:os:small:1.9.0, the newest that was pulled" in caplog.text
    with pytest.raises(ToolFailed, match="503"):
        references.find(context, "acme:os:small:1.10.0")


def test_offline_with_nothing_here_it_fails(context, acme):
    gone_offline(context, acme)
    with pytest.raises(ToolFailed, match="503"):
        references.find(context, "acme:os:small")


def test_versions_that_are_excluded_are_never_the_latest(context, web, disk):
    more = 'excluded = ["1.10.0"]'
    text = market.offer(web, disk, ("1.9.0", "1.10.0"), more=more)
    market.add(context, market.put(web, text))
    assert references.find(context, "acme:os:small").name == "acme:os:small:1.9.0"
    assert references.find(context, "acme:os:small:1.10.0").name == "acme:os:small:1.10.0"


def test_none_that_may_be_the_latest(context, web, disk):
    text = market.offer(web, disk, more='excluded = ["1.0.0"]')
    market.add(context, market.put(web, text))
    with pytest.raises(NotFound, match="no version that may be the latest") as refusal:
        references.find(context, "acme:os:small")
    assert "marketplace show acme:os:small" in (refusal.value.hint or "")


def test_a_file_that_lies_makes_no_image(context, acme):
    acme.files["/acme/small-1.10.0.raw"].body = b"x" * 4096
    with pytest.raises(Untrusted, match="it was removed"):
        references.find(context, "acme:os:small")
    assert context.system.find_on(Shelf.MARKETPLACE, "acme:os:small:1.10.0") is None


def test_what_its_disk_contradicts_is_not_taken_unless_it_is_said(context, web, tmp_path):
    body = market.make_disk(tmp_path, machine_id="0123456789abcdef0123456789abcdef\n")
    market.add(context, market.put(web, market.offer(web, body)))
    with pytest.raises(InvalidInput, match="is declared Generalized, but") as refusal:
        references.find(context, "acme:os:small")
    assert "marketplace pull acme:os:small:1.0.0 --force" in (refusal.value.hint or "")
    sent = web.sent
    pulled = marketplace.pull(context, Urn.parse("acme:os:small"), force=True)
    assert pulled.image.os_state is OsState.GENERALIZED
    assert web.sent == sent  # what could not be used was kept
    assert context.catalog.audit.list(1)[0].action == "image.overrule"


def test_installation_media_is_no_disk(context, web, disk):
    text = market.offer(web, disk).replace('format = "raw"', 'format = "iso"')
    market.add(context, market.put(web, text))
    with pytest.raises(InvalidInput, match="installation media, not a disk") as refusal:
        references.find(context, "acme:os:small")
    assert "capture" in (refusal.value.hint or "")


def test_data_disks_come_with_it(context, web, disk):
    """Two of the three files are one file: it is fetched once."""
    web.files["/data.raw"] = File(bytes(1 << 20))
    digest = hashlib.sha256(bytes(1 << 20)).hexdigest()
    data = ", ".join(
        f'{{ lun = {lun}, url = "{web.url("/data.raw")}", sha256 = "{digest}" }}' for lun in (5, 1)
    )
    text = market.offer(web, disk).replace('" }', f'", data_disks = [{data}] }}', 1)
    market.add(context, market.put(web, text))
    image = references.find(context, "acme:os:small")
    assert [(d.lun, d.size) for d in image.data_disks] == [(1, 1 << 20), (5, 1 << 20)]
    assert web.sent < len(disk) + (1 << 20) + 10_000
    assert not list((context.home.cache / "downloads").iterdir())


def test_two_data_disks_with_one_lun_are_no_catalogue(context, web, disk):
    data = f'{{ lun = 1, url = "{web.url("/d")}", sha256 = "{"0" * 64}" }}'
    text = market.offer(web, disk).replace('" }', f'", data_disks = [{data}, {data}] }}', 1)
    with pytest.raises(InvalidInput, match="two data disks have one LUN"):
        market.add(context, market.put(web, text))


def test_two_who_pull_at_once_pull_once(context, acme, disk):
    others = [wire.build(home=context.home) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda c: references.find(c, "acme:os:small"), others))
    assert len({image.id for image in found}) == 1
    assert acme.sent < 1.2 * len(disk)
    for other in others:
        other.close()


def test_who_may_make_nothing_here_pulls_nothing(context, acme):
    roles.assign(context, "ann", Role.READER, Where())
    ann = wire.build(home=context.home, caller=Caller("ann"))
    with pytest.raises(
        Forbidden, match="'ann' has not the role Contributor for pulling"
    ) as refused:
        references.find(ann, "acme:os:small")
    assert "role assign ann Contributor" in (refused.value.hint or "")
    roles.assign(context, "bob", Role.CONTRIBUTOR, Where())
    bob = wire.build(home=context.home, caller=Caller("bob"))
    image = references.find(bob, "acme:os:small")
    assert context.catalog.audit.list(1)[0].actor.startswith("bob through ")
    assert references.find(ann, "acme:os:small").id == image.id  # what is here is everybody's
    ann.close()
    bob.close()


def test_a_recipe_is_built_once_and_then_when_it_is_asked_for(context, disk, tmp_path, monkeypatch):
    path = tmp_path / "built.raw"
    path.write_bytes(disk)
    built = []

    def build(_context, recipe):
        built.append(recipe)
        return Mock(path=path)

    monkeypatch.setattr("calotype.engine.marketplace.recipes.build_file", build)
    image = references.find(context, "debian12")
    assert image.name.startswith("debian:debian-12:cloud:20")
    assert image.provenance.kind is SourceKind.RECIPE
    assert image.provenance.source == "debian-12"
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    monkeypatch.setattr("calotype.market.resolve.datetime", Mock(now=Mock(return_value=tomorrow)))
    assert references.find(context, "debian12").id == image.id
    newer = marketplace.pull(context, Urn.parse("debian:debian-12:cloud")).image
    assert newer.name > image.name
    assert references.find(context, "debian12").id == newer.id
    assert built == ["debian-12", "debian-12"]


# -- names


@pytest.mark.parametrize(
    ("text", "words", "cure"),
    [
        ("acmee:os:small", "no offer 'acmee:os:small'", "near names are acme: a name that looks"),
        ("acme:os:smal", "no offer 'acme:os:smal'", "near names are acme:os:small"),
        ("smal", "there is no image 'smal'", "near names of the marketplace are small"),
        ("unlike-any", "there is no image 'unlike-any'", "calotype image list"),
        ("acme:os:small:7.0.0", "no version 7.0.0", "marketplace show acme:os:small"),
    ],
)
def test_what_is_not_there_is_said_with_what_is_near(context, acme, text, words, cure):
    with pytest.raises(NotFound, match=words) as refusal:
        references.find(context, text)
    assert cure in (refusal.value.hint or "")


@pytest.mark.parametrize("text", ["a:b", "a:b:c:d:e", "acme:os:small:1.0"])
def test_what_is_no_name(context, acme, text):
    with pytest.raises(InvalidInput):
        references.find(context, text)


# -- catalogues


def test_a_catalogue_of_the_owner_can_be_a_file(context, web, disk, tmp_path):
    path = tmp_path / "offers.toml"
    path.write_text(market.catalogue(market.offer(web, disk)))
    market.add(context, str(path))
    assert references.find(context, "acme:os:small").name == "acme:os:small:1.0.0"


def test_a_file_that_cannot_be_read_is_left_out(context, web, disk, tmp_path, caplog):
    path = tmp_path / "room" / "offers.toml"
    path.parent.mkdir()
    path.write_text(market.catalogue(market.offer(web, disk)))
    market.add(context, str(path))
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file where a directory was")
    assert offers.load(context).find(Urn.parse("debian:debian-12:cloud"))
    assert "catalogue 'acme' is left out" in caplog.text
    assert "Not a directory" in caplog.text


def test_catalogues_are_the_owners(context, acme):
    other = type(context)(context.home, context.driver, caller=Caller("somebody"))
    for act in (
        lambda: market.add(other, acme.url("/offers.toml"), name="again"),
        lambda: offers.remove(other, "acme"),
        lambda: offers.update(other),
    ):
        with pytest.raises(Forbidden, match="installation's owner"):
            act()
    other.close()


def test_a_catalogue_speaks_for_its_own_publishers_alone(context, acme, web, disk):
    url = market.put(web, market.offer(web, disk, sku="other"), path="/second.toml")
    with pytest.raises(Conflict, match="the publisher 'acme' is in two catalogues"):
        market.add(context, url, name="second")
    url = market.put(web, market.offer(web, disk, publisher="debian"), path="/third.toml")
    with pytest.raises(Conflict, match="the publisher 'debian' is in two catalogues"):
        market.add(context, url, name="third")
    url = market.put(web, market.offer(web, disk, publisher="b"), path="/fourth.toml")
    with pytest.raises(Conflict, match="there is a catalogue 'acme' already"):
        market.add(context, url)


def test_a_look_alike_is_pointed_out(context, acme, web, disk, caplog):
    url = market.put(web, market.offer(web, disk, publisher="debiann"), path="/second.toml")
    market.add(context, url, name="second")
    assert "the publisher 'debiann' is called much like 'debian'" in caplog.text


def test_a_catalogue_that_comes_to_claim_anothers_publisher_is_left_out(
    context, acme, disk, caplog
):
    market.put(acme, market.offer(acme, disk, publisher="debian"))
    expire(context)
    known = offers.load(context)
    assert "catalogue 'acme' is left out" in caplog.text
    assert known.find(Urn.parse("debian:debian-12:cloud")).source
    assert "acme" not in known.catalogue.publishers


def test_an_update_asks_again(context, acme, disk):
    references.find(context, "acme:os:small")
    market.put(acme, market.offer(acme, disk, ("1.10.0", "1.11.0")))
    assert references.find(context, "acme:os:small").name == "acme:os:small:1.10.0"
    updated = {u.name: u for u in offers.update(context)}
    assert updated["acme"].offers == 1
    assert updated["default"].offers > 0
    assert references.find(context, "acme:os:small").name == "acme:os:small:1.11.0"


def test_what_publishers_said_takes_bounded_room(context, acme, disk, monkeypatch):
    """What was fetched longest ago goes first."""
    pages = context.home.market.glob("*.page")
    (first,) = pages
    monkeypatch.setattr(offers, "MAX_KEPT", 2 * first.stat().st_size)
    os.utime(first, (1, 1))
    for name in ("b", "c"):
        url = market.put(acme, market.offer(acme, disk, publisher=name), path=f"/{name}.toml")
        market.add(context, url, name=name)
    kept = list(context.home.market.glob("*.page"))
    assert first not in kept
    assert 0 < sum(page.stat().st_size for page in kept) <= offers.MAX_KEPT
    assert offers.load(context).find(Urn.parse("acme:os:small"))  # it is asked for again


def test_an_update_says_what_failed_and_keeps_what_was(context, acme):
    gone_offline(context, acme)
    (failed,) = (u for u in offers.update(context) if u.name == "acme")
    assert "503" in (failed.error or "")
    assert offers.load(context).find(Urn.parse("acme:os:small"))


@pytest.mark.parametrize("body", [b"what?", None, "twice"])
def test_a_catalogue_that_breaks_stays_as_it_was(context, acme, caplog, body):
    if body is None:
        del acme.files["/offers.toml"]
    elif body == "twice":
        market.put(acme, *[market.offer(acme, b"x")] * 2)
    else:
        acme.files["/offers.toml"].body = body
    expire(context)
    assert offers.load(context).find(Urn.parse("acme:os:small"))
    assert "catalogue 'acme' is as it was" in caplog.text


def test_a_catalogue_that_is_gone(context, acme):
    offers.remove(context, "acme")
    with pytest.raises(NotFound, match="no catalogue 'acme'"):
        offers.remove(context, "acme")
    with pytest.raises(NotFound, match="no offer"):
        references.find(context, "acme:os:small")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("format = 2\noffers = []", "format 2"),
        ("what?", "cannot be read"),
        ("x" * 5_000_000, "larger than"),
    ],
)
def test_what_is_no_catalogue(context, web, text, words):
    web.files["/bad.toml"] = File(text.encode())
    with pytest.raises(InvalidInput, match=words):
        market.add(context, web.url("/bad.toml"))
    assert context.catalog.marketplace.catalogs() == []


def test_catalogues_inside_are_refused_unless_they_are_allowed(context, acme):
    (catalog,) = context.catalog.marketplace.catalogs()
    inside = replace(catalog, name="inside", allow_addresses=())
    expire(context)
    with pytest.raises(InvalidInput, match="not public"):
        offers.add(context, inside)


# -- simplestreams

UBUNTU = "/cloud-images.ubuntu.com/releases/streams/v1/index"
INCUS = "/images.linuxcontainers.org/streams/v1/index.json"


def index_of(*paths):
    entries = {str(n): {"path": path} for n, path in enumerate(paths)}
    return json.dumps({"index": entries, "format": "index:1.0"}).encode()


@pytest.mark.parametrize("clear", [True, False])
def test_an_index_of_ubuntus_layout_is_a_catalogue(context, web, qcow2, keyring, clear):
    signer, file = keyring
    put(web, ubuntu({"20240101": qcow2, "20240126.1": qcow2}, signer, clear=clear))
    url = web.url(f"{UBUNTU}.{'sjson' if clear else 'json'}")
    found = market.add(context, url, kind="simplestreams", publisher="acme", keyring=file)
    assert [offer.urn.base for offer in found] == ["acme:ubuntu-24.04:server"]
    image = references.find(context, "acme:ubuntu-24.04:server")
    assert image.name == "acme:ubuntu-24.04:server:20240126.1.0"
    assert image.label == "ubuntu 24.04 LTS server"
    assert image.provenance.source.endswith("/ubuntu-24.04-server-cloudimg-amd64.img")
    assert f"its digest was signed by {signer.fingerprint}" in image.provenance.notes


def test_an_index_of_incuss_layout_is_a_catalogue(context, web, qcow2):
    put(web, incus({"20240101_07:42": qcow2}))
    found = market.add(context, web.url(INCUS), kind="simplestreams", publisher="acme")
    assert [offer.urn.base for offer in found] == ["acme:debian-bookworm:cloud"]
    image = references.find(context, "acme:debian-bookworm:cloud")
    assert image.name == "acme:debian-bookworm:cloud:20240101.742.0"


def test_an_index_needs_a_publisher_and_catalogues_name_their_own(context, acme, web, qcow2):
    put(web, incus({"20240101_07:42": qcow2}))
    with pytest.raises(InvalidInput, match="under a publisher") as refusal:
        market.add(context, web.url(INCUS), kind="simplestreams", name="second")
    assert "--publisher" in (refusal.value.hint or "")
    with pytest.raises(InvalidInput, match="names its own"):
        market.add(context, acme.url("/offers.toml"), name="second", publisher="b")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[]", "is no table"),
        (b'{"index": {}}', "is not of the format index:1.0"),
        (index_of("../x"), "path '../x' is refused"),
        (index_of("http://127.0.0.1/x"), "does not allow"),
        (index_of(*"123456789"), "more than 8 files"),
        (index_of(), "no product with the disk of a VM"),
        (b'{"index": {}, "index": {}}', "a key comes twice"),
    ],
)
def test_what_is_no_index(context, web, body, words):
    web.files[INCUS] = File(body)
    with pytest.raises(InvalidInput, match=words):
        market.add(context, web.url(INCUS), kind="simplestreams", publisher="acme")
    with pytest.raises(InvalidInput, match="not the URL of an index"):
        market.add(context, web.url("/x"), kind="simplestreams", publisher="acme")


def test_an_index_that_goes_back_is_refused(context, web, qcow2):
    put(web, ubuntu({"20240126.1": qcow2}, at=BORN + 5000))
    url = web.url(f"{UBUNTU}.json")
    market.add(context, url, kind="simplestreams", publisher="acme")
    known = offers.load(context)
    assert offers.releases(context, known, known.find(Urn.parse("acme:ubuntu-24.04:server")))
    put(web, ubuntu({"20240101": qcow2}, at=BORN + 4000))
    expire(context)
    with pytest.raises(Untrusted, match="older than what was there before"):
        references.find(context, "acme:ubuntu-24.04:server")
    for damaged in ("?", "[]", '{"publisher acme": 7}', '{"publisher acme": {"url": "x"}}'):
        (context.home.market / "seen.json").write_text(damaged)
        assert all("is damaged" in (u.error or "") for u in offers.update(context)[1:])


# -- signatures


@pytest.fixture
def keyring(tmp_path):
    """A key of somebody who signs, and the file that an owner has of it."""
    signer = Signer()
    file = tmp_path / "acme.asc"
    file.write_text(signer.armored)
    return signer, file


@pytest.mark.parametrize("clear", [True, False])
def test_a_catalogue_may_have_to_be_signed(context, web, disk, keyring, clear):
    signer, file = keyring
    url = market.put(web, market.offer(web, disk))
    plain = web.files["/offers.toml"].body
    with pytest.raises(Untrusted):
        market.add(context, url, keyring=file)
    if clear:
        web.files["/offers.toml"].body = Signer().clear(plain)
    else:
        web.files["/offers.toml.asc"] = File(Signer().detached(plain))
    with pytest.raises(Untrusted, match="is signed by the key"):
        market.add(context, url, keyring=file)
    if clear:
        web.files["/offers.toml"].body = signer.clear(plain, at=BORN + 2000)
    else:
        web.files["/offers.toml.asc"] = File(signer.detached(plain, at=BORN + 2000))
    assert len(market.add(context, url, keyring=file)) == 1
    assert references.find(context, "acme:os:small")


def test_a_signed_catalogue_that_goes_back_stays_as_it_was(context, web, disk, keyring, caplog):
    signer, file = keyring
    url = market.put(web, market.offer(web, disk, ("1.0.0", "2.0.0")))
    served = web.files["/offers.toml"]
    served.body = signer.clear(served.body, at=BORN + 2000)
    market.add(context, url, keyring=file)
    market.put(web, market.offer(web, disk, ("1.0.0",)))
    served = web.files["/offers.toml"]
    served.body = signer.clear(served.body, at=BORN + 1000)
    assert ["older than" in (u.error or "") for u in offers.update(context)] == [False, True]
    assert references.find(context, "acme:os:small").name == "acme:os:small:2.0.0"
    assert "catalogue 'acme' is as it was" in caplog.text


def test_nobody_says_how_new_anothers_index_is(context, web):
    """Somebody signs another publisher's checksums as well, and later: they are not too old for that."""
    sums = f"{'0' * 64}  os-1.0.qcow2\n".encode()
    theirs, ours = Signer(), Signer()
    web.files["/SUMS"] = File(sums)
    web.files["/SUMS.asc"] = File(theirs.detached(sums, at=BORN + 1000))
    web.files["/later"] = File(ours.detached(sums, at=BORN + 2000))
    for publisher, signer, signature in (
        ("ours", ours, web.url("/later")),
        ("theirs", theirs, ".asc"),
    ):
        web.files[f"/{publisher}.toml"] = File(
            f"""format = 1
            [keys.{publisher}]
            fingerprint = "{signer.fingerprint}"
            armored = '''{signer.armored}'''
            [[offers]]
            publisher = "{publisher}"
            offer = "os"
            sku = "small"
            title = "A small OS"
            os_type = "Linux"
            [offers.source]
            kind = "checksums"
            url = "{web.url("/SUMS")}"
            name = "os-{{version}}.qcow2"
            versions = "two-numbers"
            signature = "{signature}"
            signed_by = ["{publisher}"]
            """.encode()
        )
        market.add(context, web.url(f"/{publisher}.toml"), name=publisher)
    known = offers.load(context)
    for publisher in ("ours", "theirs", "ours"):
        expire(context)
        assert offers.releases(context, known, known.find(Urn.parse(f"{publisher}:os:small")))


def test_a_keyring_names_its_keys(tmp_path, keyring):
    signer, file = keyring
    second = Signer()
    file.write_text(signer.armored + second.armored)
    found = {key.fingerprint for key in keyrings.keys(file.read_text())}
    assert found == {signer.fingerprint, second.fingerprint}


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_a_keyring_that_is_damaged(length, keyring):
    signer, _ = keyring
    data = binascii.a2b_base64(signer.armored.split("\n\n")[1].partition("\n=")[0])
    with pytest.raises(InvalidInput):
        keyrings.keys(armor("PUBLIC KEY BLOCK", data[:length]))
    with pytest.raises(InvalidInput):
        keyrings.keys(armor("PUBLIC KEY BLOCK", bytes([0x40]) + data))
