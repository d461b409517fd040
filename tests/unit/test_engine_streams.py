"""Uploads that are streams: URLs and standard input, plain and packed; nothing whole is kept of them."""

import functools
import gzip
import hashlib
import io
import lzma
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard
from tests.unit.web import File, serving

from calotype import wire
from calotype.config import Home
from calotype.disk import draft
from calotype.disk.base import read
from calotype.engine.base import fetch
from calotype.engine.base.fetch import Remote
from calotype.engine.generalize import remote
from calotype.engine.generalize.remote import BLOCK, RemoteFile
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.sources import Upload
from calotype.errors import Conflict, DiskRefused, InvalidInput, ToolFailed
from calotype.model import MIB, OsState, SourceKind
from calotype.store.taking import Taking

LOOPBACK = ("127.0.0.0/8",)


class Watched:
    """A progress that remembers; bytes may only go up, and never beyond the total."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int | None, int]] = []
        self._lock = threading.Lock()

    @contextmanager
    def phase(self, label: str, total: int | None = None, *, unit: str = "B") -> Iterator[object]:
        del unit
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            assert count >= 0
            done += count
            assert total is None or done <= total

        yield advance
        self.phases.append((label, total, done))


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A disk with a file system, data behind it, and much that is zero."""
    room = tmp_path_factory.mktemp("disk")
    (room / "tree").mkdir()
    for number in range(5):
        data = random.Random(number).randbytes(900_000 + number)
        (room / "tree" / str(number)).write_bytes(data)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", room / "tree", room / "raw", "24M"], check=True
    )
    return (room / "raw").read_bytes() + bytes(8 * MIB) + random.Random(99).randbytes(3 * MIB)


@pytest.fixture(scope="module")
def qcow2(disk, tmp_path_factory):
    room = tmp_path_factory.mktemp("qcow2")
    (room / "raw").write_bytes(disk)
    command = ["qemu-img", "convert", "-c", "-O", "qcow2", room / "raw", room / "qcow2"]
    subprocess.run(command, check=True)
    return (room / "qcow2").read_bytes()


@pytest.fixture
def progress() -> Watched:
    return Watched()


@pytest.fixture
def context(tmp_path, progress):
    context = wire.build(home=Home(tmp_path / "home"), progress=progress)
    yield context
    context.close()


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(fetch, "_PAUSES", (0, 0, 0))
    with serving() as web:
        yield web


@pytest.fixture
def written(monkeypatch):
    """The lengths of what is written to scratch files."""
    lengths: list[int] = []
    plain = draft._write_all

    def counted(fd: int, data: memoryview, offset: int) -> None:
        lengths.append(len(data))
        plain(fd, data, offset)

    monkeypatch.setattr(draft, "_write_all", counted)
    return lengths


def take(context, location, name="img", **upload):
    request = ImageRequest(name=name, os_state=OsState.SPECIALIZED)
    source = Upload(location=location, allow_addresses=LOOPBACK, **upload)
    return import_image(context, request, source, {}).image


def from_file(context, tmp_path, data):
    (tmp_path / "file.raw").write_bytes(data)
    return take(context, str(tmp_path / "file.raw"), "from-file").os_disk.index


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def nothing_left(context):
    assert [p for p in context.home.tmp.iterdir() if not p.name.endswith(".lock")] == []


PACKINGS = ("gz", "xz", "zst", "gz in two")


@functools.cache
def packed(data: bytes, packing: str) -> bytes:
    if packing == "gz":
        return gzip.compress(data, 1)
    if packing == "xz":
        return lzma.compress(data, preset=0)
    if packing == "zst":
        return bytes(zstandard.ZstdCompressor().compress(data))
    return gzip.compress(data[:MIB], 1) + gzip.compress(data[MIB:], 1)


def test_a_raw_disk_is_read_where_it_lies(context, web, disk, tmp_path, written, progress):
    web.files["/d.raw"] = File(disk)
    image = take(context, web.url("/d.raw"), sha256=sha256(disk))
    assert image.provenance.kind is SourceKind.URL
    assert image.provenance.sha256 == sha256(disk)
    assert written == []
    # Once from end to end, and what the file system's tables and both ends of the file take.
    assert web.sent < len(disk) + 12 * BLOCK
    assert ("storing", len(disk), len(disk)) in progress.phases
    assert image.os_disk.index == from_file(context, tmp_path, disk)
    nothing_left(context)


