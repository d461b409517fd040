"""The digest of a disk is that of its raw file, whatever it is stored in and wherever it has holes."""

import hashlib
import subprocess

from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from tests.disks import BytesDisk

from calotype.disk import content as module
from calotype.disk import open_image
from calotype.disk.base import Extent
from calotype.disk.content import BLAKE3, SHA256, content_digests, digest_kinds, is_zero
from calotype.model import GIB, MIB


class Sparse(BytesDisk):
    """A disk that says where its holes are."""

    def __init__(self, data, runs):
        super().__init__(data)
        self.runs = runs

    def extents(self):
        yield from self.runs


def sparse(parts):
    """A disk of (length, byte) parts; byte 0 parts are holes, and nobody may read only them."""
    data, runs = b"", []
    for length, byte in parts:
        runs.append(Extent(len(data), length, zero=byte == 0))
        data += bytes([byte]) * length
    return Sparse(data, runs)


@given(
    parts=st.lists(
        st.tuples(st.integers(1, 300), st.sampled_from([0, 0, 1, 7])), min_size=1, max_size=12
    ),
    block=st.sampled_from([16, 64, 100]),
    cut=st.integers(0, 40),
)
def test_digests_are_those_of_the_raw_bytes(parts, block, cut):
    disk = sparse(parts)
    size = max(disk.size - cut, 0)
    old = module._BLOCK
    module._BLOCK = block
    try:
        found = content_digests(disk, size=size)
    finally:
        module._BLOCK = old
    assert found == {
        SHA256: hashlib.sha256(disk.data[:size]).hexdigest(),
        BLAKE3: blake3(disk.data[:size]).hexdigest(),
    }


def test_holes_are_not_read():
    disk = sparse([(8 * MIB, 0), (4 * MIB, 3), (4 * MIB, 0)])
    read, plain = [], disk.read_into

    def noted(offset, buffer):
        read.append(offset)
        plain(offset, buffer)

    disk.read_into = noted
    content_digests(disk)
    assert read == [8 * MIB]


def test_a_large_disk_has_no_sha256():
    assert digest_kinds(16 * GIB) == {SHA256, BLAKE3}
    assert digest_kinds(16 * GIB + 1) == {BLAKE3}
    assert set(content_digests(sparse([(10, 1)]), kinds=frozenset({BLAKE3}))) == {BLAKE3}


def test_whether_the_rest_is_zero():
    disk = sparse([(5 * MIB, 1), (5 * MIB, 0)])
    assert is_zero(disk, 5 * MIB, 10 * MIB)
    assert not is_zero(disk, 5 * MIB - 1, 10 * MIB)


def test_every_format_has_the_digest_of_its_raw_file(tmp_path):
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(MIB) + b"x" * 70_000 + bytes(2 * MIB - 70_000))
    wanted = hashlib.sha256(raw.read_bytes()).hexdigest()
    for kind in ("qcow2", "vmdk", "vhdx"):
        path = tmp_path / f"disk.{kind}"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, raw, path], check=True)
        with open_image(path, second_opinion=False) as image:
            assert content_digests(image.disk)[SHA256] == wanted
