"""Community between installations: a tree of one home, followed and pulled from by another."""

import random
from contextlib import closing
from dataclasses import replace

import msgspec
import pytest
from blake3 import blake3
from tests.publicly import mirroring
from tests.published import a_definition, a_version, public
from tests.shop import Shop

from calotype import wire
from calotype.catalog import Act
from calotype.config import Home
from calotype.disk.base import read
from calotype.engine.community import community, followed, public_tree, publishing
from calotype.engine.community.publisher import Publisher
from calotype.engine.gallery.lifecycle import turn
from calotype.engine.usable import require_usable
from calotype.errors import (
    CalotypeError,
    Conflict,
    InvalidInput,
    NotAllowed,
    NotFound,
    StoreUnavailable,
    Untrusted,
)
from calotype.model import MIB, Lifecycle, PublicVersion, Shelf, SourceKind, Version
from calotype.public import form
from calotype.store import mirrors

LOOPBACK = ["127.0.0.0/8"]
BODY = random.Random(7).randbytes(3 * MIB)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(mirrors, "PAUSES", (0.01,) * 6)


@pytest.fixture
def publisher(tmp_path):
    context = wire.build(home=Home(tmp_path / "publisher"))
    yield context
    context.close()


@pytest.fixture
def tree(tmp_path):
    return tmp_path / "tree"


@pytest.fixture
def name(publisher, tree):
    """The public name of a gallery with one version, exported to ``tree``."""
    a_definition(publisher)
    a_version(publisher, "1.9.0", content=BODY, data=(BODY[:MIB],))
    found = public(publisher, force=True)
    public_tree.export(publisher, str(tree))
    return found


@pytest.fixture
def mirror(tree, name):
    with mirroring(tree) as server:
        yield server


@pytest.fixture
def follower(tmp_path, mirror):
    context = wire.build(home=Home(tmp_path / "follower"))
    followed.add(context, mirror.url, name="contoso", allow=LOOPBACK)
    yield context
    context.close()


def content(context, index):
    with closing(context.repository.open(index)) as disk:
        return read(disk, 0, disk.size)


def test_what_one_publishes_another_sees_and_pulls(follower, mirror, name):
    mirror.asked.clear()
    (gallery,) = followed.galleries(follower)
    assert gallery.info.public_name == name
    assert gallery.origin == "contoso"
    assert [str(image.latest) for image in gallery.images] == ["1.9.0"]
    assert mirror.asked == []  # seen without the network
    image = community.find(follower, name, "web")
    assert image.name == f"community/{name}/web/1.9.0"
    assert image.shelf is Shelf.COMMUNITY
    assert image.provenance.kind is SourceKind.COMMUNITY
    assert content(follower, image.os_disk.index) == BODY
    assert content(follower, image.data_disks[0].index) == BODY[:MIB]
    assert follower.repository.root(image.os_disk.index).domain == "community"
    assert follower.repository.check().ok
    mirror.asked.clear()
    again = followed.bring(follower, name, "web", Version(1, 9, 0))
    assert again.existed
    assert again.image == image
    assert mirror.asked == []


def test_what_is_kept_of_packs_that_are_no_more_goes(follower, name):
    stray = follower.home.community / "contoso" / "footers" / ("0" * 64)
    stray.parent.mkdir()
    stray.write_bytes(b"a footer")
    community.find(follower, name, "web")
    assert not stray.exists()
    assert any(stray.parent.iterdir())


def new_home(tmp_path, label):
    return wire.build(home=Home(tmp_path / label))


def sizes(tree):
    return sum(path.stat().st_size for path in (tree / "packs").iterdir())


