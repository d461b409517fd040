"""The VHD gate's rules, each with what satisfies it and what does not."""

import gzip
import lzma
from contextlib import closing
from pathlib import Path

import pytest
import zstandard
from tests import roots
from tests.disks import BytesDisk
from tests.trees import Files

from calotype.disk.view import RawSource
from calotype.guest.gate import Answer, certify
from calotype.guest.initramfs import modules
from calotype.guest.locate import DiskMap, Filesystem, Partition, find_root, survey

MIB = 1 << 20
ROOT = Partition(1, MIB, 30 * MIB, "", Filesystem.EXT)
GPT = DiskMap("gpt", (ROOT,), boot_code=True)


def answer(rule: str, tree: Files, found: DiskMap = GPT, size: int = 32 * MIB) -> Answer:
    disk = BytesDisk(bytes(510) + b"\x55\xaa" + bytes(size - 512))
    return {ruling.rule: ruling.answer for ruling in certify(tree, found, disk)}[rule]


SSH = "/etc/ssh/sshd_config"
CASES: list[tuple[str, dict[str, str | bytes], Answer]] = [
    ("swap", {"/etc/fstab": "UUID=1 / ext4 defaults 0 1\n"}, Answer.OK),
    ("swap", {"/etc/fstab": "#/swap none swap sw 0 0\n/swap.img none swap sw 0 0"}, Answer.BAD),
    ("console", {}, Answer.UNKNOWN),
    (
        "console",
        {"/boot/grub/grub.cfg": "\tlinux /vmlinuz root=UUID=1 console=ttyS0,115200"},
        Answer.OK,
    ),
    ("console", {"/boot/grub/grub.cfg": "\tlinux /vmlinuz root=UUID=1 quiet"}, Answer.BAD),
    ("console", {"/boot/grub/grub.cfg": "\tlinux /vmlinuz root=UUID=1 console=ttyS01"}, Answer.BAD),
    ("console", {"/boot/loader/entries/a.conf": "options root=UUID=1 console=ttyS0"}, Answer.OK),
    ("console", {"/boot/extlinux.conf": "  APPEND root=UUID=1 console=tty0"}, Answer.BAD),
    ("client-alive", {SSH: "ClientAliveInterval 180\n"}, Answer.OK),
    ("client-alive", {SSH: "clientaliveinterval=235\n"}, Answer.OK),
    ("client-alive", {SSH: "ClientAliveInterval 236\n"}, Answer.BAD),
    ("client-alive", {SSH: "#ClientAliveInterval 180\n"}, Answer.BAD),
    ("client-alive", {SSH: "ClientAliveInterval 0\nClientAliveInterval 180\n"}, Answer.BAD),
    ("client-alive", {SSH: "Match User a\nClientAliveInterval 180\n"}, Answer.BAD),
    (
        "client-alive",
        {
            SSH: "Include /etc/ssh/sshd_config.d/*.conf\nClientAliveInterval 0\n",
            "/etc/ssh/sshd_config.d/10.conf": "ClientAliveInterval 60",
        },
        Answer.OK,
    ),
    ("client-alive", {SSH: f"Include {SSH}\n"}, Answer.BAD),
    ("client-alive", {SSH: "ClientAliveInterval " + "9" * 5000}, Answer.BAD),
    ("client-alive", {}, Answer.UNKNOWN),
    ("history", {"/root/.bash_history": "x" * 1024}, Answer.OK),
    ("history", {"/root/.bash_history": "x" * 1025}, Answer.BAD),
    ("credentials", {"/etc/shadow": "root:*:1:0:9:7:::\n"}, Answer.OK),
    ("credentials", {"/etc/shadow": "root:$6$x:1:0:9:7:::\n"}, Answer.BAD),
    ("credentials", {"/etc/shadow": "root::1:0:9:7:::\n"}, Answer.BAD),
    ("agent", {"/usr/sbin/waagent": ""}, Answer.OK),
    ("agent", {}, Answer.BAD),
    ("64-bit", {"/bin/sh": b"\x7fELF\2"}, Answer.OK),
    ("64-bit", {"/bin/sh": b"\x7fELF\1"}, Answer.BAD),
    ("root-by-uuid", {"/etc/fstab": "UUID=1 / xfs defaults 0 0"}, Answer.OK),
    ("root-by-uuid", {"/etc/fstab": "/dev/sda1 / ext4 defaults 0 0"}, Answer.BAD),
    ("root-by-uuid", {}, Answer.UNKNOWN),
    ("mounts-by-uuid", {"/etc/fstab": "/dev/sdb1 /data ext4 defaults 0 0"}, Answer.BAD),
]


