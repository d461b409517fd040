"""Community between installations: a tree of one home, followed and pulled from by another."""

import random
from contextlib import closing

import pytest
from tests.publicly import mirroring
from tests.published import a_definition, a_version, public

from calotype import wire
from calotype.config import Home
from calotype.disk.base import read
from calotype.engine import community, followed, public_tree
from calotype.model import MIB, Shelf, SourceKind, Version

LOOPBACK = ["127.0.0.0/8"]
BODY = random.Random(7).randbytes(3 * MIB)


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
