"""Names and resource groups have no case, as on Azure: one is the same in any spelling, and keeps its own."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from tests.published import an_image
from tests.shelf import ACT, NOW, a_gallery, new_image, new_vm

from calotype import cli
from calotype.engine import images, machines
from calotype.engine.gallery import lifecycle
from calotype.engine.launch import VmRequest, create_vm
from calotype.errors import Conflict, Forbidden, NotFound
from calotype.model import (
    DEFAULT_SUBSCRIPTION,
    GIB,
    INSTALLATION,
    MIB,
    Caller,
    Consistency,
    ManagedDisk,
    RestoreDisk,
    RestorePoint,
    Role,
    RoleAssignment,
    Scope,
    Shelf,
    Snapshot,
)

MADE = Scope(DEFAULT_SUBSCRIPTION, "Prod")
OTHER = Scope(DEFAULT_SUBSCRIPTION, "prod2")
SPELLINGS = [Scope(DEFAULT_SUBSCRIPTION, group) for group in (MADE.group, "prod", "PROD")]


def a_disk(scope, name="Disk"):
    return ManagedDisk(id=f"disk {scope.group}", name=name, size=GIB, created_at=NOW, scope=scope)


def a_snapshot(scope, name="Snapshot"):
    return Snapshot(
        id=f"snapshot {scope.group}",
        name=name,
        size=GIB,
        index="b" * 64,
        disk_id=f"disk {MADE.group}",
        consistency=Consistency.CRASH,
        created_at=NOW,
        scope=scope,
    )


class Kind(NamedTuple):
    """How things of one kind are made in a group, read by their names, and listed."""

    make: Callable[[Any, Scope, str], object]
    read: Callable[[Any, str], Any]
    list: Callable[[Any], Any]


KINDS = {
    "Image": Kind(
        lambda c, s, n: c.catalog.add_image(new_image(n, scope=s)),
        lambda c, n: c.image(n),
        lambda c: c.list_images(),
    ),
    "Vm": Kind(
        lambda c, s, n: new_vm(c, n, "an-image", s),
        lambda c, n: c.vm(n),
        lambda c: c.list_vms(),
    ),
    "Disk": Kind(
        lambda c, s, n: c.catalog.add_disk(a_disk(s, n)),
        lambda c, n: c.disk(n),
        lambda c: c.list_disks(),
    ),
    "Snapshot": Kind(
        lambda c, s, n: c.catalog.snapshots.add(a_snapshot(s, n), a_disk(MADE)),
        lambda c, n: c.snapshots.get(n),
        lambda c: c.snapshots.list(),
    ),
    "Gallery": Kind(
        lambda c, s, n: c.catalog.galleries.add(a_gallery(n, s), ACT),
        lambda c, n: c.galleries.get(n),
        lambda c: c.galleries.list(),
    ),
}
WRITTEN = [str, str.lower, str.upper, str.swapcase]


@pytest.fixture
def filled(context):
    """One of each kind in the group, called as its kind is."""
    for name, kind in KINDS.items():
        kind.make(context, MADE, name)
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
    for name, kind in KINDS.items():
        (found,) = kind.list(there)
        assert kind.read(there, name) == found
        assert found.scope == MADE
        with pytest.raises(Conflict, match="already"):
            kind.make(filled, scope, name)
        assert kind.list(elsewhere) == []


@pytest.mark.parametrize("group", [scope.group for scope in SPELLINGS])
def test_a_role_at_a_group_is_one_however_it_is_written(filled, group):
    filled.catalog.roles.assign(a_role("rita", Role.READER, group), ACT)
    for scope in SPELLINGS:
        rita = filled.catalog.of(Caller("rita", scope))
        for name, kind in KINDS.items():
            assert kind.list(rita) == [kind.read(rita, name)]
    elsewhere = filled.catalog.of(Caller("rita", OTHER))
    for name, kind in KINDS.items():
        with pytest.raises(NotFound):
            kind.read(elsewhere, name)


@pytest.mark.parametrize("scope", SPELLINGS)
def test_a_role_for_a_resource_is_one_however_its_group_is_written(filled, scope):
    role = a_role("rita", Role.READER, scope.group, f"disk {MADE.group}")
    filled.catalog.roles.assign(role, ACT)
    rita = filled.catalog.of(Caller("rita", scope))
    assert rita.list_disks() == [rita.disk("Disk")]
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


@pytest.mark.parametrize("written", WRITTEN)
def test_a_name_is_the_same_one_however_it_is_written(filled, written):
    there = filled.catalog.of(Caller(scope=MADE))
    for name, kind in KINDS.items():
        assert kind.read(there, written(name)).name == name
        with pytest.raises(Conflict, match="already"):
            kind.make(filled, MADE, written(name))
        assert [found.name for found in kind.list(there)] == [name]


def test_lists_are_in_order_whatever_the_case(context):
    for name in ("b", "C", "A", "d"):
        context.catalog.add_image(new_image(name))
    assert [image.name for image in context.catalog.list_images()] == ["A", "b", "C", "d"]


@pytest.mark.parametrize("written", WRITTEN)
def test_a_name_is_free_again_in_any_spelling(filled, written):
    there = filled.catalog.of(Caller(scope=MADE))
    there.delete_image(there.image("Image").id)
    filled.catalog.add_image(new_image(written("Image"), scope=MADE))
    assert there.image("image").name == written("Image")


@pytest.mark.parametrize("written", WRITTEN)
def test_what_was_pulled_is_found_and_deleted_in_any_spelling(context, written):
    for shelf, name in (
        (Shelf.MARKETPLACE, "acme:os:web:1.0.0"),
        (Shelf.COMMUNITY, "community/Pub-abc/Web/1.0.0"),
    ):
        image = new_image(name, scope=Scope(INSTALLATION, shelf.value), shelf=shelf)
        context.catalog.add_image(image)
        child = new_image(f"from-{shelf}", parent=image.id)
        context.catalog.add_image(child)
        below = lifecycle.descendants(context, written(name)).found
        assert [found.id for found in below] == [child.id]
        assert images.delete(context, written(name)).image == image


def test_the_disks_of_a_new_vm_take_names_that_are_free_in_any_spelling(context):
    an_image(context, "image")
    for name in ("WEB-OS", "Web-OS-2"):
        machines.create_disk(context, name, MIB)
    made = create_vm(context, VmRequest(name="web", image="IMAGE", start=False))
    assert [disk.name for disk in made.disks] == ["web-os-3"]
    with pytest.raises(Conflict, match="exists already"):
        create_vm(context, VmRequest(name="WEB", image="image", start=False))


def test_who_may_make_nothing_in_a_group_learns_of_no_name_there(filled):
    image = filled.catalog.of(Caller(scope=MADE)).image("Image")
    filled.catalog.roles.assign(a_role("rita", Role.OWNER, MADE.group, image.id), ACT)
    for name in ("disk", "other"):
        with pytest.raises(Forbidden):
            filled.catalog.of(Caller("rita", MADE)).free_disk_name(name)


def test_a_disk_that_a_restore_makes_again_takes_a_free_name_in_any_spelling(context):
    vm = new_vm(context, "web", "an-image")
    disk = RestoreDisk(disk_id="gone", name="web-os", index="b" * 64, size=GIB)
    point = RestorePoint(
        id="point",
        vm_id=vm.id,
        reason="a test",
        consistency=Consistency.CRASH,
        disks=(disk,),
        created_at=NOW,
    )
    context.catalog.restore_points.add(point)
    context.catalog.add_disk(a_disk(Scope(), "WEB-OS"))
    context.catalog.restore_points.go_back(point, {"gone": "overlay"})
    assert [found.name for found in context.catalog.vm("Web").disks] == ["web-os-2"]


@pytest.mark.parametrize("written", WRITTEN)
def test_a_name_is_taken_before_the_work_however_it_and_its_group_are_written(filled, written):
    for scope in SPELLINGS:
        there = filled.catalog.of(Caller(scope=scope))
        for refused in (
            lambda c: c.require_free("image", written("Image")),
            lambda c: c.require_free("VM", written("Vm")),
            lambda c: c.snapshots.require_free(written("Snapshot")),
        ):
            with pytest.raises(Conflict, match="exists already"):
                refused(there)


def test_commands_in_a_group_and_with_names_that_are_written_otherwise(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))

    def run(*words):
        status = cli.run([*words, "-o", "json"])
        told = capsys.readouterr()
        return status, told.out

    assert run("role", "assign", "carl", "Contributor", "-g", "prod")[0] == 0
    assert run("disk", "create", "Data", "--size", "1M", "-g", "PROD", "--as", "carl")[0] == 0
    status, out = run("disk", "list", "-g", "Prod", "--as", "carl")
    assert (status, [found["scope"]["group"] for found in json.loads(out)]) == (0, ["PROD"])
    assert run("disk", "show", "DATA", "-g", "prod", "--as", "carl")[0] == 0
    assert run("disk", "delete", "data", "-g", "prod", "--as", "carl")[0] == 0
