"""The appliance on real file systems: what it shows, changes and erases, with nothing mounted on the host."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.disks import write_raw

from calotype import run
from calotype.config import Home
from calotype.disk.base import Disk, read
from calotype.disk.layout import MappedDisk
from calotype.disk.raw import parse
from calotype.disk.view import RawSource, WritableView, writable
from calotype.disk.window import Window
from calotype.engine.context import Context
from calotype.engine.generalize.appliance import (
    appliance_guest,
    appliance_tree,
    generalize_in_appliance,
    on_view,
)
from calotype.errors import GuestError, TimedOut
from calotype.guest.guest import text, walk
from calotype.guest.mounts import MountedGuest
from calotype.machine import QemuDriver
from calotype.machine.appliance import ApplianceMachine

pytestmark = pytest.mark.vm

MIB = 1 << 20
CANARY = b"canary-%s-7f3a9c51d2e84b60"
LABEL = "system_u:object_r:shadow_t:s0"


def canary(name: str) -> bytes:
    return CANARY % name.encode()


#: What a used Debian looks like, as far as it matters here.
FILES = {
    "etc/os-release": b'ID=debian\nNAME="Debian"\nVERSION_ID="12"\n',
    "etc/passwd": b"root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
    "etc/group": b"root:x:0:\nalice:x:1000:\n",
    "etc/shadow": b"root:*:19000:::::::\nalice:$6$" + canary("hash") + b":19000:0:99999:7:::\n",
    "etc/hostname": b"acme-web01\n",
    "etc/hosts": b"127.0.0.1 localhost\n127.0.1.1 acme-web01\n",
    "etc/machine-id": b"0123456789abcdef0123456789abcdef\n",
    "etc/ssh/ssh_host_ed25519_key": b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + canary("hostkey"),
    "home/alice/.bash_history": b"login " + canary("history") + b"\n",
    "home/alice/report.txt": canary("home") * 3000,
    "var/log/syslog": (b"line " + canary("log") + b"\n") * 2000,
    "usr/bin/true": b"#!/bin/sh\n",
    "opt/kept": b"kept" * 100_000,
}
REMOVED = ("hash", "hostkey", "history", "home", "log", "deleted")


def make_tree(root: Path, fstab: str) -> Path:
    for name, content in (FILES | {"etc/fstab": fstab.encode()}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name in ("root", "tmp", "proc", "sys", "dev", "run", "boot/efi", "var/lib"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc/shadow").chmod(0o640)
    (root / "usr/bin/true").chmod(0o755)
    (root / "bin").symlink_to("usr/bin")
    run.run(["chown", "-R", "1000:1000", str(root / "home/alice")])
    return root


def ext4(tree: Path, path: Path, size: int) -> Path:
    run.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(path), f"{size}M"])
    return path


def xfs(tree: Path, path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size * MIB)
    proto = path.with_suffix(".proto")
    proto.write_text(f"/none\n0 0\nd--755 0 0\n{_proto(tree)}$\n")
    run.run(["mkfs.xfs", "-q", "-p", str(proto), str(path)])
    return path


def _proto(directory: Path) -> str:
    lines = []
    for entry in sorted(directory.iterdir()):
        found = entry.lstat()
        who = f"{found.st_mode & 0o777:03o} {found.st_uid} {found.st_gid}"
        if entry.is_symlink():
            lines.append(f"{entry.name} l--777 0 0 {os.readlink(entry)}\n")
        elif entry.is_dir():
            lines.append(f"{entry.name} d--{who}\n{_proto(entry)}$\n")
        else:
            lines.append(f"{entry.name} ---{who} {entry}\n")
    return "".join(lines)


def btrfs(tree: Path, path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size * MIB)
    run.run(["mkfs.btrfs", "-q", "--rootdir", str(tree), str(path)])
    return path


def swap(path: Path, size: int) -> Path:
    path.write_bytes(b"")
    os.truncate(path, size * MIB)
    run.run(["mkswap", "-q", str(path)])
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(canary("swapped"))
    return path


def assemble(path: Path, parts: list[tuple[Path, str]]) -> Path:
    """A disk of these file systems, one partition each (GPT)."""
    sizes = [-(-part.stat().st_size // MIB) for part, _ in parts]
    path.touch()
    os.truncate(path, (sum(sizes) + 2) * MIB)
    arguments, at = [], 1
    for number, (size, (_, kind)) in enumerate(zip(sizes, parts, strict=True), 1):
        arguments += [f"--new={number}:{at}M:+{size}M", f"--typecode={number}:{kind}"]
        at += size
    run.run(["sgdisk", *arguments, str(path)])
    at = 1
    for size, (part, _) in zip(sizes, parts, strict=True):
        copy = ["dd", f"if={part}", f"of={path}", "bs=1M", f"seek={at}", "conv=notrunc,sparse"]
        run.run(copy)
        part.unlink()
        at += size
    return path


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    home = Home(tmp_path_factory.mktemp("home"))
    context = Context(home=home, driver=QemuDriver(home.cache))
    with contextlib.closing(context):
        yield context


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Disk]:
    window = Window.open(path)
    with contextlib.closing(MappedDisk(parse(window), window)) as disk:
        yield disk


def used(context: Context, path: Path, script: bytes) -> None:
    """Use the guest for a while: run a script with its root at /guest, on the disk itself."""
    scratch = path.parent
    with (
        writable(RawSource(path), path.with_suffix(".used"), scratch) as view,
        appliance_guest(context, view) as mounted,
    ):
        done = mounted.guest._shell.run(b"set -e\n" + script)
        assert done.status == 0, done
    bake(path, view)


def bake(path: Path, view: WritableView) -> None:
    """Write what a view changed into the disk itself."""
    with contextlib.closing(view.disk()) as disk, path.open("r+b") as file:
        for extent in view.changed():
            file.seek(extent.offset)
            file.write(read(disk, extent.offset, extent.length))
    view.overlay_path.unlink()


USE = b"""cd /guest
for i in 1 2 3 4 5 6 7 8; do
	yes '%s' | head -c 5000 > var/deleted-$i; sync; done
