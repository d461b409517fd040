"""The catalogue on SQLite: what goes in comes out, and what must not be is refused."""

import sqlite3
import threading
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event

from calotype.catalog import Catalog
from calotype.catalog.database import HEAD
from calotype.catalog.migrate import configuration
from calotype.catalog.tables import metadata
from calotype.errors import CalotypeError, Conflict, NotAllowed, NotFound
from calotype.model import (
    GIB,
    Caching,
    Consistency,
    Generation,
    Image,
    ImageDisk,
    ImageKind,
    ManagedDisk,
    OsState,
    OsType,
    Provenance,
    Recommended,
    SourceKind,
    VirtualMachine,
)

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.fixture
def catalog(tmp_path):
    catalog = Catalog(tmp_path / "catalog.db")
    yield catalog
    catalog.close()


def an_image(name="web", state=OsState.GENERALIZED, luns=(0, 3)):
    return Image(
        id=str(uuid4()),
        name=name,
        os_type=OsType.LINUX,
        os_state=state,
        os_disk=ImageDisk(index="a" * 64, size=2 * GIB),
        data_disks=tuple(
            ImageDisk(index=f"{lun:064x}", size=GIB, lun=lun, caching=Caching.NONE) for lun in luns
        ),
        generation=Generation.V2,
        label="Web",
        recommended=Recommended(vcpus=2, memory=GIB),
        tags={"team": "a"},
        provenance=Provenance(
            kind=SourceKind.VM,
            source="web1",
            vm_id="v",
            consistency=Consistency.FILESYSTEM,
            notes=("forced",),
        ),
        created_at=NOW,
    )


def a_vm(name="web1", image=None, port=2200):
    vm_id = str(uuid4())
    return VirtualMachine(
        id=vm_id,
        name=name,
        vcpus=1,
        memory=GIB,
        os_type=OsType.LINUX,
        generation=Generation.V1,
        image_id=image.id if image else None,
        os_state=image.os_state if image else OsState.SPECIALIZED,
        ssh_port=port,
        forwards=((8080, 80),),
        mac=f"52:54:00:00:{port >> 8:02x}:{port & 255:02x}",
        disks=(
            ManagedDisk(id=str(uuid4()), name=f"{name}-os", size=GIB, vm_id=vm_id, created_at=NOW),
            ManagedDisk(
                id=str(uuid4()), name=f"{name}-d0", size=GIB, vm_id=vm_id, lun=0, created_at=NOW
            ),
        ),
        created_at=NOW,
    )


def test_an_image_comes_out_as_it_went_in(catalog):
    image = an_image()
    catalog.add_image(image)
    assert catalog.image("web") == image
    assert catalog.image(image.id) == image
    assert catalog.list_images() == [image]
    assert catalog.indexes_in_use() == {d.index for d in image.disks}


def test_kind_is_derived():
    assert an_image(luns=()).kind is ImageKind.OS_IMAGE
    assert an_image().kind is ImageKind.VM_IMAGE
    assert an_image(luns=(), state=OsState.SPECIALIZED).kind is ImageKind.VM_IMAGE


def test_names_are_taken_once(catalog):
    catalog.add_image(an_image())
    with pytest.raises(Conflict, match="exists already"):
        catalog.add_image(an_image())


def test_two_data_disks_cannot_share_a_lun(catalog):
    with pytest.raises(Conflict):
        catalog.add_image(an_image(luns=(1, 1)))
    assert catalog.list_images() == []


def test_what_is_missing_is_said_with_the_cure(catalog):
    with pytest.raises(NotFound) as caught:
        catalog.image("nothing")
    assert "image list" in (caught.value.hint or "")


def test_a_vm_comes_out_with_its_disks(catalog):
    vm = a_vm()
    catalog.add_vm(vm)
    assert catalog.vm("web1") == vm
    assert catalog.vm("web1").os_disk.name == "web1-os"


def test_one_vm_at_a_time_from_a_specialized_image(catalog):
    image = an_image(state=OsState.SPECIALIZED)
    catalog.add_image(image)
    catalog.add_vm(a_vm("one", image, 2201))
    with pytest.raises(NotAllowed, match="specialized") as caught:
        catalog.add_vm(a_vm("two", image, 2202))
    assert "--generalize" in (caught.value.hint or "")
    catalog.add_vm(a_vm("two", image, 2202), allow_second=True)


def test_many_vms_from_a_generalized_image(catalog):
    image = an_image()
    for n in range(3):
        catalog.add_vm(a_vm(f"vm{n}", image, 2200 + n))
    assert len(catalog.vms_of_image(image.id)) == 3


def test_the_one_vm_rule_holds_in_a_race(catalog):
    image = an_image(state=OsState.SPECIALIZED)
    outcomes = []
    start = threading.Barrier(8)

    def create(n):
        start.wait()
        try:
            catalog.add_vm(a_vm(f"vm{n}", image, 2300 + n))
            outcomes.append("made")
        except NotAllowed:
            outcomes.append("refused")

    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["made"] + ["refused"] * 7


def test_a_failed_insert_leaves_nothing(catalog):
    catalog.add_disk(ManagedDisk(id="d", name="web1-d0", size=GIB, created_at=NOW))
    with pytest.raises(Conflict):
        catalog.add_vm(a_vm())
    assert catalog.list_vms() == []
    assert [d.name for d in catalog.list_disks()] == ["web1-d0"]


