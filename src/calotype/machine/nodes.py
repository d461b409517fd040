"""QEMU's block nodes and devices of a disk: all explicit, so that QEMU probes and follows nothing.

A disk with id D has the nodes ``d-H`` (its format), ``d-H-f`` (its file) and, over a base, ``d-H-b``
and ``d-H-bf``, or ``d-H-n`` while an NBD server serves the base; H is a digest of D, for node names
have at most 31 characters.
"""

import hashlib
import os
from typing import Any

from calotype.machine.layout import Layout
from calotype.machine.spec import DiskSpec, LazyBase
from calotype.model import Caching

Node = dict[str, Any]

#: The controllers: the guest sees a data disk of LUN n as n on the second, as on Azure.
OS_BUS, DATA_BUS = "scsi0", "scsi1"

#: Seconds that QEMU waits for the server of a lazy base: at its start, and when the server has ended.
_OPEN, _RECONNECT = 30, 300


def node(disk_id: str) -> str:
    """The name of the disk's format node, and of its device."""
    return f"d-{hashlib.sha256(disk_id.encode()).hexdigest()[:16]}"


def links(disk: DiskSpec) -> tuple[str, str]:
    """The file names of the links of a disk and its base, in ``disks`` and ``base``."""
    base = "nbd" if isinstance(disk.base, LazyBase) else "raw"
    return f"{disk.id}.{disk.fmt}", f"{disk.id}.{base}"


def blockdevs(disk: DiskSpec, layout: Layout) -> list[Node]:
    """The nodes of a disk; each refers only to those before it."""
    name = node(disk.id)
    own, _ = links(disk)
    cache = _cache(disk, layout)
    file = {
        "node-name": f"{name}-f",
        "driver": "file",
        "filename": f"/disks/{own}",
        "discard": "unmap",
        "cache": cache,
    }
    return [*bases(disk), file, top(disk, layout)]


def top(disk: DiskSpec, layout: Layout) -> Node:
    """The format node of a disk, over its file and the last of its :func:`bases`."""
    name = node(disk.id)
    result: Node = {
        "node-name": name,
        "driver": disk.fmt,
        "file": f"{name}-f",
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "cache": _cache(disk, layout),
    }
    if disk.fmt == "qcow2":
        beneath = bases(disk)
        result["backing"] = beneath[-1]["node-name"] if beneath else None
    return result


def bases(disk: DiskSpec) -> list[Node]:
    """The nodes of a disk's base."""
    name = node(disk.id)
    _, base = links(disk)
    if disk.base is None:
        return []
    if isinstance(disk.base, LazyBase):
        return [
            {
                "node-name": f"{name}-n",
                "driver": "nbd",
                "server": {"type": "unix", "path": f"/base/{base}"},
                "export": disk.base.export,
                "read-only": True,
                "open-timeout": _OPEN,
                "reconnect-delay": _RECONNECT,
            }
        ]
    return [
        {
            "node-name": f"{name}-bf",
            "driver": "file",
            "filename": f"/base/{base}",
            "read-only": True,
        },
        {"node-name": f"{name}-b", "driver": "raw", "file": f"{name}-bf", "read-only": True},
    ]


def _cache(disk: DiskSpec, layout: Layout) -> Node:
    own, _ = links(disk)
    return {"direct": disk.caching is Caching.NONE and _direct_io(layout.disks / own)}


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
    if isinstance(disk.base, LazyBase):
        # While its base cannot be read a guest waits, for ever if need be, and sees no error.
        result |= {"rerror": "stop", "werror": "stop"}
    return result


def names(disk_id: str) -> list[str]:
    """The nodes that a disk may have, in the order in which they can be removed."""
    name = node(disk_id)
    return [name, f"{name}-f", f"{name}-b", f"{name}-bf", f"{name}-n"]


def _direct_io(path: os.PathLike[str]) -> bool:
    """Whether the file system can read past the page cache."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True
