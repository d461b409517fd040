"""Round trips: what qemu-img writes we read, what we write qemu-img reads, byte for byte."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from calotype.disk import (
    ExportFormat,
    MappedDisk,
    Packing,
    azure_gate,
    open_image,
    open_upload,
    qcow2,
    read,
    write,
)
from calotype.disk.window import Window
from calotype.errors import Conflict, InvalidInput

SIZES = [(5 << 20) + 3 * 512, (21 << 20) + 3 * 512]


def make(path: Path, size: int, seed: int = 1) -> bytes:
    """A sparse raw disk with random, repeated and zero runs at every alignment of sectors."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for _ in range(40):
            length = rng.choice([512, 1536, 4096, 65536, 300032])
            file.seek(rng.randrange((size - length) // 512) * 512)
            file.write(rng.choice([rng.randbytes(length), b"abcd" * (length // 4), bytes(length)]))
        file.seek(size - 512)
        file.write(rng.randbytes(512))
    return path.read_bytes()


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def content(path: Path, scratch: Path) -> bytes:
    with open_upload(path, scratch=scratch) as upload:
        (image,) = upload
        data = read(image.disk, 0, image.virtual_size)
        covered = 0
        for extent in image.disk.extents():
            assert extent.offset == covered
            covered = extent.end
            if extent.zero:
                assert data.count(0, extent.offset, extent.end) == extent.length
        assert covered == image.virtual_size
        return data


VARIANTS = [
    ("qcow2", "compat=0.10", ()),
    ("qcow2", "compat=0.10", ("-c",)),
    ("qcow2", "cluster_size=512", ()),
    ("qcow2", "cluster_size=512", ("-c",)),
    ("qcow2", "cluster_size=2M", ("-c",)),
    ("qcow2", "compression_type=zstd", ("-c",)),
    ("qcow2", "extended_l2=on,cluster_size=16k", ()),
    ("qcow2", "extended_l2=on,cluster_size=128k", ("-c",)),
    ("qcow2", "lazy_refcounts=on", ()),
    ("qcow2", "preallocation=metadata", ()),
    ("vpc", "subformat=dynamic,force_size=on", ()),
    ("vpc", "subformat=fixed,force_size=on", ()),
    ("vhdx", "subformat=dynamic", ()),
    ("vhdx", "subformat=fixed", ()),
    ("vhdx", "block_size=1M,block_state_zero=off,log_size=16M", ()),
    ("vmdk", "subformat=monolithicSparse", ()),
    ("vmdk", "subformat=monolithicSparse,zeroed_grain=on", ()),
    ("vmdk", "subformat=monolithicSparse,compat6=on", ()),
    ("vmdk", "subformat=streamOptimized", ()),
]


@pytest.mark.parametrize(("driver", "options", "flags"), VARIANTS, ids=str)
def test_what_qemu_writes(driver, options, flags, tmp_path):
    expected, target = make(tmp_path / "raw", SIZES[0]), tmp_path / "out"
    argv = ["convert", "-f", "raw", "-O", driver, "-o", options, *flags, tmp_path / "raw", target]
    qemu_img(*argv)
    found = content(target, tmp_path)
    assert found[: len(expected)] == expected
    assert not any(found[len(expected) :])


def test_vhd_by_geometry(tmp_path):
    """Without force_size qemu-img writes a creator whose size is its geometry."""
    expected = make(tmp_path / "raw", SIZES[1])
    qemu_img("convert", "-f", "raw", "-O", "vpc", tmp_path / "raw", tmp_path / "vhd")
    with open_image(tmp_path / "vhd", vhd_size="geometry") as image:
        found = read(image.disk, 0, image.virtual_size)
    assert found[: len(expected)] == expected
    assert not any(found[len(expected) :])


@pytest.mark.parametrize("kind", ExportFormat)
def test_what_we_write(kind, tmp_path):
    for size in SIZES:
        expected = make(tmp_path / "raw", size)
        target = tmp_path / f"out-{size}"
        with open_image(tmp_path / "raw") as image:
            write(image.disk, target, kind, scratch=tmp_path)
        driver = {"vhd": "vpc"}.get(kind.suffix, kind.suffix)
        options = f"driver={driver},file.driver=file,file.filename={target}"
        qemu_img("convert", "--image-opts", options, "-O", "raw", tmp_path / "back")
        back = (tmp_path / "back").read_bytes()
        assert back[:size] == expected
        assert not any(back[size:])
        assert len(back) == (-(-size // (1 << 20)) << 20 if kind is ExportFormat.VHD else size)
        assert content(target, tmp_path) == back
        compare = ["qemu-img", "compare", "-f", "raw", "-F", driver, tmp_path / "raw", target]
        assert subprocess.run(compare, stdout=subprocess.DEVNULL, check=False).returncode == 0
        assert not list(tmp_path.glob(".*"))


def test_a_given_raw_file_saves_the_copy(tmp_path):
    expected = make(tmp_path / "raw", SIZES[0])
    with open_image(tmp_path / "raw") as image:
        write(
            image.disk,
            tmp_path / "x.vhdx",
            ExportFormat.VHDX,
            scratch=tmp_path,
            raw=tmp_path / "raw",
        )
        assert content(tmp_path / "x.vhdx", tmp_path) == expected
        os.truncate(tmp_path / "raw", 512)
        with pytest.raises(InvalidInput, match="has 512 bytes"):
            write(
                image.disk,
                tmp_path / "y",
                ExportFormat.VHDX,
                scratch=tmp_path,
                raw=tmp_path / "raw",
            )
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("kind", [ExportFormat.RAW, ExportFormat.VHD, ExportFormat.QCOW2])
def test_packed(packing, kind, tmp_path):
    expected = make(tmp_path / "raw", SIZES[0])
    with open_image(tmp_path / "raw") as image:
        write(image.disk, tmp_path / "out", kind, scratch=tmp_path, packing=packing)
    with open_upload(tmp_path / "out", scratch=tmp_path, declared=kind.suffix) as upload:
        assert upload.packing is packing
    found = content(tmp_path / "out", tmp_path)
    assert found[: len(expected)] == expected
    assert not any(found[len(expected) :])


def test_azures_gate(tmp_path):
    make(tmp_path / "raw", SIZES[1])
    with open_image(tmp_path / "raw") as image:
        write(image.disk, tmp_path / "vhd", ExportFormat.VHD, scratch=tmp_path)
        write(image.disk, tmp_path / "dynamic", ExportFormat.VHD_DYNAMIC, scratch=tmp_path)
    assert azure_gate(tmp_path / "vhd") == []
    assert any("not a fixed" in why for why in azure_gate(tmp_path / "dynamic"))
    assert any("whole number of MiB" in why for why in azure_gate(tmp_path / "dynamic"))
    assert azure_gate(tmp_path / "raw") == ["it does not end with a VHD footer (cookie conectix)"]
    whole = (tmp_path / "vhd").read_bytes()
    (tmp_path / "vhd").write_bytes(whole[:1024] + whole)
    assert any("instead of" in why for why in azure_gate(tmp_path / "vhd"))
    (tmp_path / "vhd").write_bytes(whole[:-1] + b"\x01")
    assert azure_gate(tmp_path / "vhd") == ["the checksum of the VHD's footer is wrong"]
    make(tmp_path / "small", 5 << 20)
    with open_image(tmp_path / "small") as image:
        write(image.disk, tmp_path / "small.vhd", ExportFormat.VHD, scratch=tmp_path)
    assert any("below 20 MiB" in why for why in azure_gate(tmp_path / "small.vhd"))


@pytest.mark.parametrize("kind", [ExportFormat.RAW, ExportFormat.QCOW2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_export_that_fails_leaves_nothing(kind, error, tmp_path):
    """The disk fails (or Ctrl-C arrives) while it is read."""
    make(tmp_path / "raw", SIZES[0])
    before = set(tmp_path.iterdir())

    class Broken:
        size = SIZES[0]

        def extents(self):
            raise error

    with pytest.raises(error):
        write(Broken(), tmp_path / "out", kind, scratch=tmp_path)  # type: ignore[arg-type]
    assert set(tmp_path.iterdir()) == before


def test_an_existing_file_is_kept_unless_asked(tmp_path):
    make(tmp_path / "raw", SIZES[0])
    (tmp_path / "out").write_text("precious")
    with open_image(tmp_path / "raw") as image:
        with pytest.raises(Conflict):
            write(image.disk, tmp_path / "out", ExportFormat.RAW, scratch=tmp_path)
        assert (tmp_path / "out").read_text() == "precious"
        write(image.disk, tmp_path / "out", ExportFormat.RAW, scratch=tmp_path, overwrite=True)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "raw").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "out"}


def test_a_vhd_has_its_limit(tmp_path):
    with (tmp_path / "raw").open("wb") as file:
        file.truncate((2040 << 30) + 512)
    with open_image(tmp_path / "raw") as image, pytest.raises(InvalidInput, match="2040 GiB"):
        write(image.disk, tmp_path / "out", ExportFormat.VHD, scratch=tmp_path)


@pytest.mark.parametrize("options", ["", "extended_l2=on,cluster_size=128k"])
def test_an_overlay_reads_through_to_its_base(options, tmp_path):
    base = tmp_path / "base"
    expected = bytearray(make(base, SIZES[1]))
    more = ["-o", options] if options else []
    qemu_img(
        "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, *more, tmp_path / "overlay", "22M"
    )
    expected += bytes((22 << 20) - len(expected))
    commands = []
    for offset, length, byte in [(0, 4096, 7), (65536 * 3 + 512, 512, 8), (9 << 20, 1 << 20, 0)]:
        verb = ["write", "-P", str(byte)] if byte else ["write", "-z"]
        commands += ["-c", " ".join([*verb, str(offset), str(length)])]
        expected[offset : offset + length] = bytes([byte]) * length
    subprocess.run(
        ["qemu-io", "-f", "qcow2", *commands, str(tmp_path / "overlay")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    with open_image(base) as below, Window.open(tmp_path / "overlay") as window:
        layout = qcow2.parse(window, overlay=True)
        with MappedDisk(layout, window, backing=below.disk) as disk:
            assert read(disk, 0, disk.size) == expected
