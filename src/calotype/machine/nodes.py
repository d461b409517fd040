"""QEMU's block nodes and devices of a disk: all explicit, so that QEMU probes and follows nothing.

A disk with id D has the nodes ``d-H`` (its format), ``d-H-f`` (its file) and, over a base, ``d-H-b``
and ``d-H-bf``; H is a digest of D, for node names have at most 31 characters.
"""

import hashlib
import os
from typing import Any

from calotype.machine.layout import Layout
from calotype.machine.spec import DiskSpec
from calotype.model import Caching

Node = dict[str, Any]

#: The controllers: the guest sees a data disk of LUN n as n on the second, as on Azure.
OS_BUS, DATA_BUS = "scsi0", "scsi1"


def node(disk_id: str) -> str:
    """The name of the disk's format node, and of its device."""
    return f"d-{hashlib.sha256(disk_id.encode()).hexdigest()[:16]}"


def links(disk: DiskSpec) -> tuple[str, str]:
    """The file names of the links of a disk and its base, in ``disks`` and ``base``."""
    return f"{disk.id}.{disk.fmt}", f"{disk.id}.raw"


def blockdevs(disk: DiskSpec, layout: Layout) -> list[Node]:
    """The nodes of a disk; each refers only to those before it."""
    name = node(disk.id)
    own, base = links(disk)
    cache = {"direct": disk.caching is Caching.NONE and _direct_io(layout.disks / own)}
    nodes: list[Node] = []
    top: Node = {
        "node-name": name,
        "driver": disk.fmt,
        "file": f"{name}-f",
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "cache": cache,
    }
    if disk.fmt == "qcow2":
        top["backing"] = f"{name}-b" if disk.base is not None else None
    if disk.base is not None:
        nodes += [
            {
                "node-name": f"{name}-bf",
                "driver": "file",
                "filename": f"/base/{base}",
                "read-only": True,
            },
            {
                "node-name": f"{name}-b",
                "driver": "raw",
                "file": f"{name}-bf",
                "read-only": True,
            },
        ]
    file = {
        "node-name": f"{name}-f",
        "driver": "file",
        "filename": f"/disks/{own}",
        "discard": "unmap",
        "cache": cache,
    }
    return [*nodes, file, top]


def device(disk: DiskSpec) -> Node:
    """The SCSI disk that the guest sees."""
    name = node(disk.id)
    result: Node = {
        "driver": "scsi-hd",
        "id": name,
        "drive": name,
        "bus": f"{OS_BUS if disk.lun is None else DATA_BUS}.0",
        "channel": 0,
        "scsi-id": 0,
        "lun": disk.lun or 0,
        "serial": disk.id,
        "device_id": disk.id,
        # With "off" every write that the guest has been told of is on the host's disk.
        "write-cache": "off" if disk.caching is Caching.READ_ONLY else "on",
    }
    if disk.lun is None:
        result["bootindex"] = 0
    return result


def names(disk_id: str) -> list[str]:
    """The nodes that a disk may have, in the order in which they can be removed."""
    name = node(disk_id)
    return [name, f"{name}-f", f"{name}-b", f"{name}-bf"]


def _direct_io(path: os.PathLike[str]) -> bool:
    """Whether the file system can read past the page cache."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True
