"""From a tree of files to a raw disk image that boots by BIOS and by UEFI."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calotype.errors import InvalidInput, ToolFailed
from calotype.model import MIB
from calotype.recipe import gpt, grub
from calotype.recipe.record import Layout
from calotype.recipe.tree import Owner, Tree
from calotype.run import Limits, run

_BIOS_BOOT = 3 * MIB
_BLOCK = 4096
_COPY = 64 << 10
_MIN_INODES = 16384


@dataclass(frozen=True, slots=True)
class Identity:
    """The UUIDs of one image: a function of what it was made from, so that they can be known early."""

    disk: uuid.UUID
    root: uuid.UUID
    parts: dict[int, uuid.UUID]
    esp_serial: str

    @property
    def esp_uuid(self) -> str:
        """The EFI system partition's serial number as ``fstab`` writes it."""
        return f"{self.esp_serial[:4]}-{self.esp_serial[4:]}".upper()

    @classmethod
    def of(cls, digest: str) -> "Identity":
        """The identity of the image with this digest of inputs."""

        def derive(name: str) -> uuid.UUID:
            return uuid.uuid5(uuid.NAMESPACE_OID, f"calotype:{digest}:{name}")

        parts = {number: derive(f"part{number}") for number in (1, 14, 15)}
        return cls(derive("disk"), derive("root"), parts, derive("esp").hex[:8])


def partitions(layout: Layout, identity: Identity) -> list[gpt.Partition]:
    """Debian's own layout for cloud images: p14 BIOS boot, p15 EFI, p1 root up to the end."""
    esp = MIB + _BIOS_BOOT
    root = esp + layout.esp
    rows = [
        (14, MIB, _BIOS_BOOT, gpt.BIOS_BOOT),
        (15, esp, layout.esp, gpt.EFI_SYSTEM),
        (1, root, layout.size - MIB - root, gpt.LINUX_ROOT),
    ]
    return [
        gpt.Partition(number=n, start=start, length=length, kind=kind, guid=identity.parts[n])
        for n, start, length, kind in rows
    ]


def write_image(
    tree: Tree, layout: Layout, identity: Identity, *, efi: dict[str, bytes], out: Path, work: Path
) -> None:
    """Write the whole disk to ``out`` (sparse), which must not exist yet.

    Args:
        tree: the root file system.
        layout: the sizes.
        identity: the UUIDs; ``tree`` already speaks of them in its fstab and grub.cfg.
        efi: the files of the EFI system partition.
        out: the raw image to make.
        work: a directory for temporary files.

    Raises:
        ToolFailed: the files do not fit, or a tool failed.
    """
    parts = {part.number: part for part in partitions(layout, identity)}
    with out.open("xb") as file:
        file.truncate(layout.size)
        gpt.write(file, layout.size, identity.disk, list(parts.values()))
    _write_root(tree, parts[1], layout.label, str(identity.root), out)
    _write_esp(efi, parts[15], identity.esp_serial, out, work)
    _write_bios(tree, parts[14], str(identity.root), out, work)
    with out.open("rb") as file:
        os.fsync(file.fileno())


