"""Every method of the catalogue that writes, for every role, in a caller's own group and elsewhere.

A method that writes and is not in the table below is found, so that none is forgotten.
"""

import ast
import inspect
import shutil
import textwrap
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import get_type_hints

import pytest

from calotype.catalog import Act, Catalog
from calotype.catalog.versions import Change
from calotype.errors import Forbidden, NotFound
from calotype.model import (
    DEFAULT_SUBSCRIPTION,
    GIB,
    INSTALLATION,
    Acceptance,
    Caller,
    CommunityReport,
    Consistency,
    Entitlement,
    FollowedCommunity,
    Gallery,
    Generation,
    Image,
    ImageDefinition,
    ImageDisk,
    ImageVersion,
    ManagedDisk,
    MarketCatalog,
    OsState,
    OsType,
    Provenance,
    PurchasePlan,
    QuotaKind,
    Replica,
    ReplicationState,
    ReportCategory,
    RestoreDisk,
    RestorePoint,
    Role,
    RoleAssignment,
    Scope,
    Sharing,
    Shelf,
    Snapshot,
    SourceKind,
    Stage,
    Subscription,
    Verdict,
    Version,
    VirtualMachine,
)

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ACT = Act("a.test", "of the matrix")
SECOND = "11111111-1111-4111-8111-111111111111"
EMPTY = "22222222-2222-4222-8222-222222222222"
WHO = "alice"
PLACES = {
    "own": Scope(DEFAULT_SUBSCRIPTION, "web"),
    "other group": Scope(DEFAULT_SUBSCRIPTION, "other"),
    "other subscription": Scope(SECOND, "web"),
}
PLAN = PurchasePlan("p", "o", "n")


# -- what there is in each place


def image(scope, name="image", shelf=Shelf.MANAGED):
    return Image(
        id=f"{name} {scope}",
        name=name,
        os_type=OsType.LINUX,
        os_state=OsState.GENERALIZED,
        os_disk=ImageDisk(index="a" * 64, size=GIB),
        provenance=Provenance(kind=SourceKind.FILE, source="x"),
        created_at=NOW,
        scope=scope,
        shelf=shelf,
    )


def disk(scope, name, vm=None, lun=None):
    return ManagedDisk(
        id=f"{name} {scope}",
        name=name,
        size=GIB,
        vm_id=vm,
        lun=lun,
        created_at=NOW,
        scope=scope,
    )


def machine(scope, name="vm"):
    port = 2000 + 100 * list(PLACES.values()).index(scope) + len(name)
    return VirtualMachine(
        id=f"{name} {scope}",
        name=name,
        vcpus=1,
        memory=GIB,
        os_type=OsType.LINUX,
        generation=Generation.V1,
        os_state=OsState.GENERALIZED,
        ssh_port=port,
        mac=f"52:54:00:00:{port >> 8:02x}:{port & 255:02x}",
        disks=(
            disk(scope, f"{name}-os", f"{name} {scope}"),
            disk(scope, f"{name}-data", f"{name} {scope}", 0),
        ),
        created_at=NOW,
        scope=scope,
    )


def point(scope, name="point"):
    return RestorePoint(
        id=f"{name} {scope}",
        vm_id=f"vm {scope}",
        reason="x",
        consistency=Consistency.CRASH,
        disks=(RestoreDisk(disk_id=f"vm-os {scope}", name="vm-os", index="c" * 64, size=GIB),),
        created_at=NOW,
    )


def snapshot(scope, name="snapshot"):
    return Snapshot(
        id=f"{name} {scope}",
        name=name,
        size=GIB,
        index="b" * 64,
        disk_id=f"loose {scope}",
        consistency=Consistency.CRASH,
        created_at=NOW,
        scope=scope,
    )


def gallery(scope, name=None):
    name = name or f"gallery_{scope.group}"
    return Gallery(id=f"{name} {scope}", name=name, created_at=NOW, scope=scope)


def definition(scope, name="definition"):
    return ImageDefinition(
        id=f"{name} {scope}",
        gallery_id=gallery(scope).id,
        gallery=gallery(scope).name,
        name=name,
        publisher="p",
        offer="o",
        sku=name,
        os_type=OsType.LINUX,
        os_state=OsState.GENERALIZED,
        created_at=NOW,
        scope=scope,
    )


def version(scope, number=1):
    reference = f"{gallery(scope).name}/definition/{number}.0.0"
    of = replace(image(scope, reference, Shelf.GALLERY), stage=Stage.PROMOTED)
    return ImageVersion(
        definition_id=definition(scope).id,
        reference=reference,
        version=Version(number, 0, 0),
        image=of,
    )