setfattr -n security.selinux -v %s etc/shadow
setfattr -n security.selinux -v %s etc/passwd
sync; rm var/deleted-*; sync
""" % (canary("deleted"), LABEL.encode(), LABEL.encode())


def count(path: Path, name: str) -> int:
    done = subprocess.run(
        ["grep", "-aobF", canary(name).decode(), str(path)], capture_output=True, check=False
    )
    return len(done.stdout.splitlines())


def generalized(
    context: Context, path: Path, check: Callable[[MountedGuest], None], *more: str
) -> dict[str, int]:
    """Generalize a copy in an appliance, look at the result, and count what is left on its raw disk."""
    for name in (*REMOVED, *more):
        assert count(path, name) > 0, f"{name} is not on the disk: the test would prove nothing"
    with writable(RawSource(path), path.with_suffix(".qcow2"), path.parent) as view:
        report = generalize_in_appliance(context, view)
    assert report.filesystem.endswith("is clean")
    assert not any(step.left for step in report.steps)
    raw = path.with_suffix(".out")
    with contextlib.closing(view.disk()) as disk:
        write_raw(disk, raw)
        with appliance_tree(context, disk) as mounted:
            check(mounted)
            guest = mounted.guest
            assert guest.read("/etc/machine-id") == b""
            assert "alice" not in text(guest, "/etc/passwd") + text(guest, "/etc/shadow")
            assert set(guest.list("/home")) <= {"lost+found"}
            assert guest.read("/opt/kept") == FILES["opt/kept"]
            shadow = guest.stat("/etc/shadow")
            assert shadow is not None
            assert shadow.mode & 0o777 == 0o640
    left = {name: count(raw, name) for name in (*REMOVED, *more)}
    raw.unlink()
    return left


def label_of(mounted: MountedGuest, path: str) -> str:
    script = f"getfattr -h --only-values -n security.selinux /guest{path}"
    return mounted.guest._shell.run(script.encode()).stdout.decode().rstrip("\0")


def test_xfs(context: Context, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", "LABEL=x / xfs defaults 0 0\n")
    path = assemble(tmp_path / "disk.raw", [(xfs(tree, tmp_path / "xfs", 320), "8300")])
    used(context, path, USE)

    def check(mounted: MountedGuest) -> None:
        assert [(m.path, m.device.type) for m in mounted.mounts] == [("/", "xfs")]
        assert label_of(mounted, "/etc/shadow") == LABEL
        assert label_of(mounted, "/etc/passwd") == LABEL

    assert generalized(context, path, check) == dict.fromkeys(REMOVED, 0)


def test_the_commands_on_xfs(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def] # the fixture is untyped
    """Upload looks by the appliance, refuses what is wrong, and a generalized copy is proved by it."""
    tree = make_tree(tmp_path / "tree", "LABEL=x / xfs defaults 0 0\n")
    disk = assemble(tmp_path / "disk.raw", [(xfs(tree, tmp_path / "root", 320), "8300")])
    refused = cli.run(
        "image", "create", "x", "--source", disk, "--os-state", "Generalized", status=2
    )
    assert b"users: " in refused.stderr
    image = cli("image", "create", "x", "--source", disk)
    assert image["osState"] == "Specialized"
    made = cli("generalize", "x", "--image", "y")
    assert (made["osState"], made["verdict"]) == ("Generalized", "Generalized")
    verified = cli("image", "verify", "y")
    assert verified["proof"]["verdict"] == "Generalized"
    assert not verified["contradiction"]


def test_btrfs_with_subvolumes(context: Context, tmp_path: Path) -> None:
    fstab = "LABEL=pool / btrfs rw,subvol=@ 0 0\nLABEL=pool /home btrfs subvol=/@home,noatime 0 0\n"
    tree = make_tree(tmp_path / "tree", fstab)
    file = btrfs(tree, tmp_path / "btrfs", 320)
    run.run(["btrfs", "filesystem", "label", str(file), "pool"])
    path = assemble(tmp_path / "disk.raw", [(file, "8300")])
    layout = b"""cd /guest
