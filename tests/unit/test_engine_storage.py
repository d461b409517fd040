"""Keeping the store: prune, check in parts, repair, copy and adopt, in the words of images."""

import os
import shutil
from contextlib import closing
from datetime import timedelta

import pytest

from calotype import wire
from calotype.config import SETTINGS, Home
from calotype.disk.base import read
from calotype.engine import images, storage
from calotype.engine.adopt import adopt
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.sources import Upload
from calotype.errors import Conflict, InvalidInput, NotFound
from calotype.model import MIB, Caller, OsState, Scope, SourceKind

NOW = timedelta(0)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for setting in SETTINGS:
        monkeypatch.delenv(setting.environment, raising=False)


def image(context, name, content, luns=()):
    """An image whose disks, also data disks at ``luns``, all hold ``content``."""
    path = context.home.prepare().root / f"{name}.raw"
    path.write_bytes(content)
    upload = Upload(location=str(path))
    request = ImageRequest(name=name, os_state=OsState.SPECIALIZED)
    return import_image(context, request, upload, dict.fromkeys(luns, upload)).image


def content(context, found):
    with closing(context.repository.open(found.os_disk.index)) as disk:
        return read(disk, 0, disk.size)


def packs(context):
    return sorted((context.home.store / "packs").iterdir(), key=lambda p: -p.stat().st_size)


def flip(path, offset=5000):
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)


