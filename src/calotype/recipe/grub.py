"""GRUB for BIOS and UEFI, put into a disk image without a device, a mount or a privilege."""

import struct
from pathlib import Path

from calotype.errors import InvalidInput
from calotype.recipe.gpt import SECTOR
from calotype.run import Limits, run

_COMMON = (
    *("part_gpt", "ext2", "normal", "linux", "serial", "terminal", "configfile"),
    *("search", "search_fs_uuid", "test", "echo"),
)
_BIOS = ("biosdisk", *_COMMON)
_EFI = ("fat", *_COMMON)


def early_config(fs_uuid: str) -> str:
    """GRUB's first lines: find the root file system, go on with the configuration that lies there."""
    return (
        f"search --no-floppy --fs-uuid --set=root {fs_uuid}\n"
        "set prefix=($root)/boot/grub\n"
        "configfile $prefix/grub.cfg\n"
    )


def menu(kernel: str, initrd: str, cmdline: str) -> str:
    """A ``grub.cfg`` that boots one kernel at once and also speaks on the first serial port."""
    return (
        "serial --unit=0 --speed=115200\n"
        "terminal_input console serial\n"
        "terminal_output console serial\n"
        f"linux /boot/{kernel} {cmdline}\n"
        f"initrd /boot/{initrd}\n"
        "boot\n"
    )


def modules_for(root: Path, target: str) -> Path:
    """GRUB's modules: the image's own, so that the two fit together, else the host's."""
    own = root / "usr/lib/grub" / target
    return own if own.is_dir() else Path("/usr/lib/grub") / target


def core_image(modules: Path, config: Path, *, efi: bool, out: Path) -> bytes:
    """Link a GRUB core that starts by ``config``.

    Raises:
        ToolMissing: ``grub-mkimage`` is not installed.
        ToolFailed: the modules are not there.
    """
    kind, names = ("x86_64-efi", _EFI) if efi else ("i386-pc", _BIOS)
    argv = ["grub-mkimage", "-O", kind, "-d", str(modules), "-o", str(out)]
    argv += ["-c", str(config), "-p", "/EFI/debian" if efi else "/boot/grub", *names]
    run(argv, limits=Limits(wall=60))
    return out.read_bytes()


def patch_core(core: bytes, sector: int) -> bytes:
    """The BIOS core as it lies from ``sector`` on: its first sector loads the rest behind it."""
    count = -(-len(core) // SECTOR)
    image = bytearray(core.ljust(count * SECTOR, b"\0"))
    # The last block list entry of diskboot.img: sector (8 bytes), sectors (2), segment to load to (2).
    struct.pack_into("<QHH", image, SECTOR - 12, sector + 1, count - 1, 0x820)
    return bytes(image)


def patch_boot(boot: bytes, mbr: bytes, sector: int) -> bytes:
    """GRUB's boot sector that loads the core at ``sector``, with the partition table of ``mbr``.

    Raises:
        InvalidInput: ``boot`` is not GRUB's boot sector.
    """
    if len(boot) != SECTOR or boot[510:] != b"\x55\xaa":
        raise InvalidInput("GRUB's boot.img is not a boot sector")
    image = bytearray(boot)
    struct.pack_into("<Q", image, 0x5C, sector)
    image[0x64] = 0xFF  # the drive that the BIOS started from
    image[0x66:0x68] = b"\x90\x90"  # as grub-setup does: do not distrust the BIOS's drive number
    image[0x1B8:] = mbr[0x1B8:]
    return bytes(image)
