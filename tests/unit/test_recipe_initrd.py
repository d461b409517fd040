"""The initial RAM disk: cpio's newc format and the closure of modules."""

import io
import lzma
import shutil
import subprocess

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from calotype.errors import InvalidInput
from calotype.recipe import initrd

DEPS = """\
kernel/scsi/sd_mod.ko: kernel/scsi/scsi_mod.ko kernel/scsi/scsi_common.ko
kernel/scsi/scsi_mod.ko: kernel/scsi/scsi_common.ko
kernel/scsi/scsi_common.ko:
kernel/net/virtio-net.ko: kernel/net/failover.ko
kernel/net/failover.ko:
"""
BUILTIN = "kernel/fs/ext4/ext4.ko\n"


def read_newc(data):
    """An independent reading: name to (mode, bytes)."""
    files: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        body = at + (110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return files
        files[name] = (mode, data[body : body + size])
        at = body + (size + 3) // 4 * 4


@given(st.dictionaries(st.text("abc", min_size=1, max_size=5), st.binary(max_size=9), max_size=6))
def test_reads_back(files):
    cpio = initrd.Cpio()
    for name, data in files.items():
        cpio.add(f"top/{name}", data, 0o750)
    archive = cpio.finish()
    assert len(archive) % 512 == 0
    found = read_newc(archive)
    if files:
        assert found.pop("top") == (0o040755, b"")
    assert found == {f"top/{name}": (0o100750, data) for name, data in files.items()}


def test_a_name_is_added_once():
    cpio = initrd.Cpio()
    cpio.add("a", b"")
    with pytest.raises(ValueError, match="already"):
        cpio.add("a", b"")
    with pytest.raises(ValueError, match="relative"):
        cpio.add("/b", b"")


def test_build_orders_modules():
    blob = initrd.build(b"#!/bin/sh\n", b"\x7fELF", [("b.ko", b"B"), ("a.ko", b"A")])
    files = read_newc(zstandard.ZstdDecompressor().decompress(blob, max_output_size=1 << 20))
    assert files["lib/modules/order"][1] == b"b.ko\na.ko\n"
    assert files["init"] == (0o100755, b"#!/bin/sh\n")
    assert files["bin/sh"] == (0o120777, b"busybox")
    assert {"dev", "proc", "sys", "new"} <= files.keys()


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")
def test_cpio_lists_it():
    cpio = initrd.Cpio()
    cpio.add("x/y", b"data", 0o755)
    cpio.symlink("x/z", "y")
    done = subprocess.run(
        ["cpio", "-t", "--quiet"], input=cpio.finish(), capture_output=True, check=True
    )
    assert done.stdout.split() == [b"x", b"x/y", b"x/z"]


def test_closure_puts_needs_first():
    deps = initrd.dependencies(DEPS)
    assert initrd.closure(["sd_mod", "ext4", "virtio_net"], deps, BUILTIN) == [
        "kernel/scsi/scsi_common.ko",
        "kernel/scsi/scsi_mod.ko",
        "kernel/scsi/sd_mod.ko",
        "kernel/net/failover.ko",
        "kernel/net/virtio-net.ko",
    ]


def test_unknown_module_is_refused():
    with pytest.raises(InvalidInput, match="floppy"):
        initrd.closure(["floppy"], initrd.dependencies(DEPS), BUILTIN)


def test_packed_modules_are_unpacked(tmp_path):
    path = tmp_path / "a.ko.xz"
    path.write_bytes(lzma.compress(b"module"))
    assert initrd.module_bytes(path) == b"module"
    assert initrd.module_name("kernel/x/a-b.ko.xz") == "a_b"
    assert io.BytesIO(initrd.module_bytes(path)).read(2) == b"mo"
