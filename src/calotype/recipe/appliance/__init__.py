"""The appliance: a kernel and an initial RAM disk of Debian's packages that know every file system.

A machine of ours that starts in seconds, mounts what a stranger made, answers on one channel and is
thrown away. It is built like a recipe and kept in the same cache, by a digest of this directory.
"""

import fcntl
import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from calotype.disk.durable import fsync_directory
from calotype.errors import ToolFailed
from calotype.progress import SILENT, Progress
from calotype.recipe import apt, initrd
from calotype.recipe.tree import Tree
from calotype.run import Limits, run

_ROOM = Path(__file__).parent
_SUITE = "bookworm"
_KERNEL = "linux-image-cloud-amd64"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
#: What is needed before a disk can be seen, and what each file system needs, loaded when it is met.
_EARLY = ("virtio_pci", "virtio_blk", "virtio_console")
_ON_DEMAND = (
    "ext4",
    "xfs",
    "btrfs",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_utf8",
    "dm_mod",
    "loop",
)
_PACKAGES = (
    *("busybox-static", "dash", "libc6", "util-linux", "attr", "findutils"),
    *("e2fsprogs", "xfsprogs", "btrfs-progs", "dosfstools", "lvm2", "dmsetup"),
    *("libblkid1", "libuuid1", "liburcu8", "libinih1", "liblzo2-2", "zlib1g", "libzstd1"),
    *("libext2fs2", "libcom-err2", "libss2", "libattr1", "libudev1", "libselinux1", "libpcre2-8-0"),
    *("libdevmapper1.02.1", "libdevmapper-event1.02.1", "libedit2", "libsystemd0", "libaio1"),
    *("libtinfo6", "libbsd0", "libmd0", "libcap2", "libgcrypt20", "libgpg-error0", "liblzma5"),
    *("liblz4-1",),
)
#: Programs that do more than busybox's applets of the same names, or that it has not. The shell is not
#: busybox's, for that one takes its own applets whatever stands on the path.
_PROGRAMS = (
    *(
        "bin/busybox",
        "bin/dash",
        "bin/find",
        "bin/setfattr",
        "bin/getfattr",
        "bin/btrfs",
        "bin/xargs",
    ),
    *("sbin/blkid", "sbin/blkdiscard", "sbin/lvm", "sbin/dmsetup"),
    *("sbin/e2fsck", "sbin/dumpe2fs", "sbin/xfs_repair", "sbin/xfs_db", "sbin/fsck.fat"),
)


@dataclass(frozen=True, slots=True)
class Appliance:
    """A kernel and an initial RAM disk, both files that everybody can read; ``digest`` names them."""

    kernel: Path
    initrd: Path
    digest: str


