"""What versions are made of: VMs, managed disks, snapshots, files; and what their disks show."""

import json
import subprocess
from dataclasses import replace

import pytest
from tests.roots import build
from tests.unit.test_gallery import a_definition, an_image

from calotype.engine import images, machines, snapshots
from calotype.engine.gallery import galleries, lifecycle, versions
from calotype.engine.generalize.generalize import generalize_image
from calotype.engine.generalize.steps import DEFAULT
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.marketplace import purchase
from calotype.engine.proof.evidence import REPORT, find_evidence, read_evidence
from calotype.engine.proof.verify import verify_image
from calotype.engine.sources import Upload
from calotype.errors import DiskRefused, InvalidInput, NotFound
from calotype.guest.locate import BIOS_BOOT, ESP
from calotype.model import (
    MIB,
    Architecture,
    Caching,
    Consistency,
    Generation,
    ImageDisk,
    OsState,
    PowerState,
    PurchasePlan,
    SourceKind,
    Stage,
    Verdict,
)

FRESH, USED = "fresh", "used"
V1 = {"generation": Generation.V1}
ONE = {**V1, "os_state": OsState.SPECIALIZED}


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A Debian root, laid out, as a cloud image and as a used machine; a data disk; partitioned disks."""
    room = tmp_path_factory.mktemp("sources")
    for state in (FRESH, USED):
        build("debian", state, room / f"{state}.raw")
    (room / "data.raw").write_bytes(b"data" * (MIB // 4))
    for name, kinds in {"both": (BIOS_BOOT, ESP), "bios": (BIOS_BOOT,), "uefi": (ESP,)}.items():
        partitioned(room / f"{name}.raw", kinds)
    return room


def partitioned(path, kinds):
    """A disk with nothing but a GPT of small partitions of these types."""
    path.write_bytes(bytes(8 * MIB))
    table = ["label: gpt", *(f"size=1MiB, type={kind}" for kind in kinds)]
    subprocess.run(
        ["sfdisk", "-q", path], input="\n".join(table), text=True, check=True, capture_output=True
    )


@pytest.fixture
def context(context):
    galleries.create_gallery(context, "gal")
    a_definition(context, name="web", **V1)
    a_definition(context, name="one", **ONE)
    return context


def upload(context, room, state, name="img", data=(), **request):
    return import_image(
        context,
        ImageRequest(name=name, **request),
        Upload(location=str(room / f"{state}.raw")),
        {lun: Upload(location=str(room / "data.raw")) for lun in data},
    ).image


def vm_of(context, room, state, data=(), **request):
    """A VM that was never started, on a disk in that state."""
    upload(context, room, state, data=data, **request)
    return create_vm(context, VmRequest(name="vm1", image="img", start=False))


def place(context, text="gal/web/1.0.0"):
    return versions.place(context, text)


# -- of images, with their evidence


def test_a_version_shows_the_evidence_of_its_image_as_its_own(context, room):
    image = upload(context, room, FRESH, data=(2,))
    verify_image(context, "img")
    told = read_evidence(context, image).statement
    version = versions.of_image(context, place(context), "img")
    images.delete(context, "img")
    own = read_evidence(context, version.image).statement
    assert own.predicate.image.id == version.id
    assert own.predicate.image.name == "gal/web/1.0.0"
    assert own.predicate.proof == told.predicate.proof
    assert own.subject == told.subject
    assert not (context.home.evidence / image.id).exists()


def test_evidence_that_does_not_hold_is_not_passed_on(context, room):
    image = upload(context, room, FRESH)
    verify_image(context, "img")
    path = context.home.evidence / image.id / REPORT
    envelope = json.loads(path.read_bytes())
    envelope["signatures"][0]["sig"] = envelope["signatures"][0]["sig"][::-1]
    path.write_text(json.dumps(envelope))
    version = versions.of_image(context, place(context), "img")
    assert find_evidence(context, version.image) is None


def test_a_generalized_copy_is_staged_whatever_its_source_was(context, room):
    context.catalog.promote_image(upload(context, room, USED).id)
    made = generalize_image(context, "img", place(context), DEFAULT)
    assert made.image.stage is Stage.STAGED
    assert context.catalog.versions.of_image(made.image.id).reference == "gal/web/1.0.0"


def test_the_firmware_is_what_the_disk_can(context, room):
    for name, kinds in {"both": Generation.V1, "bios": Generation.V1}.items():
        image = upload(context, room, name, name, os_state=OsState.GENERALIZED)
        assert image.generation is kinds
        context.catalog.promote_image(image.id)
    a_definition(context, name="efi", generation=Generation.V2)
    version = versions.of_image(context, place(context, "gal/efi/1.0.0"), "both")
    assert version.image.generation is Generation.V2
    assert version.image.stage is Stage.STAGED  # it was seen to start by the other one
    with pytest.raises(InvalidInput, match="is V2, and 'bios' is V1") as caught:
        versions.of_image(context, place(context, "gal/efi/2.0.0"), "bios")
    assert "--hyper-v-generation V1" in (caught.value.hint or "")
    version = versions.of_image(context, place(context), "both")
    assert version.image.stage is Stage.PROMOTED


# -- of VMs


def test_a_version_of_a_vm_has_all_its_disks(context, room):
    vm = vm_of(context, room, USED, data=(0, 5))
    version = versions.of_vm(context, place(context, "gal/one/1.0.0"), "vm1", tags={"a": "b"})
    assert [disk.lun for disk in version.image.disks] == [None, 0, 5]
    assert version.image.provenance.vm_id == vm.id
    assert version.image.parents == (vm.image_id,)
    assert version.image.tags == {"a": "b"}
    assert version.image.stage is Stage.STAGED
    assert context.catalog.list_images()[0].name == "img"
    assert len(context.catalog.list_images()) == 1


def test_a_vm_is_generalized_on_the_way(context, room):
    vm_of(context, room, USED)
    version = versions.of_vm(context, place(context), "vm1", generalize=True)
    assert version.image.os_state is OsState.GENERALIZED
    assert version.image.verdict is Verdict.GENERALIZED
    said = read_evidence(context, version.image).evidence
    assert said.image.name == "gal/web/1.0.0"
    assert said.generalized is not None


def test_a_vm_in_the_wrong_state_is_refused_with_the_cure(context, room):
    vm_of(context, room, USED)
    with pytest.raises(InvalidInput, match="declared Generalized") as caught:
        versions.of_vm(context, place(context), "vm1")
    assert "--generalize" in (caught.value.hint or "")
    with pytest.raises(InvalidInput, match="is Specialized") as caught:
        versions.of_vm(context, place(context, "gal/one/1.0.0"), "vm1", generalize=True)
    assert "leave out --generalize" in (caught.value.hint or "")
    forced = versions.of_vm(context, place(context), "vm1", force=True)
    assert forced.image.os_state is OsState.GENERALIZED
    assert {"image.overrule", "version.create"} <= {e.action for e in context.catalog.audit.list()}


def test_a_running_vm_is_one_machine_and_that_is_said_before_anything_is_read(
    context, room, monkeypatch
):
    vm_of(context, room, FRESH)
    monkeypatch.setattr(versions, "power", lambda *_: PowerState.RUNNING)
    monkeypatch.setattr(versions, "capture_vm", lambda *_: pytest.fail("it was captured"))
    with pytest.raises(InvalidInput, match="it is one machine") as caught:
        versions.of_vm(context, place(context), "vm1")
    assert "say --generalize" in (caught.value.hint or "")
    a_definition(context, name="arm", architecture=Architecture.ARM64, **V1)
    with pytest.raises(InvalidInput, match="architecture"):
        versions.of_vm(context, place(context, "gal/arm/1.0.0"), "vm1", generalize=True)


# -- of disks and snapshots


def test_a_version_of_managed_disks(context, room, monkeypatch):
    plan = PurchasePlan("contoso", "server", "gold")
    a_definition(context, name="sold", plan=plan, **ONE)
    upload(context, room, USED, data=(3,))
    source = versions.of_image(context, place(context, "gal/sold/1.0.0"), "img").image
    monkeypatch.setattr(purchase, "require", lambda *_: None)  # its terms were accepted
    create_vm(context, VmRequest(name="vm1", image="gal/sold/1.0.0", start=False))
    machines.delete(context, "vm1", keep_disks=True)
    machines.create_disk(context, "cached", MIB, caching=Caching.READ_ONLY)
    lifecycle.delete(context, "gal/sold/1.0.0", force=True, purge=True)
    version = versions.of_disks(context, place(context, "gal/one/1.0.0"), "vm1-os", {7: "vm1-lun3"})
    assert [disk.lun for disk in version.image.disks] == [None, 7]
    assert [disk.index for disk in version.image.disks] == [disk.index for disk in source.disks]
    assert version.image.provenance.kind is SourceKind.DISK
    assert version.image.provenance.source == "vm1-os"
    assert version.image.parents == (source.id,)
    assert version.image.plan == plan  # although the image that had it is gone
    assert context.catalog.snapshots.list() == []


def test_a_version_of_snapshots(context, room):
    vm_of(context, room, USED, data=(3,))
    for name, disk in {"os": "vm1-os", "data": "vm1-lun3"}.items():
        snapshots.create(context, name, disk)
    where = place(context, "gal/one/1.0.0")
    version = versions.of_snapshots(context, where, "os", {3: "data"}, tags={"a": "b"})
    assert [disk.lun for disk in version.image.disks] == [None, 3]
    assert version.image.provenance.source == "os"
    assert version.image.provenance.consistency is Consistency.APPLICATION
    assert version.image.verdict is Verdict.SPECIALIZED
    assert version.image.tags == {"a": "b"}
    with pytest.raises(NotFound, match="no snapshot 'nope'"):
        versions.of_snapshots(context, place(context, "gal/one/2.0.0"), "nope")


def test_a_disk_in_the_wrong_state_is_refused_unless_forced(context, room):
    vm_of(context, room, USED)
    with pytest.raises(InvalidInput, match="declared Generalized") as caught:
        versions.of_disks(context, place(context), "vm1-os")
    assert "calotype generalize" in (caught.value.hint or "")
    assert context.catalog.snapshots.list() == []
    version = versions.of_disks(context, place(context), "vm1-os", force=True)
    assert any("--force" in note for note in version.image.provenance.notes)


# -- of files


def test_a_version_of_files(context, room):
    data = {lun: Upload(location=str(room / "data.raw")) for lun in (0, 4)}
    upload = Upload(location=str(room / "fresh.raw"))
    version = versions.of_files(context, place(context), upload, data, tags={"a": "b"})
    assert [disk.lun for disk in version.image.disks] == [None, 0, 4]
    assert version.image.provenance.kind is SourceKind.FILE
    assert version.image.generation is Generation.V1
    assert version.image.tags == {"a": "b"}
    assert context.catalog.list_images() == []


@pytest.mark.parametrize(
    ("definition", "file", "words"),
    [
        ("web", "used", "declared Generalized"),
        ("one", "fresh", "declared Specialized"),
        ("web", "uefi", "generation"),
        ("efi", "bios", "generation"),
    ],
)
def test_a_file_that_is_not_what_the_definition_says(context, room, definition, file, words):
    a_definition(context, name="efi", generation=Generation.V2)
    upload = Upload(location=str(room / f"{file}.raw"))
    where = place(context, f"gal/{definition}/1.0.0")
    with pytest.raises(InvalidInput, match=words) as caught:
        versions.of_files(context, where, upload)
    assert caught.value.hint
    assert context.catalog.versions.list(where.definition.id) == []


def test_the_gate_stands_before_galleries_too(context, room, tmp_path):
    path = tmp_path / "cut.vhd"
    path.write_bytes(bytes(4 * MIB))
    with pytest.raises(DiskRefused):
        versions.of_files(context, place(context), Upload(location=str(path)))


@pytest.mark.parametrize("luns", [(64,), (-1,)])
def test_luns_that_there_are_not(context, room, luns):
    data = dict.fromkeys(luns, "x")
    for act in (
        lambda: versions.of_disks(context, place(context), "x", data),
        lambda: versions.of_snapshots(context, place(context), "x", data),
        lambda: versions.of_files(
            context,
            place(context),
            Upload(location="x"),
            {lun: Upload(location="x") for lun in luns},
        ),
    ):
        with pytest.raises(InvalidInput, match="not a LUN"):
            act()


def test_two_data_disks_never_have_one_lun(context):
    disks = tuple(ImageDisk(index="a" * 64, size=MIB, lun=lun) for lun in (1, 2, 1))
    image = replace(an_image(data_disks=disks), generation=Generation.V1)
    with pytest.raises(InvalidInput, match="two data disks have LUN 1"):
        place(context).put(context, image, None)
