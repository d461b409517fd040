"""Packed uploads and OVAs: bounded, whole, never extracted."""

import gzip
import hashlib
import io
import lzma
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from calotype.disk import (
    ExportFormat,
    Machine,
    Packing,
    Window,
    open_image,
    open_upload,
    read,
    write,
    write_ova,
)
from calotype.disk.compression import unpack
from calotype.errors import DiskRefused, InvalidInput

PACK: dict[Packing, Callable[[bytes], bytes]] = {
    Packing.GZIP: gzip.compress,
    Packing.XZ: lzma.compress,
    Packing.ZSTD: zstandard.ZstdCompressor(write_checksum=True).compress,
}
CONTENT = random.Random(2).randbytes(700_000) + bytes(3 << 20) + b"end" * 1000


def unpacked(path: Path, kind: Packing, limit: int = 64 << 20) -> bytes:
    with Window.open(path) as window, unpack(window, kind, path.parent, limit=limit) as plain:
        return plain.read(0, plain.size)


@pytest.mark.parametrize("kind", Packing)
def test_members_follow_each_other(kind, tmp_path):
    path = tmp_path / "packed"
    path.write_bytes(PACK[kind](CONTENT) + PACK[kind](b"more") + PACK[kind](b""))
    assert unpacked(path, kind) == CONTENT + b"more"
    assert list(tmp_path.iterdir()) == [path]


def test_xz_may_be_padded(tmp_path):
    path = tmp_path / "packed"
    path.write_bytes(lzma.compress(b"one") + bytes(8) + lzma.compress(b"two") + bytes(4))
    assert unpacked(path, Packing.XZ) == b"onetwo"


@pytest.mark.parametrize("kind", Packing)
@pytest.mark.parametrize(
    "garbage", [b"\0", b"garbage after the end", b"\x1f\x8b\x09\0\0\0\0\0\0\0"]
)
def test_trailing_garbage_is_refused(kind, garbage, tmp_path):
    path = tmp_path / "packed"
    path.write_bytes(PACK[kind](CONTENT) + garbage)
    with pytest.raises(DiskRefused, match=r"follows its end|truncated"):
        unpacked(path, kind)


@pytest.mark.parametrize("kind", Packing)
def test_truncated_and_damaged_files_are_refused(kind, tmp_path):
    path, packed = tmp_path / "packed", PACK[kind](CONTENT)
    for cut in (1, 2, 10, len(packed) // 2):
        path.write_bytes(packed[:-cut])
        with pytest.raises(DiskRefused, match="truncated"):
            unpacked(path, kind)
    path.write_bytes(packed[:-1] + bytes([packed[-1] ^ 1]))
    with pytest.raises(DiskRefused, match="damaged"):
        unpacked(path, kind)


@pytest.mark.parametrize("kind", Packing)
def test_bombs_end_at_the_limit(kind, tmp_path):
    path = tmp_path / "packed"
    path.write_bytes(PACK[kind](bytes(40 << 20)))
    assert path.stat().st_size < 1 << 17
    with pytest.raises(DiskRefused, match="more than 33554432 bytes"):
        unpacked(path, kind, limit=32 << 20)
    assert list(tmp_path.iterdir()) == [path]


def test_a_zstd_bomb_stays_small_in_memory(tmp_path):
    """Run-length blocks unpack 4 bytes to 128 KiB; a process of its own shows its peak."""
    block = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    frame = b"\x28\xb5\x2f\xfd\x00\x58" + block * (1 << 15) + b"\x01\0\0"
    path = tmp_path / "packed"
    path.write_bytes(frame)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from calotype.disk import Window\n"
        "from calotype.disk.compression import Packing, unpack\n"
        "from calotype.errors import DiskRefused\n"
        "from tests.memory import peak\n"
        "path = Path(sys.argv[1])\n"
        "try:\n"
        "    unpack(Window.open(path), Packing.ZSTD, path.parent, limit=256 << 20)\n"
        "except DiskRefused as error:\n"
        "    assert 'more than' in error.message, error\n"
        "    print(peak())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 300 << 10  # KiB


def test_zstd_windows_are_limited(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "packed").write_bytes(packer.compress(CONTENT) + packer.flush())
    with pytest.raises(DiskRefused) as caught:
        unpacked(tmp_path / "packed", Packing.ZSTD)
    assert "--long=27" in str(caught.value.hint)


def test_xz_memory_is_limited(tmp_path):
    block = lzma.compress(b"x" * 100, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 192 << 20}])
    (tmp_path / "packed").write_bytes(block)
    with pytest.raises(DiskRefused) as caught:
        unpacked(tmp_path / "packed", Packing.XZ)
    assert "xz -9" in str(caught.value.hint)


