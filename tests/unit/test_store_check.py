"""Check finds what is wrong, and names what it touches; readers refuse what is not what it should be."""

import random
import struct

import numpy as np
import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.disks import BytesDisk

from calotype.disk.base import read
from calotype.errors import CalotypeError, InvalidInput, NotFound, StoreDamaged
from calotype.store import DirectoryStore, MemoryStore, Repository, codec, pack
from calotype.store.chunking import Chunking
from calotype.store.index import Leaf, Root, Rows, root_id
from calotype.store.parameters import seal

MIB = 1 << 20


def text(seed: int, size: int) -> bytes:
    """Bytes that compress, so that both codecs are used."""
    rng = random.Random(seed)
    words = [rng.randbytes(8).hex().encode() for _ in range(300)]
    out = b" ".join(rng.choice(words) for _ in range(size // 16))
    return out[:size].ljust(size, b".")


DATA = {
    "a": random.Random(1).randbytes(MIB) + text(2, MIB),
    "b": random.Random(1).randbytes(MIB) + text(3, MIB),
    "c": text(4, 300_000),
}


@pytest.fixture(scope="module")
def filled():
    """A store of three images; a and b share their first half, c shares nothing."""
    objects = MemoryStore()
    repository = Repository.create(objects, chunking=Chunking(region=MIB))
    return objects, {name: repository.ingest(BytesDisk(data)).index for name, data in DATA.items()}


def copy_of(objects: MemoryStore) -> MemoryStore:
    copy = MemoryStore()
    for stored in objects.list():
        copy.put(stored.key, objects.get(stored.key))
    return copy


def test_a_whole_store_is_clean(filled):
    objects, _ = filled
    report = Repository(objects).check()
    assert report.ok
    assert report.touched == report.leftovers == ()
    assert report.indexes == 3
    assert report.packs == 6  # one of data and one of leaves for each ingest
    assert report.bytes_read > 1.2 * MIB
    assert Repository(objects).check(read_data=False).bytes_read == 0


def test_every_flipped_bit_is_found_and_the_right_images_are_named(filled):
    """One bit in each of many random places of every object."""
    objects, images = filled
    rng = random.Random(11)
    for stored in objects.list():
        whole = objects.get(stored.key)
        for _ in range(12):
            at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
            broken = copy_of(objects)
            damaged = bytearray(whole)
            damaged[at] ^= bit
            broken.put(stored.key, damaged)
            assert_found(broken, stored.key, images)


def assert_found(broken: MemoryStore, key: str, images: dict[str, str]) -> None:
    try:
        repository = Repository(broken)
    except StoreDamaged:
        assert key == "config"
        return
    report = repository.check()
    assert not report.ok
    assert key in {d.key for d in report.damage} or key.startswith("indexes/")
    unreadable = set()
    for name, index in images.items():
        try:
            disk = Repository(broken).open(index)
            assert read(disk, 0, disk.size) == DATA[name]
        except CalotypeError:
            unreadable.add(index)
    assert unreadable <= set(report.touched)


def test_a_changed_header_is_found(filled):
    objects, _ = filled
    key = next(objects.list("packs/")).key
    for at in range(8):
        broken = copy_of(objects)
        damaged = bytearray(objects.get(key))
        damaged[at] ^= 16
        broken.put(key, damaged)
        assert [d.key for d in Repository(broken).check().damage] == [key]


def test_bytes_that_still_decompress_are_found_by_the_frame_checksum(filled):
    """The footer's checksum is wrong, though every chunk is right."""
    objects, _ = filled
    key = next(objects.list("packs/")).key
    whole = objects.get(key)
    length = struct.unpack_from("<Q", whole, len(whole) - 48)[0]
    foot = bytearray(whole[-48 - length : -48])
    foot[-1] ^= 1
    forged = copy_of(objects)
    forged.delete(key)
    name, data = rebuilt(bytes(foot), whole[: -48 - length])
    forged.put(name, data)
    report = Repository(forged).check()
    assert [d.key for d in report.damage] == [name]
    assert report.touched


def test_without_reading_data_missing_chunks_are_found(filled):
    objects, _ = filled
    packs = [s.key for s in objects.list("packs/")]
    for key in packs:
        broken = copy_of(objects)
        broken.delete(key)
        report = Repository(broken).check(read_data=False)
        assert not report.ok
        assert report.touched
        assert all("chunks" in d.problem for d in report.damage)


def test_a_cut_off_pack_is_found(filled):
    objects, _ = filled
    for stored in objects.list("packs/"):
        for size in (0, 5, stored.size // 2, stored.size - 1):
            broken = copy_of(objects)
            broken.put(stored.key, objects.get(stored.key)[:size])
            report = Repository(broken).check()
            assert stored.key in {d.key for d in report.damage}
            assert report.touched


def test_a_pack_under_another_name_is_found(filled):
    objects, _ = filled
    broken = copy_of(objects)
    stored = next(objects.list("packs/"))
    other = "packs/" + "0" * 64
    broken.put(other, objects.get(stored.key))
    report = Repository(broken).check()
    assert [d.key for d in report.damage] == [other]
    assert report.touched == ()


def test_leftovers_and_foreign_objects_are_no_damage(filled, tmp_path):
    objects = DirectoryStore(tmp_path)
    repository = Repository.create(objects)
    repository.ingest(BytesDisk(DATA["c"]))
    (tmp_path / "tmp" / "1-dead").write_bytes(b"half a pack")
    (tmp_path / "notes").write_bytes(b"?")
    report = repository.check()
    assert report.ok
    assert report.leftovers == ("tmp/1-dead", "notes")
    assert list(repository.sweep()) == ["tmp/1-dead"]
    assert repository.check().leftovers == ("notes",)


def test_a_damaged_pack_does_not_stop_new_ingests_which_heal_it(filled):
    objects, images = filled
    broken = copy_of(objects)
    for stored in list(objects.list("packs/")):
        broken.put(stored.key, objects.get(stored.key)[:-1])
    repository = Repository(broken)
    with pytest.raises(StoreDamaged):
        read(repository.open(images["a"]), 0, 10)
    assert repository.ingest(BytesDisk(DATA["a"])).index == images["a"]
    disk = repository.open(images["a"])
    assert read(disk, 0, disk.size) == DATA["a"]
    report = repository.check()
    assert set(report.touched) == {images["b"], images["c"]}


def test_a_missing_domain_names_its_images(filled):
    objects, images = filled
    broken = copy_of(objects)
    broken.delete("domains/default")
    report = Repository(broken).check()
    assert set(report.touched) == set(images.values())
    with pytest.raises(NotFound):
        Repository(broken).open(images["a"])


def test_newer_versions_are_refused_with_the_cure():
    objects = MemoryStore()
    Repository.create(objects)
    objects.put("config", seal({"format": "calotype repository", "version": 2}))
    with pytest.raises(InvalidInput, match="version 2") as caught:
        Repository(objects)
    assert caught.value.hint


@pytest.mark.parametrize(
    "config",
    [
        {"chunking": None},
        {"chunking": {"version": 1, "region": 0}},
        {"chunking": {"version": 1, "file": 1 << 40}},
        {"chunking": {"version": 1, "grid": 1000}},
        {"chunking": {"version": 1, "colour": 1}},
        {},
    ],
)
def test_a_config_that_makes_no_sense_is_damage(config):
    objects = MemoryStore()
    Repository.create(objects)
    objects.put("config", seal({"format": "calotype repository", "version": 1, **config}))
    with pytest.raises(StoreDamaged):
        Repository(objects)


@pytest.mark.parametrize(
    "line",
    [
        b'{"chunking":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"chunking":{"version":1e999},"format":"calotype repository","version":1}',
        b'{"chunking":{"version":' + b"9" * 5000 + b'},"format":"calotype repository","version":1}',
        b'{"format":"calotype repository","version":1,"version":2}',
        b'{"name":"\xff"}',
        b"[]",
    ],
    ids=["deep", "infinite", "long", "twice", "not UTF-8", "a list"],
)
def test_a_config_that_is_absurd_is_damage(line):
    objects = MemoryStore()
    Repository.create(objects)
    objects.put("config", line + b"\n" + blake3(line).hexdigest().encode() + b"\n")
    with pytest.raises(StoreDamaged):
        Repository(objects)


@pytest.mark.parametrize("length", [0, 8, 87, 88])
def test_a_footer_that_is_too_short_is_damage(length):
    row = pack.FrameRow(10, 20, pack.Codec.ZSTD, b"c" * 32, [b"d" * 32], [20])
    foot = pack.footer(pack.Kind.DATA, "default", [row])
    with pytest.raises(StoreDamaged):
        pack.parse(foot[:length], "ab" * 32, 1000)


def rebuilt(foot: bytes, body: bytes) -> tuple[str, bytes]:
    """A pack object whose footer has a right checksum and name, whatever it says."""
    name, tail = pack.trailer(foot)
    return pack.PREFIX + name, body + foot + tail


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_forged_footer_is_refused_or_harmless(filled, draw):
    """Right checksums, wrong tables: parsing stays inside its bounds, reading never lies."""
    objects, _ = filled
    stored = draw.draw(st.sampled_from(list(objects.list("packs/"))))
    whole = objects.get(stored.key)
    length = struct.unpack_from("<Q", whole, len(whole) - 48)[0]
    foot = bytearray(whole[-48 - length : -48])
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, 95) | st.integers(0, len(foot) - 1))
        foot[at] = draw.draw(st.integers(0, 255))
    key, data = rebuilt(bytes(foot), whole[: -48 - length])
    forged = MemoryStore()
    forged.put(key, data)
    try:
        found = pack.load(forged, key, len(data))
    except (StoreDamaged, InvalidInput):
        return
    assert int(found.frame_stored.sum()) + 8 + length + 48 == len(data)
    assert len(found.chunk_frame) == len(found.digests) == len(found.chunk_offset)
    assert int(found.frame_raw.max()) <= 8 * MIB


@pytest.mark.parametrize(
    "row",
    [
        pack.FrameRow(10, 2 * MIB, pack.Codec.ZSTD, b"c" * 32, [b"d" * 32] * 8, [MIB // 4] * 8),
        pack.FrameRow(10, 9, pack.Codec.ZSTD, b"c" * 32, [b"d" * 32], [9]),
        pack.FrameRow(10, 11, pack.Codec.RAW, b"c" * 32, [b"d" * 32], [11]),
        pack.FrameRow(10, 20, pack.Codec.ZSTD, b"c" * 32, [b"d" * 32], [19]),
        pack.FrameRow(10, 20, pack.Codec.ZSTD, b"c" * 32, [b"d" * 32] * 2, [20, 0]),
        pack.FrameRow(11, 20, pack.Codec.ZSTD, b"c" * 32, [b"d" * 32], [20]),
    ],
)
def test_a_footer_that_does_not_add_up_is_refused(row):
    key, data = rebuilt(pack.footer(pack.Kind.DATA, "default", [row]), pack.HEADER + b"0123456789")
    objects = MemoryStore()
    objects.put(key, data)
    with pytest.raises(StoreDamaged):
        pack.load(objects, key, len(data))


def test_a_bomb_is_not_decompressed():
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * MIB))
    with pytest.raises(StoreDamaged):
        codec.decode(bomb, pack.Codec.ZSTD, 1000)
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 * MIB))
    with pytest.raises(StoreDamaged):
        codec.decode(streamed, pack.Codec.ZSTD, 1000)
    with pytest.raises(StoreDamaged):
        codec.decode(streamed, pack.Codec.ZSTD, 64 * MIB)
    honest = zstandard.ZstdCompressor().compress(b"x" * 1000)
    assert codec.decode(honest, pack.Codec.ZSTD, 1000) == b"x" * 1000
    for wrong in (honest + b"more", honest[:-1], b"", b"junk"):
        with pytest.raises(StoreDamaged):
            codec.decode(wrong, pack.Codec.ZSTD, 1000)
    with pytest.raises(StoreDamaged):
        codec.decode(b"123", pack.Codec.RAW, 4)


