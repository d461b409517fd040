"""A catalogue of the version before: all in it is as it was, whoever opens it, and whoever is killed."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest
from alembic import command
from sqlalchemy import MetaData, insert

from calotype.catalog import Act, Catalog, rows
from calotype.catalog.audit import append
from calotype.catalog.database import HEAD, make_engine
from calotype.catalog.migrate import configuration
from calotype.model import (
    DEFAULT_SUBSCRIPTION,
    GIB,
    Caching,
    Consistency,
    Generation,
    Image,
    ImageDisk,
    ManagedDisk,
    OsState,
    OsType,
    Provenance,
    QuotaKind,
    Recommended,
    RestoreDisk,
    RestorePoint,
    SourceKind,
    Stage,
    Verdict,
    VirtualMachine,
)

NOW = datetime(2026, 5, 4, 3, 2, 1, 5, tzinfo=UTC)
BEFORE = "0004"

WEB = Image(
    id="i-web",
    name="web",
    os_type=OsType.LINUX,
    os_state=OsState.GENERALIZED,
    os_disk=ImageDisk(index="a" * 64, size=2 * GIB),
    data_disks=(ImageDisk(index="b" * 64, size=GIB, lun=3, caching=Caching.NONE),),
    generation=Generation.V2,
    label="Web",
    recommended=Recommended(vcpus=2, memory=GIB),
    tags={"team": "ä"},
    stage=Stage.PROMOTED,
    verdict=Verdict.GENERALIZED,
    provenance=Provenance(kind=SourceKind.FILE, source="web.vhd", sha256="0" * 64, notes=("n",)),
    created_at=NOW,
)
CHILD = replace(
    WEB,
    id="i-child",
    name="child",
    data_disks=(),
    verdict=None,
    stage=Stage.STAGED,
    provenance=Provenance(kind=SourceKind.VM, source="vm1", vm_id="v1", image_id=WEB.id),
    parents=(WEB.id,),
)
VMS = [
    VirtualMachine(
        id=f"v{number}",
        name=f"vm{number}",
        vcpus=1,
        memory=GIB,
        os_type=OsType.LINUX,
        generation=Generation.V2,
        image_id=image,
        os_state=OsState.GENERALIZED,
        ssh_port=2200 + number,
        forwards=((8080, 80),),
        mac=f"52:54:00:00:00:0{number}",
        uid=None if number == 1 else 1000,
        generalized=number == 2,
        notes=("a note",),
        disks=tuple(
            ManagedDisk(
                id=f"d{number}{lun}",
                name=f"vm{number}-{lun}",
                size=GIB,
                index="a" * 64,
                vm_id=f"v{number}",
                lun=lun,
                tags={"a": "b"},
                created_at=NOW,
                overlay="o" if number == 2 else None,
            )
            for lun in (None, 0)
        ),
        created_at=NOW,
    )
    for number, image in ((1, WEB.id), (2, "i-gone"))
]
LOOSE = ManagedDisk(id="d-loose", name="loose", size=GIB, created_at=NOW)
POINT = RestorePoint(
    id="p1",
    vm_id="v1",
    reason="a test",
    consistency=Consistency.FILESYSTEM,
    disks=(
        RestoreDisk(disk_id="d1None", name="vm1-None", index="c" * 64, size=GIB),
        RestoreDisk(disk_id="d10", name="vm1-0", index="d" * 64, size=GIB, lun=0, tags={"x": "y"}),
    ),
    created_at=NOW,
)


@pytest.fixture
def path(tmp_path):
    """A catalogue at the migration before, with a row of everything that there was."""
    path = tmp_path / "catalog.db"
    engine = make_engine(path)
    with engine.connect() as connection:
        config = configuration()
        config.attributes["connection"] = connection
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        command.upgrade(config, BEFORE)
        tables = MetaData()
        tables.reflect(connection)

        def put(table, *found):
            known = tables.tables[table]
            for row in found:
                values = {key: value for key, value in row.items() if key in known.c}
                connection.execute(insert(known), plain(values))

        put("images", *(rows.image_row(image) for image in (WEB, CHILD)))
        put("image_disks", *(row for image in (WEB, CHILD) for row in rows.image_disk_rows(image)))
        put("vms", *map(rows.vm_row, VMS))
        put("disks", *map(rows.disk_row, [disk for vm in VMS for disk in vm.disks] + [LOOSE]))
        put("restore_points", asdict(POINT))
        for position, disk in enumerate(POINT.disks):
            put("restore_point_disks", {**asdict(disk), "point_id": "p1", "position": position})
        for number in range(3):
            append(connection, Act("image.force", f"image {number}", {"n": number}))
        put("ledger_roots", {"index": "a" * 64, "data": b"\0\1"}, {"index": "b" * 64, "data": None})
        connection.commit()
    engine.dispose()
    return path


def plain(values):
    """Moments as SQLite's own type wants them: the tables were reflected, and know no UTC."""
    return {
        key: value.replace(tzinfo=None) if isinstance(value, datetime) else value
        for key, value in values.items()
    }