def assignment(scope, principal="zoe", role=Role.READER):
    return RoleAssignment(
        id=f"{principal} {scope}",
        principal=principal,
        role=role,
        subscription=scope.subscription,
        group=scope.group,
        created_at=NOW,
    )


def acceptance(scope):
    return Acceptance(
        subscription=scope.subscription,
        plan=PLAN,
        digest="d",
        text="t",
        principal="x",
        accepted_at=NOW,
    )


def entitlement(scope, name="msdn"):
    return Entitlement(subscription=scope.subscription, name=name, granted_by="x", granted_at=NOW)


CATALOG_OF_OFFERS = MarketCatalog(name="offers", location="/x", kind="offers", added_at=NOW)
FOLLOWED = FollowedCommunity(
    name="followed", mirrors=("https://a.test",), root="{}", allow_addresses=(), added_at=NOW
)
REPLICA = Replica(region="r", state=ReplicationState.COMPLETED, updated_at=NOW)
REPORT = CommunityReport(
    id="report",
    public_name="x",
    reference="community/x/y",
    category=ReportCategory.OTHER,
    reason="x",
    reporter="x",
    at=NOW,
)
PULLED = image(Scope(INSTALLATION, Shelf.MARKETPLACE.value), "a:b:c:1.0.0", Shelf.MARKETPLACE)


def fill(catalog: Catalog, scope: Scope) -> None:
    """One of everything."""
    catalog = catalog.of(Caller(scope=scope))
    catalog.add_image(image(scope))
    catalog.add_vm(machine(scope))
    catalog.add_disk(disk(scope, "loose"))
    catalog.restore_points.add(point(scope))
    catalog.snapshots.add(snapshot(scope), disk(scope, "loose"))
    catalog.galleries.add(gallery(scope), ACT)
    catalog.galleries.add(gallery(scope, f"empty_{scope.group}"), ACT)
    catalog.galleries.add_definition(definition(scope), ACT)
    catalog.galleries.add_definition(definition(scope, "empty"), ACT)
    catalog.versions.add(version(scope, 1), ACT)
    catalog.versions.add(version(scope, 2), ACT)
    catalog.replicas.add(version(scope).id, ["r"], ACT)
    catalog.roles.assign(assignment(scope), ACT)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("matrix") / "catalog.db"
    catalog = Catalog(path)
    for identifier, name in ((SECOND, "second"), (EMPTY, "empty")):
        catalog.subscriptions.add(Subscription(id=identifier, name=name, created_at=NOW), ACT)
    for scope in PLACES.values():
        fill(catalog, scope)
    catalog.add_image(PULLED)
    catalog.marketplace.add_catalog(CATALOG_OF_OFFERS, ACT)
    catalog.communities.add(FOLLOWED, ACT)
    for subscription in (DEFAULT_SUBSCRIPTION, SECOND):
        scope = Scope(subscription)
        catalog.of(Caller(scope=scope)).marketplace.accept(acceptance(scope), ACT)
        catalog.marketplace.grant(entitlement(scope), ACT)
    catalog.close()
    return path


# -- what may be done, by whom


@dataclass(frozen=True)
class Entry:
    """A call, and the role that it needs in the group; ``None``: the installation's owner alone."""

    role: Role | None
    call: Callable[[Catalog, Scope], object]
    makes: bool = False  # something new: who may not is told so, for there is nothing to hide
    whole: bool = False  # in the whole subscription


R, C, O = Role.READER, Role.CONTRIBUTOR, Role.OWNER  # noqa: E741


def shared(scope):
    return replace(gallery(scope), sharing=Sharing.GROUPS, everyone=True)