def a_leaf() -> Leaf:
    rng = np.random.default_rng(5)
    digests = rng.integers(0, 256, (6, 32), dtype=np.uint8)
    digests[4] = digests[1]
    offset = np.arange(6) * 70_000
    rows = Rows.whole(offset, np.full(6, 65_536), digests)
    leaf = rows.leaf()
    assert leaf is not None
    return leaf


def test_a_leaf_reads_back_and_names_each_chunk_once():
    leaf = a_leaf()
    again = Leaf.decode(leaf.encode(), MIB)
    assert len(again.sizes) == 5
    assert again.chunk.tolist() == [0, 1, 2, 3, 1, 4]
    assert Rows.of(again).leaf() is not None
    assert again.encode() == leaf.encode()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_forged_leaf_is_refused_or_sane(draw):
    data = bytearray(a_leaf().encode())
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, 150))] = draw.draw(st.integers(0, 255))
    try:
        leaf = Leaf.decode(bytes(data), MIB)
    except StoreDamaged:
        return
    assert (leaf.offset[1:] >= leaf.end[:-1]).all()
    assert leaf.end[-1] <= MIB
    assert (leaf.skip + leaf.length <= leaf.sizes[leaf.chunk]).all()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_are_no_leaf_and_no_root(junk, cut):
    root = Root("default", 5 * MIB, MIB, {0: b"a" * 32, 4: b"b" * 32}).encode()
    assert Root.decode(root).leaves == {0: b"a" * 32, 4: b"b" * 32}
    for data in (junk, root[:cut] if cut < len(root) else root + b"x", junk + root):
        if data != root:
            with pytest.raises(StoreDamaged):
                Root.decode(data)
            with pytest.raises(StoreDamaged):
                Leaf.decode(data, MIB)


