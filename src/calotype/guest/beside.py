"""Partitions beside the root's that are used without being named in its files."""

from calotype.disk.base import Disk, read
from calotype.guest.locate import DiskMap, Partition

#: Types of partitions that systemd mounts by itself.
_MOUNTED = {
    "933ac7e1-2eb4-4f13-b844-0e14e2aef915": "/home",
    "4d21b016-b534-45c2-a9fb-5c16e091fd2d": "/var",
    "7ec6f557-3bc5-4aca-b293-16ef5df639d1": "/var/tmp",
}
#: Names of file systems from which cloud-init (and what is like it) takes users, keys and names.
_SEEDS = {b"cidata", b"config-2", b"ignition", b"opennebula"}
#: (offset, length) of the names of FAT16, FAT32, ext4 and ISO 9660.
_LABELS = ((43, 11), (71, 11), (1024 + 120, 16), (32768 + 40, 32))


def mounted(found: DiskMap) -> list[str]:
    """Where systemd mounts partitions of this disk that nothing else names."""
    kinds = {p.kind for p in found.partitions if p.filesystem is not None}
    return [path for kind, path in _MOUNTED.items() if kind in kinds]


def seeds(disk: Disk, found: DiskMap) -> list[int]:
    """The numbers of partitions that every clone would take for its provisioning."""
    return [p.number for p in found.partitions if _is_seed(disk, p)]


def _is_seed(disk: Disk, partition: Partition) -> bool:
    for at, length in _LABELS:
        if at + length <= min(partition.size, disk.size - partition.offset):
            label = read(disk, partition.offset + at, length).rstrip(b" \0").lower()
            if label in _SEEDS:
                return True
    return False