MATRIX: dict[str, Entry] = {
    "Catalog.add_image": Entry(C, lambda c, s: c.add_image(image(s, "new")), makes=True),
    "Catalog.tag_image": Entry(C, lambda c, s: c.tag_image(image(s).id, {"a": "b"})),
    "Catalog.promote_image": Entry(C, lambda c, s: c.promote_image(image(s).id)),
    "Catalog.promote_image of a version": Entry(
        C, lambda c, s: c.promote_image(version(s).id, Stage.STAGED)
    ),
    "Catalog.record_verdict": Entry(
        C, lambda c, s: c.record_verdict(image(s).id, Verdict.GENERALIZED)
    ),
    "Catalog.delete_image": Entry(C, lambda c, s: c.delete_image(image(s).id)),
    "Catalog.add_vm": Entry(C, lambda c, s: c.add_vm(machine(s, "new")), makes=True),
    "Catalog.add_vm without disks": Entry(
        C, lambda c, s: c.add_vm(replace(machine(s, "new"), disks=())), makes=True
    ),
    "Catalog.update_vm": Entry(C, lambda c, s: c.update_vm(machine(s).id, deallocated=True)),
    "Catalog.delete_vm": Entry(
        C, lambda c, s: c.delete_vm(machine(s).id, delete_disks=[machine(s).os_disk.id])
    ),
    "Catalog.mark_generalized": Entry(C, lambda c, s: c.mark_generalized(machine(s).id, ACT)),
    "Catalog.add_disk": Entry(C, lambda c, s: c.add_disk(disk(s, "new")), makes=True),
    "Catalog.attach_disk": Entry(
        C, lambda c, s: c.attach_disk(disk(s, "loose").id, machine(s).id, 5)
    ),
    "Catalog.detach_disk": Entry(C, lambda c, s: c.detach_disk(disk(s, "vm-data").id)),
    "Catalog.delete_disk": Entry(C, lambda c, s: c.delete_disk(disk(s, "loose").id)),
    "RestorePoints.add": Entry(C, lambda c, s: c.restore_points.add(point(s, "new"))),
    "RestorePoints.delete": Entry(C, lambda c, s: c.restore_points.delete(point(s).id)),
    "RestorePoints.go_back": Entry(
        C, lambda c, s: c.restore_points.go_back(point(s), {f"vm-os {s}": "overlay"})
    ),
    "Snapshots.add": Entry(
        C, lambda c, s: c.snapshots.add(snapshot(s, "new"), disk(s, "loose")), makes=True
    ),
    "Snapshots.delete": Entry(C, lambda c, s: c.snapshots.delete(snapshot(s).id)),
    "Galleries.add": Entry(C, lambda c, s: c.galleries.add(gallery(s, "new"), ACT), makes=True),
    "Galleries.update": Entry(
        C, lambda c, s: c.galleries.update(replace(gallery(s), description="x"), ACT)
    ),
    "Galleries.update, sharing it": Entry(O, lambda c, s: c.galleries.update(shared(s), ACT)),
    "Galleries.delete": Entry(
        C, lambda c, s: c.galleries.delete(gallery(s, f"empty_{s.group}").id, ACT)
    ),
    "Galleries.add_definition": Entry(
        C, lambda c, s: c.galleries.add_definition(definition(s, "new"), ACT)
    ),
    "Galleries.update_definition": Entry(
        C, lambda c, s: c.galleries.update_definition(definition(s), ACT)
    ),
    "Galleries.delete_definition": Entry(
        C, lambda c, s: c.galleries.delete_definition(definition(s, "empty").id, ACT)
    ),
    "Versions.add": Entry(C, lambda c, s: c.versions.add(version(s, 3), ACT)),
    "Versions.change": Entry(
        C, lambda c, s: c.versions.change(version(s).id, lambda _standing: Change(None, ACT))
    ),
    "Versions.roll_back": Entry(
        C, lambda c, s: c.versions.roll_back(definition(s).id, Version(1, 0, 0))
    ),
    "Replicas.add": Entry(C, lambda c, s: c.replicas.add(version(s).id, ["other"], ACT)),
    "Replicas.remove": Entry(C, lambda c, s: c.replicas.remove(version(s).id, ["r"], ACT)),
    "Replicas.note": Entry(None, lambda c, s: c.replicas.note(version(s).id, REPLICA)),
    "Replicas.interrupt": Entry(None, lambda c, _s: c.replicas.interrupt("r", "x")),
    "Replicas.claim": Entry(None, lambda c, _s: c.replicas.claim("r", ["a" * 64])),
    "Replicas.forget": Entry(None, lambda c, _s: c.replicas.forget("r", "a" * 64)),
    "Subscriptions.add": Entry(
        None,
        lambda c, _s: c.subscriptions.add(Subscription(id="x", name="x", created_at=NOW), ACT),
    ),
    "Subscriptions.delete": Entry(None, lambda c, _s: c.subscriptions.delete(EMPTY, ACT)),
    "Subscriptions.set_quota": Entry(
        None, lambda c, s: c.subscriptions.set_quota(s.subscription, QuotaKind.VMS, 9, ACT)
    ),
    "Roles.assign": Entry(O, lambda c, s: c.roles.assign(assignment(s, "bob", O), ACT), makes=True),
    "Roles.assign in the whole subscription": Entry(
        O,
        lambda c, s: c.roles.assign(replace(assignment(s, "bob", O), group=None), ACT),
        makes=True,
        whole=True,
    ),
    "Roles.assign for a resource": Entry(
        O,
        lambda c, s: c.roles.assign(replace(assignment(s, "bob", O), resource=image(s).id), ACT),
        makes=True,
    ),
    "Roles.delete": Entry(O, lambda c, s: c.roles.delete(assignment(s).id, ACT)),
    "Marketplace.add_catalog": Entry(
        None,
        lambda c, _s: c.marketplace.add_catalog(replace(CATALOG_OF_OFFERS, name="new"), ACT),
    ),
    "Marketplace.remove_catalog": Entry(
        None, lambda c, _s: c.marketplace.remove_catalog(CATALOG_OF_OFFERS.name, ACT)
    ),
    "Marketplace.accept": Entry(
        C, lambda c, s: c.marketplace.accept(acceptance(s), ACT), makes=True, whole=True
    ),
    "Marketplace.cancel": Entry(
        C, lambda c, _s: c.marketplace.cancel(PLAN, ACT), makes=True, whole=True
    ),
    "Marketplace.grant": Entry(None, lambda c, s: c.marketplace.grant(entitlement(s, "more"), ACT)),
    "Marketplace.revoke": Entry(
        None, lambda c, s: c.marketplace.revoke(s.subscription, "msdn", ACT)
    ),
    "Communities.add": Entry(
        None, lambda c, _s: c.communities.add(replace(FOLLOWED, name="new"), ACT)
    ),
    "Communities.set_mirrors": Entry(
        None, lambda c, _s: c.communities.set_mirrors(FOLLOWED.name, ("https://b.test",), ACT)
    ),
    "Communities.remove": Entry(None, lambda c, _s: c.communities.remove(FOLLOWED.name, ACT)),
    "Communities.revoke": Entry(
        None, lambda c, s: c.communities.revoke({version(s).id: "bad"}, ACT)
    ),
    # What everybody may use is the installation's owner's to change.
    "Catalog.add_image for everybody": Entry(
        None, lambda c, _s: c.add_image(replace(PULLED, id="new", name="new"))
    ),
    "Catalog.tag_image of everybody": Entry(None, lambda c, _s: c.tag_image(PULLED.id, {"a": "b"})),
    "Catalog.delete_image of everybody": Entry(None, lambda c, _s: c.delete_image(PULLED.id)),
}