def test_a_forged_root_cannot_reach_beyond_the_disk(filled):
    objects, images = filled
    honest = Root.decode(objects.get("indexes/" + images["a"]))
    leaf = honest.leaves[0]
    with pytest.raises(StoreDamaged):
        Root.decode(Root("default", 5, MIB, {1: leaf}).encode())
    with pytest.raises(StoreDamaged):
        Root.decode(Root("default", 1 << 60, MIB, {}).encode())
    # A leaf of a whole region does not fit a shorter one.
    forged = copy_of(objects)
    root = Root("default", MIB - 1, MIB, {0: leaf}).encode()
    forged.put("indexes/" + root_id(root), root)
    repository = Repository(forged)
    with pytest.raises(StoreDamaged):
        read(repository.open(root_id(root)), 0, 10)
    assert repository.check().touched == (root_id(root),)


def test_a_root_under_another_name_is_refused(filled):
    objects, images = filled
    forged = copy_of(objects)
    forged.put("indexes/" + images["b"], objects.get("indexes/" + images["a"]))
    with pytest.raises(StoreDamaged):
        Repository(forged).open(images["b"])
    assert Repository(forged).check().touched == (images["b"],)


def test_equal_prefixes_are_told_apart():
    """Digests that agree in their first 64 bits, in one pack and in two."""
    objects = MemoryStore()
    from calotype.store.digest import as_rows  # noqa: PLC0415 - used here alone
    from calotype.store.packset import PackSet  # noqa: PLC0415 - used here alone
    from calotype.store.packwriter import PackWriter  # noqa: PLC0415 - used here alone

    digests = [b"same8byt" + blake3(bytes([n])).digest()[:24] for n in range(30)]
    packs = PackSet(objects)
    for some in (digests[:10], digests[5:20]):
        writer = PackWriter(objects, pack.Kind.DATA, "default", packs.add)
        writer.append([codec.encode(b"x" * len(some), list(some), [1] * len(some))])
        writer.finish()
    found = packs.find(pack.Kind.DATA, "default", as_rows(digests))
    assert (found[:20] >= 0).all()
    assert (found[20:] == -1).all()
    for digest, place in zip(digests[:20], found[:20].tolist(), strict=True):
        _number, holder, chunk = packs.locate(place)
        assert holder.digests[chunk].tobytes() == digest