def build_appliance(cache: Path, *, progress: Progress = SILENT) -> Appliance:
    """The appliance, built when the cache has none.

    Args:
        cache: the directory that recipes are kept in; made when it is missing.
        progress: told of the work.

    Raises:
        ToolMissing: a program is not installed; the hint names its package.
        ToolFailed: the mirror cannot be reached, or a tool failed.
    """
    digest = _digest()
    home = (cache / "recipes").absolute()
    built = Appliance(
        home / f"appliance-{digest}.vmlinuz", home / f"appliance-{digest}.initrd", digest
    )
    if built.initrd.exists() and built.kernel.exists():
        return built
    (home / "packages").mkdir(mode=0o755, parents=True, exist_ok=True)
    with (home / ".appliance.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (built.initrd.exists() and built.kernel.exists()):
            for old in home.glob("appliance-*"):
                old.unlink(missing_ok=True)
            for old in home.glob(".appliance.work-*"):
                shutil.rmtree(old, ignore_errors=True)
            with (
                progress.phase("building the appliance", None),
                tempfile.TemporaryDirectory(prefix=".appliance.work-", dir=home) as work,
            ):
                _build(built, home / "packages", Path(work))
    return built


def _build(built: Appliance, debs: Path, work: Path) -> None:
    archive = apt.Archive(work / "apt", _SUITE, debs, apt.fetch_options())
    archive.update()
    tree = Tree(work / "root")
    tree.root.mkdir()
    for name in ("bin", "sbin", "lib", "lib64"):
        tree.mkdir(f"usr/{name}")
        tree.symlink(f"usr/{name}", name)
    for deb in archive.download([*_PACKAGES, archive.real_kernel(_KERNEL)]):
        done = run(["dpkg-deb", "--fsys-tarfile", str(deb)], limits=Limits(wall=120))
        tree.unpack(io.BytesIO(done.stdout))
    (image,) = tree.root.glob("boot/vmlinuz-*")
    _publish(built.kernel, image.read_bytes(), work)
    _publish(built.initrd, _initrd(tree, image.name.removeprefix("vmlinuz-")), work)


def _initrd(tree: Tree, version: str) -> bytes:
    cpio = initrd.Cpio()
    for directory in ("dev", "proc", "sys", "run", "tmp", "guest", "usr/sbin", "usr/lib64", "etc"):
        cpio.mkdir(directory)
    for name in ("bin", "sbin", "lib", "lib64"):
        cpio.symlink(name, f"usr/{name}")
    busybox = tree.path("usr/bin/busybox")
    applets = run([str(busybox), "--list-full"], limits=Limits(wall=10)).stdout.decode().split()
    names = {f"{'s' * ('sbin/' in applet)}bin/{Path(applet).name}" for applet in applets}
    for name in sorted(names - {*_PROGRAMS, "bin/sh"}):
        cpio.symlink(f"usr/{name}", "/usr/bin/busybox")
    cpio.symlink("usr/bin/sh", "dash")
    for name in _PROGRAMS:
        cpio.add(f"usr/{name}", _content(tree, f"usr/{name}"), 0o755)
    for path in sorted(tree.root.glob(f"{_LIBRARIES}/*.so*")):
        name = path.relative_to(tree.root).as_posix()
        cpio.add(name, _content(tree, name), 0o755)
    cpio.add("usr/lib64/ld-linux-x86-64.so.2", _content(tree, "lib64/ld-linux-x86-64.so.2"), 0o755)
    for name, data in _modules(tree, version):
        cpio.add(name, data)
    for source in sorted((_ROOM / "files").rglob("*")):
        if source.is_file():
            name = source.relative_to(_ROOM / "files").as_posix()
            data = source.read_bytes()
            cpio.add(name, data, 0o755 if data.startswith(b"#!") else 0o644)
    return cpio.finish()


def _modules(tree: Tree, version: str) -> Iterator[tuple[str, bytes]]:
    """Modules, unpacked, and for each wanted one the list of those to load before it."""
    source = tree.root / "usr/lib/modules" / version
    run(["depmod", "-b", str(tree.root), version], limits=Limits(wall=120))
    deps = initrd.dependencies((source / "modules.dep").read_text())
    builtin = (source / "modules.builtin").read_text()
    seen = set()
    for name in (*_EARLY, *_ON_DEMAND):
        paths = initrd.closure([name], deps, builtin)
        listed = "".join(f"{initrd.module_name(path)}.ko\n" for path in paths)
        yield f"usr/lib/modules/{name}.list", listed.encode()
        for path in paths:
            if path not in seen:
                seen.add(path)
                data = initrd.module_bytes(source / path)
                yield f"usr/lib/modules/{initrd.module_name(path)}.ko", data
    yield "usr/lib/modules/early", "".join(f"{name}\n" for name in _EARLY).encode()


def _content(tree: Tree, name: str) -> bytes:
    """A file's content; links are followed inside the tree."""
    path = tree.path(name)
    for _ in range(8):
        if not path.is_symlink():
            return path.read_bytes()
        target = os.readlink(path)
        at = target if target.startswith("/") else f"{path.parent.relative_to(tree.root)}/{target}"
        path = tree.path(at)
    raise ToolFailed(f"{name} of Debian's packages leads nowhere")


def _publish(path: Path, data: bytes, work: Path) -> None:
    temporary = work / path.name
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    temporary.replace(path)
    fsync_directory(path.parent)


def _digest() -> str:
    """Of this directory's files (hex): what changes here is built anew."""
    state = hashlib.blake2b(digest_size=8)
    for path in sorted(p for p in _ROOM.rglob("*") if p.is_file() and p.suffix != ".pyc"):
        data = path.read_bytes()
        state.update(f"{path.relative_to(_ROOM)}\0{len(data)}\0".encode())
        state.update(data)
    return state.hexdigest()