def test_statistics_and_check(context):
    content = os.urandom(2 * MIB) + bytes(6 * MIB)
    image(context, "img", content, luns=(0,))
    image(context, "twin", content)
    usage = storage.stats(context)
    assert usage.logical == 3 * 8 * MIB
    assert {image.image: image.unique == 0 for image in usage.images}["twin"]
    assert 2 * MIB < usage.stored < 6 * MIB
    assert storage.check(context).ok
    pack = packs(context)[0]
    flip(pack, pack.stat().st_size // 2)
    report = storage.check(wire.build(home=context.home))
    assert not report.ok
    assert set(report.images) <= {"img", "twin"}
    assert report.images


def test_the_space_of_a_deleted_image_comes_back_and_no_other(context):
    kept = os.urandom(2 * MIB)
    one, two = image(context, "one", kept), image(context, "two", os.urandom(3 * MIB))
    images.delete(context, "two")
    assert storage.stats(context).unreferenced > 3 * MIB
    would = storage.prune(context, grace=NOW, dry_run=True)
    assert would.dry_run
    assert two.os_disk.index not in context.repository.indexes()
    done = storage.prune(context, grace=NOW)
    assert done.freed > 3 * MIB
    assert storage.stats(context).stored < 3 * MIB
    assert content(context, one) == kept
    assert storage.check(context).ok


def test_a_grace_keeps_what_was_condemned(context):
    image(context, "one", os.urandom(MIB))
    image(context, "two", os.urandom(MIB))
    images.delete(context, "two")
    assert storage.prune(context, grace=timedelta(hours=1)).freed == 0
    usage = storage.stats(context)
    assert usage.condemned > MIB
    assert storage.prune(context, grace=NOW).freed > MIB


def test_an_index_that_a_deletion_left_is_dropped_by_the_prune(context):
    image(context, "kept", os.urandom(MIB))
    image(context, "gone", os.urandom(MIB))
    with context.operation():  # another command is at work: the deletion leaves the Index
        images.delete(context, "gone")
    assert len(context.repository.indexes()) == 2
    storage.prune(context, grace=NOW)
    assert len(context.repository.indexes()) == 1


def test_an_empty_store_is_emptied_only_when_that_is_said(context):
    image(context, "one", os.urandom(MIB))
    images.delete(context, "one")
    with pytest.raises(Conflict, match="any image"):
        storage.prune(context, grace=NOW)
    assert storage.prune(context, grace=NOW, empty=True).freed > MIB


def test_damage_is_named_and_mended_from_a_copy(context, tmp_path):
    bytes_of = {name: os.urandom(2 * MIB) for name in ("one", "two")}
    made = {name: image(context, name, data) for name, data in bytes_of.items()}
    cellar = str(tmp_path / "cellar")
    first = storage.copy(context, cellar)
    assert first.ok
    assert first.bytes_stored > 4 * MIB
    assert storage.copy(context, cellar).bytes_stored == 0
    flip(packs(context)[0])
    found = storage.check(context)
    assert not found.ok
    assert len(found.images) == 1
    assert storage.repair(context, cellar).ok
    assert storage.check(context).ok
    for name, data in bytes_of.items():
        assert content(context, made[name]) == data


def test_images_of_one_name_in_two_groups_are_both_copied(context, tmp_path):
    elsewhere = wire.build(
        home=Home(context.home.root), caller=Caller(scope=Scope(group="elsewhere"))
    )
    made = [image(where, "img", os.urandom(MIB)) for where in (context, elsewhere)]
    elsewhere.close()
    done = storage.copy(context, str(tmp_path / "cellar"))
    assert done.images == ("img", "img")
    kept = {path.name for path in (tmp_path / "cellar" / "indexes").iterdir()}
    assert kept == {one.os_disk.index for one in made}


def test_what_no_copy_has_is_named_and_comes_back_with_an_upload(context):
    data = os.urandom(2 * MIB)
    one = image(context, "one", data)
    flip(packs(context)[0])
    lost = storage.repair(context)
    assert not lost.ok
    assert lost.images == ("one",)
    image(context, "again", data)
    assert storage.check(context).ok
    assert content(context, one) == data


def test_a_base_on_this_host_mends_too(context):
    data = os.urandom(2 * MIB)
    one = image(context, "one", data)
    context.base_path(one.os_disk.index).write_bytes(data)
    flip(packs(context)[0])
    assert storage.repair(context).ok
    assert content(context, one) == data


def test_some_images_are_copied_to_a_store_with_a_name(context, tmp_path):
    context.home.prepare().config.write_text(f'[stores]\ncellar = "{tmp_path / "cellar"}"\n')
    one, two = image(context, "one", os.urandom(MIB)), image(context, "two", os.urandom(MIB))
    done = storage.copy(context, "cellar", ["two"])
    assert done.images == ("two",)
    kept = {path.name for path in (tmp_path / "cellar" / "indexes").iterdir()}
    assert kept == {two.os_disk.index}
    assert one.os_disk.index not in kept


@pytest.mark.parametrize("source", ["nowhere", "{}/nowhere/at/all", "file://{}/nowhere"])
def test_no_store_is_made_by_a_repair(context, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image(context, "one", os.urandom(MIB))
    with pytest.raises(NotFound, match="no directory"):
        storage.repair(context, source.format(tmp_path))
    assert not (tmp_path / "nowhere").exists()


def test_a_store_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_STORE", str(tmp_path / "elsewhere"))
    with closing(wire.build(home=Home(tmp_path / "home"))) as context:
        data = os.urandom(MIB)
        assert content(context, image(context, "one", data)) == data
    assert list((tmp_path / "elsewhere" / "packs").iterdir())
    assert not list((tmp_path / "home" / "store").iterdir())


def test_a_store_whose_catalogue_is_lost_is_adopted(context):
    data = os.urandom(2 * MIB)
    image(context, "one", data)
    context.close()
    shutil.rmtree(context.home.cache)
    for path in context.home.root.glob("catalog.db*"):
        path.unlink()
    with pytest.raises(Conflict, match="another installation"):
        image(context, "new", os.urandom(MIB))
    (found,) = adopt(context)
    assert found.name.startswith("adopted-")
    assert found.provenance.kind is SourceKind.STORE
    assert content(context, found) == data
    assert adopt(context) == []
    image(context, "new", os.urandom(MIB))
    storage.prune(context, grace=NOW)
    assert content(context, found) == data


def test_checks_in_parts_come_round(context):
    image(context, "one", os.urandom(12 * MIB))
    parts = [storage.check(context, sample=0.4) for _ in range(3)]
    assert all(part.ok for part in parts)
    assert parts[0].checked_bytes < parts[0].total_bytes
    assert parts[0].oldest is None
    assert parts[2].oldest is not None


def test_a_sample_is_a_share(context):
    with pytest.raises(InvalidInput):
        storage.check(context, sample=1.5)


def test_recompression_takes_less_and_is_not_done_twice(context):
    text = b"".join(b"%d is not %d, %x\n" % (i, i * i, i**3) for i in range(100_000))
    data = text + bytes(-len(text) % 4096)
    found = image(context, "one", data)
    before = storage.stats(context).stored
    first = storage.prune(context, grace=NOW, recompress=True)
    assert first.repacked
    assert storage.stats(context).stored < 0.9 * before
    assert content(context, found) == data
    assert storage.check(context).ok
    assert not storage.prune(context, grace=NOW, recompress=True).repacked