@contextmanager
def raw(path):
    """The file, without anything of ours."""
    connection = sqlite3.connect(path)
    try:
        yield connection
    finally:
        connection.close()


def revision(path):
    with raw(path) as db:
        return db.execute("SELECT version_num FROM alembic_version").fetchone()[0]


def dump(path):
    """All that is in the file, as text."""
    with raw(path) as db:
        return list(db.iterdump())


def check_all(path):
    """Everything that was there is there."""
    catalog = Catalog(path)
    assert [catalog.image(image.id) for image in (WEB, CHILD)] == [WEB, CHILD]
    assert catalog.list_images() == [CHILD, WEB]
    assert catalog.list_vms() == VMS
    assert [catalog.vm(vm.name) for vm in VMS] == VMS
    assert sorted(disk.id for disk in catalog.list_disks()) == [
        *("d-loose", "d10", "d1None", "d20", "d2None")
    ]
    assert catalog.disk("loose") == LOOSE
    assert catalog.restore_points.list("v1") == [POINT]
    assert catalog.audit.verify() is None
    assert [entry.resource for entry in catalog.audit.list()] == ["image 2", "image 1", "image 0"]
    quotas = {quota.kind: quota.used for quota in catalog.subscriptions.quotas("default")}
    assert quotas == {
        QuotaKind.IMAGES: 2,
        QuotaKind.VERSIONS: 0,
        QuotaKind.GALLERIES: 0,
        QuotaKind.BYTES: 5 * GIB,
        QuotaKind.VMS: 2,
    }
    assert [found.id for found in catalog.subscriptions.list()] == [DEFAULT_SUBSCRIPTION]
    assert [d.name for d in catalog.lineage.descendants(WEB.id).found] == ["child", "vm1"]
    catalog.close()
    with raw(path) as db:
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT * FROM ledger_roots ORDER BY 1").fetchall() == [
            ("a" * 64, b"\0\1"),
            ("b" * 64, None),
        ]
        names = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
        assert not any(name.startswith("_alembic_tmp") for name in names)


def test_everything_is_as_it_was(path):
    assert revision(path) == BEFORE
    check_all(path)
    assert revision(path) == HEAD