def _write_root(tree: Tree, part: gpt.Partition, label: str, fs_uuid: str, out: Path) -> None:
    # Features that GRUB 2.06 does not read are left out, whatever this host's mke2fs.conf says; tables
    # are finished now, so that no guest writes to every block group in its first minutes.
    options = f"offset={part.start},lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0"
    inodes = max(_MIN_INODES, part.length // (4 * _BLOCK))
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(_BLOCK), "-I", "256", "-m", "1"]
    argv += ["-N", str(inodes), "-O", "^metadata_csum_seed,^orphan_file", "-E", options]
    argv += ["-L", label, "-U", fs_uuid, "-d", str(tree.root), str(out)]
    prefix = [] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--"]
    environment = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    blocks = str(part.length // _BLOCK)
    run([*prefix, *argv, blocks], env=environment, limits=Limits(wall=900))
    commands, files = owner_commands(tree.owners, out.parent)
    try:
        _debugfs(out, part.start, commands)
    finally:
        for path in files:
            path.unlink()


def owner_commands(owners: dict[str, Owner], scratch: Path) -> tuple[list[str], list[Path]]:
    """The debugfs commands that set owners and attributes, and the files of values they read.

    Raises:
        InvalidInput: a name that debugfs cannot be given.
    """
    commands: list[str] = []
    files: list[Path] = []
    for name, owner in sorted(owners.items()):
        if any(c in name for c in '"\n\r'):
            raise InvalidInput(f"a file of the image has an impossible name: {name!r}")
        target = f'"/{name}"'
        commands += [f"set_inode_field {target} uid {owner.uid}"] if owner.uid else []
        commands += [f"set_inode_field {target} gid {owner.gid}"] if owner.gid else []
        for key, value in owner.xattrs:
            path = scratch / f"xattr-{len(files)}"
            path.write_bytes(value)
            files.append(path)
            commands.append(f'ea_set -f "{path}" {target} {key}')
    return commands, files


def _debugfs(image: Path, offset: int, commands: Sequence[str]) -> None:
    argv = ["debugfs", "-w", "-f", "-", f"{image}?offset={offset}"]
    done = run(argv, data="\n".join([*commands, ""]).encode(), limits=Limits(wall=300))
    # debugfs ends with 0 whatever happens; its first line on stderr is its version.
    complaints = done.stderr.decode("utf-8", "replace").strip().splitlines()[1:]
    if complaints:
        raise ToolFailed(f"debugfs: {complaints[0]}")


def _write_esp(
    files: dict[str, bytes], part: gpt.Partition, serial: str, out: Path, work: Path
) -> None:
    # In a file of its own: mkfs.fat takes a whole disk's size for the partition's.
    volume = work / "esp.img"
    with volume.open("wb") as file:
        file.truncate(part.length)
    hidden = str(part.start // gpt.SECTOR)
    argv = ["mkfs.fat", "--mbr=no", "-h", hidden, "-n", "ESP", "-i", serial, str(volume)]
    run(argv, limits=Limits(wall=60))
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}

    def mtool(*argv: str) -> None:
        run(list(argv), env=environment, limits=Limits(wall=60))

    made: set[str] = set()
    for name, data in sorted(files.items()):
        above = name.split("/")[:-1]
        for depth in range(1, len(above) + 1):
            directory = "/".join(above[:depth])
            if directory not in made:
                mtool("mmd", "-i", str(volume), f"::/{directory}")
                made.add(directory)
        source = work / "esp-file"
        source.write_bytes(data)
        mtool("mcopy", "-i", str(volume), str(source), f"::/{name}")
    _place(volume, out, part.start)


def _place(volume: Path, out: Path, offset: int) -> None:
    """Copy a file into the image at ``offset``, leaving holes where it has only zeros."""
    with volume.open("rb") as source, out.open("r+b") as target:
        for at in range(0, volume.stat().st_size, _COPY):
            block = source.read(_COPY)
            if block.count(0) != len(block):
                target.seek(offset + at)
                target.write(block)


def _write_bios(tree: Tree, part: gpt.Partition, fs_uuid: str, out: Path, work: Path) -> None:
    modules = grub.modules_for(tree.root, "i386-pc")
    config = work / "early.cfg"
    config.write_text(grub.early_config(fs_uuid))
    sector = part.start // gpt.SECTOR
    core = grub.core_image(modules, config, efi=False, out=work / "core.img")
    core = grub.patch_core(core, sector)
    if len(core) > part.length:
        raise InvalidInput(
            f"GRUB's core has {len(core)} bytes: the BIOS boot partition is too small"
        )
    with out.open("r+b") as file:
        boot = grub.patch_boot((modules / "boot.img").read_bytes(), file.read(gpt.SECTOR), sector)
        file.seek(0)
        file.write(boot)
        file.seek(part.start)
        file.write(core)


def efi_files(tree: Tree, fs_uuid: str, *, signed: bool, work: Path) -> dict[str, bytes]:
    """The EFI system partition's files: a GRUB of our own linking, or the distribution's signed one."""
    early = grub.early_config(fs_uuid)
    if signed:
        lib = tree.root / "usr/lib"
        return {
            "EFI/BOOT/BOOTX64.EFI": (lib / "shim/shimx64.efi.signed").read_bytes(),
            "EFI/BOOT/grubx64.efi": (
                lib / "grub/x86_64-efi-signed/grubx64.efi.signed"
            ).read_bytes(),
            "EFI/debian/grub.cfg": early.encode(),
        }
    config = work / "early-efi.cfg"
    config.write_text(early)
    modules = grub.modules_for(tree.root, "x86_64-efi")
    core = grub.core_image(modules, config, efi=True, out=work / "core.efi")
    return {"EFI/BOOT/BOOTX64.EFI": core}
