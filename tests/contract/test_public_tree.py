"""A public tree in a bucket: exported there, renewed, pruned, and followed from a copy of it."""

import os
from contextlib import closing
from datetime import timedelta

import pytest
from tests.publicly import mirroring
from tests.published import a_definition, a_version, public
from tests.servers.run import fresh

from calotype import wire
from calotype.config import Home
from calotype.disk.base import read
from calotype.engine.community import followed, public_tree
from calotype.model import MIB
from calotype.store.location import open_store


@pytest.mark.parametrize("kind", ["s3", "azure"])
def test_a_tree_in_a_bucket(kind, request, tmp_path):
    url = request.getfixturevalue(f"{kind}_server").url(fresh())
    publisher = wire.build(home=Home(tmp_path / "publisher"))
    a_definition(publisher)
    first, second = os.urandom(MIB), os.urandom(MIB)
    a_version(publisher, "1.0.0", content=first)
    name = public(publisher, force=True)
    public_tree.export(publisher, url)
    a_version(publisher, "1.1.0", content=second)
    done = public_tree.export(publisher, url, grace=timedelta(0))
    assert done.read == MIB
    assert done.removed > 0
    public_tree.refresh(publisher, url)
    publisher.close()
    with closing(open_store(url)) as objects:
        for stored in objects.list():
            path = tmp_path / "copy" / stored.key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(objects.get(stored.key))
    with mirroring(tmp_path / "copy") as server:
        home = wire.build(home=Home(tmp_path / "home"))
        followed.add(home, server.url, name="c", allow=["127.0.0.0/8"])
        image = followed.pull(home, name, "web")
        with closing(home.repository.open(image.os_disk.index)) as disk:
            assert read(disk, 0, disk.size) == second
        home.close()
