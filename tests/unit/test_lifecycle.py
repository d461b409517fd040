"""The life of image versions: what may be done, what is refused and how that is said, what is inherited."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
from sqlalchemy import insert, update
from tests.shelf import ACT, DAY, NOW, new_definition, new_gallery, new_image, new_vm, publish
from tests.used_vm import digest_of, os_disk

from calotype.catalog.tables import descent
from calotype.catalog.tables import images as table
from calotype.engine import images, launch, machines, storage, usable
from calotype.engine.base import bases
from calotype.engine.boot import boottest
from calotype.engine.gallery import lifecycle
from calotype.engine.gallery import versions as publishing
from calotype.engine.gallery.places import Managed
from calotype.engine.generalize.generalize import generalize_image
from calotype.engine.generalize.steps import DEFAULT
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.sources import Upload
from calotype.errors import Conflict, Forbidden, GuestError, InvalidInput, NotAllowed, NotFound
from calotype.model import (
    Caller,
    Generation,
    Lifecycle,
    OsState,
    OsType,
    Scope,
    Sharing,
    Shelf,
    Stage,
)

REF = "gal/web/{}"


@pytest.fixture
def gallery(context):
    return new_gallery(context)


@pytest.fixture
def web(context, gallery):
    return new_definition(context, gallery)


@pytest.fixture
def three(context, web):
    """Three good versions."""
    return [publish(context, web, f"1.{minor}.0") for minor in (8, 9, 10)]


def latest(context, definition):
    try:
        found = context.catalog.versions.latest(definition.id, region=context.region)
    except NotFound:
        return None
    return str(found.version)


def refusal(error, function, *arguments, **options):
    """What a refusal says, and its hint."""
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    return caught.value.message, caught.value.hint


def acts(context):
    return [entry.action for entry in context.catalog.audit.list() if entry.action != ACT.action]


def test_promoting(context, web, three, monkeypatch):
    tested = []

    def boot_test(context, image_name, *, clones, timeout):
        tested.append(image_name)
        context.catalog.promote_image(image_name)
        return SimpleNamespace(passed=True, problems=())

    monkeypatch.setattr(boottest, "boot_test", boot_test)
    staged = publish(context, web, "1.11.0", stage=Stage.STAGED)
    assert latest(context, web) == "1.10.0"
    done = lifecycle.promote(context, staged.reference)
    assert done.version.image.stage is Stage.PROMOTED
    assert done.report is not None
    assert latest(context, web) == "1.11.0"
    before = context.catalog.audit.head()
    again = lifecycle.promote(context, staged.reference)
    assert (again.version, again.report) == (done.version, None)
    assert tested == [staged.id]
    assert context.catalog.audit.head() == before


def test_a_version_that_fails_its_test_stays_staged(context, web, three, monkeypatch):
    def boot_test(context, image_name, *, clones, timeout):
        return SimpleNamespace(passed=False, problems=("clone A: no kernel", "clone B: no kernel"))

    monkeypatch.setattr(boottest, "boot_test", boot_test)
    publish(context, web, "1.11.0", stage=Stage.STAGED)
    message, hint = refusal(GuestError, lifecycle.promote, context, REF.format("1.11.0"))
    assert message == (
        "'gal/web/1.11.0' failed its boot test, and stays staged: clone A: no kernel; clone B: no kernel"
    )
    assert "--untested" in hint
    assert latest(context, web) == "1.10.0"


def test_a_version_that_cannot_be_tested_says_how_to_promote_it(context, web):
    staged = publish(context, web, "1.0.0", stage=Stage.STAGED)
    with context.catalog._write() as db:
        here = table.c.id == staged.id
        db.execute(update(table).where(here).values(os_type=OsType.WINDOWS.value))
    message, hint = refusal(InvalidInput, lifecycle.promote, context, staged.reference)
    assert "cannot be boot-tested" in message
    assert hint.endswith("then promote it with --untested (recorded)")


def test_promoting_without_a_test_is_recorded_and_noted(context, web):
    publish(context, web, "1.0.0", stage=Stage.STAGED)
    assert latest(context, web) is None
    done = lifecycle.promote(context, REF.format("1.0.0"), untested=True)
    assert done.version.image.provenance.notes == ("promoted without a boot test",)
    assert latest(context, web) == "1.0.0"
    entry = context.catalog.audit.list()[0]
    assert (entry.action, entry.resource) == ("version.promote", "image version gal/web/1.0.0")
    assert entry.detail["untested"] is True
    lifecycle.promote(context, REF.format("1.0.0"), untested=True)
    assert acts(context) == ["version.promote"]


def test_rolling_back_one_or_to_a_version(context, web, three):
    staged = publish(context, web, "2.0.0", stage=Stage.STAGED)
    done = lifecycle.roll_back(context, "gal/web")
    assert str(done.latest.version) == latest(context, web) == "1.9.0"
    assert done.excluded == (
        staged.reference,
        REF.format("1.10.0"),
    )  # staged ones do not jump ahead
    assert context.catalog.audit.list()[0].detail["excluded"] == list(done.excluded)
    assert lifecycle.roll_back(context, "gal/web", "1.8.0").excluded == (REF.format("1.9.0"),)
    assert latest(context, web) == "1.8.0"
    assert lifecycle.roll_back(context, "gal/web", "1.8.0").excluded == ()
    assert acts(context) == ["definition.rollback", "definition.rollback"]
    lifecycle.promote(context, REF.format("1.10.0"))
    assert latest(context, web) == "1.10.0"


def test_a_definition_is_never_left_without_a_latest(context, web):
    message, hint = refusal(NotAllowed, lifecycle.roll_back, context, "gal/web")
    assert message == "'gal/web' cannot be rolled back: no other version could be the latest"
    assert "image-version list gal/web" in hint
    publish(context, web, "1.0.0")
    publish(context, web, "0.9.0", stage=Stage.STAGED)
    publish(context, web, "0.8.0", end_of_life=NOW - DAY)
    publish(context, web, "0.7.0", excluded_regions=(context.region,))
    publish(context, web, "0.6.0", exclude_from_latest=True)
    publish(context, web, "0.5.0")
    lifecycle.turn(context, REF.format("0.5.0"), Lifecycle.DEPRECATED)
    publish(context, web, "0.4.0")
    lifecycle.delete(context, REF.format("0.4.0"))
    assert refusal(NotAllowed, lifecycle.roll_back, context, "gal/web")[0] == message
    told = {}
    for number in ("0.9.0", "0.8.0", "0.7.0", "0.6.0", "0.5.0"):
        told[number] = refusal(NotAllowed, lifecycle.roll_back, context, "gal/web", number)
    assert told["0.9.0"][0] == "'gal/web' cannot be rolled back to 0.9.0: it is staged"
    assert told["0.9.0"][1] == "calotype gallery image-version promote gal/web/0.9.0"
    assert "past its end of life" in told["0.8.0"][0]
    assert f"not for region '{context.region}'" in told["0.7.0"][0]
    assert "excluded from latest" in told["0.6.0"][0]
    assert "is Deprecated" in told["0.5.0"][0]
    assert told["0.5.0"][1].endswith("calotype gallery image-version activate gal/web/0.5.0")
    assert "undelete" in refusal(NotFound, lifecycle.roll_back, context, "gal/web", "0.4.0")[1]
    refusal(NotFound, lifecycle.roll_back, context, "gal/web", "3.0.0")
    assert latest(context, web) == "1.0.0"


def test_states_come_and_go(context, web, three):
    top = three[-1].reference
    turned = lifecycle.turn(
        context, top, Lifecycle.DEPRECATED, replacement=REF.format("1.9.0"), reason="slow"
    )
    assert (turned.version.replacement, turned.version.reason) == (REF.format("1.9.0"), "slow")
    assert turned.warnings == ()
    assert latest(context, web) == "1.9.0"
    lifecycle.turn(context, top, Lifecycle.OBSOLETE)
    lifecycle.turn(context, top, Lifecycle.REVOKED, reason="a key in it")
    assert lifecycle.turn(context, top, Lifecycle.ACTIVE).version == three[-1]
    assert latest(context, web) == "1.10.0"
    lifecycle.turn(context, top, Lifecycle.ACTIVE)
    verbs = ["activate", "revoke", "obsolete", "deprecate"]
    assert acts(context) == [f"version.{verb}" for verb in verbs]
    assert context.catalog.audit.list()[3].detail["reason"] == "slow"


def test_the_last_one_may_be_deprecated_and_that_is_said(context, web):
    publish(context, web, "1.0.0")
    turned = lifecycle.turn(context, REF.format("1.0.0"), Lifecycle.DEPRECATED)
    assert turned.warnings == (
        "there is no latest version of 'gal/web': 1.0.0, the highest, is Deprecated",
    )


def test_words_that_do_not_fit(context, web, three):
    ref = three[0].reference
    refusal(InvalidInput, lifecycle.turn, context, ref, Lifecycle.ACTIVE, reason="why")
    refusal(InvalidInput, lifecycle.turn, context, ref, Lifecycle.OBSOLETE, reason="a\x1b[31m")
    _, hint = refusal(
        InvalidInput, lifecycle.turn, context, ref, Lifecycle.OBSOLETE, reason="x" * 1001
    )
    assert hint
    message, _ = refusal(
        InvalidInput, lifecycle.turn, context, ref, Lifecycle.OBSOLETE, replacement=ref
    )
    assert message == "'gal/web/1.8.0' cannot replace itself"
    refusal(
        NotFound, lifecycle.turn, context, ref, Lifecycle.OBSOLETE, replacement=REF.format("9.0.0")
    )
    lifecycle.turn(context, three[1].reference, Lifecycle.OBSOLETE)
    other = three[1].reference
    refusal(NotAllowed, lifecycle.turn, context, ref, Lifecycle.OBSOLETE, replacement=other)
    refusal(InvalidInput, lifecycle.turn, context, "gal/web", Lifecycle.OBSOLETE)  # which one?


# -- before a VM is made


def test_deprecated_and_past_its_end_of_life_warn(context, gallery, web):
    old = publish(context, web, "1.0.0", end_of_life=NOW - DAY)
    (over,) = usable.require_usable(context, old.image)
    since = f"'gal/web/1.0.0' has been past its end of life since {(NOW - DAY).date()}"
    assert over == f"{since}; its owner names no other one"
    new = publish(context, web, "1.1.0", end_of_life=NOW + DAY)
    assert usable.require_usable(context, new.image) == ()
    lifecycle.turn(context, old.reference, Lifecycle.DEPRECATED, reason="old libraries")
    deprecated, over = usable.require_usable(context, old.image)
    assert deprecated == (
        "'gal/web/1.0.0' is deprecated (old libraries); use 'gal/web/1.1.0' instead"
    )
    assert over.endswith("use 'gal/web/1.1.0' instead")
    lifecycle.turn(context, old.reference, Lifecycle.DEPRECATED, replacement="gal/web")
    assert usable.require_usable(context, old.image)[0].endswith("use 'gal/web' instead")
    ended = new_definition(context, gallery, "db", end_of_life=NOW - DAY)
    (warning,) = usable.require_usable(context, publish(context, ended, "1.0.0").image)
    assert "past its end of life" in warning


def test_obsolete_ones_make_no_vms(context, web, three):
    lifecycle.turn(context, three[0].reference, Lifecycle.OBSOLETE, reason="32-bit")
    assert refusal(NotAllowed, usable.require_usable, context, three[0].image) == (
        "'gal/web/1.8.0' is obsolete (32-bit): it makes no new VMs",
        "use 'gal/web/1.10.0' instead",
    )


def test_versions_for_other_regions_make_no_vms_here(context, web):
    barred = publish(context, web, "1.0.0", excluded_regions=("mars", context.region))
    publish(context, web, "0.9.0", excluded_regions=("mars",))
    message, hint = refusal(NotAllowed, usable.require_usable, context, barred.image)
    assert message == f"'gal/web/1.0.0' is not for region '{context.region}'"
    assert "--excluded-regions" in hint
    assert latest(context, web) == "0.9.0"


def test_deleted_ones_make_no_vms_by_name_or_by_id(context, web, three):
    lifecycle.delete(context, three[0].reference)
    for name in (three[0].id, three[0].reference):
        message, hint = refusal(
            (NotFound, NotAllowed),
            create_vm,
            context,
            VmRequest(name="vm", image=name, start=False),
        )
        assert message == "image version 'gal/web/1.8.0' was deleted"
        assert "undelete gal/web/1.8.0" in hint
    assert "was deleted" in refusal(NotAllowed, usable.require_usable, context, three[0].image)[0]


# -- revocation


def test_a_revocation_is_inherited_by_all_that_descends_also_later(context, web, three):
    bad, _, good = three
    child = new_image("child", parent=bad.id)
    context.catalog.add_image(child)
    heir = publish(context, web, "2.0.0", parent=child.id)
    assert latest(context, web) == "2.0.0"
    context.catalog.delete_image(child.id)
    turned = lifecycle.turn(
        context, bad.reference, Lifecycle.REVOKED, reason="a key", replacement=good.reference
    )
    assert turned.warnings == (
        "1 image or VM descends from it: calotype gallery image-version descendants gal/web/1.8.0",
    )
    assert latest(context, web) == "1.10.0"  # the heir is not what anybody gets
    assert refusal(NotAllowed, usable.require_usable, context, bad.image) == (
        "'gal/web/1.8.0' was revoked: a key",
        "use another image: 'gal/web/1.10.0' is its replacement",
    )
    message, hint = refusal(NotAllowed, usable.require_usable, context, heir.image)
    assert message == "'gal/web/2.0.0' descends from 'gal/web/1.8.0', which was revoked: a key"
    assert hint == (
        "make it anew, from an image that was not revoked: 'gal/web/1.10.0' is its replacement"
    )
    late = publish(context, web, "2.1.0", parent=heir.id, stage=Stage.STAGED)
    assert "descends from" in refusal(NotAllowed, lifecycle.promote, context, late.reference)[0]
    context.catalog.promote_image(late.id)  # as a boot test does
    assert latest(context, web) == "1.10.0"
    grandchild = new_image("grandchild", parent=late.id)
    context.catalog.add_image(grandchild)
    assert "descends" in refusal(NotAllowed, usable.require_usable, context, grandchild)[0]
    lifecycle.turn(context, bad.reference, Lifecycle.ACTIVE)
    assert latest(context, web) == "2.1.0"
    assert usable.require_usable(context, grandchild) == ()


def test_a_revocation_survives_deletion_and_purge(context, web, three):
    bad = three[0]
    heir = publish(context, web, "2.0.0", parent=bad.id)
    lifecycle.delete(context, bad.reference)
    lifecycle.turn(context, bad.reference, Lifecycle.REVOKED, reason="a key")  # deleted ones, too
    refusal(NotFound, lifecycle.turn, context, bad.id, Lifecycle.ACTIVE)
    lifecycle.delete(context, bad.reference, purge=True)
    message, hint = refusal(NotAllowed, usable.require_usable, context, heir.image)
    assert message.endswith("'gal/web/1.8.0', which was revoked: a key")
    assert hint == "make it anew, from an image that was not revoked"


def test_cycles_in_the_lineage_are_harmless(context, web, three):
    one, two, three_ = three
    with context.catalog._write() as db:
        for child, parent in ((one, two), (two, three_), (three_, one)):
            row = {"child_id": child.id, "position": 0, "parent_id": parent.id}
            db.execute(insert(descent).values(row))
    assert context.catalog.lineage.revocation(one.id) is None
    assert len(context.catalog.lineage.descendants(one.id).found) == 2
    lifecycle.turn(context, two.reference, Lifecycle.REVOKED)
    assert latest(context, web) is None
    assert context.catalog.lineage.revocation(three_.id).id == two.id
    itself = new_image("itself")
    context.catalog.add_image(replace(itself, parents=(itself.id,)))
    assert context.catalog.lineage.revocation(itself.id) is None


def test_a_long_chain(context, web, three):
    parent = three[0].id
    for number in range(300):
        child = new_image(f"image-{number}", parent=parent)
        context.catalog.add_image(child)
        parent = child.id
        if number % 2:
            context.catalog.delete_image(child.id)
    lifecycle.turn(context, three[0].reference, Lifecycle.REVOKED)
    assert context.catalog.lineage.revocation(parent).id == three[0].id
    assert len(lifecycle.descendants(context, three[0].reference).found) == 150


def test_descendants_are_images_versions_and_vms(context, gallery, web, three):
    root = three[0]
    child = new_image("child", parent=root.id)
    context.catalog.add_image(child)
    heir = publish(context, web, "2.0.0", parent=child.id)
    new_vm(context, "vm1", root.id)
    new_vm(context, "vm2", heir.id)
    lifecycle.delete(context, heir.reference, force=True)
    found = lifecycle.descendants(context, root.reference).found
    assert [(one.kind, one.name, one.parent, one.deleted) for one in found] == [
        (Shelf.MANAGED, "child", root.reference, False),
        (Shelf.GALLERY, heir.reference, "child", True),
        ("VM", "vm1", root.reference, False),
        ("VM", "vm2", heir.reference, False),
    ]
    assert lifecycle.descendants(context, "child").found == (found[1], found[3])
    assert lifecycle.descendants(context, heir.reference).found == (found[3],)  # deleted
    assert lifecycle.descendants(context, three[1].reference).found == ()
    refusal(NotFound, lifecycle.descendants, context, REF.format("9.9.9"))


def test_descendants_of_others_are_counted_and_not_named(context, gallery, web, three):
    context.catalog.galleries.update(replace(gallery, sharing=Sharing.GROUPS, everyone=True), ACT)
    new_vm(context, "secret", three[0].id)
    other = context.catalog.of(Caller("eve", Scope("11111111-1111-4111-8111-111111111111")))
    below = other.lineage.descendants(three[0].id)
    assert (below.found, below.hidden) == ((), 1)


# -- deletion


def test_deletion_knows_the_last_good_one_and_its_users(context, web, three):
    message, hint = refusal(NotAllowed, lifecycle.delete, context, REF.format("1.10.0"))
    assert (
        message
        == "'gal/web/1.10.0' is the last good version of 'gal/web': it is what 'latest' means"
    )
    assert "calotype gallery image-version rollback gal/web;" in hint
    assert "--force" in hint
    new_vm(context, "b", three[0].id)
    new_vm(context, "a", three[0].id)
    message, hint = refusal(Conflict, lifecycle.delete, context, REF.format("1.8.0"))
    assert message == "VMs were made of 'gal/web/1.8.0': a, b"
    assert "--force" in hint
    done = lifecycle.delete(context, REF.format("1.8.0"), force=True)
    assert (done.users, done.gone) == (("a", "b"), False)
    entry = context.catalog.audit.list()[0]
    assert entry.action == "version.delete"
    assert (entry.detail["forced"], entry.detail["vms"]) == (True, ["a", "b"])
    lifecycle.delete(context, REF.format("1.10.0"), force=True)
    assert latest(context, web) == "1.9.0"


def test_where_all_are_over_the_highest_is_the_last_good_one(context, web):
    for number in ("1.0.0", "1.1.0"):
        publish(context, web, number, end_of_life=NOW - DAY)
    refusal(NotAllowed, lifecycle.delete, context, REF.format("1.1.0"))
    lifecycle.delete(context, REF.format("1.0.0"))


def test_the_latest_of_this_region_is_a_last_good_one(context, web):
    publish(context, web, "1.0.0")
    publish(context, web, "1.1.0", excluded_regions=(context.region,))
    for number in ("1.0.0", "1.1.0"):  # what people get here, and what they get elsewhere
        refusal(NotAllowed, lifecycle.delete, context, REF.format(number))


def test_the_end_of_life_can_block_deletion(context, web, three):
    ends = NOW + 30 * DAY
    blocked = {"end_of_life": ends, "block_deletion_before_end_of_life": True}
    publishing.update_version(context, three[0].reference, **blocked)
    for options in ({}, {"force": True}, {"purge": True, "force": True}):
        message, hint = refusal(
            NotAllowed, lifecycle.delete, context, REF.format("1.8.0"), **options
        )
        assert message == f"'gal/web/1.8.0' cannot be deleted before its end of life, {ends.date()}"
        assert "update gal/web/1.8.0 --no-block-deletion-before-end-of-life" in hint
    publishing.update_version(context, three[0].reference, end_of_life=NOW - DAY)
    lifecycle.delete(context, REF.format("1.8.0"))


def test_deleted_and_back(context, web, three):
    ref = REF.format("1.8.0")
    done = lifecycle.delete(context, ref)
    assert not done.gone
    deleted_at, purge_at = done.version.deleted_at, done.version.purge_at
    assert deleted_at is not None
    assert purge_at == deleted_at + 7 * DAY
    refusal(NotFound, lifecycle.delete, context, ref)
    assert "a" * 64 in context.system.indexes_in_use()
    assert lifecycle.undelete(context, ref) == three[0]
    assert lifecycle.undelete(context, ref) == three[0]
    assert acts(context) == ["version.undelete", "version.delete"]


def test_what_came_back_meanwhile_is_not_purged(context, web, three, monkeypatch):
    ref = REF.format("1.8.0")
    overdue = lifecycle.delete(context, ref).version
    monkeypatch.setattr(type(context.catalog.versions), "to_purge", lambda *_: [overdue])
    assert lifecycle.purge_expired(context, web.id) == ()  # deleted anew: it has a week again
    lifecycle.undelete(context, ref)
    assert lifecycle.purge_expired(context, web.id) == ()
    assert context.catalog.versions.get(web.id, overdue.version) == three[0]


def test_purged_at_once(context, web, three, gallery):
    assert lifecycle.delete(context, REF.format("1.8.0"), purge=True).gone
    lifecycle.delete(context, REF.format("1.9.0"))
    assert lifecycle.delete(context, REF.format("1.9.0"), purge=True).gone
    assert acts(context) == ["version.purge", "version.delete", "version.delete"]
    refusal(NotFound, lifecycle.undelete, context, REF.format("1.8.0"))
    context.catalog.galleries.update(replace(gallery, soft_delete_days=0), ACT)
    assert lifecycle.delete(context, REF.format("1.10.0"), force=True).gone
    assert context.system.indexes_in_use() == set()


def test_an_update_does_not_undo_what_happened_meanwhile(context, web, three, monkeypatch):
    stale, happened = three[0], []

    def find_version(context, reference):
        lifecycle.turn(context, reference, Lifecycle.REVOKED, reason="a key")
        happened.append(lifecycle.delete(context, reference).version)
        return stale

    monkeypatch.setattr("calotype.engine.references.find_version", find_version)
    now = publishing.update_version(context, stale.reference, end_of_life=NOW)
    assert now == replace(happened[0], end_of_life=NOW)
    assert not now.eligible


def test_readers_cannot(context, gallery, web, three):
    context.catalog.galleries.update(replace(gallery, sharing=Sharing.GROUPS, everyone=True), ACT)
    reader = replace(context, caller=Caller("eve", Scope("11111111-1111-4111-8111-111111111111")))
    ids = three[0].id
    refusal(Forbidden, lifecycle.delete, reader, ids)
    refusal(Forbidden, lifecycle.turn, reader, ids, Lifecycle.REVOKED)
    refusal(Forbidden, lifecycle.promote, reader, ids)
    refusal(Forbidden, reader.catalog.versions.roll_back, web.id, None)
    assert acts(context) == []
    reader.close()


def test_an_image_version_is_not_deleted_as_an_image(context, web, three):
    message, hint = refusal(NotAllowed, images.delete, context, three[0].id)
    assert "version in a gallery" in message
    assert hint == "calotype gallery image-version delete gal/web/1.8.0"


def test_vms_of_purged_versions_go_on_working(context, tmp_path, gallery):
    new_definition(context, gallery, generation=Generation.V1)
    disk = os_disk(tmp_path / "os.raw")
    request = ImageRequest(name="img", os_state=OsState.GENERALIZED, force=True)
    made = import_image(context, request, Upload(location=str(disk)), {}).image
    context.catalog.promote_image(made.id)
    place = publishing.place(context, "gal/web/1.0.0")
    version = publishing.of_image(context, place, "img")
    images.delete(context, "img")
    vm = create_vm(context, VmRequest(name="vm", image="gal/web/1.0.0", start=False))
    before = digest_of(context, vm.os_disk)
    assert refusal(Conflict, lifecycle.delete, context, version.reference)[0]
    lifecycle.delete(context, version.reference, force=True)
    assert digest_of(context, vm.os_disk) == before
    assert lifecycle.delete(context, version.reference, purge=True).gone
    for _ in range(2):
        storage.prune(context, grace=0 * DAY, empty=True)
    with context.operation() as operation:
        context.base_path(made.os_disk.index).unlink(missing_ok=True)
        bases.ensure(context, made.os_disk.index, operation.directory)
    assert digest_of(context, vm.os_disk) == before
    machines.delete(context, "vm")
    assert made.os_disk.index not in set(context.repository.indexes())


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda c, v: lifecycle.delete(c, v.id, force=True), "was deleted"),
        (lambda c, v: lifecycle.delete(c, v.id, force=True, purge=True), "was deleted meanwhile"),
        (lambda c, v: lifecycle.turn(c, v.id, Lifecycle.REVOKED), "was revoked"),
        (lambda c, v: lifecycle.turn(c, v.id, Lifecycle.OBSOLETE), "is obsolete"),
    ],
)
@pytest.mark.parametrize("step", ["_make_files", "_placed"])
def test_what_goes_while_a_vm_is_made_of_it_makes_none(
    context, tmp_path, gallery, monkeypatch, act, words, step
):
    """To fetch its base may take minutes; and the last moment before its row counts, too."""
    new_definition(context, gallery, generation=Generation.V1)
    disk = os_disk(tmp_path / "os.raw")
    request = ImageRequest(name="img", os_state=OsState.GENERALIZED, force=True)
    made = import_image(context, request, Upload(location=str(disk)), {}).image
    version = publishing.of_image(context, publishing.place(context, "gal/web/1.0.0"), "img")
    usual = getattr(launch, step)

    def meanwhile(*arguments):
        act(context, version)
        return usual(*arguments)

    monkeypatch.setattr(launch, step, meanwhile)
    wanted = VmRequest(name="vm", image=version.id, start=False)
    message, hint = refusal((NotFound, NotAllowed), create_vm, context, wanted)
    assert words in message
    assert hint
    assert context.catalog.list_vms() == []
    assert context.catalog.list_disks() == []
    assert list(context.home.vms.iterdir()) == []
    assert context.catalog.image(made.id)


def test_nobody_comes_between_the_last_look_and_the_row(context, web):
    version = publish(context, web, "1.0.0")
    first = new_vm(context, "first", version.id)

    def look():
        with (
            closing(sqlite3.connect(context.home.catalog, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("BEGIN IMMEDIATE")
        raise NotAllowed("it was looked at")

    other = replace(first, id="other", name="other")
    message, _hint = refusal(NotAllowed, context.catalog.add_vm, other, check=look)
    assert message == "it was looked at"
    assert context.catalog.list_vms() == [first]


def test_a_generalized_copy_is_no_way_around_the_life_of_a_version(context, web):
    version = publish(context, web, "1.0.0")
    lifecycle.turn(context, version.reference, Lifecycle.OBSOLETE)
    message, _hint = refusal(
        NotAllowed, generalize_image, context, version.reference, Managed("copy"), DEFAULT
    )
    assert "is obsolete" in message