def test_nested_packing_is_refused(tmp_path):
    (tmp_path / "packed").write_bytes(gzip.compress(gzip.compress(CONTENT)))
    with (
        pytest.raises(DiskRefused, match=r"packed \(gzip\)"),
        open_upload(tmp_path / "packed", scratch=tmp_path),
    ):
        pass


# -- OVA


@pytest.fixture
def disks(tmp_path):
    """Two raw disks and their contents."""
    contents = []
    for number in range(2):
        content = random.Random(number).randbytes(200 * 512) + bytes((1 << 20) - 200 * 512)
        (tmp_path / f"raw{number}").write_bytes(content)
        contents.append(content)
    return contents


def ova(tmp_path: Path, machine: Machine | None = None) -> Path:
    with open_image(tmp_path / "raw0") as one, open_image(tmp_path / "raw1") as two:
        machine = machine or Machine(name="web", vcpus=2, memory=3 << 30, efi=True)
        target = tmp_path / "machine.ova"
        write_ova([one.disk, two.disk], target, machine, scratch=tmp_path)
        return target


def test_round_trip(tmp_path, disks):
    with open_upload(ova(tmp_path), scratch=tmp_path) as upload:
        assert [read(i.disk, 0, i.virtual_size) for i in upload] == disks
        assert upload.appliance is not None
        assert (upload.appliance.name, upload.appliance.firmware) == ("web", "efi")
        assert (upload.appliance.vcpus, upload.appliance.memory) == (2, 3 << 30)
    assert list(members(tmp_path / "machine.ova")) == [
        "web.ovf",
        "web.mf",
        "web-disk1.vmdk",
        "web-disk2.vmdk",
    ]


def test_names_are_only_names(tmp_path, disks):
    name = '../../etc/x"><&\u00e9'
    with open_upload(ova(tmp_path, Machine(name=name)), scratch=tmp_path) as upload:
        assert upload.appliance is not None
        assert upload.appliance.name == name
    assert all("/" not in member for member in members(tmp_path / "machine.ova"))


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def build(
    path: Path,
    content: dict[str, bytes],
    kind: int = tarfile.USTAR_FORMAT,
    **change: dict[str, object],
) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in change.get(name.partition(".")[2], {}).items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return path


def refused(path: Path, match: str) -> None:
    with pytest.raises(DiskRefused, match=match) as caught, open_upload(path, scratch=path.parent):
        pass
    assert caught.value.hint


def manifest(content: dict[str, bytes], algorithm: str = "SHA256") -> bytes:
    lines = [
        f"{algorithm}({name})= {hashlib.new(algorithm, data).hexdigest()}\n"
        for name, data in content.items()
        if not name.endswith(".mf")
    ]
    return "".join(lines).encode()


@pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", "SHA512"])
def test_the_manifest_counts(tmp_path, disks, algorithm):
    content = members(ova(tmp_path))
    content["web.mf"] = manifest(content, algorithm)
    with open_upload(build(tmp_path / "x.ova", content), scratch=tmp_path) as upload:
        assert len(upload) == 2
    disk = bytearray(content["web-disk2.vmdk"])
    disk[-2000] ^= 1
    content["web-disk2.vmdk"] = bytes(disk)
    refused(build(tmp_path / "x.ova", content), "web-disk2.vmdk does not match the manifest")


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_other_tars(tmp_path, disks, kind):
    content = members(ova(tmp_path))
    path = build(tmp_path / "x.ova", content, kind, ovf={"mtime": 1.5})
    with open_upload(path, scratch=tmp_path) as upload:
        assert [read(i.disk, 0, i.virtual_size) for i in upload] == disks


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b"web-disk1.vmdk", b"/etc/passwd", "no member"),
        (b"web-disk1.vmdk", b"../raw0", "no member"),
        (b"<?xml version", b"<!DOCTYPE x [<!ENTITY y 'z'>]><?xml version", "no XML|DTD"),
        (b"<Envelope", b"<!DOCTYPE x [<!ENTITY y SYSTEM 'file:///etc/passwd'>]><Envelope", "DTD"),
        (b"<References>", b"<References", "no XML"),
        (b'ovf:capacity="1048576"', b'ovf:capacity="512"', "descriptor states 512"),
        (b'ovf:capacity="1048576"', b'ovf:capacity="-1"', "capacity of '-1'"),
        (b"ovf:diskId=", b'ovf:parentRef="p" ovf:diskId=', "parent disk"),
        (b'ovf:id="file1"', b'ovf:id="file1" ovf:compression="gzip"', "packed"),
        (b"ovf:/disk/vmdisk1", b"ovf:/disk/vmdisk2", "attached"),
        (b"VirtualSystem ", b"Other ", "no XML"),
        (b'Units="byte"', b'Units="furlong"', "unit"),
        (b"byte</", b"byte * 2^20</", None),
    ],
)
def test_hostile_descriptors(tmp_path, disks, old, new, match):
    content = members(ova(tmp_path))
    content["web.ovf"] = content["web.ovf"].replace(old, new)
    del content["web.mf"]
    path = build(tmp_path / "x.ova", content)
    if match is None:
        with open_upload(path, scratch=tmp_path) as upload:
            assert len(upload) == 2
    else:
        refused(path, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}, "no regular file"),
        ({"type": tarfile.LNKTYPE, "linkname": "web.ovf", "size": 0}, "no regular file"),
        ({"type": tarfile.CHRTYPE, "size": 0}, "no regular file"),
        ({"type": tarfile.DIRTYPE, "size": 0}, "no regular file"),
        ({"name": "/etc/passwd"}, "has a path"),
        ({"name": "../x.vmdk"}, "has a path"),
        ({"name": "web.ovf"}, "stands twice"),
    ],
)
def test_hostile_members(tmp_path, disks, change, match):
    content = members(ova(tmp_path))
    refused(build(tmp_path / "x.ova", content, vmdk=change), match)


def test_a_member_reaches_over_the_end(tmp_path, disks):
    path = ova(tmp_path)
    os.truncate(path, path.stat().st_size - 200_000)
    refused(path, "ends at byte")


def test_a_disk_of_an_ova_goes_through_the_gate(tmp_path, disks):
    """The oracle reads it where it lies in the tar."""
    with open_image(tmp_path / "raw0") as image:
        write(image.disk, tmp_path / "q", ExportFormat.QCOW2, scratch=tmp_path)
    content = members(ova(tmp_path))
    del content["web.mf"]
    content["web.ovf"] = content["web.ovf"].replace(
        f'ovf:size="{len(content["web-disk1.vmdk"])}"'.encode(), b""
    )
    content["web-disk1.vmdk"] = (tmp_path / "q").read_bytes()
    with open_upload(build(tmp_path / "x.ova", content), scratch=tmp_path) as upload:
        assert [image.format for image in upload] == ["qcow2", "vmdk"]
        assert [read(i.disk, 0, i.virtual_size) for i in upload] == disks
    content["web-disk1.vmdk"] = b"LUKS\xba\xbe" + bytes(4096 - 6)
    refused(build(tmp_path / "x.ova", content), "foreign format")


def test_a_packed_ova(tmp_path, disks):
    (tmp_path / "x.ova.gz").write_bytes(gzip.compress(ova(tmp_path).read_bytes()))
    with open_upload(tmp_path / "x.ova.gz", scratch=tmp_path, declared="ova") as upload:
        assert [read(i.disk, 0, i.virtual_size) for i in upload] == disks


def test_declared_as_ova_but_not_one(tmp_path, disks):
    with (
        pytest.raises(DiskRefused, match="declared as an OVA"),
        open_upload(tmp_path / "raw0", scratch=tmp_path, declared="ova"),
    ):
        pass


def test_an_ova_needs_disks(tmp_path):
    with pytest.raises(InvalidInput, match="1 to 15 disks"):
        write_ova([], tmp_path / "x.ova", Machine(name="x"), scratch=tmp_path)
