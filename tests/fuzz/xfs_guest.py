"""Real, fragmented XFS: ``python -m tests.fuzz.xfs_guest KERNEL_TREE BUSYBOX DIRECTORY``.

mkfs.xfs alone makes no file with more extents than its inode holds. This boots a kernel (the unpacked
package of a Debian cloud kernel, with a static busybox) that writes, deletes and preallocates files on images
of several kinds. Small ones go to the fuzzer's corpus; what the reader reads of large ones goes to
tests/unit/data, with the extents that xfs_db lists.
"""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.seeds import describe

from calotype.recipe.initrd import Cpio
from calotype.store.files import xfs

DATA = Path(__file__).parents[1] / "unit" / "data"
_V5 = ["-b", "size=1024"]
_NREXT64 = ["-b", "size=4096", "-i", "nrext64=1", "-m", "bigtime=1,reflink=1,rmapbt=1"]
_V4 = ["-m", "crc=0", "-b", "size=1024", "-i", "size=256"]
IMAGES = {"v5": _V5, "nrext64": _NREXT64, "v4": _V4}
SEEDS = {"small-v5": _V5, "small-nrext64": _NREXT64, "small-v4": _V4}
FILES, SEED_FILES = 300, 30  # in a directory; every third is deleted
_MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"]
_MODULES += ["virtio_blk", "crc32c-intel", "libcrc32c", "xfs"]
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs none /dev
for module in {modules}; do insmod /modules/$module.ko; done
for disk in {disks}; do
    case $disk in vd[abc]) files={files} pieces=1400;; *) files={seed_files} pieces=80;; esac
    mount -t xfs /dev/$disk /mnt || echo FAILED
    cd /mnt
    mkdir d
    for n in $(seq 1 $files); do echo $n > d/$n; done
    for n in $(seq 1 3 $files); do rm d/$n; done
    head -c 3000000 /dev/urandom > large
    fallocate -l 500000 preallocated
    for n in $(seq 1 $pieces); do
        dd if=large of=holes bs=1024 count=1 skip=$n seek=$((n * 128)) conv=notrunc 2> /dev/null
    done
    for n in $(seq 1 60); do
        dd if=large of=few bs=4096 count=1 skip=$n seek=$((n * 32)) conv=notrunc 2> /dev/null
    done
    for n in $(seq 1 40); do
        dd if=large of=x$((n % 2)) bs=65536 count=1 skip=$n seek=$n conv=notrunc,fsync 2> /dev/null
    done
    cd /
    umount /mnt
done
echo ALL DONE
poweroff -f
"""


def initrd(kernel: Path, busybox: Path, disks: list[str]) -> bytes:
    """A RAM disk whose init does the work on these disks."""
    archive = Cpio()
    archive.add("bin/busybox", busybox.read_bytes(), 0o755)
    for name in _MODULES:
        (module,) = kernel.rglob(f"{name}.ko")
        archive.add(f"modules/{name}.ko", module.read_bytes())
    for name in ("dev", "mnt"):
        archive.mkdir(name)
    init = _INIT.format(
        modules=" ".join(_MODULES), disks=" ".join(disks), files=FILES, seed_files=SEED_FILES
    )
    archive.add("init", init.encode(), 0o755)
    return archive.finish()


def main() -> None:
    """Make the images in the directory."""
    kernel, busybox, directory = map(Path, sys.argv[1:])
    command = ["qemu-system-x86_64", "-m", "512", "-nographic", "-no-reboot", "-cpu", "max"]
    images = IMAGES | SEEDS
    for name, options in images.items():
        path = directory / f"{name}.xfs"
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(320 << 20)
        subprocess.run(["mkfs.xfs", "-q", "-f", *options, path], check=True)
        command += ["-drive", f"file={path},format=raw,if=virtio,cache=unsafe"]
    disks = [f"vd{chr(ord('a') + number)}" for number in range(len(images))]
    ram = directory / "initrd"
    ram.write_bytes(initrd(kernel, busybox, disks))
    (image,) = (kernel / "boot").glob("vmlinuz-*")
    command += ["-kernel", str(image), "-initrd", str(ram), "-append", "console=ttyS0 quiet"]
    log = subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800).stdout
    if "ALL DONE" not in log or re.search("FAILED", log):
        sys.exit(log)
    DATA.mkdir(exist_ok=True)
    others = ["/large", "/preallocated", "/holes", "/few", "/x0", "/x1"]
    names = [f"/d/{n}" for n in range(1, FILES + 1) if n % 3 != 1] + others
    for name in IMAGES:
        path = directory / f"{name}.xfs"
        rows = json.dumps(sorted(xfs_extents(path, names))).encode()
        for kind, data in (("disk", describe(path, xfs.read_map)), ("extents.json", rows)):
            (DATA / f"xfs-{name}.{kind}.gz").write_bytes(gzip.compress(data, mtime=0))
    seeds = [describe(directory / f"{name}.xfs", xfs.read_map) for name in SEEDS]
    corpus.pack("xfs", [*(data for _name, data in corpus.inputs("xfs")), *seeds])


def xfs_extents(path: Path, names: list[str]) -> set[tuple[int, int, int]]:
    """(start, end, place in the file) in bytes of every written extent of some files, by xfs_db."""
    commands = ["-c", "sb 0", "-c", "p blocksize agblocks"]
    for name in names:
        commands += ["-c", f"path {name}", "-c", "bmap"]
    listed = subprocess.run(
        ["xfs_db", "-r", *commands, str(path)], check=True, capture_output=True, text=True
    ).stdout
    block, group = (
        int(value) for value in re.findall(r"^(?:blocksize|agblocks) = (\d+)", listed, re.MULTILINE)
    )
    row = r"data offset (\d+) startblock \d+ \((\d+)/(\d+)\) count (\d+) flag 0"
    found = set()
    for match in re.finditer(row, listed):
        logical, number, at, count = map(int, match.groups())
        start = number * group + at
        found.add((start * block, (start + count) * block, logical * block))
    return found


if __name__ == "__main__":
    main()