@pytest.mark.parametrize("how", ["no ranges", "no length"])
def test_what_cannot_be_read_in_parts_is_kept_without_its_zeros(
    context, web, disk, tmp_path, written, progress, how
):
    web.files["/d.raw"] = File(disk, ranges=False, length=how != "no length")
    image = take(context, web.url("/d.raw"), sha256=sha256(disk))
    assert sum(written) < 12 * MIB < len(disk)
    total = None if how == "no length" else len(disk)
    assert progress.phases[0] == ("downloading", total, len(disk))
    assert image.os_disk.index == from_file(context, tmp_path, disk)
    nothing_left(context)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("ranges", [False, True])
def test_packed_urls_are_unpacked_as_they_come(
    context, web, disk, tmp_path, written, packing, ranges
):
    body = packed(disk, packing)
    web.files["/d"] = File(body, ranges=ranges)
    image = take(context, web.url("/d"), sha256=sha256(body))
    assert sum(written) < 12 * MIB
    assert image.provenance.sha256 == sha256(body)
    assert image.os_disk.index == from_file(context, tmp_path, disk)


def test_other_formats_are_kept_and_pass_the_gate(context, web, disk, qcow2, tmp_path):
    web.files["/d.qcow2"] = File(qcow2, cut=3 * MIB)
    image = take(context, web.url("/d.qcow2"), sha256=sha256(qcow2))
    assert image.provenance.source_format == "qcow2"
    assert image.os_disk.index == from_file(context, tmp_path, disk)


@pytest.mark.parametrize("packing", [None, *PACKINGS])
def test_standard_input_is_unpacked_as_it_comes(
    context, disk, tmp_path, written, monkeypatch, progress, packing
):
    body = packed(disk, packing) if packing else disk
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(body)))
    image = take(context, "-")
    assert sum(written) < 12 * MIB
    assert progress.phases[0] == ("reading standard input", None, len(body))
    assert image.provenance.sha256 == sha256(body)
    assert image.os_disk.index == from_file(context, tmp_path, disk)
    nothing_left(context)


def test_a_packed_file_is_unpacked_without_its_zeros(context, disk, tmp_path, written, progress):
    body = packed(disk, "gz in two")
    (tmp_path / "d.gz").write_bytes(body)
    image = take(context, str(tmp_path / "d.gz"))
    assert sum(written) < 12 * MIB
    assert progress.phases[0] == ("unpacking gz", len(body), len(body))
    assert image.os_disk.index == from_file(context, tmp_path, disk)


def test_a_stream_that_does_not_fit_is_refused(context, disk, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(disk)))
    monkeypatch.setattr("calotype.engine.sources._room", lambda _path: 4 * MIB)
    with pytest.raises(InvalidInput, match="larger than"):
        take(context, "-")
    nothing_left(context)


@pytest.mark.parametrize("ranges", [False, True])
def test_another_checksum_makes_no_image(context, web, disk, ranges):
    web.files["/d.raw"] = File(disk, ranges=ranges)
    with pytest.raises(InvalidInput, match="SHA-256"):
        take(context, web.url("/d.raw"), sha256="0" * 64)
    assert context.catalog.find_image("img") is None
    nothing_left(context)


def test_a_packed_stream_that_is_cut_off_makes_no_image(context, web, disk):
    body = gzip.compress(disk)[:-100_000]
    web.files["/d.gz"] = File(body)
    with pytest.raises(DiskRefused, match="truncated"):
        take(context, web.url("/d.gz"), sha256=sha256(body))
    nothing_left(context)


@pytest.mark.parametrize("cut", [BLOCK - 1, 7 * BLOCK + 5])
def test_connections_that_break_cost_a_little(context, web, disk, tmp_path, cut):
    web.files["/d.raw"] = File(disk, cut=cut + fetch._PIECE)
    image = take(context, web.url("/d.raw"), sha256=sha256(disk))
    assert web.sent < 2.2 * len(disk) if cut < BLOCK else web.sent < 1.5 * len(disk)
    assert image.os_disk.index == from_file(context, tmp_path, disk)


