"""The engine's jobs without a running guest: upload, VM, capture, export, delete, and every refusal."""

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

from calotype import wire
from calotype.disk import open_image
from calotype.disk.base import read
from calotype.disk.upload import open_upload
from calotype.engine import images, machines, storage
from calotype.engine import import_ as import_module
from calotype.engine.capture import CaptureRequest, capture_vm
from calotype.engine.export import export_image
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.sources import Upload
from calotype.errors import Conflict, DiskRefused, InvalidInput, NotAllowed, NotFound
from calotype.model import (
    MIB,
    Architecture,
    Consistency,
    Generation,
    ImageKind,
    OsState,
    PowerState,
    SourceKind,
)


@pytest.fixture(scope="module")
def disks(tmp_path_factory):
    """An "OS" disk (ext4 with a little in it) and a data disk, as raw files."""
    room = tmp_path_factory.mktemp("disks")
    (room / "tree" / "etc").mkdir(parents=True)
    (room / "tree" / "usr").mkdir()
    (room / "tree" / "etc" / "os-release").write_text('ID=debian\nPRETTY_NAME="Test"\n')
    (room / "tree" / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (room / "tree" / "etc" / "machine-id").touch()
    (room / "tree" / "etc" / "blob").write_bytes(os.urandom(2 * MIB))
    for name in ("os.raw", "data.raw"):
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-d", room / "tree", room / name, "8M"], check=True
        )
    return room


def upload(context, disks, name="img", state=OsState.GENERALIZED, data=(), **request):
    return import_image(
        context,
        ImageRequest(name=name, os_state=state, **request),
        Upload(location=str(disks / "os.raw")),
        {lun: Upload(location=str(disks / "data.raw")) for lun in data},
    )


def vm(context, name="vm1", image="img", **options):
    return create_vm(context, VmRequest(name=name, image=image, start=False, **options))


def leftovers(context):
    return [path for path in context.home.tmp.iterdir() if not path.name.endswith(".lock")]


def test_upload_makes_an_image_with_its_provenance(context, disks):
    done = upload(context, disks, data=(0, 5))
    image = context.catalog.image("img")
    assert image == done.image
    assert [disk.lun for disk in image.disks] == [None, 0, 5]
    assert image.kind is ImageKind.VM_IMAGE
    assert image.provenance.kind is SourceKind.FILE
    assert image.provenance.source == "os.raw"
    digest = subprocess.run(
        ["sha256sum", disks / "os.raw"], capture_output=True, check=True, text=True
    ).stdout.split()[0]
    assert image.provenance.sha256 == digest
    assert leftovers(context) == []


