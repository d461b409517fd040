"""A small used machine for tests: an OS disk to upload, a stopped VM of it, and what its disks hold."""

import hashlib
import random
import subprocess
from contextlib import closing
from pathlib import Path

from calotype.disk.base import Disk
from calotype.disk.overlay import OverlayDisk
from calotype.engine import machines
from calotype.engine.base import bases
from calotype.engine.context import Context
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.sources import Upload
from calotype.model import ManagedDisk, OsState, VirtualMachine

MIB = 1 << 20
MACHINE_ID = b"0123456789abcdef0123456789abcdef\n"
_WINDOW = 1 << 20
_TREE = {
    "etc/os-release": b'ID=debian\nPRETTY_NAME="Debian of a test"\n',
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
    "etc/shadow": b"root:*:1:0:99999:7:::\nalice:$6$CANARY:1:0:99999:7:::\n",
    "etc/group": b"root:x:0:\nalice:x:1000:\n",
    "etc/hostname": b"web\n",
    "etc/machine-id": MACHINE_ID,
    "etc/ssh/ssh_host_ed25519_key": b"CANARY-host-key\n",
    "home/alice/.ssh/authorized_keys": b"CANARY-alice\n",
    "var/log/auth.log": b"CANARY-log\n",
    "usr/sbin/sshd": b"\x7fELF",
}


def os_disk(path: Path, *, bulk: int = 300_000) -> Path:
    """Write the raw OS disk (a bare ext4 file system) of a used machine; ``bulk`` bytes of it are noise."""
    tree = path.with_suffix(".tree")
    for name, content in {**_TREE, "srv/data": random.Random(1).randbytes(bulk)}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", tree, path, "8M"], check=True, capture_output=True
    )
    return path


def used_vm(context: Context, disk: Path, name: str = "web") -> VirtualMachine:
    """A stopped VM of an image ``img``; its OS disk and its data disk (LUN 0) were written to."""
    request = ImageRequest(name="img", os_state=OsState.SPECIALIZED)
    import_image(context, request, Upload(location=str(disk)), {})
    vm = create_vm(
        context, VmRequest(name=name, image="img", start=False, new_data_disks={0: 4 * MIB})
    )
    write(context, vm.data_disks[0], MIB, 200_704, 7)
    edit(context, vm.os_disk, "write {file} /var/log/since", b"CANARY-since\n" * 900)
    return vm


def write(context: Context, disk: ManagedDisk, offset: int, length: int, pattern: int) -> None:
    """Write to a disk as its VM would."""
    if disk.index is not None:
        with context.operation() as operation:
            bases.ensure(context, disk.index, operation.directory)
    order = f"write -P {pattern} {offset} {length}"
    subprocess.run(
        ["qemu-io", "--image-opts", _options(context, disk), "-c", order, "-c", "flush"],
        check=True,
        capture_output=True,
    )


def edit(context: Context, disk: ManagedDisk, order: str, content: bytes = b"") -> None:
    """Change the ext4 file system on a disk by an order to debugfs."""
    raw = context.home.tmp / "edited.raw"
    file = context.home.tmp / "edited.file"
    options = _options(context, disk)
    argv = ["qemu-img", "convert", "-O", "raw", "--image-opts", options, str(raw)]
    subprocess.run(argv, check=True)
    before = raw.read_bytes()
    file.write_bytes(content)
    argv = ["debugfs", "-w", "-R", order.format(file=file), str(raw)]
    subprocess.run(argv, check=True, capture_output=True)
    after = raw.read_bytes()
    orders = []
    for at in range(0, len(after), 4096):
        if after[at : at + 4096] != before[at : at + 4096]:
            part = context.home.tmp / f"edited.{at}"
            part.write_bytes(after[at : at + 4096])
            orders += ["-c", f"write -s {part} {at} 4096"]
    subprocess.run(
        ["qemu-io", "--image-opts", options, *orders, "-c", "flush"],
        check=True,
        capture_output=True,
    )
    for path in context.home.tmp.glob("edited.*"):
        path.unlink()


def contents(context: Context, vm_name: str) -> dict[str, str]:
    """What the disks of a VM hold: disk id, name, LUN, size and caching to a digest of every byte."""
    return {
        f"{disk.id} {disk.name} {disk.lun} {disk.size} {disk.caching}": digest_of(context, disk)
        for disk in context.catalog.vm(vm_name).disks
    }


def digest_of(context: Context, disk: ManagedDisk) -> str:
    """The SHA-256 of all that a managed disk holds, base included."""
    base = context.repository.open(disk.index) if disk.index else None
    with closing(OverlayDisk(context.disk_path(disk.file), base)) as overlay:
        return digest(overlay)


def digest(disk: Disk) -> str:
    """The SHA-256 of all bytes of a disk."""
    found = hashlib.sha256()
    for at in range(0, disk.size, _WINDOW):
        buffer = memoryview(bytearray(min(_WINDOW, disk.size - at)))
        disk.read_into(at, buffer)
        found.update(buffer)
    return found.hexdigest()


def _options(context: Context, disk: ManagedDisk) -> str:
    options = f"driver=qcow2,file.filename={context.disk_path(disk.file)}"
    if disk.index is None:
        return options
    base = context.base_path(disk.index)
    return f"{options},backing.driver=raw,backing.file.filename={base}"


def attach_new(context: Context, vm_name: str, disk_name: str, lun: int) -> ManagedDisk:
    """A new managed disk, attached."""
    machines.create_disk(context, disk_name, 2 * MIB)
    return machines.attach(context, vm_name, disk_name, lun=lun)
