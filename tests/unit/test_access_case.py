"""Resource groups have no case, as on Azure: one is the same in any spelling; what is in it keeps its own."""

import json
from uuid import uuid4

import pytest
from tests.shelf import ACT, NOW, a_gallery, new_image, new_vm

from calotype import cli
from calotype.errors import Conflict, Forbidden, NotFound
from calotype.model import (
    DEFAULT_SUBSCRIPTION,
    GIB,
    Caller,
    Consistency,
    ManagedDisk,
    Role,
    RoleAssignment,
    Scope,
    Snapshot,
)

MADE = Scope(DEFAULT_SUBSCRIPTION, "Prod")
OTHER = Scope(DEFAULT_SUBSCRIPTION, "prod2")
SPELLINGS = [Scope(DEFAULT_SUBSCRIPTION, group) for group in (MADE.group, "prod", "PROD")]


def a_disk(scope):
    return ManagedDisk(id=f"disk {scope.group}", name="disk", size=GIB, created_at=NOW, scope=scope)


def a_snapshot(scope):
    return Snapshot(
        id=f"snapshot {scope.group}",
        name="snapshot",
        size=GIB,
        index="b" * 64,
        disk_id=f"disk {MADE.group}",
        consistency=Consistency.CRASH,
        created_at=NOW,
        scope=scope,
    )


#: Kind -> how one is made, read by its name, and listed.
KINDS = {
    "image": (
        lambda c, s: c.catalog.add_image(new_image("image", scope=s)),
        lambda c: c.image("image"),
        lambda c: c.list_images(),
    ),
    "VM": (
        lambda c, s: new_vm(c, "vm", "an-image", s),
        lambda c: c.vm("vm"),
        lambda c: c.list_vms(),
    ),
    "disk": (
        lambda c, s: c.catalog.add_disk(a_disk(s)),
        lambda c: c.disk("disk"),
        lambda c: c.list_disks(),
    ),
    "snapshot": (
        lambda c, s: c.catalog.snapshots.add(a_snapshot(s), a_disk(MADE)),
        lambda c: c.snapshots.get("snapshot"),
        lambda c: c.snapshots.list(),
    ),
    "gallery": (
        lambda c, s: c.catalog.galleries.add(a_gallery("gallery", s), ACT),
        lambda c: c.galleries.get("gallery"),
        lambda c: c.galleries.list(),
    ),
}


@pytest.fixture
def filled(context):
    """One of each kind in the group."""
    for make, _, _ in KINDS.values():
        make(context, MADE)
    return context


def a_role(principal, role, group, resource=None):
    return RoleAssignment(
        id=str(uuid4()),
        principal=principal,
        role=role,
        subscription=DEFAULT_SUBSCRIPTION,
        group=group,
        resource=resource,
        created_at=NOW,
    )


@pytest.mark.parametrize("scope", SPELLINGS)
def test_a_group_is_the_same_one_however_it_is_written(filled, scope):
    there, elsewhere = (filled.catalog.of(Caller(scope=place)) for place in (scope, OTHER))
    for make, read, list_ in KINDS.values():
        (found,) = list_(there)
        assert read(there) == found
        assert found.scope == MADE
        with pytest.raises(Conflict, match="already"):
            make(filled, scope)
        assert list_(elsewhere) == []


@pytest.mark.parametrize("group", [scope.group for scope in SPELLINGS])
def test_a_role_at_a_group_is_one_however_it_is_written(filled, group):
    filled.catalog.roles.assign(a_role("rita", Role.READER, group), ACT)
    for scope in SPELLINGS:
        rita = filled.catalog.of(Caller("rita", scope))
        for _, read, list_ in KINDS.values():
            assert list_(rita) == [read(rita)]
    elsewhere = filled.catalog.of(Caller("rita", OTHER))
    for _, read, _ in KINDS.values():
        with pytest.raises(NotFound):
            read(elsewhere)


@pytest.mark.parametrize("scope", SPELLINGS)
def test_a_role_for_a_resource_is_one_however_its_group_is_written(filled, scope):
    role = a_role("rita", Role.READER, scope.group, f"disk {MADE.group}")
    filled.catalog.roles.assign(role, ACT)
    rita = filled.catalog.of(Caller("rita", scope))
    assert rita.list_disks() == [rita.disk("disk")]
    assert rita.list_images() == []


def test_a_role_is_given_once_and_by_the_owner_of_the_group(filled):
    catalog = filled.catalog
    catalog.roles.assign(a_role("oscar", Role.OWNER, "prod"), ACT)
    oscar = catalog.of(Caller("oscar", MADE)).roles
    oscar.assign(a_role("rita", Role.READER, "PROD"), ACT)
    with pytest.raises(Conflict, match="there already"):
        oscar.assign(a_role("rita", Role.READER, "Prod"), ACT)
    with pytest.raises(Forbidden):
        oscar.assign(a_role("rita", Role.READER, OTHER.group), ACT)
    assert [found.group for found in oscar.list(DEFAULT_SUBSCRIPTION)] == ["prod", "PROD"]


def test_a_name_is_taken_before_the_work_however_the_group_is_written(filled):
    for scope in SPELLINGS:
        there = filled.catalog.of(Caller(scope=scope))
        for refused in (
            lambda c: c.require_free("image", "image"),
            lambda c: c.require_free("VM", "vm"),
            lambda c: c.snapshots.require_free("snapshot"),
        ):
            with pytest.raises(Conflict, match="exists already"):
                refused(there)


def test_commands_in_a_group_that_is_written_otherwise(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))

    def run(*words):
        status = cli.run([*words, "-o", "json"])
        told = capsys.readouterr()
        return status, told.out

    assert run("role", "assign", "carl", "Contributor", "-g", "prod")[0] == 0
    assert run("disk", "create", "d", "--size", "1M", "-g", "PROD", "--as", "carl")[0] == 0
    status, out = run("disk", "list", "-g", "Prod", "--as", "carl")
    assert (status, [found["scope"]["group"] for found in json.loads(out)]) == (0, ["PROD"])
    assert run("disk", "delete", "d", "-g", "prod", "--as", "carl")[0] == 0