def test_the_checksum_of_a_sparse_file_is_that_of_all_its_bytes(context, tmp_path):
    path = tmp_path / "sparse.raw"
    with path.open("wb") as file:
        for offset in (5 * MIB, 9 * MIB + 4096, 21 * MIB):
            file.seek(offset)
            file.write(os.urandom(12_288))
        file.truncate(33 * MIB)
    done = import_image(
        context,
        ImageRequest(name="sparse", os_state=OsState.SPECIALIZED),
        Upload(location=str(path)),
        {},
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert done.image.provenance.sha256 == digest


def test_a_repeated_upload_does_nothing(context, disks):
    first = upload(context, disks)
    again = upload(context, disks)
    assert again.existed
    assert again.image == first.image
    with pytest.raises(Conflict, match="something else"):
        import_image(
            context,
            ImageRequest(name="img", os_state=OsState.GENERALIZED),
            Upload(location=str(disks / "data.raw")),
            {},
        )


def test_the_same_disk_in_another_container_is_the_same_index(context, disks, tmp_path):
    index = upload(context, disks).image.os_disk.index
    for name, arguments in {
        "a.qcow2": ["-O", "qcow2", "-c"],
        "a.vhdx": ["-O", "vhdx"],
        "a.vmdk": ["-O", "vmdk", "-o", "subformat=streamOptimized"],
        "a.vhd": ["-O", "vpc", "-o", "subformat=fixed,force_size"],
    }.items():
        subprocess.run(
            ["qemu-img", "convert", "-f", "raw", *arguments, disks / "os.raw", tmp_path / name],
            check=True,
        )
        done = import_image(
            context,
            ImageRequest(name=name, os_state=OsState.GENERALIZED),
            Upload(location=str(tmp_path / name)),
            {},
        )
        assert done.image.os_disk.index == index
        assert done.ingested[0].new_chunks == 0


@pytest.mark.parametrize(
    "kind",
    [
        *("raw", "vhd", "vhd-dynamic", "vhdx", "qcow2", "qcow2-zstd", "vmdk", "vmdk-stream"),
        *("raw.gz", "vhd.xz", "qcow2.zst"),
    ],
)
def test_every_export_comes_back_as_the_same_index(context, disks, tmp_path, kind):
    index = upload(context, disks).image.os_disk.index
    target = tmp_path / f"out.{kind}"
    exported = export_image(context, "img", target, format=kind)
    assert exported.size == target.stat().st_size
    if kind == "vhd":
        assert exported.azure == ("its virtual size of 8388608 bytes is below 20 MiB",)
    done = import_image(
        context,
        ImageRequest(name="back", os_state=OsState.GENERALIZED),
        Upload(location=str(target)),
        {},
    )
    assert done.image.os_disk.index == index


def test_an_ova_carries_all_disks(context, disks, tmp_path):
    first = upload(context, disks, data=(0, 1), generation=Generation.V2).image
    export_image(context, "img", tmp_path / "out.ova")
    done = import_image(
        context,
        ImageRequest(name="back", os_state=OsState.GENERALIZED),
        Upload(location=str(tmp_path / "out.ova")),
        {},
    )
    assert [disk.index for disk in done.image.disks] == [disk.index for disk in first.disks]
    assert done.image.generation is Generation.V2


def test_the_state_is_asked_for_where_it_cannot_be_seen(context, tmp_path):
    path = tmp_path / "blank.raw"
    path.write_bytes(os.urandom(MIB))
    request = ImageRequest(name="blank")
    with pytest.raises(InvalidInput, match="cannot see whether") as caught:
        import_image(context, request, Upload(location=str(path)), {})
    assert "--os-state" in (caught.value.hint or "")
    assert context.catalog.list_images() == []


def test_what_the_gate_refuses_leaves_nothing(context, tmp_path):
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", tmp_path / "b", "1M"], check=True)
    subprocess.run(
        [
            *("qemu-img", "create", "-q", "-f", "qcow2", "-b", tmp_path / "b", "-F", "raw"),
            tmp_path / "evil.qcow2",
        ],
        check=True,
    )
    with pytest.raises(DiskRefused, match="backing"):
        import_image(
            context,
            ImageRequest(name="evil", os_state=OsState.GENERALIZED),
            Upload(location=str(tmp_path / "evil.qcow2")),
            {},
        )
    assert context.catalog.list_images() == []
    assert leftovers(context) == []


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ({"location": "/nowhere/x.vhd"}, NotFound, "no file"),
        ({"location": "/dev/null"}, InvalidInput, "neither a file nor"),
        ({"location": "https://h.example/x"}, InvalidInput, "needs a checksum"),
        ({"location": "OS", "sha256": "0" * 64}, InvalidInput, "SHA-256"),
        ({"location": "OS", "format": "qcow2"}, DiskRefused, "declared as qcow2"),
        ({"location": "OS", "format": "cloop"}, InvalidInput, "no disk format"),
        ({"location": "ftp://h.example/x"}, InvalidInput, "not an http"),
    ],
)
def test_what_cannot_be_uploaded(context, disks, source, error, words):
    if source["location"] == "OS":
        source = {**source, "location": str(disks / "os.raw")}
    with pytest.raises(error, match=words):
        import_image(
            context,
            ImageRequest(name="x", os_state=OsState.GENERALIZED),
            Upload(**source),
            {},
        )
    assert context.catalog.list_images() == []


def test_a_vm_brings_the_images_data_disks_and_more(context, disks):
    upload(context, disks, data=(0, 2))
    made = vm(context, new_data_disks={7: 16 * MIB}, os_disk_size=32 * MIB)
    assert [(d.lun, d.size >> 20) for d in made.disks] == [(None, 32), (0, 8), (2, 8), (7, 16)]
    assert machines.show(context, "vm1").power is PowerState.STOPPED
    assert (context.vm_path(made.id) / "seed.iso").exists()
    assert {path.stem for path in context.home.disks.iterdir()} == {d.id for d in made.disks}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"new_data_disks": {0: MIB}}, "LUN 0 is taken"),
        ({"new_data_disks": {64: MIB}}, "not a LUN"),
        ({"new_data_disks": {3: 100}}, "no size"),
        ({"os_disk_size": MIB}, "cannot shrink"),
        ({"admin_user": "root"}, "reserved"),
        ({"computer_name": "-x"}, "host name"),
        ({"ssh_keys": ["ssh-rsa nonsense\nssh-rsa b"]}, "key"),
        ({"name": "../x"}, "cannot name"),
        ({"vcpus": 0}, "cannot have 0 vCPUs"),
        ({"vcpus": 256}, "cannot have 256 vCPUs"),
        ({"memory": 2}, "too little"),
        ({"timezone": "Mars/X"}, "no time zone"),
    ],
)
def test_what_cannot_be_a_vm(context, disks, options, words):
    upload(context, disks, data=(0,))
    with pytest.raises(InvalidInput, match=words):
        vm(context, **options)
    assert context.catalog.list_vms() == context.catalog.list_disks() == []
    assert list(context.home.vms.iterdir()) == list(context.home.disks.iterdir()) == []


