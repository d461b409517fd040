"""The repository on every kind of store: what goes in comes out, and nothing else is there."""

import os
import random

import pytest

from calotype.disk.base import Extent
from calotype.errors import NotFound
from calotype.store.location import open_store
from calotype.store.repository import Repository

MIB = 1 << 20


class Bytes:
    """A disk of these bytes."""

    def __init__(self, data):
        self.data = data

    @property
    def size(self):
        return len(self.data)

    def extents(self):
        yield Extent(0, len(self.data), zero=False)

    def read_into(self, offset, buffer):
        buffer[:] = self.data[offset : offset + len(buffer)]

    def close(self):
        pass


def disk(seed, size=3 * MIB):
    return Bytes(random.Random(seed).randbytes(size))


def read(repository, index):
    opened = repository.open(index)
    buffer = bytearray(opened.size)
    opened.read_into(0, memoryview(buffer))
    return bytes(buffer)


def test_what_goes_in_comes_out(store, tmp_path):
    repository = Repository.create(store)
    first = disk(1)
    done = repository.ingest(first)
    assert read(repository, done.index) == first.data
    assert repository.ingest(first).new_chunks == 0
    changed = Bytes(first.data[:MIB] + os.urandom(MIB) + first.data[2 * MIB :])
    other = repository.ingest(changed, base=done.index, changed=[Extent(MIB, MIB, zero=False)])
    again = Repository(store)  # as another process opens it
    assert again.id == repository.id
    assert sorted(again.indexes()) == sorted([done.index, other.index])
    again.materialize(other.index, tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == changed.data
    assert again.check().ok
    again.delete_index(done.index)
    assert list(again.indexes()) == [other.index]
    with pytest.raises(NotFound):
        again.open(done.index)
    assert read(again, other.index) == changed.data
    assert list(again.sweep()) == []
    assert again.check().ok


@pytest.mark.parametrize("kind", ["s3", "azure"])
def test_a_url_opens_a_store(kind, request, tmp_path):
    server = request.getfixturevalue(f"{kind}_server")
    url = server.url("of/tests")
    store = open_store(url, cache=tmp_path / "cache")
    repository = Repository.open_or_create(store)
    done = repository.ingest(disk(2))
    assert {key.partition("/")[0] for key, _ in store.list()} == {
        "config",
        "domains",
        "packs",
        "indexes",
    }
    assert read(Repository(open_store(url)), done.index) == disk(2).data
    assert repository.check().ok
