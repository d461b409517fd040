"""What stands on a disk: the system, its users, its ways in."""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

from calotype.disk.base import Disk
from calotype.errors import GuestError
from calotype.guest.accounts import accounts, rows
from calotype.guest.fstab import fstab
from calotype.guest.guest import Tree, glob, text
from calotype.guest.locate import BIOS_BOOT, ESP, DiskMap, find_root, survey
from calotype.guest.os_release import os_release
from calotype.model import Architecture, Generation, OsType

_ELF = {62: Architecture.X64, 183: Architecture.ARM64}
_SHELLS = ("/bin/sh", "/usr/bin/sh", "/bin/bash", "/bin/busybox", "/sbin/init")
_SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
#: Directories that the steps look into.
_NEEDED = {"/etc", "/home", "/root", "/tmp", "/usr"}
_NEEDED |= {"/var", "/var/lib", "/var/log", "/var/mail", "/var/spool", "/var/tmp"}
#: ... with all that is in them.
_NEEDED_INSIDE = (
    *("/etc/", "/home/", "/root/", "/var/log/", "/var/mail/", "/var/spool/"),
    *("/var/lib/cloud/", "/var/lib/dbus/", "/var/lib/dhcp/", "/var/lib/systemd/"),
    *("/var/lib/NetworkManager/", "/var/lib/sss/", "/var/lib/waagent/"),
)
#: Kinds of file systems that need no disk.
_DISKLESS = {"tmpfs", "ramfs", "proc", "sysfs", "devpts", "devtmpfs", "cgroup", "cgroup2"}
_UNITS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_SSH_SERVERS = ("/usr/sbin/sshd", "/usr/sbin/dropbear", "/usr/local/sbin/sshd", "/sbin/sshd")


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What was found; fields are empty where nothing was. What follows from it is the proof's to say.

    ``stale`` says that the journal was not replayed, so that the newest changes are not seen.
    """

    os_type: OsType | None = None
    os_id: str = ""
    os_like: tuple[str, ...] = ()
    os_name: str = ""
    os_version: str = ""
    hostname: str = ""
    architecture: Architecture | None = None
    generations: tuple[Generation, ...] = ()
    users: tuple[str, ...] = ()
    passwords: tuple[str, ...] = ()
    host_keys: tuple[str, ...] = ()
    cloud_init: bool = False
    waagent: bool = False
    guest_agent: bool = False
    has_ssh_server: bool = False
    systemd: bool = False
    packages: int = 0
    kernels: tuple[str, ...] = ()
    mounts: tuple[tuple[str, str], ...] = ()
    time_zone: str = ""
    stale: bool = False
    notes: tuple[str, ...] = ()

    @property
    def distribution(self) -> frozenset[str]:
        """The identifiers of the distribution and of those that it is like."""
        return frozenset(filter(None, (self.os_id, *self.os_like)))

    @property
    def apart(self) -> tuple[str, ...]:
        """Directories that the steps look into, and that are file systems of their own."""
        points = (p for p, _ in self.mounts if p in _NEEDED or f"{p}/".startswith(_NEEDED_INSIDE))
        return tuple(dict.fromkeys(points))


def inspect(disk: Disk) -> Inspection:
    """Look into an OS disk; what cannot be looked into is noted, and never an error."""
    found = survey(disk)
    try:
        _, guest = find_root(disk, found)
    except GuestError as error:
        # Loaded where no Linux is; and it uses what stands here.
        from calotype.guest.windows import prove_windows_disk  # noqa: PLC0415

        windows = prove_windows_disk(disk, found)
        if windows is not None:
            return windows.seen
        return Inspection(
            generations=generations(found),
            notes=(error.message,),
        )
    try:
        return inspect_guest(guest, found, stale=guest.fs.needs_recovery)
    except GuestError as error:
        return Inspection(
            os_type=OsType.LINUX, generations=generations(found), notes=(error.message,)
        )


def inspect_guest(guest: Tree, found: DiskMap, *, stale: bool = False) -> Inspection:
    """Look into a guest whose disk has this map."""
    said = os_release(guest)
    return Inspection(
        os_type=OsType.LINUX,
        os_id=said.get("ID", ""),
        os_like=tuple(said.get("ID_LIKE", "").split()),
        os_name=said.get("PRETTY_NAME", said.get("NAME", "")),
        os_version=said.get("VERSION_ID", ""),
        hostname=text(guest, "/etc/hostname").strip(),
        architecture=_architecture(guest),
        generations=generations(found),
        users=_people(guest),
        passwords=_passwords(guest),
        host_keys=tuple(_host_keys(guest)),
        cloud_init=has_cloud_init(guest),
        waagent=has_waagent(guest),
        guest_agent=guest.stat("/usr/sbin/qemu-ga") is not None,
        has_ssh_server=any(guest.stat(p) is not None for p in _SSH_SERVERS),
        systemd=any(guest.stat(p) is not None for p in _SYSTEMD),
        packages=_packages(guest),
        kernels=tuple(path.removeprefix("/boot/vmlinuz-") for path in _kernels(guest)),
        mounts=tuple(_mounts(guest)),
        time_zone=_time_zone(guest),
        stale=stale,
    )


def has_cloud_init(guest: Tree) -> bool:
    """Whether cloud-init is installed."""
    return guest.stat("/usr/bin/cloud-init") is not None


def has_waagent(guest: Tree) -> bool:
    """Whether the Azure Linux Agent is installed."""
    return guest.stat("/usr/sbin/waagent") is not None


def generations(found: DiskMap) -> tuple[Generation, ...]:
    """The firmware that the disk can start from, as far as its partitions tell."""
    kinds = found.kinds()
    bios = BIOS_BOOT in kinds or (found.table == "mbr" and found.boot_code)
    uefi = ESP in kinds or "ef" in kinds
    return (Generation.V1,) * bios + (Generation.V2,) * uefi


def _people(guest: Tree) -> tuple[str, ...]:
    return tuple(account.name for account in accounts(guest) if account.is_person)


def _passwords(guest: Tree) -> tuple[str, ...]:
    hashes = (r for r in rows(guest, "/etc/shadow") if len(r) > 1 and r[1][:1] in ("$", "_"))
    return tuple(row[0] for row in hashes)


def _host_keys(guest: Tree) -> Iterator[str]:
    for pattern in ("/etc/ssh/ssh_host_*_key", "/etc/dropbear/dropbear_*_host_key"):
        yield from glob(guest, pattern)


def _packages(guest: Tree) -> int:
    dpkg = guest.read("/var/lib/dpkg/status", 64 << 20)
    if dpkg:
        return dpkg.count(b"\nStatus: install ok installed\n")
    apk = guest.read("/lib/apk/db/installed", 64 << 20) or b""
    return (b"\n" + apk).count(b"\nP:")


def _kernels(guest: Tree) -> list[str]:
    return list(glob(guest, "/boot/vmlinuz-*"))


def _mounts(guest: Tree) -> Iterator[tuple[str, str]]:
    """(mount point, device) of what fstab and enabled units mount, and is not just in memory."""
    for entry in fstab(guest):
        if entry.type not in _DISKLESS:
            point = entry.point
            yield _normal(point) if point.startswith("/") else point, entry.spec
    for path in glob(guest, "/etc/systemd/system/*.wants/*mount"):
        unit = posixpath.basename(path).replace(".automount", ".mount")
        for directory in _UNITS:
            if guest.stat(f"{directory}/{unit}") is not None:
                yield from _mounted_by(text(guest, f"{directory}/{unit}"))
                break


def _mounted_by(unit: str) -> Iterator[tuple[str, str]]:
    said = dict(re.findall(r"^\s*(What|Where|Type)\s*=[ \t]*(.*?)\s*$", unit, re.MULTILINE))
    if said.get("Where", "").startswith("/") and said.get("Type") not in _DISKLESS:
        yield _normal(said["Where"]), said.get("What", "")


def _normal(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))


def _time_zone(guest: Tree) -> str:
    real = guest.real("/etc/localtime") or ""
    _, sign, zone = real.partition("/usr/share/zoneinfo/")
    return zone if sign else text(guest, "/etc/timezone").strip()


def _architecture(guest: Tree) -> Architecture | None:
    for path in _SHELLS:
        head = guest.read(path, 20) or b""
        if head[:4] == b"\x7fELF" and head[4:6] == b"\x02\x01":
            return _ELF.get(int.from_bytes(head[18:20], "little"))
    return None
