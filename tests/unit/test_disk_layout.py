"""The law of maps: a mapped disk reads as the pieces that were put into it, whatever their order on file."""

import os
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calotype.disk import Kind, Layout, MappedDisk, Window, read
from calotype.disk.layout import Mapper
from calotype.errors import DiskRefused

UNIT = 512


class Backing:
    """A disk beneath an overlay, shorter than it."""

    size = 3 * UNIT + 7

    def __init__(self) -> None:
        self.content = bytes(range(1, 256)) * 7

    def extents(self):
        raise AssertionError("not asked")

    def read_into(self, offset, buffer):
        buffer[:] = self.content[offset : offset + len(buffer)]

    def close(self):
        """Nothing to close."""


def window(content: bytes) -> Window:
    fd = os.memfd_create("disk")
    os.pwrite(fd, content, 0)
    try:
        return Window.open(fd)
    finally:
        os.close(fd)


@st.composite
def maps(draw):
    """Per unit of a disk: absent, zero, or the number of a unit of the file."""
    count = draw(st.integers(1, 24))
    places = draw(st.permutations(range(count)))
    kinds = draw(st.lists(st.sampled_from("-0d"), min_size=count, max_size=count))
    cut = draw(st.integers(0, UNIT - 1))
    return [(kind, place) for kind, place in zip(kinds, places, strict=True)], cut


@settings(deadline=None)
@given(maps(), st.booleans(), st.data())
def test_reads_as_its_pieces(given_map, overlay, data):
    units, cut = given_map
    size = len(units) * UNIT - cut
    content = np.random.default_rng(1).integers(1, 256, len(units) * UNIT, np.uint8).tobytes()
    backing = Backing() if overlay else None
    beneath = backing.content[: backing.size].ljust(size, b"\0") if backing else bytes(size)
    expected = bytearray(beneath[:size].ljust(len(units) * UNIT, b"\0"))
    mapper = Mapper(size, gap=Kind.BACKING if overlay else Kind.ZERO)
    for number, (kind, place) in enumerate(units):
        part = slice(number * UNIT, (number + 1) * UNIT)
        if kind == "-":
            continue
        expected[part] = content[place * UNIT : (place + 1) * UNIT] if kind == "d" else bytes(UNIT)
        mapper.add(
            np.array([number * UNIT]),
            UNIT,
            Kind.DATA if kind == "d" else Kind.ZERO,
            np.array([place * UNIT if kind == "d" else 0]),
        )
    runs = mapper.runs(len(content))
    layout = Layout(format="raw", variant="test", size=size, runs=runs)
    with MappedDisk(layout, window(content), backing=backing) as disk:
        assert read(disk, 0, size) == expected[:size]
        begin = data.draw(st.integers(0, size))
        end = data.draw(st.integers(begin, size))
        assert read(disk, begin, end - begin) == expected[begin:end]
        extents = list(disk.extents())
    assert [e.offset for e in extents] == [0, *(e.end for e in extents[:-1])]
    assert extents[-1].end == size
    assert all(a.zero != b.zero for a, b in pairwise(extents))
    assert not any(any(expected[e.offset : e.end]) for e in extents if e.zero)
    # Runs cover the disk, sorted, and no two neighbours could be one.
    assert runs["offset"][0] == 0
    assert np.array_equal(runs["offset"][1:], (runs["offset"] + runs["length"])[:-1])
    same = runs["kind"][1:] == runs["kind"][:-1]
    joined = runs["start"][1:] == (runs["start"] + runs["length"])[:-1]
    assert not np.any(same & (joined | (runs["kind"][1:] != Kind.DATA)))


def test_shared_bytes_are_refused():
    mapper = Mapper(4096)
    mapper.add(np.array([0, 1024]), 512, Kind.DATA, np.array([0, 256]))
    with pytest.raises(DiskRefused, match="same bytes"):
        mapper.runs(4096)


def test_data_outside_the_file_is_refused():
    mapper = Mapper(4096)
    mapper.add(np.array([0]), 512, Kind.DATA, np.array([4096]))
    with pytest.raises(DiskRefused, match="outside the file"):
        mapper.runs(4096, overhang=511)


def test_the_last_cluster_may_hang_over_and_reads_as_zeros():
    mapper = Mapper(1024)
    mapper.add(np.array([0]), 1024, Kind.DATA, np.array([0]))
    layout = Layout(format="raw", variant="test", size=1024, runs=mapper.runs(600, overhang=1023))
    with MappedDisk(layout, window(b"x" * 600)) as disk:
        assert read(disk, 0, 1024) == b"x" * 600 + bytes(424)


def test_too_many_pieces_are_refused(monkeypatch):
    monkeypatch.setattr("calotype.disk.layout.MAX_RUNS", 3)
    mapper = Mapper(1 << 20)
    with pytest.raises(DiskRefused, match="more than 3 pieces"):
        mapper.add(np.arange(4) * 1024, 512, Kind.DATA, np.arange(4) * 2048)


def test_reading_outside_the_disk_is_an_error_of_the_caller():
    mapper = Mapper(512)
    layout = Layout(format="raw", variant="test", size=512, runs=mapper.runs(0))
    with (
        MappedDisk(layout, window(b"")) as disk,
        pytest.raises(ValueError, match="of a disk of 512"),
    ):
        read(disk, 1, 512)


def test_a_file_cut_short_meanwhile_is_noticed(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 4096)
    with Window.open(path) as opened:
        os.truncate(path, 100)
        with pytest.raises(DiskRefused, match="became shorter"):
            opened.read(0, 4096)