def test_attach_and_detach(catalog):
    vm = a_vm()
    catalog.add_vm(vm)
    for n in range(2):
        catalog.add_disk(ManagedDisk(id=f"x{n}", name=f"extra{n}", size=GIB, created_at=NOW))
    with pytest.raises(Conflict, match="LUN 0 is taken"):
        catalog.attach_disk("x0", vm.id, 0)
    catalog.attach_disk("x0", vm.id, 1)
    with pytest.raises(Conflict, match="attached already"):
        catalog.attach_disk("x0", vm.id, 2)
    with pytest.raises(Conflict, match="attached to a VM"):
        catalog.delete_disk("x0")
    catalog.detach_disk("x0")
    catalog.delete_disk("x0")
    assert [d.lun for d in catalog.vm(vm.id).data_disks] == [0]


def test_deleting_a_vm_keeps_the_disks_that_are_not_named(catalog):
    vm = a_vm()
    catalog.add_vm(vm)
    catalog.delete_vm(vm.id, delete_disks=[vm.os_disk.id])
    (left,) = catalog.list_disks()
    assert left == replace(vm.data_disks[0], vm_id=None, lun=None)


def test_the_migrations_make_the_tables_of_the_model(catalog):
    assert ScriptDirectory.from_config(configuration()).get_current_head() == HEAD
    with catalog._database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_the_migrations_give_columns_the_case_of_the_model(catalog):
    """Which Alembic does not compare."""
    with catalog._database.engine.connect() as db:
        for column in (column for table in metadata.sorted_tables for column in table.c):
            db.exec_driver_sql(f'CREATE INDEX probe ON "{column.table.name}" ("{column.name}")')
            (there, *_) = db.exec_driver_sql("PRAGMA index_xinfo(probe)").mappings()
            db.exec_driver_sql("DROP INDEX probe")
            assert there["coll"] == (getattr(column.type, "collation", None) or "BINARY"), column


def test_opening_again_does_not_migrate_again(tmp_path, monkeypatch):
    Catalog(tmp_path / "c.db").close()
    monkeypatch.setattr("calotype.catalog.migrate.upgrade", lambda _e: pytest.fail("migrated"))
    Catalog(tmp_path / "c.db").close()


def test_an_id_means_what_it_names_whatever_else_is_called_so(catalog):
    first = an_image("first")
    catalog.add_image(first)
    catalog.add_image(an_image(first.id))
    assert catalog.image(first.id).name == "first"


def test_tags_of_two_commands_add_up(catalog):
    image = an_image()
    catalog.add_image(image)
    catalog.tag_image(image.id, {"a": "1"})
    catalog.tag_image(image.id, {"b": "2"}, ["team"])
    assert catalog.image(image.id).tags == {"a": "1", "b": "2"}
    with pytest.raises(NotFound, match="no tag 'c'") as refused:
        catalog.tag_image(image.id, {}, ["c"])
    assert refused.value.hint == f"calotype image show {image.name} lists those that it has"


@pytest.mark.parametrize("name", ["a?b=c", "a#b", "%41", 'a "b"', "a\nb", "ä", "a&b", "file:x"])
def test_the_catalogue_lies_where_it_is_told(tmp_path, name):
    (tmp_path / name).mkdir()
    Catalog(tmp_path / name / "catalog.db").close()
    assert (tmp_path / name / "catalog.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("read", [lambda c, i: c.image(i.id), lambda c, _i: c.list_images()[0]])
def test_a_resource_is_read_whole_while_another_command_deletes_it(catalog, tmp_path, read):
    image = an_image()
    catalog.add_image(image)
    other = Catalog(tmp_path / "catalog.db")

    @event.listens_for(catalog._database.engine, "before_cursor_execute")
    def delete(_connection, _cursor, statement, *_):
        if "FROM image_disks" in statement:
            other.delete_image(image.id)

    assert read(catalog, image) == image
    assert other.list_images() == []
    other.close()


def test_nobody_else_reads_the_catalogue(tmp_path):
    catalog = Catalog(tmp_path / "catalog.db")
    catalog.add_image(an_image())
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    catalog.close()


def test_a_damaged_catalogue_is_said(tmp_path):
    path = tmp_path / "catalog.db"
    path.write_bytes(b"nonsense" * 1000)
    with pytest.raises(CalotypeError, match="not a database"):
        Catalog(path)


def test_a_catalogue_that_is_damaged_later_is_said(tmp_path):
    path = tmp_path / "catalog.db"
    catalog = Catalog(path)
    catalog.add_image(an_image())
    catalog.close()
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    with pytest.raises(CalotypeError, match="cannot be used"):
        Catalog(path).list_images()


def test_a_newer_catalogue_is_left_alone(tmp_path):
    path = tmp_path / "catalog.db"
    Catalog(path).close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(CalotypeError, match="newer version"):
        Catalog(path)


def test_a_full_disk_is_said(catalog):
    with catalog._database.engine.connect() as db:
        db.exec_driver_sql("PRAGMA max_page_count = 1")
    for number in range(2):
        with pytest.raises(CalotypeError, match="full"):
            catalog.add_image(replace(an_image(f"i{number}"), description="x" * 200_000))
