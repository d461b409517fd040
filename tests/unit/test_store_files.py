"""What holds for every file map: the fuzzers' corpus, hostile disks, cuts, and what is stored."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.disks import BytesDisk
from tests.fuzz import corpus, targets
from tests.fuzz.hostile import DISKS
from tests.fuzz.sparse import SparseDisk

from calotype.disk.base import read
from calotype.errors import InvalidInput
from calotype.store import MemoryStore, Repository
from calotype.store.chunking import Chunking, Cutter
from calotype.store.parameters import CONFIG, unseal
from calotype.store.source import Source, data_runs

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


@pytest.mark.parametrize("target", targets.TARGETS)
def test_the_fuzzers_corpus(target):
    """Each input that a fuzzer started from, or once broke something with."""
    count = 0
    for name, data in corpus.inputs(target):
        try:
            targets.one(targets.TARGETS[target], data)
        except AssertionError as error:
            raise AssertionError(f"{target}: {name}") from error
        count += 1
    assert count >= 3


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(targets.TARGETS)), st.data())
def test_garbled_metadata_gives_a_sane_map_or_none(target, draw):
    seeds = [data for _name, data in corpus.inputs(target)]
    data = bytearray(draw.draw(st.sampled_from(seeds)))
    for _ in range(draw.draw(st.integers(1, 12))):
        at = draw.draw(st.integers(4, max(4, len(data) - 1)))
        patch = draw.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8]))
        data[at : at + len(patch)] = patch
    targets.one(targets.TARGETS[target], bytes(data))


@pytest.mark.parametrize("name", DISKS)
def test_a_hostile_disk_costs_little(name):
    """Disks of a TiB that are all metadata, in a process of its own: what it costs at the most."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.hostile", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    cost = json.loads(done.stdout)
    assert cost["MiB"] < 300
    assert cost["seconds"] < 30  # of processor time
    assert cost["read"] <= 2 << 30


def described(seed: bytes) -> bytes:
    """The whole disk that a fuzzer's input describes."""
    disk = SparseDisk(seed)
    return disk.read(0, disk.size)


@pytest.fixture(scope="module")
def disks() -> list[bytes]:
    """Small disks of each kind; what no reader reads is noise here and there."""
    found = []
    for target in ("ext4", "ntfs", "volumes"):
        for _name, seed in corpus.inputs(target):
            disk = SparseDisk(seed)
            if disk.size <= 16 * MIB:
                found.append(described(seed))
    assert len(found) > 8
    return found


def test_cuts_are_sorted_inside_and_the_same_for_the_same_bytes(disks):
    chunking = Chunking(region=MIB)
    for data in disks:
        source = Source(BytesDisk(data), data_runs(BytesDisk(data)))
        one, other = Cutter(source, chunking), Cutter(source, chunking)
        for start in range(0, len(data), MIB):
            end = min(start + MIB, len(data))
            done = start
            for piece, again in zip(one.pieces(start, end), other.pieces(start, end), strict=True):
                assert piece.start == done
                done = piece.end
                assert (piece.cuts is None) == (again.cuts is None)
                if piece.cuts is not None and again.cuts is not None:
                    assert np.array_equal(piece.cuts, again.cuts)
                    assert (piece.cuts[0], piece.cuts[-1]) == (piece.start, piece.end)
                    assert (np.diff(piece.cuts) > 0).all()
                    assert (np.diff(piece.cuts) <= chunking.file).all()
            assert done == end


def test_each_disk_reads_back(disks):
    """Ingest and open are inverse to each other, whatever the map says."""
    repository = Repository.create(MemoryStore(), chunking=Chunking(region=MIB))
    rng = random.Random(1)
    for data in disks:
        broken = bytearray(data)
        for _ in range(30 if len(data) > 4096 else 0):
            at = rng.randrange(1 << rng.randrange(9, len(data).bit_length() - 1))
            broken[at : at + 8] = rng.randbytes(8)
        for content in (data, bytes(broken)):
            disk = repository.open(repository.ingest(BytesDisk(content)).index)
            assert read(disk, 0, disk.size) == content


def test_a_repository_of_chunking_version_1_is_read_and_written(disks):
    objects = MemoryStore()
    Repository.create(objects, chunking=Chunking(version=1, region=MIB))
    assert unseal(CONFIG, objects.get(CONFIG))["chunking"]["version"] == 1
    old = Repository(objects)
    new = Repository.create(MemoryStore(), chunking=Chunking(region=MIB))
    for data in disks[:3]:
        disk = old.open(old.ingest(BytesDisk(data)).index)
        assert read(disk, 0, disk.size) == data
        # Both cut in the newest way.
        assert old.ingest(BytesDisk(data)).chunks == new.ingest(BytesDisk(data)).chunks


def test_a_chunking_of_another_version_is_refused():
    with pytest.raises(InvalidInput):
        Repository.create(MemoryStore(), chunking=Chunking(version=3))
