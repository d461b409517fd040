"""Mounting what stands on a disk in an appliance, as the guest's own fstab says.

Nothing of this runs on the host: the shell is the appliance's, and its kernel is the one that meets the
file systems. Mount points are looked up in the guest's tree, so that no link leads a mount astray.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from calotype.errors import GuestError
from calotype.guest.fstab import fstab
from calotype.guest.remote import Outcome, RemoteGuest, Shell, complaint, quoted

#: The appliance's directory that the guest's root is mounted on.
ROOT = "/guest"
#: The appliance's directory for a file system by itself.
ALONE = "/tmp"
_TYPES = ("ext2", "ext3", "ext4", "xfs", "btrfs", "vfat")
_ROOTS = frozenset(_TYPES) - {"vfat"}
#: The modules that each type needs.
_MODULES = {"xfs": ("xfs",), "btrfs": ("btrfs",), "vfat": ("vfat", "nls_cp437", "nls_ascii")}
#: Where distributions keep the root in a btrfs; the first is what a mount takes by itself.
_SUBVOLUMES = ("", "@", "root", "@rootfs", "@/.snapshots/1/snapshot")
_SUBVOLUME = re.compile(r"subvol(?:id)?=[^,]+")
_DISK = re.compile(r"/dev/(?:sda|vda|xvda|hda|nvme0n1p?)(\d+)")
_TAGS = ("UUID", "LABEL", "PARTUUID", "PARTLABEL")
_MOST = 64  # mounts, and devices


@dataclass(frozen=True, slots=True)
class Device:
    """A block device of the appliance and what it holds; ``tags`` are blkid's (``UUID`` and so on)."""

    path: str
    type: str
    tags: dict[str, str]


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system in the guest's tree: at ``path``, of the ``device``, with ``options``."""

    path: str
    device: Device
    options: str = ""


@dataclass(frozen=True, slots=True)
class MountedGuest:
    """A guest whose file systems are mounted; ``absent`` are lines of its fstab that could not be."""

    guest: RemoteGuest
    mounts: tuple[Mount, ...]
    devices: tuple[Device, ...]
    absent: tuple[str, ...]

    @property
    def reached(self) -> tuple[str, ...]:
        """The mount points."""
        return tuple(mount.path for mount in self.mounts)


def mount_guest(shell: Shell, *, writable: bool, timeout: float = 300.0) -> MountedGuest:
    """Mount the operating system on the appliance's disks.

    Args:
        shell: the appliance's.
        writable: whether the guest is to be changed.
        timeout: seconds that one program of the guest's own may run.

    Raises:
        GuestError: no operating system was found, or several; or one that cannot be mounted.
    """
    found = devices(shell)
    root = _find_root(shell, found)
    _attach(shell, root, ROOT, writable=writable)
    mounts, absent = [root], []
    plain = RemoteGuest(shell, ROOT, timeout=timeout)
    for spec, point, options in sorted(_fstab(plain), key=lambda entry: entry[1].count("/")):
        if len(mounts) >= _MOST or point in {mount.path for mount in mounts}:
            continue
        device = _device(spec, found)
        place = plain.stat(point)
        real = plain.real(point)
        if device is None or place is None or real is None or not place.is_dir:
            absent.append(f"{spec} on {point}")
            continue
        mount = Mount(real, device, options if device.type == "btrfs" else "")
        try:
            _attach(shell, mount, ROOT + real, writable=writable)
        except GuestError:
            absent.append(f"{spec} on {point}")
            continue
        mounts.append(mount)
        plain.flush()  # what was beneath is hidden now
    guest = RemoteGuest(shell, ROOT, timeout=timeout)
    return MountedGuest(guest, tuple(mounts), tuple(found), tuple(absent))


def unmount_guest(shell: Shell, mounted: MountedGuest) -> None:
    """Write everything out and unmount it.

    Raises:
        GuestError: something is in use, or could not be written.
    """
    for mount in reversed(mounted.mounts):
        path = os.fsencode(ROOT + mount.path.rstrip("/"))
        ask(shell, b"sync -f %s\numount %s" % (quoted(path), quoted(path)))


def devices(shell: Shell) -> list[Device]:
    """What the appliance's block devices hold, logical volumes among them."""
    start = b"""if blkid -t TYPE=LVM2_member > /dev/null; then
	load dm_mod
	lvm vgchange -ay --sysinit > /dev/null
	lvm vgmknodes > /dev/null 2>&1
fi
blkid -p -o export /dev/vd* /dev/mapper/* 2> /dev/null || true
"""
    found = []
    for block in ask(shell, start).decode("utf-8", "replace").split("\n\n"):
        tags = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        tags = {key: re.sub(r"\\(.)", r"\1", value) for key, value in tags.items()}
        if "DEVNAME" in tags and "TYPE" in tags:
            names = {tag: tags[tag] for tag in _TAGS if tag in tags}
            for tag in ("UUID", "NAME"):  # -p tells of partitions by another name
                if f"PART_ENTRY_{tag}" in tags:
                    names["PARTUUID" if tag == "UUID" else "PARTLABEL"] = tags[f"PART_ENTRY_{tag}"]
            found.append(Device(tags["DEVNAME"], tags["TYPE"], names))
    return found[:_MOST]