#: What anybody may write, and why.
OPEN = {
    "Audit.append": "what somebody did is recorded, whoever it was",
    "Community.report": "everybody may report a community image, and the report names who did",
    "SqlLedger": "every command that stores or reads keeps the store's ledger",
}


# -- none is forgotten


def writing_methods() -> set[str]:
    """The public methods of the catalogue and its parts that begin a transaction to write in."""
    parts = [
        get_type_hints(value.func)["return"]
        for value in vars(Catalog).values()
        if isinstance(value, cached_property)
    ]
    return {
        f"{part.__name__}.{name}"
        for part in (Catalog, *parts)
        for name in vars(part)
        if not name.startswith("_") and _writes(part, name, set())
    }


def _writes(part: type, name: str, seen: set[str]) -> bool:
    """Whether a method, or one of its class that it calls, uses ``self._write``."""
    function = vars(part).get(name)
    if not inspect.isfunction(function) or name in seen:
        return name == "_write"
    used = {
        node.attr
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function))))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    return "_write" in used or any(_writes(part, other, seen | {name}) for other in used)


def test_every_method_that_writes_is_in_the_matrix():
    """A new one belongs into MATRIX, with the role that it needs; in OPEN only with a good reason."""
    known = {name.split(" ")[0].rstrip(",") for name in MATRIX} | set(OPEN)
    found = writing_methods()
    assert {name for name in found if name not in known and name.split(".")[0] not in OPEN} == set()
    assert {name for name in known if "." in name} <= found  # and none is there that is gone


# -- the matrix


@pytest.fixture
def fresh(template, tmp_path):
    """Opens a copy of the template."""
    with ExitStack() as opened:

        def open_() -> Catalog:
            opened.close()  # the last one
            path = tmp_path / "catalog.db"
            shutil.copy(template, path)
            catalog = Catalog(path)
            opened.callback(catalog.close)
            return catalog

        yield open_


def caller(catalog: Catalog, role: Role | None, *, whole: bool = False) -> Catalog:
    """The catalogue for somebody who has a role in his own group, or in his whole subscription."""
    own = PLACES["own"]
    if role is not None:
        given = assignment(own, WHO, role)
        catalog.roles.assign(replace(given, group=None) if whole else given, ACT)
    return catalog.of(Caller(WHO, own))