def test_a_specialized_image_starts_as_it_is_and_once(context, disks):
    upload(context, disks, state=OsState.SPECIALIZED, force=True)  # nobody's machine
    with pytest.raises(InvalidInput, match=r"--admin-username.*not allowed"):
        vm(context, admin_user="eve")
    made = vm(context)
    assert made.admin_user is None
    assert not (context.vm_path(made.id) / "seed.iso").exists()
    with pytest.raises(NotAllowed, match="specialized"):
        vm(context, "vm2")
    second = vm(context, "vm2", allow_duplicate_identity=True)
    assert second.notes
    machines.delete(context, "vm1")
    with pytest.raises(NotAllowed, match="vm2"):
        vm(context, "vm3")


def test_an_image_for_another_processor_does_not_start_here(context, disks):
    upload(context, disks, architecture=Architecture.ARM64)
    with pytest.raises(InvalidInput, match="Arm64"):
        vm(context)


def test_a_capture_of_an_unchanged_vm_adds_nothing(context, disks):
    image = upload(context, disks, data=(3,)).image
    vm(context)
    taken = capture_vm(context, "vm1", CaptureRequest(name="snap"))
    assert [disk.index for disk in taken.image.disks] == [disk.index for disk in image.disks]
    assert [disk.changed for disk in taken.disks] == [0, 0]
    assert taken.consistency is Consistency.APPLICATION
    assert taken.image.os_state is OsState.GENERALIZED  # it never started
    assert taken.image.provenance.image_id == image.id


def test_a_capture_reads_what_was_written(context, disks, tmp_path):
    upload(context, disks)
    made = vm(context, new_data_disks={0: 16 * MIB})
    for disk in made.disks:
        base = context.base_path(disk.index) if disk.index else None
        write(context.disk_path(disk.id), base, 5 * MIB, b"\xab" * 8192)
    taken = capture_vm(context, "vm1", CaptureRequest(name="snap"))
    assert [disk.changed for disk in taken.disks] == [8192, 8192]
    for disk in taken.image.disks:
        with closing(context.repository.open(disk.index)) as opened:
            assert read(opened, 5 * MIB, 8192) == b"\xab" * 8192


