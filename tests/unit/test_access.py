"""Roles: what is seen and what is not, the doors to VMs and disks, and housekeeping that sees everything."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from tests.published import a_definition, a_version, an_image, caller_in

from calotype import wire
from calotype.catalog import Act
from calotype.engine import (
    adopt,
    capture,
    guests,
    images,
    machines,
    roles,
    snapshots,
    storage,
    subscriptions,
)
from calotype.engine.boot import boottest
from calotype.engine.capture import CaptureRequest
from calotype.engine.gallery import galleries
from calotype.engine.gallery.places import Managed
from calotype.engine.generalize import generalize, inguest, inplace, restore, steps, sysprep
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.proof import verify
from calotype.engine.proof.evidence import read_evidence
from calotype.engine.roles import Where
from calotype.engine.sources import Upload
from calotype.errors import Conflict, Forbidden, NotAllowed, NotFound
from calotype.model import (
    DEFAULT_SUBSCRIPTION,
    GIB,
    INSTALLATION,
    MIB,
    Caller,
    Gallery,
    Image,
    ImageDisk,
    ManagedDisk,
    OsState,
    OsType,
    Provenance,
    QuotaKind,
    Role,
    Scope,
    Shelf,
    SourceKind,
)

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ACT = Act("a.test", "x")
WEB = Scope(DEFAULT_SUBSCRIPTION, "web")


@pytest.fixture
def as_(context):
    """A context for a principal in a group, with a role there or with none."""
    opened = []

    def enter(principal, role=None, scope=WEB, where=None):
        here = wire.build(home=context.home, caller=Caller(None, scope))
        if role is not None:
            roles.assign(here, principal, role, where or Where(scope.group))
        if principal is not None:
            here.close()
            here = wire.build(home=context.home, caller=Caller(principal, scope))
        opened.append(here)
        return here

    yield enter
    for one in opened:
        one.close()


@pytest.fixture
def owner(as_):
    """The installation's owner, in the group."""
    return as_(None)


@pytest.fixture
def vm(owner):
    """A stopped VM with a data disk, and a loose disk."""
    an_image(owner, "image")
    made = create_vm(owner, VmRequest(name="vm", image="image", start=False))
    machines.create_disk(owner, "data", MIB)
    machines.attach(owner, "vm", "data")
    machines.create_disk(owner, "loose", MIB)
    return owner.catalog.vm(made.id)


def a_disk(name, scope=WEB):
    return ManagedDisk(id=str(uuid4()), name=name, size=MIB, created_at=NOW, scope=scope)


# -- what is seen


def read_all(context):
    """Everything that there is to read of a group."""
    catalog = context.catalog
    return {
        "images": [image.name for image in catalog.list_images()],
        "VMs": [vm.name for vm in catalog.list_vms()],
        "disks": [disk.name for disk in catalog.list_disks()],
        "snapshots": [snapshot.name for snapshot in catalog.snapshots.list()],
        "galleries": [gallery.name for gallery in catalog.galleries.list()],
    }


READS = {
    "image": lambda c: c.catalog.image("image"),
    "VM": lambda c: c.catalog.vm("vm"),
    "disk": lambda c: c.catalog.disk("loose"),
    "snapshot": lambda c: c.catalog.snapshots.get("snapshot"),
    "gallery": lambda c: c.catalog.galleries.get("gallery"),
    "restore points": lambda c: restore.list_points(c, "vm"),
}


@pytest.fixture
def filled(owner, vm):
    snapshots.create(owner, "snapshot", "loose")
    owner.catalog.galleries.add(
        Gallery(id=str(uuid4()), name="gallery", created_at=NOW, scope=WEB), ACT
    )
    restore.take_restore_point(owner, "vm", "a test")
    return owner


def test_a_reader_sees_what_there_is(filled, as_):
    rita = as_("rita", Role.READER)
    assert read_all(rita) == read_all(filled)
    for read in READS.values():
        assert read(rita) == read(filled)