btrfs subvolume create @ && btrfs subvolume create @home
cp -a home/alice @home/ && rm -rf home/alice
cp -a etc home usr var root tmp opt boot proc sys dev run bin @/
rm -rf etc usr var root tmp opt boot proc sys dev run bin home; sync
"""
    used(context, path, layout)
    used(context, path, USE)

    def check(mounted: MountedGuest) -> None:
        found = {m.path: m.options for m in mounted.mounts}
        assert found == {"/": "subvol=@", "/home": "subvol=/@home"}
        assert label_of(mounted, "/etc/shadow") == LABEL

    assert generalized(context, path, check) == dict.fromkeys(REMOVED, 0)
    used(context, path, b"cd /guest; btrfs subvolume snapshot . kept")
    with (
        writable(RawSource(path), tmp_path / "snapshot.qcow2", tmp_path) as view,
        pytest.raises(GuestError, match=r"snapshots keep .*@/kept"),
    ):
        generalize_in_appliance(context, view)


def test_lvm(context: Context, tmp_path: Path) -> None:
    fstab = "/dev/my-group/root / ext4 defaults 0 0\n/dev/mapper/my--group-swap none swap sw 0 0\n"
    tree = make_tree(tmp_path / "tree", fstab)
    group = tmp_path / "group"
    group.touch()
    os.truncate(group, 160 * MIB)
    path = assemble(
        tmp_path / "disk.raw", [(group, "8e00"), (ext4(tree, tmp_path / "root", 64), "8300")]
    )
    # The temporary partition becomes the logical volume; a removed volume leaves its content behind.
    script = b"""load dm_mod; set -e