def test_only_the_difference_moves(follower, publisher, mirror, name, tree):
    community.find(follower, name, "web")
    before = sizes(tree)
    newer = BODY[: 2 * MIB] + random.Random(8).randbytes(MIB // 2) + BODY[2 * MIB + MIB // 2 :]
    a_version(publisher, "1.10.0", content=newer)
    done = public_tree.export(publisher, str(tree))
    assert done.read == len(newer)  # the rest was not read again
    followed.update(follower, "contoso")
    mirror.sent = 0
    pulled = followed.bring(follower, name, "web")
    assert pulled.image.name.endswith("/1.10.0")
    assert content(follower, pulled.image.os_disk.index) == newer
    added = sizes(tree) - before
    assert added < 0.6 * MIB
    assert pulled.moved <= 1.05 * added
    assert pulled.moved + pulled.known >= len(newer)
    assert pulled.known >= 2 * MIB
    again = public_tree.export(publisher, str(tree))
    assert (again.read, again.stored) == (0, 0)


@pytest.fixture
def large(publisher, tree, name):
    """A version of 24 MiB."""
    body = random.Random(9).randbytes(24 * MIB)
    a_version(publisher, "2.0.0", content=body)
    public_tree.export(publisher, str(tree))
    return body


def test_three_mirrors_of_which_one_lies(tmp_path, tree, name, large):
    def lie(path, start, data):
        if not path.startswith("packs/") or start < 4 * MIB or len(data) < 1000:
            return data
        return data[:500] + bytes([data[500] ^ 1]) + data[501:]

    with mirroring(tree) as one, mirroring(tree) as liar, mirroring(tree) as three:
        context = new_home(tmp_path, "other")
        followed.add(context, one.url, mirrors=[liar.url, three.url], name="c", allow=LOOPBACK)
        liar.faults.lie = lie
        for server in (one, liar, three):
            server.sent = 0
        pulled = followed.bring(context, name, "web", Version(2, 0, 0))
        assert content(context, pulled.image.os_disk.index) == large
        uses = {use.name: use for use in pulled.mirrors}
        assert uses[liar.url].lied
        assert "does not match the signed list" in str(uses[liar.url].problem)
        assert any(liar.url in warning for warning in pulled.warnings)
        assert not uses[one.url].lied
        assert not uses[three.url].lied
        assert uses[one.url].bytes > MIB
        assert uses[three.url].bytes > MIB
        total = one.sent + liar.sent + three.sent
        assert total <= 1.05 * len(large) + 4 * MIB  # what the liar had on its way
        asked = len([path for path in liar.asked if path.startswith("packs/")])
        followed.update(context, "c")
        assert len([path for path in liar.asked if path.startswith("packs/")]) == asked
        context.close()


def test_a_server_that_breaks_off_and_comes_back(tmp_path, tree, name, large):
    with mirroring(tree) as server:
        context = new_home(tmp_path, "other")
        followed.add(context, server.url, name="c", allow=LOOPBACK)
        server.sent = 0
        for share in (0.3, 0.7):
            server.faults.cut = int(share * len(large))
            with pytest.raises(StoreUnavailable, match="no mirror delivers"):
                followed.bring(context, name, "web", Version(2, 0, 0))
            assert context.system.find_on(Shelf.COMMUNITY, f"community/{name}/web/2.0.0") is None
        server.faults.cut = None
        pulled = followed.bring(context, name, "web", Version(2, 0, 0))
        assert content(context, pulled.image.os_disk.index) == large
        assert pulled.resumed > 0.6 * len(large)
        assert server.sent <= 1.05 * len(large)
        context.close()


def test_all_mirrors_dead(follower, mirror, name):
    mirror.faults.status = 503
    with pytest.raises(StoreUnavailable, match="503") as caught:
        community.find(follower, name, "web")
    assert caught.value.hint
    assert [g.info.public_name for g in followed.galleries(follower)] == [name]


def test_a_root_that_was_pinned(tmp_path, mirror, publisher):
    context = new_home(tmp_path, "other")
    right = Publisher(publisher.home).fingerprint
    with pytest.raises(Untrusted, match=right):
        followed.add(context, mirror.url, fingerprint="0" * 64, allow=LOOPBACK)
    assert followed.followed(context) == []
    with pytest.raises(InvalidInput, match="64 hex"):
        followed.add(context, mirror.url, fingerprint="zz", allow=LOOPBACK)
    spelled = ":".join(right[i : i + 2] for i in range(0, 64, 2)).upper()
    done = followed.add(context, mirror.url, fingerprint=spelled, allow=LOOPBACK)
    assert done.name == "127.0.0.1"
    assert done.fingerprint == right
    with pytest.raises(Conflict, match="followed already"):
        followed.add(context, mirror.url, allow=LOOPBACK)
    followed.remove(context, "127.0.0.1")
    assert followed.galleries(context) == []
    with pytest.raises(NotFound):
        followed.update(context, "127.0.0.1")
    context.close()


def test_addresses_inside_are_not_reached(tmp_path, mirror):
    context = new_home(tmp_path, "other")
    with pytest.raises(InvalidInput, match="not public") as caught:
        followed.add(context, mirror.url)
    assert "--allow-address" in str(caught.value.hint)
    context.close()


def test_an_address_without_a_tree(tmp_path, mirror):
    context = new_home(tmp_path, "other")
    with pytest.raises(StoreUnavailable, match="no public tree"):
        followed.add(context, mirror.url + "packs", allow=LOOPBACK)
    context.close()


def test_another_publisher_with_the_same_public_name(tmp_path, follower, name):
    """The first one who was followed under a name has it; who comes later pretends."""
    thief = new_home(tmp_path, "thief")
    a_definition(thief)
    a_version(thief, "9.0.0", content=BODY[::-1])
    public(thief, force=True)
    (gallery,) = thief.catalog.galleries.list()
    stolen = replace(gallery.community, public_name=name.upper())
    act = Act("gallery.publish", "gallery gal", {})
    thief.catalog.galleries.update(replace(gallery, community=stolen), act)
    public_tree.export(thief, str(tmp_path / "evil"))
    with mirroring(tmp_path / "evil") as server:
        with pytest.raises(Untrusted, match="another publisher"):
            followed.add(follower, server.url, name="thief", allow=LOOPBACK)
        assert [f.name for f in followed.followed(follower)] == ["contoso"]
        assert not (follower.home.root / "community" / "thief").exists()
        # Who was followed before it took the name shows all but that.
        thief.catalog.galleries.update(gallery, act)
        public_tree.export(thief, str(tmp_path / "evil"))
        followed.add(follower, server.url, name="thief", allow=LOOPBACK)
        thief.catalog.galleries.update(replace(gallery, community=stolen), act)
        public_tree.export(thief, str(tmp_path / "evil"))
        seen = followed.update(follower, "thief")
        assert list(seen.refused) == [name.upper()]
        assert seen.galleries == ()
    assert community.find(follower, name, "web").name == f"community/{name}/web/1.9.0"
    thief.close()


def test_a_name_in_another_case_hides_nothing(tmp_path, follower, name, tree):
    """The list of the thief has the gallery twice, and asks for the first under a name that nobody has."""
    with mirroring(tmp_path / "evil") as server:
        shop = Shop(server.root)
        shop.publish({"packs.json": b"{}"})
        followed.add(follower, server.url, name="a-thief", allow=LOOPBACK)
        (path,) = (tree / "targets/galleries").iterdir()
        target = form.target_of_gallery(name)
        data = path.read_bytes()
        upper = target.replace(name.lower(), name.upper())
        shop.publish({"packs.json": b"{}", target: data, upper: data}, number=2)
        seen = followed.update(follower, "a-thief")
    assert seen.galleries == ()
    assert list(seen.refused) == [name]


def test_a_public_name_stays_its_publishers_when_it_is_withdrawn(
    tmp_path, follower, publisher, tree, name
):
    (path,) = (tree / "targets/galleries").iterdir()
    stolen = {form.target_of_gallery(name): path.read_bytes(), "packs.json": b"{}"}
    publishing.withdraw(publisher, "gal")
    public_tree.export(publisher, str(tree))
    followed.update(follower, "contoso")
    with mirroring(tmp_path / "evil") as server:
        Shop(server.root).publish(stolen)
        with pytest.raises(Untrusted, match="that of 'contoso'"):
            followed.add(follower, server.url, name="thief", allow=LOOPBACK)


def test_an_address_that_gives_no_name(follower, monkeypatch):
    """What has no name of its own has not the place of all others either."""
    monkeypatch.setattr(followed, "_first_root", lambda *_: pytest.fail("it was asked"))
    with pytest.raises(InvalidInput, match="cannot be the name"):
        followed.add(follower, "https://例.例/")
    assert (follower.home.community / "contoso").is_dir()


@pytest.mark.parametrize("strange", ["a/b", "../contoso", ""])
def test_a_name_that_nobody_has(follower, strange):
    for act in (followed.update, followed.remove):
        with pytest.raises(NotFound, match="no followed installation"):
            act(follower, strange)


def test_more_galleries_than_anybody_reads(tmp_path, follower, monkeypatch):
    """What is signed could fill every disk; nothing of it is asked for."""
    monkeypatch.setattr(followed, "_MAX_GALLERIES", 100)
    with mirroring(tmp_path / "evil") as server:
        many = {f"galleries/g{n}.json": b"x" * 30 for n in range(4)}
        Shop(server.root).publish({"packs.json": b"{}"} | many)
        with pytest.raises(Untrusted, match="more than 100 bytes"):
            followed.add(follower, server.url, name="many", allow=LOOPBACK)
        assert not [path for path in server.asked if "galleries" in path]


@pytest.mark.parametrize("config", ["[" * 4000, '{"chunking":{"region":Infinity}}', "{}", ""])
def test_a_config_that_is_none(follower, publisher, tree, name, monkeypatch, config):
    real = public_tree._Tree._packs
    sealed = f"{config}\n{blake3(config.encode()).hexdigest()}\n"

    def other(self, *arguments):
        return msgspec.structs.replace(real(self, *arguments), config=sealed)

    monkeypatch.setattr(public_tree._Tree, "_packs", other)
    public_tree.export(publisher, str(tree))
    with pytest.raises(CalotypeError):
        community.find(follower, name, "web")


def test_a_tree_that_is_cut_otherwise(follower, publisher, tree, name, monkeypatch):
    real = public_tree._Tree._packs

    def other(self, *arguments):
        found = real(self, *arguments)
        config = found.config.partition("\n")[0].replace('"grid":65536', '"grid":4096')
        sealed = f"{config}\n{blake3(config.encode()).hexdigest()}\n"
        assert sealed != found.config
        return msgspec.structs.replace(found, config=sealed)

    monkeypatch.setattr(public_tree._Tree, "_packs", other)
    public_tree.export(publisher, str(tree))
    with pytest.raises(Untrusted, match="is cut otherwise"):
        community.find(follower, name, "web")


def test_a_name_of_ones_own_gallery_is_not_taken(tmp_path, publisher, name, mirror):
    """A tree that shows galleries under the names of this installation's own."""
    with pytest.raises(Untrusted, match="this installation's"):
        followed.add(publisher, mirror.url, name="self", allow=LOOPBACK)


def test_revocation_travels(follower, publisher, tree, name):
    image = community.find(follower, name, "web")
    a_definition(follower)
    heir = a_version(follower, source=image.name).image
    for one in (image, heir):
        require_usable(follower, one)
    turn(publisher, "gal/web/1.9.0", Lifecycle.REVOKED, reason="its kernel has a hole")
    public_tree.export(publisher, str(tree))
    followed.update(follower, "contoso")
    with pytest.raises(NotAllowed, match="was revoked: its kernel has a hole"):
        require_usable(follower, image)
    with pytest.raises(NotAllowed, match=f"descends from '{image.name}'.*its kernel has a hole"):
        require_usable(follower, heir)
    turn(publisher, "gal/web/1.9.0", Lifecycle.ACTIVE)
    public_tree.export(publisher, str(tree))
    followed.update(follower, "contoso")
    for one in (image, heir):
        require_usable(follower, one)


def test_a_revocation_travels_to_what_was_made_of_the_version(
    tmp_path, follower, publisher, mirror, tree, name
):
    a_version(publisher, "2.0.0", source="gal/web/1.9.0")
    public_tree.export(publisher, str(tree))
    followed.update(follower, "contoso")
    image = community.find(follower, name, "web", Version(2, 0, 0))
    require_usable(follower, image)
    turn(publisher, "gal/web/1.9.0", Lifecycle.REVOKED, reason="its kernel has a hole")
    with pytest.raises(NotFound):
        community.find(publisher, name, "web", Version(2, 0, 0))
    public_tree.export(publisher, str(tree))
    followed.update(follower, "contoso")
    with pytest.raises(NotAllowed, match="what it was made of was revoked"):
        require_usable(follower, image)
    other = new_home(tmp_path, "other")
    followed.add(other, mirror.url, name="c", allow=LOOPBACK)
    with pytest.raises(NotAllowed, match="revoked"):
        community.find(other, name, "web", Version(2, 0, 0))
    other.close()


def test_a_long_lineage_is_told_as_far_as_a_tree_can(monkeypatch, follower, publisher, tree, name):
    monkeypatch.setattr(form, "ANCESTORS", 2)
    for number in range(3):
        source = f"gal/web/{f'2.0.{number - 1}' if number else '1.9.0'}"
        a_version(publisher, f"2.0.{number}", source=source)
    public_tree.export(publisher, str(tree))
    followed.update(follower, "contoso")
    shown = community.show(follower, f"community/{name}/web/2.0.2")
    assert isinstance(shown, PublicVersion)
    assert [r.rsplit("/", 1)[1] for r in shown.descends_from] == ["2.0.1", "2.0.0"]


def test_what_is_obsolete_makes_no_vms_and_is_not_pulled(tmp_path, follower, publisher, tree, name):
    image = community.find(follower, name, "web")
    a_version(publisher, "1.10.0", content=BODY[MIB:])
    turn(publisher, "gal/web/1.9.0", Lifecycle.DEPRECATED, replacement="gal/web/1.10.0")
    public_tree.export(publisher, str(tree))
    followed.update(follower, "contoso")
    (warning,) = require_usable(follower, image)
    assert f"community/{name}/web/1.10.0" in warning
    turn(publisher, "gal/web/1.9.0", Lifecycle.OBSOLETE, replacement="gal/web/1.10.0")
    public_tree.export(publisher, str(tree))
    followed.update(follower, "contoso")
    with pytest.raises(NotAllowed, match="obsolete") as caught:
        require_usable(follower, image)
    assert f"community/{name}/web/1.10.0" in str(caught.value.hint)
    with mirroring(tree) as server:
        other = new_home(tmp_path, "other")
        followed.add(other, server.url, name="c", allow=LOOPBACK)
        with pytest.raises(NotAllowed, match="obsolete"):
            community.find(other, name, "web", Version(1, 9, 0))
        assert community.find(other, name, "web").name.endswith("1.10.0")
        other.close()


def test_a_version_that_was_withdrawn_is_not_seen(follower, publisher, tree, name):
    publishing.withdraw(publisher, "gal")
    public_tree.export(publisher, str(tree))
    followed.update(follower, "contoso")
    assert followed.galleries(follower) == []
    with pytest.raises(NotFound):
        community.find(follower, name, "web")


def test_a_gallery_that_names_a_disk_that_is_not_listed(
    follower, publisher, tree, name, monkeypatch
):
    """Extraneous dependencies: what the signed list of objects does not have is not asked for."""
    real = public_tree._Tree._packs

    def without(self, *arguments):
        return msgspec.structs.replace(real(self, *arguments), indexes={})

    monkeypatch.setattr(public_tree._Tree, "_packs", without)
    public_tree.export(publisher, str(tree))
    with pytest.raises(Untrusted, match="the signed list of objects does not have"):
        community.find(follower, name, "web")


def test_a_publisher_whose_tree_is_broken(follower, publisher, tree, name, monkeypatch):
    """Everything is signed rightly, and a disk is not the size that it is said to be."""
    real = public_tree._Tree._disks

    def larger(self, *arguments):
        return tuple(msgspec.structs.replace(d, size=d.size + 1) for d in real(self, *arguments))

    monkeypatch.setattr(public_tree._Tree, "_disks", larger)
    public_tree.export(publisher, str(tree))
    with pytest.raises(Untrusted, match="another size"):
        community.find(follower, name, "web")
    assert follower.system.find_on(Shelf.COMMUNITY, f"community/{name}/web/1.9.0") is None
