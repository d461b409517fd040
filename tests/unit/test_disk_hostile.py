"""Hostile images: nothing of the host in any output, polyglots and bombs refused, each by its name."""

import json
import random
import struct
import subprocess
from pathlib import Path

import pytest

from calotype import run as run_module
from calotype.disk import (
    MAX_VIRTUAL_SIZE,
    ExportFormat,
    MappedDisk,
    Window,
    open_image,
    open_upload,
    qcow2,
    raw,
    read,
    vmdk,
    write,
)
from calotype.disk.export import fixed_footer
from calotype.disk.layout import Kind
from calotype.disk.opinion import ask_inspector, ask_qemu
from calotype.disk.vhd import checksum_of
from calotype.errors import Conflict, DiskRefused, InvalidInput, NotFound, ToolFailed, ToolMissing
from calotype.run import HOSTILE, Sandbox, run

CANARY = b"canary-7f3a91-of-the-host"


@pytest.fixture
def canary(tmp_path):
    """A file of the host that no output may show: 1 MiB of one line."""
    path = tmp_path / "secret"
    path.write_bytes((CANARY * (1 << 16))[: 1 << 20])
    return path


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def raw_disk(path: Path, size: int = 1 << 20) -> bytes:
    path.write_bytes(random.Random(3).randbytes(size))
    return path.read_bytes()


def refused(path: Path, match: str, *, max_size: int = MAX_VIRTUAL_SIZE) -> None:
    """No way in: neither by its content, nor declared as anything."""
    for declared in (None, "raw", "qcow2", "vhd", "vmdk", "vhdx"):
        with pytest.raises(DiskRefused, match=match if declared is None else None) as caught:
            open_image(path, declared=declared, max_size=max_size)
        assert caught.value.hint
        assert CANARY.decode() not in f"{caught.value} {caught.value.hint}"


# -- files that name other files


def test_a_qcow2_with_a_backing_file(tmp_path, canary):
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", canary, image)
    refused(image, "backing file")


def test_a_qcow2_with_a_backing_file_of_another_length(tmp_path, canary):
    """The name's offset alone counts, whatever its length field says."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", canary, image)
    data = bytearray(image.read_bytes())
    struct.pack_into(">I", data, 16, 0)
    image.write_bytes(data)
    refused(image, "backing file")


@pytest.mark.parametrize("same", ["on", "off"])
def test_a_qcow2_with_a_data_file(tmp_path, canary, same):
    image = tmp_path / "image"
    copy = tmp_path / "data"
    copy.write_bytes(canary.read_bytes())
    options = f"data_file={copy},data_file_raw={same}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, "1M")
    refused(image, "another file")


def test_a_data_file_by_header_extension_alone(tmp_path):
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    data = bytearray(image.read_bytes())
    data[104:112] = bytes(8)  # compression type, end of the header
    struct.pack_into(">II", data, 112, 0x44415441, 8)
    data[120:136] = b"/etc/pwd" + bytes(8)
    image.write_bytes(data)
    refused(image, "data in another file")


DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=12345678
parentCID={parent}
createType="{kind}"
{lines}
"""


