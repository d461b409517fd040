"""Images of several images: what all their disks come from bars them, names them, and is found again."""

from dataclasses import replace

import pytest
from tests.shelf import ACT, new_definition, new_gallery, new_image, new_version, publish
from tests.used_vm import os_disk

from calotype.engine import machines, snapshots
from calotype.engine.capture import CaptureRequest, capture_vm
from calotype.engine.community import community
from calotype.engine.gallery import galleries, lifecycle, versions
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.sources import Upload
from calotype.engine.usable import require_usable
from calotype.errors import NotAllowed
from calotype.model import Generation, Lifecycle, OsState, OsType

BAD, GOOD = "gal/one/1.0.0", "good"


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    return str(os_disk(tmp_path_factory.mktemp("disk") / "os.raw"))


@pytest.fixture
def carrier(context, disk):
    """A VM of a good image, and beside it the disks of a version that is revoked in the end."""
    galleries.create_gallery(context, "gal")
    galleries.create_definition(
        context,
        "gal",
        "one",
        os_type=OsType.LINUX,
        os_state=OsState.SPECIALIZED,
        generation=Generation.V1,
        publisher="contoso",
        offer="server",
        sku="one",
    )
    upload = Upload(location=disk)
    versions.of_files(context, versions.place(context, BAD), upload, {0: upload})
    import_image(context, ImageRequest(name=GOOD), upload, {})
    create_vm(context, VmRequest(name="bad", image=BAD, start=False))
    machines.delete(context, "bad", keep_disks=True)
    return create_vm(context, VmRequest(name="carrier", image=GOOD, start=False))


def by_a_kept_disk(context):
    machines.attach(context, "carrier", "bad-lun0")
    return capture_vm(context, "carrier", CaptureRequest(name="heir")).image


def by_a_snapshot_of_an_os_disk(context):
    snapshots.create(context, "snap", "bad-os")
    machines.create_disk(context, "data", source="snap")
    machines.attach(context, "carrier", "data")
    return capture_vm(context, "carrier", CaptureRequest(name="heir")).image


def of_snapshots(context):
    snapshots.create(context, "os", "carrier-os")
    snapshots.create(context, "data", "bad-lun0")
    where = versions.place(context, "gal/one/2.0.0")
    return versions.of_snapshots(context, where, "os", {7: "data"}).image


def of_disks(context):
    where = versions.place(context, "gal/one/2.0.0")
    return versions.of_disks(context, where, "carrier-os", {7: "bad-lun0"}).image


@pytest.mark.parametrize(
    "make", [by_a_kept_disk, by_a_snapshot_of_an_os_disk, of_snapshots, of_disks]
)
def test_data_disks_of_a_revoked_version_bar_what_has_them(context, carrier, make):
    heir = make(context)
    assert community.lineage(context, heir) == (GOOD, BAD)
    assert heir.id in [one.id for one in lifecycle.descendants(context, GOOD).found]
    (found,) = [one for one in lifecycle.descendants(context, BAD).found if one.id == heir.id]
    assert found.parent == BAD
    assert require_usable(context, heir) == ()
    lifecycle.turn(context, BAD, Lifecycle.REVOKED, reason="a key")
    with pytest.raises(NotAllowed, match=f"descends from '{BAD}', which was revoked: a key"):
        require_usable(context, heir)
    lifecycle.delete(context, BAD, force=True, purge=True)
    with pytest.raises(NotAllowed, match=f"descends from '{BAD}'"):
        require_usable(context, heir)


def test_a_vm_that_has_a_data_disk_descends_from_its_image(context, carrier):
    assert lifecycle.descendants(context, BAD).found == ()
    machines.attach(context, "carrier", "bad-lun0")
    (found,) = lifecycle.descendants(context, BAD).found
    assert (found.kind, found.name, found.parent) == ("VM", "carrier", BAD)


@pytest.fixture
def diamond(context):
    """Two images of one version, and a version of both."""
    web = new_definition(context, new_gallery(context))
    root = publish(context, web, "1.0.0")
    left, right = (new_image(name, parent=root.id) for name in ("left", "right"))
    context.catalog.add_image(left)
    context.catalog.add_image(right)
    heir = new_version(web, "2.0.0")
    heir = replace(heir, image=replace(heir.image, parents=(right.id, left.id)))
    context.catalog.versions.add(heir, ACT)
    return root, heir


def test_what_comes_from_one_image_twice_is_found_once(context, diamond):
    root, heir = diamond
    assert context.catalog.versions.of_image(heir.id).image.parents == heir.image.parents
    ancestors = context.catalog.lineage.ancestors(heir.id)
    assert [one.name for one in ancestors] == ["right", "left", root.reference]
    below = context.catalog.lineage.descendants(root.id)
    assert [(one.name, one.parent) for one in below.found] == [
        (heir.reference, "left"),
        ("left", root.reference),
        ("right", root.reference),
    ]
    assert below.hidden == 0


def test_the_nearest_revocation_is_told(context, diamond):
    root, heir = diamond
    lifecycle.turn(context, root.reference, Lifecycle.REVOKED, reason="far")
    assert context.catalog.lineage.revocation(heir.id).id == root.id
    assert not context.catalog.versions.of_image(heir.id).eligible
    lifecycle.turn(context, heir.reference, Lifecycle.REVOKED, reason="near")
    assert context.catalog.lineage.revocation(heir.id).id == heir.id
    lifecycle.turn(context, heir.reference, Lifecycle.ACTIVE)
    lifecycle.turn(context, root.reference, Lifecycle.ACTIVE)
    assert context.catalog.versions.of_image(heir.id).eligible