def test_who_has_no_role_is_told_what_is_told_of_nothing(filled, as_):
    """Nobody learns from a refusal that there is something."""
    nobody, empty = as_("nobody"), as_(None, scope=Scope(DEFAULT_SUBSCRIPTION, "empty"))
    assert read_all(nobody) == {kind: [] for kind in read_all(filled)}
    for read in READS.values():
        with pytest.raises(NotFound) as hidden:
            read(nobody)
        with pytest.raises(NotFound) as missing:
            read(empty)
        assert (hidden.value.message, hidden.value.hint) == (
            missing.value.message,
            missing.value.hint,
        )


def test_an_id_is_no_way_in(filled, as_, vm):
    nobody, rita = as_("nobody"), as_("rita", Role.READER)
    reads = {
        filled.catalog.image("image").id: lambda c, i: c.catalog.image(i),
        vm.id: lambda c, i: c.catalog.vm(i),
        vm.os_disk.id: lambda c, i: c.catalog.disk(i),
        filled.catalog.snapshots.get("snapshot").id: lambda c, i: c.catalog.snapshots.get(i),
    }
    for identifier, read in reads.items():
        assert read(rita, identifier).id == identifier
        with pytest.raises(NotFound):
            read(nobody, identifier)


def test_what_is_named_as_anothers_id_is_still_mine(owner, as_):
    other = a_disk("theirs")
    owner.catalog.add_disk(other)
    carl = as_("carl", Role.CONTRIBUTOR, Scope(DEFAULT_SUBSCRIPTION, "carls"))
    mine = replace(a_disk(other.id), scope=carl.scope)
    carl.catalog.add_disk(mine)
    assert carl.catalog.disk(other.id) == mine


def test_a_list_is_of_the_group_and_of_what_is_seen(owner, as_):
    other = as_(None, scope=Scope(DEFAULT_SUBSCRIPTION, "other"))
    seen, hidden = a_disk("seen"), a_disk("hidden")
    for disk in (seen, hidden):
        owner.catalog.add_disk(disk)
    other.catalog.add_disk(a_disk("elsewhere", other.scope))
    assert read_all(owner)["disks"] == ["hidden", "seen"]
    rita = as_("rita", Role.READER, where=Where(resource=seen.id))
    assert read_all(rita)["disks"] == ["seen"]
    with pytest.raises(NotFound):
        rita.catalog.disk("hidden")
    whole = as_("will", Role.READER, where=Where())  # in the whole subscription
    assert read_all(whole)["disks"] == ["hidden", "seen"]
    assert whole.catalog.of(Caller("will", other.scope)).list_disks() != []


def test_a_role_for_a_vm_is_one_for_the_disks_on_it(owner, as_, vm):
    carl = as_("carl", Role.CONTRIBUTOR, where=Where(resource=vm.id))
    assert carl.catalog.disk(vm.os_disk.id) == vm.os_disk
    assert restore.take_restore_point(carl, "vm", "a test")
    with pytest.raises(NotFound):  # a disk that is not his
        machines.attach(carl, "vm", "loose")
    machines.detach(carl, "vm", "data")
    with pytest.raises(NotFound):  # and this one is not any more
        carl.catalog.disk("data")
    with pytest.raises(NotFound):
        restore.restore(carl, "vm")  # it would overwrite that disk
    restore.restore(owner, "vm")