def test_what_refers_to_another_row_still_does(path):
    """Tables were made anew: their foreign keys lead to the new ones."""
    Catalog(path).close()
    with raw(path) as db:
        db.execute("PRAGMA foreign_keys = ON")
        for statement in (
            "DELETE FROM vms WHERE id = 'v1'",
            "UPDATE disks SET vm_id = 'nobody' WHERE id = 'd-loose'",
            "INSERT INTO image_disks VALUES ('nobody', 0, NULL, 'x', 1, 'None')",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                db.execute(statement)
        db.execute("DELETE FROM images WHERE id = 'i-web'")
        assert db.execute("SELECT image_id FROM image_disks").fetchall() == [("i-child",)]


def test_it_goes_on_as_a_new_one(path):
    catalog = Catalog(path)
    catalog.add_image(replace(WEB, id="new", name="new"))
    catalog.delete_image(WEB.id)
    catalog.delete_vm("v1", delete_disks=["d10"])
    used = {quota.kind: quota.used for quota in catalog.subscriptions.quotas("default")}
    assert (used[QuotaKind.IMAGES], used[QuotaKind.BYTES]) == (2, 5 * GIB)
    assert used[QuotaKind.VMS] == 1
    catalog.close()


#: Table -> as many characters as its names have at most.
LONGEST = {"images": 64, "vms": 64, "disks": 80}
#: Table -> the names that are there.
OTHERS = {
    "images": {WEB.name, CHILD.name},
    "vms": {vm.name for vm in VMS},
    "disks": {LOOSE.name, *(disk.name for vm in VMS for disk in vm.disks)},
}


def put_named(path, table, named, when):
    """Rows like one that is there, by id: their names, and how many days after it they were made."""
    with raw(path) as db:
        db.row_factory = sqlite3.Row
        like = dict(db.execute(f"SELECT * FROM {table} ORDER BY id").fetchone())
        for number, (identifier, name) in enumerate(named.items(), 1):
            own = {"ssh_port": number, "mac": str(number), "uid": number, "vm_id": None}
            row = {**like, **{key: value for key, value in own.items() if key in like}}
            made = NOW.replace(tzinfo=None) + timedelta(days=when[identifier])
            row |= {"id": identifier, "name": name, "created_at": made.isoformat(" ")}
            marks = ", ".join("?" for _ in row)
            columns = ", ".join(f'"{key}"' for key in row)
            db.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", list(row.values()))
        db.commit()


class Long(str):
    """A letter, as long as a name can be; with a format, that is its end."""

    __slots__ = ()

    def __new__(cls, letter, longest):
        return super().__new__(cls, letter * longest)

    def __format__(self, end):
        return str(self)[: len(self) - len(end)] + end


@pytest.mark.parametrize("ordered", ["by time", "by id"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("db DB", "db DB-2"),
        ("DB db other", "DB db-2 other"),
        ("db DB dB", "db DB-2 dB-3"),
        ("db Db Db-2", "db Db-3 Db-2"),
        ("dB-2 db DB Db", "dB-2 db DB-3 Db-4"),
        ("db DB DB-2 db-2", "db DB-3 DB-2 db-2-2"),
        ("db-2 DB-2 db DB db-2-2", "db-2 DB-2-3 db DB-3 db-2-2"),
        ("{x} {X}", "{x} {X:-2}"),
        ("{x} {X} {X:-2}", "{x} {X:-3} {X:-2}"),
        ("{x} {X:-2} {x:-2} {X}", "{x} {X:-2} {x:-3} {X:-4}"),
    ],
)
def test_of_names_that_differ_by_case_alone_the_later_ones_get_a_number(
    path, ordered, before, after
):
    def names(table, text):
        return text.format(x=Long("x", LONGEST[table]), X=Long("X", LONGEST[table])).split()

    ids = [f"id-{number}" for number in range(len(before.split()))]
    if ordered == "by time":
        ids.reverse()
    when = {identifier: at if ordered == "by time" else 1 for at, identifier in enumerate(ids)}
    for table in LONGEST:
        put_named(path, table, dict(sorted(zip(ids, names(table, before), strict=True))), when)
    Catalog(path).close()
    with raw(path) as db:
        for table in LONGEST:
            found = dict(db.execute(f"SELECT id, name FROM {table}").fetchall())
            assert [found.pop(identifier) for identifier in ids] == names(table, after)
            assert set(found.values()) == OTHERS[table]
        query = "SELECT name FROM {} ORDER BY id"
        images, lineage = (db.execute(query.format(t)).fetchall() for t in ("images", "lineage"))
        assert images == lineage


def test_what_got_another_name_is_found_by_it_and_has_what_it_had(path):
    when = {"v-twin": 1, "d-twin": 1}
    put_named(path, "vms", {"v-twin": "VM1"}, when)
    put_named(path, "disks", {"d-twin": "VM1-None"}, when)
    with raw(path) as db:
        db.execute("UPDATE disks SET vm_id = 'v-twin', lun = NULL WHERE id = 'd-twin'")
        db.commit()
    catalog = Catalog(path)
    assert [catalog.vm(name) for name in ("vm1", "VM1", "vm2")] == [VMS[0], *VMS]
    twin = catalog.vm("vm1-2")
    assert (twin.id, twin.name, twin.image_id) == ("v-twin", "VM1-2", WEB.id)
    assert [(disk.id, disk.name) for disk in twin.disks] == [("d-twin", "VM1-None-2")]
    catalog.close()


#: A process that opens the catalogue, says when it is about to migrate, and waits there until it is told.
_CHILD = """
import sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from calotype.catalog import Catalog

path, where = Path(sys.argv[1]), sys.argv[2]

@event.listens_for(Engine, "after_cursor_execute")
def executed(connection, cursor, statement, *rest):
    if where in statement:
        print("there", flush=True)
        sys.stdin.readline()

print("begins", flush=True)
Catalog(path).close()
print("done", flush=True)
"""
#: A statement of each part of the migration.
_PARTS = ("CREATE TABLE communities", "DROP TABLE vms", "RENAME TO images", "INSERT INTO lineage")


def heard(child):
    return child.stdout.readline().strip()


@contextmanager
def opened(path, where):
    argv = [sys.executable, "-c", _CHILD, str(path), where]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert heard(child) == "begins"
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize("where", _PARTS)
def test_who_is_killed_in_the_middle_leaves_it_as_it_was(path, where):
    before = dump(path)
    with opened(path, where) as child:
        assert heard(child) == "there"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert child.returncode == -signal.SIGKILL
    assert revision(path) == BEFORE
    assert dump(path) == before
    check_all(path)


def test_of_two_that_open_it_at_once_one_migrates(path):
    with opened(path, "INSERT INTO lineage") as first:
        assert heard(first) == "there"  # it holds the write lock, and has not committed
        with opened(path, "INSERT INTO lineage") as second:
            print(file=first.stdin, flush=True)
            assert heard(first) == "done"
            assert heard(second) == "done"  # and never was there
    check_all(path)
