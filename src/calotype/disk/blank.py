"""Empty overlays, made without any tool: see :mod:`calotype.disk.overlay` for what they become."""

import os
import struct
from pathlib import Path

from calotype.disk.durable import fsync_directory
from calotype.errors import Conflict, InvalidInput

_CLUSTER_BITS = 17
_CLUSTER = 1 << _CLUSTER_BITS
_EXTENDED_L2 = 1 << 4
_REFCOUNT_ORDER = 4  # 16-bit reference counts
_L2_REACH = _CLUSTER // 16 * _CLUSTER  # bytes of disk that one L2 table maps: 1 GiB
_MAX_SIZE = 1 << 46  # 64 TiB


def create(path: Path, size: int) -> None:
    """Create an empty overlay (or an empty disk without base) of ``size`` bytes, and make it durable.

    It is what ``qemu-img create -f qcow2 -u -o extended_l2=on,cluster_size=128k`` makes, written
    directly: header, reference counts and an empty L1 table.

    Raises:
        InvalidInput: no such size. Conflict: the file exists.
    """
    if not 0 < size <= _MAX_SIZE or size % 512:
        raise InvalidInput(
            f"a disk cannot have {size} bytes", hint="up to 64 TiB, a multiple of 512 bytes"
        )
    l1_size = -(-size // _L2_REACH)
    l1_clusters = -(-l1_size * 8 // _CLUSTER)
    used = 3 + l1_clusters  # header, reference-count table, its one block, L1 table
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb",
        3,
        0,  # no backing name
        0,
        _CLUSTER_BITS,
        size,
        0,  # not encrypted
        l1_size,
        3 * _CLUSTER,
        _CLUSTER,
        1,
        0,  # no snapshots
        0,
        _EXTENDED_L2,
        0,
        0,
        _REFCOUNT_ORDER,
        112,
    )
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Conflict(f"{path} exists") from None
    try:
        os.pwrite(fd, header.ljust(120, b"\0"), 0)  # the rest: zlib, no header extension
        os.pwrite(fd, struct.pack(">Q", 2 * _CLUSTER), _CLUSTER)
        os.pwrite(fd, struct.pack(f">{used}H", *([1] * used)), 2 * _CLUSTER)
        os.ftruncate(fd, used * _CLUSTER)
        os.fsync(fd)
    finally:
        os.close(fd)
    fsync_directory(path.parent)