lvm pvcreate -q /dev/vda1; lvm vgcreate -q my-group /dev/vda1
lvm lvcreate -q -an -Zn -Wn -L 64M -n root my-group
lvm lvcreate -q -an -Zn -Wn -L 16M -n swap my-group
lvm lvcreate -q -an -Zn -Wn -L 16M -n gone my-group
lvm vgchange -ay --sysinit; lvm vgmknodes
dd if=/dev/vda2 of=/dev/mapper/my--group-root bs=1M; blkdiscard -z /dev/vda2
mkswap /dev/mapper/my--group-swap
for lv in gone swap; do
	yes '%s' | head -c 4000000 | dd of=/dev/mapper/my--group-$lv bs=4096 seek=16 conv=notrunc
done
sync; lvm vgchange -an; lvm lvremove -q -y my-group/gone; sync
""" % canary("swapped")
    with (
        writable(RawSource(path), tmp_path / "made", tmp_path) as view,
        on_view(context, view) as shell,
    ):
        done = shell.run(script)
        assert done.status == 0, done
    bake(path, view)
    used(context, path, USE)
    assert count(path, "swapped") > 10

    def check(mounted: MountedGuest) -> None:
        assert [(m.path, m.device.path) for m in mounted.mounts] == [
            ("/", "/dev/mapper/my--group-root")
        ]
        assert label_of(mounted, "/etc/shadow") == LABEL

    assert generalized(context, path, check, "swapped") == dict.fromkeys((*REMOVED, "swapped"), 0)


def test_several_partitions(context: Context, tmp_path: Path) -> None:
    fstab = (
        "PARTLABEL=system / ext4 rw 0 1\nLABEL=people /home ext4 rw 0 2\n/dev/sda3 /var ext4 rw 0 2\n"
        "UUID=ABCD-0123 /boot/efi vfat umask=0077 0 1\nLABEL=elsewhere /srv ext4 nofail 0 2\n"
    )
    tree = make_tree(tmp_path / "tree", fstab)
    for name in ("home", "var"):
        shutil.move(tree / name, tmp_path / name)
        (tree / name).mkdir()
    people = ext4(tmp_path / "home", tmp_path / "people.img", 32)
    run.run(["tune2fs", "-L", "people", str(people)])
    esp = tmp_path / "esp.img"
    run.run(["mkfs.fat", "-C", "-i", "ABCD0123", str(esp), "4096"])
    parts = [(ext4(tree, tmp_path / "root.img", 48), "8300"), (people, "8300")]
    parts += [(ext4(tmp_path / "var", tmp_path / "var.img", 32), "8300"), (esp, "ef00")]
    parts += [(swap(tmp_path / "swap.img", 8), "8200")]
    path = assemble(tmp_path / "disk.raw", parts)
    run.run(["sgdisk", "--change-name=1:system", str(path)])
    used(context, path, USE)

    def check(mounted: MountedGuest) -> None:
        types = {m.path: m.device.type for m in mounted.mounts}
        assert types == {"/": "ext4", "/boot/efi": "vfat", "/home": "ext4", "/var": "ext4"}
        assert mounted.absent == ("LABEL=elsewhere on /srv",)

    assert generalized(context, path, check, "swapped") == dict.fromkeys((*REMOVED, "swapped"), 0)


def test_what_hangs_is_ended_and_nothing_stays(context: Context, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", "LABEL=x / ext4 defaults 0 0\n")
    path = assemble(tmp_path / "disk.raw", [(ext4(tree, tmp_path / "ext4", 48), "8300")])
    before = path.read_bytes()
    with opened(path) as disk, appliance_tree(context, disk) as mounted:
        guest = mounted.guest
        assert next(walk(guest, "/home"))[0] == "/home/alice"
        assert guest.execute(["no-such-program"]) is False
        with pytest.raises(GuestError, match="failed in the guest"):
            guest.execute(["/usr/bin/true"])  # a script without a shell
        shell = guest._shell
        assert shell.run(b"ls /sys/class/net").stdout == b"lo\n"
        with pytest.raises(TimedOut):
            shell.run(b"while :; do :; done", timeout=1.0)
        with pytest.raises(GuestError):
            shell.run(b"true")
        assert isinstance(shell, ApplianceMachine)
        assert shell._process.poll() is not None
    assert path.read_bytes() == before