def test_a_way_back_needs_the_role_for_each_disk_that_it_writes(owner, as_, vm):
    point = restore.take_restore_point(owner, "vm", "a test")
    overlays = {disk.disk_id: str(uuid4()) for disk in point.disks}
    carl = as_("carl", Role.CONTRIBUTOR, where=Where(resource=vm.id)).catalog.restore_points
    rita = as_("rita", Role.READER).catalog.restore_points
    nobody = as_("nobody").catalog.restore_points
    with pytest.raises(Forbidden, match="Contributor for VM 'vm'"):
        rita.go_back(replace(point, disks=()), {})
    for hidden in (lambda: nobody.list(vm.id), lambda: nobody.delete(point.id)):
        with pytest.raises(NotFound):
            hidden()
    machines.detach(owner, "vm", "data")
    roles.assign(owner, "carl", Role.READER, Where(resource="data"))
    with pytest.raises(Forbidden, match="Contributor for disk 'data'"):
        carl.go_back(point, overlays)
    machines.delete_disk(owner, "data")
    with pytest.raises(Forbidden, match="Contributor for disk 'data'"):
        carl.go_back(point, overlays)  # it would be made again, in a group that is not his
    owner.catalog.restore_points.go_back(point, overlays)


def test_what_was_pulled_is_everybodys_to_use_and_nobodys_to_change(context, as_):
    pulled = Image(
        id="pulled",
        name="a:b:c:1.0.0",
        os_type=OsType.LINUX,
        os_state=OsState.GENERALIZED,
        os_disk=ImageDisk(index="a" * 64, size=GIB),
        provenance=Provenance(kind=SourceKind.MARKETPLACE, source="x"),
        created_at=NOW,
        scope=Scope(INSTALLATION, Shelf.MARKETPLACE.value),
        shelf=Shelf.MARKETPLACE,
    )
    context.catalog.add_image(pulled)
    oscar = as_("oscar", Role.OWNER, where=Where())
    assert oscar.catalog.image("pulled") == pulled
    assert oscar.catalog.find_on(Shelf.MARKETPLACE, pulled.name) == pulled
    with pytest.raises(Forbidden, match="everybody's to use") as refused:
        oscar.catalog.tag_image("pulled", {"a": "b"})
    assert "without --as" in (refused.value.hint or "")
    with pytest.raises(NotAllowed, match="pulled for everybody"):
        roles.assign(oscar, "eve", Role.OWNER, Where(resource="pulled"))


def test_of_vms_that_are_not_seen_there_is_no_name(owner, as_, vm):
    """Whose image it is learns that there are VMs of it, and no more."""
    rita = as_("rita", Role.CONTRIBUTOR, where=Where(resource=vm.image_id))
    assert owner.catalog.vms_of_image(vm.image_id) == ["vm"]
    assert rita.catalog.vms_of_image(vm.image_id) == ["(of others)"]
    with pytest.raises(Conflict, match=r"VMs were made from .*: \(of others\)"):
        images.delete(rita, "image")


def test_a_second_vm_of_a_specialized_image_names_no_vm_that_is_not_seen(owner, as_):
    an_image(owner, "one", state=OsState.SPECIALIZED)
    create_vm(owner, VmRequest(name="secret", image="one", start=False))
    there = Scope(DEFAULT_SUBSCRIPTION, "carls")
    as_("carl", Role.READER)
    carl = as_("carl", Role.CONTRIBUTOR, there)
    image = owner.catalog.image("one").id
    roles.delete(owner, roles.list_all(owner)[0].id)
    roles.assign(owner, "carl", Role.READER, Where(resource=image))
    with pytest.raises(NotAllowed, match="was made from it") as refused:
        create_vm(carl, VmRequest(name="second", image=image, start=False))
    assert "secret" not in f"{refused.value.message} {refused.value.hint}"


# -- the doors


