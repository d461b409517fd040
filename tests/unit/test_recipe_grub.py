"""GRUB's boot sector and core, patched as grub-bios-setup would."""

import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.errors import InvalidInput
from calotype.recipe import grub

BOOT = bytes(range(256)) + bytes(254) + b"\x55\xaa"
MBR = bytes(440) + b"SIGNxx" + bytes(64) + b"\x55\xaa"


@given(st.binary(min_size=513, max_size=40_000), st.integers(34, 1 << 40))
def test_core_names_what_follows_it(core, sector):
    patched = grub.patch_core(core, sector)
    assert len(patched) % 512 == 0
    first, count, segment = struct.unpack_from("<QHH", patched, 0x1F4)
    assert first == sector + 1
    assert (1 + count) * 512 == len(patched)
    assert segment == 0x820
    assert patched[:0x1F4] == core[:0x1F4].ljust(0x1F4, b"\0")
    assert patched[512 : len(core)] == core[512:]


@given(st.integers(34, 1 << 40))
def test_boot_sector(sector):
    patched = grub.patch_boot(BOOT, MBR, sector)
    assert len(patched) == 512
    assert struct.unpack_from("<Q", patched, 0x5C) == (sector,)
    assert patched[0x64] == 0xFF
    assert patched[0x66:0x68] == b"\x90\x90"
    assert patched[0x1B8:] == MBR[0x1B8:]
    assert patched[:0x5C] == BOOT[:0x5C]


@pytest.mark.parametrize("boot", [b"", bytes(512), BOOT + b"x"])
def test_what_is_no_boot_sector(boot):
    with pytest.raises(InvalidInput, match="boot sector"):
        grub.patch_boot(boot, MBR, 2048)


def test_configuration_goes_by_uuid():
    fs_uuid = str(uuid.UUID(int=5))
    assert f"--fs-uuid --set=root {fs_uuid}\n" in grub.early_config(fs_uuid)
    menu = grub.menu("vmlinuz-1", "initrd.img-1", f"root=UUID={fs_uuid} ro")
    assert f"linux /boot/vmlinuz-1 root=UUID={fs_uuid} ro\n" in menu
    assert "initrd /boot/initrd.img-1\n" in menu


def test_the_images_own_modules_come_first(tmp_path):
    assert str(grub.modules_for(tmp_path, "i386-pc")) == "/usr/lib/grub/i386-pc"
    own = tmp_path / "usr/lib/grub/i386-pc"
    own.mkdir(parents=True)
    assert grub.modules_for(tmp_path, "i386-pc") == own
