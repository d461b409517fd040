"""Erasing what file systems have forgotten but not overwritten, in an appliance.

Free space is found by the file system's own driver (FITRIM) and reaches the disk as zeros: the file
system is mounted through a loop device, which makes of each discard a write of zeros. A discard itself is
only a hint, and QEMU rounds it to the clusters of an overlay; zeros go down to the last block. Logs and
journals are emptied, free inodes of ext4 and swap space too, and each file system must be clean then.
"""

import re
from collections.abc import Iterable, Iterator
from functools import partial

from calotype.errors import GuestError
from calotype.guest.ext4 import Ext4
from calotype.guest.mounts import ALONE, Device, ask, attach
from calotype.guest.remote import Shell, complaint, quoted
from calotype.guest.wipe import forgotten

_EXT = ("ext2", "ext3", "ext4")
_PAGE = 4096  # a swap space's first page says what it is
_LONG = 1800.0  # seconds for a check of one file system
_E2FSCK_FIXED = 3  # bits of its status that tell of success

#: For each type: what brings the file system in order first, and what shows that it is clean.
_BEFORE = {"xfs": "xfs_repair -L %s", **dict.fromkeys(_EXT, "e2fsck -f -p -D %s")}
_CHECK = {
    "xfs": "xfs_repair -n %s",
    "btrfs": "btrfs check --readonly %s",
    "vfat": "fsck.fat -n %s",
    **dict.fromkeys(_EXT, "e2fsck -f -n %s"),
}


def scrub(shell: Shell, devices: Iterable[Device]) -> tuple[int, str]:
    """Erase what was deleted from all file systems of a disk; none of them is mounted.

    Args:
        shell: the appliance's; its disk can be written to.
        devices: what :func:`~calotype.guest.mounts.devices` found.

    Returns:
        The bytes of free space that are zero now, and a line that says what was checked.

    Raises:
        GuestError: a file system is damaged, or is not clean afterwards.
    """
    wiped, states = 0, []
    load_loop(shell)
    for device in devices:
        if device.type == "swap":
            _blank(shell, device)
        elif device.type == "LVM2_member":
            _free_extents(shell, device)
        elif device.type in _CHECK:
            wiped += _scrub(shell, device)
            states.append(f"{device.path.removeprefix('/dev/')} ({device.type}) is clean")
    ask(shell, b"sync")
    return wiped, "; ".join(states)


def load_loop(shell: Shell) -> None:
    """Have loop devices."""
    ask(shell, b"load loop")


def check(shell: Shell, device: Device) -> None:
    """Check a file system that is not mounted, without changing it.

    Raises:
        GuestError: it is not clean.
    """
    if command := _CHECK.get(device.type):
        done = shell.run((command % device.path).encode(), timeout=_LONG)
        if done.status != 0:
            raise GuestError(
                f"the {device.type} file system is not clean: {_last(done.stdout, done)}"
            )


def snapshots(shell: Shell, device: Device) -> list[str]:
    """The paths of the snapshots in a btrfs that is not mounted: they keep what is removed elsewhere."""
    attach(shell, device, ALONE, ["ro", "subvolid=5"])
    listing = ask(shell, b"btrfs subvolume list -s %s; umount %s" % ((ALONE.encode(),) * 2))
    lines = listing.decode("utf-8", "replace").splitlines()
    return [line.partition(" path ")[2] for line in lines if " path " in line]


def _scrub(shell: Shell, device: Device) -> int:
    path = device.path.encode()
    if before := _BEFORE.get(device.type):
        done = shell.run(before.encode() % path, timeout=_LONG)
        fixed = _E2FSCK_FIXED if device.type in _EXT else 0
        if done.status & ~fixed:
            raise GuestError(
                f"the guest's {device.type} file system is damaged: {_last(done.stdout, done)}",
                hint="repair it in the VM, then capture again",
            )
    loop = (
        ask(shell, b"l=$(losetup -f) && losetup $l %s && echo $l" % quoted(path)).decode().strip()
    )
    options = ["rw", "nodev"] + (["subvolid=5"] if device.type == "btrfs" else [])
    attach(shell, Device(loop, device.type, {}), ALONE, options)
    trim = b"sync -f %s && fstrim -v %s && umount %s && losetup -d %s && sync"
    place = ALONE.encode()
    said = ask(shell, trim % (place, place, place, loop.encode()), timeout=_LONG)
    if device.type in _EXT:
        _clear_inodes(shell, device)
    check(shell, device)
    number = re.search(rb": (\d+) bytes", said)
    return int(number[1]) if number else 0


def _clear_inodes(shell: Shell, device: Device) -> None:
    """Zero the free inodes and the journal of an ext4."""
    size = int(ask(shell, b"blockdev --getsize64 " + device.path.encode()))
    fs = Ext4(partial(_read, shell, device.path.encode()), size)
    listing = ask(shell, b"dumpe2fs " + device.path.encode())
    _zero(shell, device, forgotten(fs, listing, blocks=False))


def _zero(shell: Shell, device: Device, runs: Iterable[tuple[int, int]]) -> None:
    script = b"""set -e
while read -r offset length whole; do
	if [ $whole = 1 ]; then
		blkdiscard -z -f -o $offset -l $length %s
	else
		dd if=/dev/zero of=%s bs=128 seek=$((offset / 128)) count=$((length / 128)) conv=notrunc 2> /dev/null
	fi
done
sync
""" % ((device.path.encode(),) * 2)
    lines = (b"%d %d %d\n" % part for run in runs for part in _parts(*run))
    done = shell.run(script, b"".join(lines), timeout=_LONG)
    if done.status != 0:
        raise GuestError(f"what was deleted could not be erased: {complaint(done)}")


def _parts(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """A run as parts of whole blocks (1) and what stands before and after them (0)."""
    first, last = -(-offset // _PAGE) * _PAGE, (offset + length) // _PAGE * _PAGE
    if first >= last:
        yield offset, length, 0
        return
    if offset < first:
        yield offset, first - offset, 0
    yield first, last - first, 1
    if last < offset + length:
        yield last, offset + length - last, 0


def _read(shell: Shell, path: bytes, offset: int, length: int) -> bytes:
    first = offset // _PAGE
    count = -(-(offset + length) // _PAGE) - first
    data = ask(shell, b"dd if=%s bs=%d skip=%d count=%d" % (path, _PAGE, first, count))
    start = offset - first * _PAGE
    return data[start : start + length].ljust(length, b"\0")


def _blank(shell: Shell, device: Device) -> None:
    size = int(ask(shell, b"blockdev --getsize64 " + device.path.encode()))
    if size > _PAGE:
        _zero(shell, device, [(_PAGE, (size - _PAGE) // _PAGE * _PAGE)])


def _free_extents(shell: Shell, device: Device) -> None:
    """Zero what no logical volume uses."""
    fields = "pv_name,pe_start,vg_extent_size,pvseg_start,pvseg_size,segtype"
    listing = ask(
        shell,
        b"lvm pvs --segments --noheadings --units b --nosuffix --separator '|' -o %s %s"
        % (fields.encode(), device.path.encode()),
    )
    runs = []
    for line in listing.decode("utf-8", "replace").splitlines():
        words = line.strip().split("|")
        if len(words) == 6 and words[5] == "free" and all(w.isdigit() for w in words[1:5]):
            begin, extent, start, count = map(int, words[1:5])
            runs.append((begin + start * extent, count * extent))
    _zero(shell, device, runs)


def _last(output: bytes, done: object) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()[-3:]
    status = getattr(done, "status", 1)
    return " / ".join(lines) or f"status {status}"