def write(path, base, offset, data):
    """Write to an overlay as its VM would."""
    backing = f",backing.driver=raw,backing.file.filename={base}" if base else ""
    subprocess.run(
        [
            *("qemu-io", "--image-opts", f"driver=qcow2,file.filename={path}{backing}"),
            *("-c", f"write -P {data[0]} {offset} {len(data)}"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def test_names_are_taken(context, disks):
    upload(context, disks)
    vm(context)
    with pytest.raises(Conflict, match="exists already"):
        vm(context)
    with pytest.raises(Conflict, match="exists already"):
        capture_vm(context, "vm1", CaptureRequest(name="img"))


def test_disks_come_and_go(context, disks):
    upload(context, disks)
    vm(context)
    machines.create_disk(context, "extra", 16 * MIB)
    assert machines.attach(context, "vm1", "extra").lun == 0
    with pytest.raises(Conflict, match="attached already"):
        machines.attach(context, "vm1", "extra")
    with pytest.raises(Conflict, match="attached to a VM"):
        machines.delete_disk(context, "extra")
    with pytest.raises(NotAllowed, match="OS disk"):
        machines.detach(context, "vm1", "vm1-os")
    machines.detach(context, "vm1", "extra")
    with pytest.raises(Conflict, match="not attached to VM"):
        machines.detach(context, "vm1", "extra")
    machines.delete_disk(context, "extra")


def test_deleting_an_image_knows_its_vms(context, disks):
    upload(context, disks)
    vm(context)
    with pytest.raises(Conflict, match="vm1"):
        images.delete(context, "img")
    images.delete(context, "img", force=True)
    told = context.catalog.audit.list(1)[0]
    assert (told.action, told.resource, told.detail["vms"]) == (
        "image.delete",
        "image img",
        ["vm1"],
    )
    taken = capture_vm(context, "vm1", CaptureRequest(name="snap"))
    assert taken.image.os_disk.size == 8 * MIB
    assert storage.check(context).ok


def test_deleting_takes_what_nobody_needs(context, disks):
    upload(context, disks)
    upload(context, disks, "twin")
    vm(context)
    machines.delete(context, "vm1")
    assert list(context.home.vms.iterdir()) == list(context.home.disks.iterdir()) == []
    images.delete(context, "img")
    assert len(context.repository.indexes()) == 1
    images.delete(context, "twin")
    assert context.repository.indexes() == []
    assert list(context.home.bases.iterdir()) == []


def test_keep_disks(context, disks):
    upload(context, disks)
    made = vm(context)
    machines.delete(context, "vm1", keep_disks=True)
    (kept,) = context.catalog.list_disks()
    assert kept == replace(made.os_disk, vm_id=None)


def test_tags(context, disks):
    upload(context, disks, tags={"a": "1", "b": "2"})
    image = images.tag(context, "img", {"c": "3", "a": "9"}, ("b",))
    assert image.tags == {"a": "9", "c": "3"}
    with pytest.raises(NotFound, match="no tag"):
        images.tag(context, "img", {}, ("zzz",))


def test_export_refusals(context, disks, tmp_path):
    upload(context, disks)
    with pytest.raises(InvalidInput, match="names no format"):
        export_image(context, "img", tmp_path / "noending")
    with pytest.raises(InvalidInput, match="no format to export to"):
        export_image(context, "img", tmp_path / "x.zip")
    with pytest.raises(NotFound, match="no data disk"):
        export_image(context, "img", tmp_path / "x.vhd", lun=4)
    (tmp_path / "there.vhd").touch()
    with pytest.raises(Conflict):
        export_image(context, "img", tmp_path / "there.vhd")
    export_image(context, "img", tmp_path / "there.vhd", overwrite=True)
    with open_image(tmp_path / "there.vhd") as opened:
        assert opened.virtual_size == 8 * MIB


def test_vms_made_at_once_share_no_port_and_no_uid(context, disks):
    upload(context, disks)

    def create(number):
        own = wire.build(home=context.home)
        try:
            return create_vm(own, VmRequest(name=f"vm{number}", image="img", start=False))
        finally:
            own.close()

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(create, range(6)))
    assert len({one.ssh_port for one in made}) == 6
    assert len({one.mac for one in made}) == 6
    if os.geteuid() == 0:
        assert len({one.uid for one in made}) == 6


CANARY = b"a secret of the host that no image may hold"


def hostile_header(kind, path, canary):
    """A file whose head a guest could have written to its disk, naming a file of the host."""
    commands = {
        "qcow2": ["-f", "qcow2", "-b", canary, "-F", "raw"],
        "qcow2-data-file": ["-f", "qcow2", "-o", f"data_file={canary}.data,data_file_raw=on"],
        "vmdk": ["-f", "vmdk", "-o", "subformat=monolithicFlat"],
        "vhdx": ["-f", "vhdx"],
        "luks-like qed": ["-f", "qed", "-b", canary, "-F", "raw"],
    }
    subprocess.run(
        ["qemu-img", "create", "-q", *commands[kind], path, "16M"], check=True, cwd=path.parent
    )
    head = path.read_bytes()[: 1 * MIB]
    return head.ljust(-(-len(head) // 4096) * 4096, b"\0")


@pytest.mark.parametrize("kind", ["qcow2", "qcow2-data-file", "vmdk", "vhdx", "luks-like qed"])
def test_a_guest_that_writes_a_header_on_its_disk_gets_no_byte_of_the_host(
    context, disks, tmp_path, kind
):
    canary = tmp_path / "canary"
    canary.write_bytes(CANARY * 1000)
    head = hostile_header(kind, tmp_path / "header", canary)
    upload(context, disks)
    made = vm(context, new_data_disks={0: 16 * MIB})
    (tmp_path / "head").write_bytes(head)
    overlay_of_vm = context.disk_path(made.data_disks[0].id)
    subprocess.run(
        [
            *("qemu-io", "-f", "qcow2", "-c", f"write -s {tmp_path}/head 0 {len(head)}"),
            overlay_of_vm,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    taken = capture_vm(context, "vm1", CaptureRequest(name="snap"))
    machines.delete(context, "vm1")
    again = vm(context, "vm2", "snap")
    assert again.data_disks[0].size == 16 * MIB
    whole = head.ljust(16 * MIB, b"\0")
    for kind_of_export in ("raw", "vhd", "vhdx", "qcow2", "vmdk", "vmdk-stream"):
        target = tmp_path / f"out.{kind_of_export}"
        export_image(context, "snap", target, format=kind_of_export, lun=0)
        assert CANARY not in target.read_bytes()
    assert (tmp_path / "out.raw").read_bytes() == whole
    with closing(context.repository.open(taken.image.data_disks[0].index)) as opened:
        assert read(opened, 0, opened.size) == whole
    for path in context.home.bases.iterdir():
        assert CANARY not in path.read_bytes()
    with pytest.raises(DiskRefused):
        import_image(
            context,
            ImageRequest(name="evil", os_state=OsState.SPECIALIZED),
            Upload(location=str(tmp_path / "out.raw"), format="raw"),
            {},
        )


@pytest.fixture
def device(disks):
    """The OS disk as a block device."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a block device")
    made = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", disks / "os.raw"],
        capture_output=True,
        check=False,
        text=True,
    )
    if made.returncode != 0:
        pytest.skip(f"this machine has no loop device: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_a_block_device_is_uploaded_as_it_is(context, disks, device):
    index = upload(context, disks).image.os_disk.index
    done = import_image(
        context,
        ImageRequest(name="device", os_state=OsState.GENERALIZED),
        Upload(location=device),
        {},
    )
    assert done.image.os_disk.index == index
    assert done.image.provenance.kind is SourceKind.DEVICE


def test_a_repeated_upload_is_the_same_in_all_its_disks(context, disks, tmp_path):
    upload(context, disks, data=(0, 1))
    assert upload(context, disks, data=(0, 1)).existed
    other = tmp_path / "other.raw"
    other.write_bytes(os.urandom(MIB))
    request = ImageRequest(name="img", os_state=OsState.GENERALIZED)
    same, data = Upload(location=str(disks / "os.raw")), Upload(location=str(disks / "data.raw"))
    for luns in ({}, {0: data}, {0: data, 2: data}, {0: data, 1: Upload(location=str(other))}):
        with pytest.raises(Conflict, match="something else"):
            import_image(context, request, same, luns)


def test_a_repeated_upload_of_an_ova(context, disks, tmp_path):
    upload(context, disks, data=(0,))
    export_image(context, "img", tmp_path / "out.ova")
    request = ImageRequest(name="back", os_state=OsState.GENERALIZED)
    ova = Upload(location=str(tmp_path / "out.ova"))
    assert import_image(context, request, ova, {}).image.provenance.source_format == "ova"
    assert import_image(context, request, ova, {}).existed


def test_what_is_hashed_is_what_is_read(context, disks, tmp_path, monkeypatch):
    """Another file that takes the path's place, between the two, gets no checksum of the first."""
    path = tmp_path / "upload.raw"
    path.write_bytes((disks / "os.raw").read_bytes())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def swapped(*arguments, **options):
        (tmp_path / "evil.raw").write_bytes(bytes(MIB))
        (tmp_path / "evil.raw").replace(path)
        return open_upload(*arguments, **options)

    monkeypatch.setattr(import_module, "open_upload", swapped)
    request = ImageRequest(name="img", os_state=OsState.GENERALIZED)
    done = import_image(context, request, Upload(location=str(path), sha256=digest), {})
    assert done.image.os_disk.size == 8 * MIB


def test_a_file_that_was_cut_off_is_not_taken_for_raw(context, disks, tmp_path):
    upload(context, disks)
    export_image(context, "img", tmp_path / "whole.vhd")
    cut = tmp_path / "cut.vhd"
    cut.write_bytes((tmp_path / "whole.vhd").read_bytes()[: 4 * MIB])
    request = ImageRequest(name="cut", os_state=OsState.SPECIALIZED)
    with pytest.raises(DiskRefused, match="named as vhd"):
        import_image(context, request, Upload(location=str(cut)), {})
    import_image(context, request, Upload(location=str(cut), format="raw"), {})


def test_an_export_replaces_no_device(context, disks, tmp_path):
    upload(context, disks)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InvalidInput, match="no regular file"):
        export_image(context, "img", pipe, format="raw", overwrite=True)
    assert pipe.is_fifo()


def test_a_capture_recommends_the_size_that_its_vm_had(context, disks):
    upload(context, disks)
    vm(context, vcpus=3, memory=256 * MIB)
    request = CaptureRequest(name="snap", os_state=OsState.SPECIALIZED, force=True)
    capture_vm(context, "vm1", request)
    again = vm(context, "vm2", "snap")
    assert (again.vcpus, again.memory) == (3, 256 * MIB)
    assert "the same machine as VM 'vm1'" in again.notes[0]