@pytest.mark.parametrize(("rule", "contents", "expected"), CASES)
def test_rules_of_the_guest(rule: str, contents: dict[str, str | bytes], expected: Answer) -> None:
    tree = Files()
    for path, content in contents.items():
        tree.put(path, content)
    assert answer(rule, tree) is expected


def test_rules_of_the_disk() -> None:
    assert answer("size", Files()) is Answer.OK
    assert answer("size", Files(), size=32 * MIB + 512) is Answer.BAD
    assert answer("size", Files(), size=19 * MIB) is Answer.BAD
    early = DiskMap("gpt", (Partition(1, 34 * 512, MIB, "", None),), boot_code=True)
    assert answer("first-sectors", Files(), early) is Answer.BAD
    assert answer("first-sectors", Files()) is Answer.OK
    assert answer("partition-table", Files()) is Answer.OK
    swap = DiskMap("gpt", (ROOT, Partition(2, MIB, MIB, "", Filesystem.SWAP)), boot_code=True)
    assert answer("swap", Files(), swap) is Answer.BAD


@pytest.mark.parametrize(
    ("luns", "expected"), [((), "ok"), ((0, 1), "ok"), ((0, 2), "bad"), ((1,), "bad")]
)
def test_luns(luns: tuple[int, ...], expected: str) -> None:
    rulings = certify(None, GPT, BytesDisk(bytes(32 * MIB)), luns)
    said = {ruling.rule: ruling.answer for ruling in rulings}
    assert said["luns"] == expected
    assert said["swap"] is Answer.UNKNOWN


def _cpio(*names: str) -> bytes:
    parts = b""
    for name in (*names, "TRAILER!!!"):
        head = b"070701" + b"00000000" * 11 + b"%08X" % (len(name) + 1) + b"00000000"
        entry = head + name.encode() + b"\0"
        parts += entry.ljust(-(-len(entry) // 4) * 4, b"\0")
    return parts.ljust(-(-len(parts) // 512) * 512, b"\0")


FULL = _cpio(
    *(f"usr/lib/modules/6/kernel/drivers/hv/hv_{n}.ko.xz" for n in ("vmbus", "storvsc", "netvsc"))
)
PACKED = {
    "plain": FULL,
    "zstd": zstandard.compress(FULL),
    "gzip": gzip.compress(FULL),
    "xz": lzma.compress(FULL, check=lzma.CHECK_CRC32),
    "microcode": _cpio("kernel/x86/microcode/GenuineIntel.bin") + zstandard.compress(FULL),
}


@pytest.mark.parametrize("form", PACKED)
def test_drivers_in_an_initramfs(form: str) -> None:
    tree = Files().put("/boot/initramfs-5.14.img", PACKED[form])
    assert modules(tree) == frozenset({"hv_vmbus", "hv_storvsc", "hv_netvsc"})
    tree.put("/boot/initramfs-0-rescue-1.img", b"unknown")
    assert answer("hyper-v-drivers", tree) is Answer.OK
    tree.put("/boot/initramfs-6.img", gzip.compress(_cpio("usr/lib/modules/6/hv_vmbus.ko")))
    assert answer("hyper-v-drivers", tree) is Answer.BAD
    tree.put("/boot/initramfs-7.img", b"lz4, say")
    assert answer("hyper-v-drivers", tree) is Answer.UNKNOWN
    tree = Files().put("/boot/initrd.img-1", PACKED[form][:-20])
    assert modules(tree) is None or form == "plain"


def test_a_bomb_ends() -> None:
    bomb = zstandard.compress(bytes(64 << 20)) * 8
    assert modules(Files().put("/boot/initrd.img-1", bomb)) is None


@pytest.mark.parametrize("family", list(roots.FAMILIES))
def test_a_fresh_image_of_each_family(family: str, tmp_path: Path) -> None:
    path = tmp_path / "fresh.raw"
    roots.build(family, "fresh", path)
    with closing(RawSource(path).open()) as disk:
        found = survey(disk)
        _, tree = find_root(disk, found)
        bad = {r.rule: r.evidence for r in certify(tree, found, disk) if r.answer is Answer.BAD}
    expected = {"partition-table"} | ({"client-alive"} if family == "alpine" else set())
    assert bad.keys() == expected, bad