#: Everything that changes something, or reaches a guest or what is on a disk, and so needs a Contributor.
DOORS = {
    "start": lambda c: machines.start(c, "vm"),
    "stop": lambda c: machines.stop(c, "vm"),
    "restart": lambda c: machines.restart(c, "vm", force=True),
    "deallocate": lambda c: machines.deallocate(c, "vm"),
    "delete": lambda c: machines.delete(c, "vm"),
    "console, screenshot": lambda c: machines.running(c, "vm"),
    "run-command": lambda c: guests.run_command(c, "vm", ["id"]),
    "ssh": lambda c: guests.ssh_command(c, "vm", []),
    "log": lambda c: list(guests.log(c, "vm")),
    "attach": lambda c: machines.attach(c, "vm", "loose"),
    "detach": lambda c: machines.detach(c, "vm", "data"),
    "capture": lambda c: capture.capture_vm(c, "vm", CaptureRequest(name="new")),
    "capture a generalized copy": lambda c: capture.capture_vm(
        c, "vm", CaptureRequest(name="new", generalize=True)
    ),
    "rehearse": lambda c: generalize.rehearse_vm(c, "vm", steps.DEFAULT),
    "generalize": lambda c: inplace.generalize_vm(c, "vm"),
    "sysprep": lambda c: sysprep.sysprep_vm(c, "vm"),
    "verify a VM": lambda c: inguest.prove_vm(c, "vm"),
    "restore point": lambda c: restore.take_restore_point(c, "vm", "x"),
    "restore": lambda c: restore.restore(c, "vm"),
    "delete a restore point": lambda c: restore.delete_point(c, "vm", "x"),
    "snapshot": lambda c: snapshots.create(c, "new", "loose"),
    "snapshot of a VM's disk": lambda c: snapshots.create(c, "new", "data"),
    "create a disk": lambda c: machines.create_disk(c, "new", MIB),
    "delete a disk": lambda c: machines.delete_disk(c, "loose"),
    "create a VM": lambda c: create_vm(c, VmRequest(name="new", image="image", start=False)),
    "tag": lambda c: images.tag(c, "image", {"a": "b"}, ()),
    "verify": lambda c: verify.verify_image(c, "image"),
    "test": lambda c: boottest.boot_test(c, "image"),
    "delete an image": lambda c: images.delete(c, "image", force=True),
    "generalize an image": lambda c: generalize.generalize_image(
        c, "image", Managed("new"), steps.DEFAULT
    ),
    "upload": lambda c: import_image(c, ImageRequest(name="new"), Upload(location="/dev/null"), {}),
}


@pytest.mark.parametrize("role", [Role.READER, None])
def test_every_door_needs_a_contributor(owner, as_, vm, role):
    somebody = as_("somebody", role)
    before = (owner.catalog.every_vm(), owner.catalog.every_disk(), owner.catalog.every_image())
    wrong = []
    for door, enter in DOORS.items():
        try:
            enter(somebody)
        except Forbidden as error:
            if "Contributor" not in error.message or "calotype role assign somebody" not in str(
                error.hint
            ):
                wrong.append(f"{door}: {error.message}, {error.hint}")
        except NotFound:
            if role is not None:
                wrong.append(f"{door}: not found")
        except Exception as error:  # noqa: BLE001 (whatever it is, it came too late)
            wrong.append(f"{door}: {error!r}")
        else:
            wrong.append(f"{door}: was open")
    assert wrong == []
    after = (owner.catalog.every_vm(), owner.catalog.every_disk(), owner.catalog.every_image())
    assert after == before


def test_a_contributor_goes_in(as_, vm):
    carl = as_("carl", Role.CONTRIBUTOR)
    machines.stop(carl, "vm")
    machines.detach(carl, "vm", "data")
    machines.attach(carl, "vm", "data")
    images.tag(carl, "image", {"a": "b"}, ())
    capture.capture_vm(carl, "vm", CaptureRequest(name="captured"))
    machines.delete(carl, "vm")
    assert read_all(carl) == {
        "images": ["captured", "image"],
        "VMs": [],
        "disks": ["loose"],
        "snapshots": [],
        "galleries": [],
    }