def test_a_connection_that_stays_broken_ends_the_upload(context, web, disk):
    def fail(_start: int, data: bytes) -> bytes:
        web.failing = [503] * 99
        return data

    web.files["/d.raw"] = File(disk, lie=fail)
    with pytest.raises(ToolFailed, match="503"):
        take(context, web.url("/d.raw"), sha256=sha256(disk))
    assert context.catalog.find_image("img") is None
    nothing_left(context)


def test_a_server_cannot_show_the_checksum_another_file_than_the_disk(context, web, disk):
    """It answers ranges with other bytes than the stream from the beginning."""

    def lie(start: int, data: bytes) -> bytes:
        return data if start == 0 and len(data) == len(disk) else bytes(len(data))

    web.files["/d.raw"] = File(disk, lie=lie)
    with pytest.raises((Conflict, DiskRefused)):
        take(context, web.url("/d.raw"), sha256=sha256(disk))
    assert context.catalog.find_image("img") is None


@pytest.fixture
def blocks(web, tmp_path, monkeypatch):
    """A remote file of ten blocks, of which four fit into the small file that holds them."""
    monkeypatch.setattr(remote, "AHEAD", 4)
    monkeypatch.setattr(remote, "_STILL", 0.05)
    body = random.Random(5).randbytes(10 * BLOCK - 1000)
    web.files["/f"] = File(body)
    fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
    file = RemoteFile(Remote(web.url("/f"), allow=LOOPBACK), fd)
    yield file, body
    file.close()
    os.close(fd)


def test_blocks_wait_for_their_readers(blocks, web):
    file, body = blocks
    with file.window() as window:
        file.begin()
        for at in range(0, len(body), 300_000):
            length = min(300_000, len(body) - at)
            assert window.read(at, length) == body[at : at + length]
        assert file.sha256() == sha256(body)
    assert web.sent <= len(body) + BLOCK  # the first question brings the first block


def test_any_order_of_reading_ends(blocks):
    """Readers that want everything backwards, and one that stands in the middle for ever."""
    file, body = blocks
    with file.window() as window, window.part(BLOCK, 8 * BLOCK) as part:
        file.begin()
        assert part.read(5, 100) == body[BLOCK + 5 : BLOCK + 105]
        for number in np.random.default_rng(1).permutation(10).tolist():
            at = number * BLOCK
            length = min(BLOCK, len(body) - at)
            assert window.read(at, length) == body[at : at + length]
        assert file.sha256() == sha256(body)


def test_several_readers_get_their_bytes(blocks):
    file, body = blocks
    wrong: list[int] = []

    def work(first: int) -> None:
        for at in range(first * BLOCK, len(body), 4 * BLOCK):
            length = min(2 * BLOCK, len(body) - at)
            if window.read(at, length) != body[at : at + length]:
                wrong.append(at)

    with file.window() as window:
        file.begin()
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert file.sha256() == sha256(body)


def test_without_readers_the_checksum_is_right_too(blocks):
    file, body = blocks
    assert file.sha256() == sha256(body)


def test_a_closed_file_ends_its_thread(blocks):
    file, _body = blocks
    with file.window() as window:
        file.begin()
        window.read(0, 100)
    assert not any(t.name == "calotype-fetch" for t in threading.enumerate())


def test_a_stream_is_read_while_it_is_stored(context, web, disk, monkeypatch):
    """The last byte is sent only when the first ones are on their way into the store."""
    stored = threading.Event()
    plain = Taking._leaves

    def seen(self, source, regions, maker):
        def telling(worker):
            leaf_of = maker(worker)
            read_into = source.disk.read_into

            def told(offset, buffer):
                read_into(offset, buffer)
                stored.set()

            source.disk.read_into = told
            return leaf_of

        return plain(self, source, regions, telling)

    def wait(start: int, data: bytes) -> bytes:
        if start == 0 and len(data) == len(disk):
            web.files["/d.raw"].cut = 16 * MIB
        elif start >= 16 * MIB and len(data) > 16 * MIB:
            assert stored.wait(30)
            web.files["/d.raw"].cut = None
        return data

    monkeypatch.setattr(Taking, "_leaves", seen)
    web.files["/d.raw"] = File(disk, lie=wait)
    image = take(context, web.url("/d.raw"), sha256=sha256(disk))
    assert stored.is_set()
    opened = context.repository.open(image.os_disk.index)
    assert read(opened, 0, opened.size) == disk
