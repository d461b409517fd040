"""The Index of given bytes is the same for ever: ids that were written down."""

import random

import pytest
from tests.disks import BytesDisk

from calotype.disk.base import Extent
from calotype.store import MemoryStore, Repository
from calotype.store.chunking import Chunking
from calotype.store.digest import Domain

MIB = 1 << 20


def content() -> bytes:
    """Data that compresses and data that does not, repeated at odd places, between zeros."""
    generator = random.Random(2024)
    noise = generator.randbytes(3 * MIB)
    words = b" ".join(
        generator.choice((b"pack", b"chunk", b"leaf", b"root")) for _ in range(400_000)
    )
    data = bytearray(12 * MIB + 512)
    data[5000 : 5000 + len(noise)] = noise
    data[4 * MIB + 77 : 4 * MIB + 77 + len(words)] = words
    data[8 * MIB + 4096 : 8 * MIB + 4096 + len(noise)] = noise
    data[-512:] = noise[:512]
    return bytes(data)


@pytest.fixture
def repository():
    """One whose domain has a known key."""
    domain = Domain("default", bytes([0x5C]) * 32)
    return Repository.create(MemoryStore(), chunking=Chunking(region=4 * MIB), domain=domain)


def test_a_disk(repository):
    assert repository.ingest(BytesDisk(content())).index == (
        "bab785d98f9dc31189bbcaaaeb26aef0c6556d0c82fd02895766a740e620e17e"
    )


def test_a_capture(repository):
    base = repository.ingest(BytesDisk(content())).index
    changed = bytearray(content())
    changed[MIB + 300 : MIB + 70_000] = content()[4 * MIB : 4 * MIB + 69_700]
    changed[9 * MIB : 9 * MIB + 100_000] = bytes(100_000)
    extents = [Extent(MIB, 80_000, zero=False), Extent(9 * MIB, 100_000, zero=False)]
    taken = repository.ingest(BytesDisk(bytes(changed)), base=base, changed=extents)
    assert taken.index == ("f013ca31b206d63a026d7358155b62f3bbf3c12c39bd20a12fc5eec4c23e2d5c")