@pytest.mark.parametrize(
    "act",
    [
        lambda c: c.catalog.audit.list(),
        lambda c: c.catalog.audit.verify(),
        lambda c: c.catalog.every_image(),
        lambda c: c.catalog.every_vm(),
        lambda c: c.catalog.every_disk(),
        lambda c: c.catalog.image_names(),
        lambda c: c.catalog.image_ids(["x"]),
        lambda c: c.catalog.indexes_in_use(),
        lambda c: c.catalog.has_overlay("x"),
        lambda c: c.catalog.restore_points.indexes(),
        lambda c: c.catalog.snapshots.indexes(),
        lambda c: subscriptions.create(c, "new"),
        lambda c: subscriptions.set_quota(c, QuotaKind.VMS, None),
    ],
)
def test_what_concerns_all_is_for_the_installations_owner(as_, act):
    oscar = as_("oscar", Role.OWNER, where=Where())
    with pytest.raises(Forbidden, match="for the installation's owner") as refused:
        act(oscar)
    assert "without --as" in (refused.value.hint or "")


@pytest.mark.parametrize(
    "act",
    [
        storage.stats,
        storage.check,
        lambda c: storage.prune(c, grace=timedelta()),
        storage.repair,
        lambda c: storage.copy(c, "/tmp/nowhere"),
        lambda c: storage.copy(c, "/tmp/nowhere", ["image"]),
        adopt.adopt,
    ],
)
def test_the_store_is_not_even_opened_for_others(as_, act):
    oscar = as_("oscar", Role.OWNER, where=Where())
    with pytest.raises(Forbidden, match=r"'oscar' may not .* store: that is for"):
        act(oscar)
    assert "repository" not in vars(oscar)


# -- housekeeping sees everything


def test_ports_and_names_of_others_are_known(owner, as_, vm, monkeypatch):
    """A VM in another group has its port, although nobody here sees it."""
    there = Scope(DEFAULT_SUBSCRIPTION, "carls")
    roles.assign(owner, "carl", Role.READER, Where(resource=vm.image_id))
    carl = as_("carl", Role.CONTRIBUTOR, there)
    monkeypatch.setattr("calotype.machine.ssh.is_free", {vm.ssh_port, 31_999}.__contains__)
    made = create_vm(carl, VmRequest(name="vm", image=vm.image_id, start=False))
    assert made.ssh_port == 31_999
    assert made.os_disk.name == vm.os_disk.name  # which is free in this group
    assert made.uid is None or made.uid != vm.uid


def test_a_deletion_leaves_others_what_they_need(owner, as_, vm):
    """Bases, Indexes and reports are looked for everywhere, whoever deletes."""
    there = Scope(DEFAULT_SUBSCRIPTION, "carls")
    roles.assign(owner, "carl", Role.READER, Where(resource=vm.image_id))
    carl = as_("carl", Role.CONTRIBUTOR, there)
    create_vm(carl, VmRequest(name="mine", image=vm.image_id, start=False))
    verify.verify_image(owner, "image")
    base = owner.base_path(vm.os_disk.index)
    report = owner.home.evidence / vm.image_id
    assert base.exists()
    assert report.exists()
    machines.delete(carl, "mine")
    assert base.exists()
    assert report.exists()
    assert vm.os_disk.index in owner.repository.indexes()
    assert owner.disk_path(vm.os_disk.file).exists()


def test_what_others_left_behind_is_known_to_be_theirs(owner, as_, vm):
    """A command that was killed after its commit: the next one, of somebody else, removes nothing."""
    left = owner.home.tmp / "op-left"
    left.mkdir()
    (left / "claims").write_text(f"vm {vm.id}\ndisk {vm.os_disk.file}\ndisk nobodys\n")
    owner.disk_path("nobodys").touch()
    nobody = as_("nobody")
    with nobody.operation():
        pass
    assert not left.exists()
    assert owner.vm_path(vm.id).exists()
    assert owner.disk_path(vm.os_disk.file).exists()
    assert not owner.disk_path("nobodys").exists()


# -- roles