def vmdk_with(tmp_path: Path, text: str) -> Path:
    """A monolithicSparse VMDK whose embedded descriptor is ``text``."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "vmdk", image, "1M")
    data = bytearray(image.read_bytes())
    data[512 : 512 + 20 * 512] = text.encode().ljust(20 * 512, b"\0")
    image.write_bytes(data)
    return image


GOOD = 'RW 2048 SPARSE "x.vmdk"'


@pytest.mark.parametrize(
    ("lines", "parent", "kind", "match"),
    [
        ('RW 2048 FLAT "{canary}" 0', "ffffffff", "monolithicSparse", "names data elsewhere"),
        ('RW 2048 SPARSE "{canary}"', "ffffffff", "monolithicSparse", "names data elsewhere"),
        (
            GOOD + '\nRW 2048 FLAT "secret" 0',
            "ffffffff",
            "monolithicSparse",
            "names data elsewhere",
        ),
        (GOOD + "\n" + GOOD, "ffffffff", "monolithicSparse", "2 extents"),
        (GOOD, "ffffffff", "monolithicFlat", "only monolithicSparse"),
        (GOOD, "ffffffff", "MONOLITHICSPARSE", "only monolithicSparse"),
        (GOOD, "ffffffff", "twoGbMaxExtentSparse", "only monolithicSparse"),
        (GOOD, "12345678", "monolithicSparse", "parent file"),
        (
            GOOD + '\nparentFileNameHint="{canary}"',
            "ffffffff",
            "monolithicSparse",
            "not understood",
        ),
        (GOOD + '\n# parentFileNameHint="{canary}"', "ffffffff", "monolithicSparse", "understood"),
        (GOOD + '\nchangeTrackPath="{canary}"', "ffffffff", "monolithicSparse", "unknown line"),
        (GOOD + '\nddb.deletable = "{canary}"', "ffffffff", "monolithicSparse", "unknown line"),
        ('RW\t2048\tFLAT\t"{canary}"\t0', "ffffffff", "monolithicSparse", "not understood"),
        ('RW 4096 SPARSE "x.vmdk"', "ffffffff", "monolithicSparse", "different sizes"),
        ("", "ffffffff", "monolithicSparse", "0 extents"),
    ],
)
def test_a_vmdk_that_names_other_files(tmp_path, canary, lines, parent, kind, match):
    lines = lines.replace("{canary}", str(canary))
    image = vmdk_with(tmp_path, DESCRIPTOR.format(lines=lines, parent=parent, kind=kind))
    refused(image, match)


def test_the_same_vmdk_with_nothing_wrong_is_accepted(tmp_path):
    """So the cases above are refused for what they change."""
    text = DESCRIPTOR.format(lines=GOOD, parent="ffffffff", kind="monolithicSparse")
    with open_image(vmdk_with(tmp_path, text)) as image:
        assert image.virtual_size == 1 << 20


def test_text_behind_the_end_of_a_vmdk_descriptor(tmp_path, canary):
    good = DESCRIPTOR.format(lines=GOOD, parent="ffffffff", kind="monolithicSparse")
    refused(vmdk_with(tmp_path, f'{good}\0RW 2048 FLAT "{canary}" 0\n'), "goes on after its end")


@pytest.mark.parametrize("prefix", ["", "#\n", "\n# x\n", "  # x\n\n"])
def test_a_vmdk_descriptor_as_raw_disk(tmp_path, canary, prefix):
    """What qemu-img would take for a descriptor is no raw disk, however it is commented."""
    text = DESCRIPTOR.format(lines=f'RW 2048 FLAT "{canary}" 0', parent="ffffffff", kind="vmfs")
    text = text.replace("# Disk DescriptorFile\n", "") if prefix else text
    image = tmp_path / "image"
    image.write_bytes((prefix + text).encode().ljust(4096, b"\0"))
    refused(image, "VMDK descriptor")


def test_a_vmdk_of_capacity_zero(tmp_path):
    """QEMU then believes the descriptor alone."""
    text = DESCRIPTOR.format(lines=GOOD, parent="ffffffff", kind="monolithicSparse")
    image = vmdk_with(tmp_path, text)
    data = bytearray(image.read_bytes())
    struct.pack_into("<Q", data, 12, 0)
    image.write_bytes(data)
    refused(image, "capacity of 0")


def test_a_differencing_vhd(tmp_path):
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "vpc", "-o", "force_size=on", image, "4M")
    data = bytearray(image.read_bytes())
    for place in (0, len(data) - 512):
        struct.pack_into(">I", data, place + 60, 4)
        raw = bytes(data[place : place + 512])
        struct.pack_into(">I", data, place + 64, checksum_of(raw, 64))
    image.write_bytes(data)
    refused(image, "differencing VHD")


def test_a_guest_that_writes_a_qcow2_header_on_its_raw_disk(tmp_path, canary):
    """Its disk cannot come in as raw, and every export of it stays the same bytes, never probed."""
    header = tmp_path / "header"
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", canary, header)
    disk = tmp_path / "disk"
    content = header.read_bytes() + bytes(-header.stat().st_size % (1 << 20))
    disk.write_bytes(content)
    refused(disk, "backing file")
    with Window.open(disk) as window:
        captured = MappedDisk(raw.parse(window), window)
        for kind in ExportFormat:
            target = tmp_path / f"out-{kind}"
            write(captured, target, kind, scratch=tmp_path)
            assert CANARY not in target.read_bytes()
            driver = {"vhd": "vpc"}.get(kind.suffix, kind.suffix)
            options = f"driver={driver},file.driver=file,file.filename={target}"
            qemu_img("convert", "--image-opts", options, "-O", "raw", tmp_path / "back")
            back = (tmp_path / "back").read_bytes()
            assert back[: len(content)] == content
            assert not any(back[len(content) :])


# -- polyglots and wrong declarations


def test_a_raw_disk_with_a_vhd_footer_is_a_fixed_vhd_or_nothing(tmp_path):
    image = tmp_path / "image"
    content = raw_disk(image)
    image.write_bytes(content + fixed_footer(len(content) + 512))
    refused(image, "must be a file of")


def test_a_qcow2_that_ends_as_a_vhd(tmp_path):
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    data = image.read_bytes()
    image.write_bytes(data + fixed_footer(len(data)))
    refused(image, "qcow2 and VHD at once")


def test_an_iso_that_begins_as_a_qcow2(tmp_path):
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", image, "1M")
    data = bytearray(image.read_bytes())
    data[32768:32774] = b"\x01CD001"
    image.write_bytes(data)
    refused(image, "at once")


@pytest.mark.parametrize(
    "magic", [b"LUKS\xba\xbe", b"QED\0", b"COWD", b"WithoutFreeSpace", b"MSWIM\0\0\0"]
)
def test_foreign_formats(tmp_path, magic):
    image = tmp_path / "image"
    image.write_bytes(magic.ljust(1 << 20, b"\0"))
    refused(image, "foreign format, not supported")


def test_packed_files_are_no_disks_unless_declared_raw(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(b"PK\x03\x04".ljust(1 << 20, b"\0"))
    with pytest.raises(DiskRefused, match="packed"):
        open_image(image)
    with open_image(image, declared="raw") as opened:
        assert opened.virtual_size == 1 << 20


def test_the_declaration_must_be_right(tmp_path):
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "image", "1M")
    with pytest.raises(DiskRefused, match="declared as vhdx, but its content is qcow2"):
        open_image(tmp_path / "image", declared="vhdx")
    with open_image(tmp_path / "image", declared="QCOW2") as image:
        assert image.format == "qcow2"
    with pytest.raises(InvalidInput, match="no disk format"):
        open_image(tmp_path / "image", declared="floppy")


def test_odd_files(tmp_path):
    for content in (b"", b"x", b"x" * 513):
        (tmp_path / "image").write_bytes(content)
        refused(tmp_path / "image", "512-byte sectors")
    with pytest.raises(InvalidInput, match="neither a regular file"):
        open_image(tmp_path)
    with pytest.raises(InvalidInput, match="neither a regular file"):
        open_image("/dev/null")
    with pytest.raises(NotFound):
        open_image(tmp_path / "none")


# -- bombs


def test_two_l1_entries_may_not_share_a_table(tmp_path):
    image = tmp_path / "image"
    qemu_img(
        "create", "-q", "-f", "qcow2", "-o", "cluster_size=512,preallocation=metadata", image, "1M"
    )
    data = bytearray(image.read_bytes())
    (l1,) = struct.unpack_from(">Q", data, 40)
    data[l1 + 8 : l1 + 16] = data[l1 : l1 + 8]
    image.write_bytes(data)
    refused(image, "share one L2 table")


def test_two_clusters_may_not_share_bytes(tmp_path):
    raw_disk(tmp_path / "raw")
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "raw", tmp_path / "image")
    data = bytearray((tmp_path / "image").read_bytes())
    (l1,) = struct.unpack_from(">Q", data, 40)
    l2 = struct.unpack_from(">Q", data, l1)[0] & 0x00FFFFFFFFFFFE00
    data[l2 + 8 : l2 + 16] = data[l2 : l2 + 8]
    (tmp_path / "image").write_bytes(data)
    refused(tmp_path / "image", "same bytes")


@pytest.mark.parametrize("entries", [1 << 31, 1 << 27])
def test_a_qcow2_that_claims_to_be_huge(tmp_path, entries):
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    data = bytearray(image.read_bytes())
    struct.pack_into(">QII", data, 24, (1 << 63) - 512, 0, entries)
    image.write_bytes(data)
    refused(image, "L1 table")


def test_the_virtual_size_has_a_limit(tmp_path):
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "image", "2T")
    refused(tmp_path / "image", "above the limit", max_size=1 << 40)
    with open_image(tmp_path / "image") as image:
        assert image.virtual_size == 2 << 40
        assert image.mapped == 0


def test_damaged_compressed_clusters_are_refused_when_read(tmp_path):
    raw_disk(tmp_path / "raw")
    (tmp_path / "raw").write_bytes(b"abc" * (1 << 18) + bytes(1 << 18))
    for options in ("compression_type=zlib", "compression_type=zstd"):
        argv = ["-c", "-O", "qcow2", "-o", options, tmp_path / "raw", tmp_path / "image"]
        qemu_img("convert", "-f", "raw", *argv)
        with Window.open(tmp_path / "image") as window:
            runs = qcow2.parse(window).runs
        start = int(runs["start"][runs["kind"] == Kind.COMPRESSED][0])
        data = bytearray((tmp_path / "image").read_bytes())
        data[start : start + 8] = b"\xff" * 8
        (tmp_path / "image").write_bytes(data)
        with open_image(tmp_path / "image") as image, pytest.raises(DiskRefused, match="damaged"):
            read(image.disk, 0, 512)


# -- the second opinions, and the sandbox


def test_each_second_opinion_can_refuse(tmp_path):
    """They see what a wrong layout of ours would not."""
    qemu_img("create", "-q", "-f", "vmdk", tmp_path / "image", "1M")
    with Window.open(tmp_path / "image") as window:
        layout = vmdk.parse(window)
        object.__setattr__(layout, "size", 4096)
        with pytest.raises(DiskRefused, match="1048576 bytes where its header means 4096"):
            ask_qemu(layout, window)
        object.__setattr__(layout, "format", "raw")
        with pytest.raises(DiskRefused, match="second inspector takes it for vmdk"):
            ask_inspector(layout, window)


def test_qemu_img_sees_a_backing_file_that_we_missed(tmp_path, canary, monkeypatch):
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", canary, image)
    with Window.open(image) as window:
        layout = qcow2.parse(window, overlay=True)
        with pytest.raises(DiskRefused, match="backing-filename"):
            ask_qemu(layout, window)


def test_without_a_sandbox_only_raw_comes_in(tmp_path, monkeypatch):
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "image", "1M")
    raw_disk(tmp_path / "raw")
    which = run_module.which

    def no_bwrap(program):
        if program == "bwrap":
            raise ToolMissing("bwrap is not installed on this machine", hint="install it")
        return which(program)

    monkeypatch.setattr(run_module, "which", no_bwrap)
    with pytest.raises(ToolMissing, match="bwrap"):
        open_image(tmp_path / "image")
    with open_image(tmp_path / "raw") as image:
        assert image.format == "raw"


def test_a_sandbox_that_fails_is_no_sandbox(tmp_path, monkeypatch):
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "image", "1M")
    monkeypatch.setattr(
        run_module.Sandbox, "argv", lambda _self: ["/usr/bin/bwrap", "--no-such", "--"]
    )
    with pytest.raises(ToolFailed, match="no sandbox"):
        open_image(tmp_path / "image")


def test_the_oracle_sees_nothing_but_the_file(tmp_path, canary):
    """With our parser out of the way, the sandboxed qemu-img still cannot open the backing file."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", canary, image)
    with Window.open(image) as window:
        node = {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": f"/proc/self/fd/{window.fd}"},
        }
        argv = ["qemu-img", "info", "--backing-chain", "--output=json", "json:" + json.dumps(node)]
        limits, fds = HOSTILE, (window.fd,)
        done = run(argv, sandbox=Sandbox(), limits=limits, pass_fds=fds, check=False)
    assert done.returncode != 0
    assert b"No such file" in done.stderr


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path):
    raw_disk(tmp_path / "raw")
    with open_image(tmp_path / "raw") as image:
        image.unchanged()
        (tmp_path / "raw").write_bytes(b"y" * 4096)
        with pytest.raises(Conflict, match="changed while it was read"):
            image.unchanged()
    with pytest.raises(Conflict), open_upload(tmp_path / "raw", scratch=tmp_path):
        (tmp_path / "raw").write_bytes(b"z" * 4096)


def test_a_file_replaced_under_its_name_is_not_looked_at(tmp_path, canary):
    """All that reads goes through the descriptor that was opened first."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    with Window.open(image) as window:
        image.unlink()
        qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", canary, image)
        with open_image(window.fd) as opened:
            assert opened.virtual_size == 1 << 20