def attach(shell: Shell, device: Device, place: str, options: Sequence[str]) -> None:
    """Mount a device's file system at a directory of the appliance.

    Raises:
        GuestError: its kernel cannot mount it.
    """
    load = b"".join(b"load %s\n" % name.encode() for name in _MODULES.get(device.type, ()))
    words = [b"mount", b"-t", device.type.encode(), b"-o", ",".join(options).encode()]
    words += [device.path.encode(), os.fsencode(place)]
    script = load + b" ".join(map(quoted, words)) + b" || { dmesg | tail -n 3 >&2; exit 1; }"
    done = shell.run(script, timeout=300.0)
    if done.status != 0:
        raise GuestError(
            f"the guest's {device.type} file system cannot be mounted: {complaint(done)}",
            hint="repair it in the VM, then try again",
        )


def ask(shell: Shell, script: bytes, *, timeout: float = 900.0) -> bytes:
    """What a script prints.

    Raises:
        GuestError: it failed.
    """
    done: Outcome = shell.run(script, timeout=timeout)
    if done.status != 0:
        raise GuestError(f"the appliance could not do its work: {complaint(done)}")
    return done.stdout


def _attach(shell: Shell, mount: Mount, place: str, *, writable: bool) -> None:
    options = ["rw" if writable else "ro", "nodev", *filter(None, [mount.options])]
    attach(shell, mount.device, place, options)


def _find_root(shell: Shell, found: Sequence[Device]) -> Mount:
    roots = []
    for device in found:
        if device.type not in _ROOTS:
            continue
        for subvolume in _SUBVOLUMES if device.type == "btrfs" else ("",):
            mount = Mount("/", device, f"subvol={subvolume}" if subvolume else "")
            if _is_root(shell, mount):
                roots.append(mount)
                break
    if len(roots) > 1:
        names = ", ".join(mount.device.path for mount in roots)
        raise GuestError(f"several file systems hold an operating system ({names})")
    if not roots:
        kinds = ", ".join(sorted({device.type for device in found})) or "nothing that is known"
        raise GuestError(f"no operating system was found on the disk (it holds {kinds})")
    return roots[0]


def _is_root(shell: Shell, mount: Mount) -> bool:
    try:
        _attach(shell, mount, ROOT, writable=False)
    except GuestError:
        return False
    look = b"""cd %s && [ -d etc ] && [ -d usr ] &&
{ [ -h etc/os-release ] || [ -f etc/os-release ] || [ -f usr/lib/os-release ] || [ -f etc/passwd ]; }
is=$?; cd /; umount %s && exit $is""" % (ROOT.encode(), ROOT.encode())
    return shell.run(look, timeout=120.0).status == 0


def _fstab(guest: RemoteGuest) -> Iterator[tuple[str, str, str]]:
    """(device, mount point, options that choose a subvolume) of each line that names a disk."""
    for entry in fstab(guest):
        if entry.type in (*_TYPES, "auto") and entry.point[:1] == "/" and entry.point.strip("/"):
            chosen = _SUBVOLUME.search(entry.options)
            yield entry.spec.replace('"', ""), entry.point, chosen[0] if chosen else ""


def _device(spec: str, found: Sequence[Device]) -> Device | None:
    """The device that an fstab's first field means."""
    tag, sign, value = spec.partition("=")
    for name in _TAGS:
        if spec.startswith(f"/dev/disk/by-{name.lower()}/"):
            tag, sign, value = name, "=", spec.rpartition("/")[2]
    for device in found:
        if device.type not in _TYPES:
            continue
        if sign and device.tags.get(tag, "").lower() == value.lower() != "":
            return device
        if device.path in _paths(spec):
            return device
    return None


def _paths(spec: str) -> set[str]:
    """The appliance's names of a device that the guest calls ``spec``."""
    paths = {spec} if spec.startswith("/dev/mapper/") else set()
    if disk := _DISK.fullmatch(spec):
        paths.add(f"/dev/vda{disk[1]}")
    parts = spec.split("/")
    if len(parts) == 4 and spec.startswith("/dev/"):  # a volume group and a logical volume
        group, volume = (part.replace("-", "--") for part in parts[2:])
        paths.add(f"/dev/mapper/{group}-{volume}")
    return paths