def refusal(entry, role, place):
    """What somebody must be told who has a role in a place; ``None``: it is done."""
    if entry.role is None:
        return (Forbidden, NotFound)
    rank = [None, *reversed(Role)]
    if place == "own" and not entry.whole and rank.index(role) >= rank.index(entry.role):
        return None
    sees = place == "own" and role is not None
    return Forbidden if entry.makes or sees else NotFound


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("role", [*Role, None])
def test_who_may_do_what(fresh, role, place):
    wrong = []
    mine = None
    for name, entry in MATRIX.items():
        if mine is None:
            mine = caller(fresh(), role)
            before = dump(mine)
        expected = refusal(entry, role, place)
        try:
            entry.call(mine, PLACES[place])
        except (Forbidden, NotFound) as error:
            if expected is None or not isinstance(error, expected):
                wrong.append(f"{name}: {error!r}")
            if isinstance(error, Forbidden) and not error.hint:
                wrong.append(f"{name}: no cure")
            if dump(mine) != before:
                wrong.append(f"{name}: was refused, and changed something")
        else:
            if expected is not None:
                wrong.append(f"{name}: was done")
            mine = None  # it changed
    assert wrong == []


def dump(catalog: Catalog) -> list[object]:
    with catalog._database.engine.connect() as db:
        names = db.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars()
        return [db.exec_driver_sql(f'SELECT * FROM "{name}"').fetchall() for name in list(names)]


READS: dict[str, Callable[[Catalog, Scope], object]] = {
    "image": lambda c, s: c.image(image(s).id),
    "image of a version": lambda c, s: c.image(version(s).id),
    "VM": lambda c, s: c.vm(machine(s).id),
    "disk": lambda c, s: c.disk(disk(s, "loose").id),
    "disk of a VM": lambda c, s: c.disk(machine(s).os_disk.id),
    "restore points": lambda c, s: c.restore_points.list(machine(s).id),
    "snapshot": lambda c, s: c.snapshots.get(snapshot(s).id),
    "gallery": lambda c, s: c.galleries.get(gallery(s).id),
    "definition": lambda c, s: c.galleries.definition(gallery(s).id, "definition"),
    "definition by id": lambda c, s: c.galleries.definition_of(definition(s).id),
    "definitions": lambda c, s: c.galleries.definitions(gallery(s).id),
    "version": lambda c, s: c.versions.get(definition(s).id, Version(1, 0, 0)),
    "version of an image": lambda c, s: c.versions.of_image(version(s).id),
    "latest": lambda c, s: c.versions.latest(definition(s).id),
    "versions": lambda c, s: c.versions.list(definition(s).id),
    "users": lambda c, s: c.versions.users(definition(s).id),
    "replicas": lambda c, s: c.replicas.of(version(s).id),
    "role": lambda c, s: c.roles.get(assignment(s).id),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("role", [Role.READER, None])
def test_what_is_read_by_its_id_needs_a_reader(fresh, role, place):
    mine = caller(fresh(), role)
    for read in READS.values():
        if role is not None and place == "own":
            assert read(mine, PLACES[place]) is not None
        else:
            with pytest.raises(NotFound):
                read(mine, PLACES[place])


def test_what_joins_two_needs_the_role_for_both(fresh):
    catalog, own, other = caller(fresh(), C), PLACES["own"], PLACES["other group"]
    joins = (
        lambda: catalog.attach_disk(disk(own, "loose").id, machine(other).id, 5),
        lambda: catalog.attach_disk(disk(other, "loose").id, machine(own).id, 5),
        lambda: catalog.add_disk(disk(own, "new", machine(other).id, 5)),
        lambda: catalog.snapshots.add(snapshot(own, "new"), disk(other, "loose")),
    )
    for join in joins:
        with pytest.raises(NotFound):
            join()
    catalog.of(Caller()).roles.assign(replace(assignment(other, WHO, R), id="reads"), ACT)
    for join in joins:
        with pytest.raises(Forbidden):
            join()


@pytest.mark.parametrize("name", [name for name, entry in MATRIX.items() if entry.whole])
def test_what_binds_a_whole_subscription_needs_the_role_in_all_of_it(fresh, name):
    entry = MATRIX[name]
    catalog = caller(fresh(), entry.role, whole=True)
    entry.call(catalog, PLACES["own"])
    with pytest.raises((Forbidden, NotFound)):
        entry.call(catalog, PLACES["other subscription"])


@pytest.mark.parametrize("name", MATRIX)
def test_the_installations_owner_may_do_all(fresh, name):
    MATRIX[name].call(fresh().of(Caller(scope=PLACES["own"])), PLACES["own"])
