"""What the VHD gate and the certification of Marketplace would say of an OS disk and its data disks.

Each rule says ``ok``, ``bad`` or ``unknown`` with what it saw; none of them stops anything here.
"""

import re
from collections.abc import Callable, Collection, Iterator
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from calotype.disk.base import Disk, read
from calotype.errors import GuestError
from calotype.guest.accounts import homes, rows
from calotype.guest.fstab import fstab
from calotype.guest.guest import Stat, Tree, glob, join, lines
from calotype.guest.initramfs import modules
from calotype.guest.inspect import has_cloud_init, has_waagent
from calotype.guest.locate import DiskMap, Filesystem
from calotype.guest.sshd import configuration, settings

_MIB = 1 << 20
_SMALLEST = 20 * _MIB
_FREE_SECTORS = 2048
_SECTOR = 512
_ALIVE = range(30, 236)  # seconds
_LONGEST_HISTORY = 1024
_NEEDED_MODULES = ("hv_vmbus", "hv_storvsc", "hv_netvsc")
_COMMAND_LINES = (
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/boot/efi/EFI/*/grub.cfg",
    "/boot/loader/entries/*.conf",
    "/boot/extlinux.conf",
    "/boot/extlinux/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
)
_KERNEL_LINE = re.compile(r"\s*(linux(16|efi)?|options|append|kernel)\s+(.*)", re.IGNORECASE)
#: Names of devices that are the same whatever order they are found in.
_STABLE = ("UUID=", "PARTUUID=", "LABEL=", "PARTLABEL=", "/dev/disk/", "/dev/mapper/")
_MEMORY_FILE_SYSTEMS = {"tmpfs", "proc", "sysfs", "devpts", "swap", "none"}


class Answer(StrEnum):
    """What a rule says."""

    OK = "ok"
    BAD = "bad"
    UNKNOWN = "unknown"


class Ruling(NamedTuple):
    """One rule, its answer, and what was seen."""

    rule: str
    answer: Answer
    evidence: str


def certify(
    tree: Tree | None, found: DiskMap, disk: Disk, data_luns: Collection[int] = ()
) -> list[Ruling]:
    """What certification would say.

    Args:
        tree: the guest; None where it cannot be looked into.
        found: the map of the OS disk.
        disk: the OS disk.
        data_luns: the LUNs of the data disks that come with it.
    """
    rulings = [
        Ruling("size", *_size(disk)),
        Ruling("first-sectors", *_first_sectors(found)),
        Ruling("luns", *_luns(data_luns)),
        Ruling("partition-table", *_label(found, disk)),
    ]
    of_the_guest: _Rules = {"swap": partial(_swap, found=found), **_OF_A_TREE}
    for rule, ask in of_the_guest.items():
        if tree is None:
            rulings.append(Ruling(rule, Answer.UNKNOWN, "the guest cannot be looked into"))
            continue
        try:
            rulings.append(Ruling(rule, *ask(tree)))
        except GuestError as error:
            rulings.append(Ruling(rule, Answer.UNKNOWN, error.message))
    return rulings


_Said = tuple[Answer, str]
_Rules = dict[str, Callable[[Tree], _Said]]


def _said(fine: object, evidence: str) -> _Said:
    return (Answer.OK if fine else Answer.BAD), evidence


# The disk


def _size(disk: Disk) -> _Said:
    whole = disk.size % _MIB == 0
    return _said(
        whole and disk.size >= _SMALLEST,
        f"{disk.size} bytes, {'whole' if whole else 'not whole'} MiB; at least 20 MiB are asked for",
    )


def _first_sectors(found: DiskMap) -> _Said:
    if found.table != "gpt":
        return Answer.OK, "no GPT"
    first = min((p.offset // _SECTOR for p in found.partitions), default=_FREE_SECTORS)
    return _said(first >= _FREE_SECTORS, f"the first partition begins at sector {first}")


def _luns(luns: Collection[int]) -> _Said:
    shown = ", ".join(map(str, sorted(luns))) or "no data disk"
    return _said(sorted(luns) == list(range(len(luns))), shown)


def _label(found: DiskMap, disk: Disk) -> _Said:
    """Whether the table, if there is one, is what the disk begins with."""
    signed = read(disk, 510, 2) == b"\x55\xaa" if disk.size >= _SECTOR else False
    if found.table is not None:
        return _said(signed, f"a {found.table} table with {len(found.partitions)} partitions")
    return Answer.BAD, "no partition table"


# The guest


def _swap(tree: Tree, found: DiskMap) -> _Said:
    partitions = [str(p.number) for p in found.partitions if p.filesystem is Filesystem.SWAP]
    seen = [f"partition {number}" for number in partitions]
    seen += [f"fstab: {entry.spec}" for entry in fstab(tree) if entry.type == "swap"]
    return _said(not seen, ", ".join(seen) or "none on the OS disk")


def _console(tree: Tree) -> _Said:
    said = list(_kernel_lines(tree))
    if not said:
        return Answer.UNKNOWN, "no kernel command line was found"
    without = [path for path, line in said if not re.search(r"\bconsole=ttyS0\b", line)]
    early = any(re.search(r"\bearlyprintk=ttyS0\b", line) for _, line in said)
    if without:
        return Answer.BAD, f"{without[0]}: no console=ttyS0"
    return Answer.OK, f"console=ttyS0 in {said[0][0]}" + ("" if early else "; no earlyprintk=ttyS0")


def _kernel_lines(tree: Tree) -> Iterator[tuple[str, str]]:
    """(path, arguments) of each kernel that the boot loader offers, rescue kernels left out."""
    for pattern in _COMMAND_LINES:
        for path in glob(tree, pattern):
            for line in lines(tree, path):
                match = _KERNEL_LINE.fullmatch(line)
                # Red Hat's options may stand in GRUB's environment.
                if match and "root=" in match[3] and "rescue" not in path:
                    yield path, match[3]
    for path in ("/boot/grub2/grubenv", "/boot/grub/grubenv"):
        for line in lines(tree, path):
            if line.startswith("kernelopts="):
                yield path, line.partition("=")[2]


def _alive(tree: Tree) -> _Said:
    base = configuration(tree)
    if base is None:
        return Answer.UNKNOWN, "no configuration of an SSH server"
    for setting in settings(tree):  # the first counts
        if setting.key == "clientaliveinterval" and setting.always:
            value = setting.words[0]
            seconds = int(value) if value.isdecimal() and len(value) < 10 else -1
            return _said(seconds in _ALIVE, f"{setting.path}: ClientAliveInterval {value[:20]}")
    return Answer.BAD, f"{base}: no ClientAliveInterval (30 to 235 seconds are asked for)"


def _histories(tree: Tree) -> _Said:
    long: list[str] = []
    for home in homes(tree):
        for path in glob(tree, join(home, ".*_history")):
            stat: Stat | None = tree.stat(path)
            if stat is not None and stat.size > _LONGEST_HISTORY:
                long.append(f"{path}: {stat.size} bytes")
    return _said(not long, ", ".join(long[:3]) or "none over 1 KiB")


def _credentials(tree: Tree) -> _Said:
    names = [
        row[0] for row in rows(tree, "/etc/shadow") if len(row) > 7 and row[1][:1] in ("", "$", "_")
    ]
    names += [row[0] for row in rows(tree, "/etc/passwd") if len(row) > 5 and row[1] in ("", "$")]
    return _said(
        not names, f"passwords of {', '.join(names[:5])}" if names else "no account has one"
    )


def _agent(tree: Tree) -> _Said:
    agents = (("waagent", has_waagent(tree)), ("cloud-init", has_cloud_init(tree)))
    there = [name for name, has in agents if has]
    return _said(there, ", ".join(there) or "neither the Azure Linux Agent nor cloud-init")


def _bits(tree: Tree) -> _Said:
    for path in ("/bin/sh", "/usr/bin/bash", "/bin/busybox", "/sbin/init", "/usr/bin/env"):
        head = tree.read(path, 5) or b""
        if head[:4] == b"\x7fELF":
            return _said(head[4] == 2, f"{path} is a program of {32 * head[4]} bits")
    return Answer.UNKNOWN, "no program was found"


def _root(tree: Tree) -> _Said:
    for entry in fstab(tree):
        if entry.point == "/":
            known = entry.type in ("ext4", "ext3", "xfs", "btrfs", "auto")
            stable = entry.spec.startswith(_STABLE)
            return _said(stable and known, f"fstab: {entry.spec} {entry.type}")
    return Answer.UNKNOWN, "fstab does not say what / is"


def _mounts(tree: Tree) -> _Said:
    unstable = [
        entry.spec
        for entry in fstab(tree)
        if re.match(r"/dev/(sd|vd|hd|xvd|nvme)", entry.spec)
        and entry.type not in _MEMORY_FILE_SYSTEMS
    ]
    return _said(not unstable, ", ".join(unstable) or "no device is named by its order")


def _drivers(tree: Tree) -> _Said:
    names = modules(tree)
    if names is None:
        return Answer.UNKNOWN, "no initramfs that can be looked into"
    missing = [name for name in _NEEDED_MODULES if name not in names]
    return _said(not missing, f"not there: {', '.join(missing)}" if missing else "hv_* are there")


_OF_A_TREE: _Rules = {
    "console": _console,
    "client-alive": _alive,
    "history": _histories,
    "credentials": _credentials,
    "agent": _agent,
    "64-bit": _bits,
    "root-by-uuid": _root,
    "mounts-by-uuid": _mounts,
    "hyper-v-drivers": _drivers,
}