def test_an_owner_gives_roles_in_what_is_his_and_no_further(owner, as_):
    disk = a_disk("disk")
    owner.catalog.add_disk(disk)
    group = as_("oscar", Role.OWNER)
    one = as_("otto", Role.OWNER, where=Where(resource=disk.id))
    given = roles.assign(group, "rita", Role.READER, Where(WEB.group))
    assert roles.assign(one, "eve", Role.OWNER, Where(resource="disk")).resource == disk.id
    for who, where in (
        (group, Where()),
        (group, Where("other")),
        (one, Where(WEB.group)),
        (one, Where()),
    ):
        with pytest.raises(Forbidden, match="has not the role Owner"):
            roles.assign(who, "eve", Role.OWNER, where)
    with pytest.raises(NotFound):
        roles.delete(one, given.id)  # he may not even know of it
    roles.delete(group, given.id)
    assert [found.principal for found in roles.list_all(one)] == ["eve", "otto"]
    with pytest.raises(Conflict, match="has the role Owner there already"):
        roles.assign(group, "eve", Role.OWNER, Where(resource="disk"))


def test_a_contributor_gives_no_roles_not_even_to_himself(as_):
    carl = as_("carl", Role.CONTRIBUTOR)
    for where in (Where(WEB.group), Where()):
        with pytest.raises(Forbidden):
            roles.assign(carl, "carl", Role.OWNER, where)


def test_a_role_that_is_taken_away_is_gone(owner, as_):
    owner.catalog.add_disk(a_disk("disk"))
    rita = as_("rita", Role.READER)
    assert rita.catalog.disk("disk")
    roles.delete(owner, roles.list_all(owner)[0].id)
    with pytest.raises(NotFound):
        rita.catalog.disk("disk")


def test_a_name_that_several_resources_have_is_said(owner):
    owner.catalog.add_disk(a_disk("web"))
    owner.catalog.galleries.add(
        Gallery(id=str(uuid4()), name="web", created_at=NOW, scope=WEB), ACT
    )
    with pytest.raises(Conflict, match="'web' is disk and gallery") as refused:
        roles.assign(owner, "rita", Role.READER, Where(resource="web"))
    assert "by its id" in (refused.value.hint or "")
    with pytest.raises(NotFound):
        roles.assign(owner, "rita", Role.READER, Where(resource="nothing"))


# -- sharing


def test_who_only_says_that_a_subscription_is_his_sees_nothing_shared_with_it(context, as_):
    team = subscriptions.create(context, "team").id
    a_definition(context)
    version = a_version(context)
    galleries.share(context, "gal", add=(team,))
    tom = caller_in(context, team, "tom", "Reader")
    eve = caller_in(context, team, "eve")
    assert [g.name for g in tom.catalog.galleries.list(shared=True)] == ["gal"]
    assert tom.catalog.image(version.image.id)
    assert eve.catalog.galleries.list(shared=True) == []
    with pytest.raises(NotFound):
        eve.catalog.image(version.image.id)
    with pytest.raises(NotFound, match="there is no subscription 'team'"):
        subscriptions.caller(context, "eve", "team", None)
    with pytest.raises(Forbidden) as refused:  # nor is he told whose it is
        tom.catalog.tag_image(version.image.id, {"a": "b"})
    assert "default" not in f"{refused.value.message} {refused.value.hint}"
    for one in (tom, eve):
        one.close()


# -- who it was


def test_the_audit_names_the_principal_and_who_ran_it(context, as_):
    carl = as_("carl", Role.OWNER)
    carl.catalog.galleries.add(
        Gallery(id="g", name="gallery", created_at=NOW, scope=WEB), Act("gallery.create", "x")
    )
    carl.system.audit.append(Act("a.pull", "for carl"))  # housekeeping is done for somebody
    context.catalog.audit.append(Act("a.test", "of the owner"))
    told = [entry.actor for entry in context.catalog.audit.list(3)]
    assert told[0].split(" ")[0] != "carl"
    assert told[1] == told[2] == f"carl through {told[0]}"
    assert context.catalog.audit.verify() is None


def test_evidence_names_the_principal(owner, as_, vm):
    verify.verify_image(as_("carl", Role.CONTRIBUTOR), "image")
    report = read_evidence(owner, owner.catalog.image("image"))
    assert report.evidence.producer.actor.startswith("carl through ")
