#!/usr/bin/env python3
"""The main job, end to end: a disk image becomes a fleet of real VMs.

Everything goes through the ``calotype`` command, as a user would type it, in a home of its own that is
removed at the end (``--keep`` keeps it). Every claim in the closing table is checked; a claim that does not
hold ends the demo with an error.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CALOTYPE = str(Path(sys.executable).with_name("calotype"))
PAGE = "a page that web1 wrote on its first data disk"
NOTE = "a note that web1 wrote on its second data disk"

CUSTOM_DATA = f"""#cloud-config
write_files:
  - path: /etc/systemd/system/demo-web.service
    content: |
      [Unit]
      Description=Serves the first data disk
      RequiresMountsFor=/srv/web /srv/notes
      [Service]
      ExecStart=/usr/bin/python3 -m http.server --directory /srv/web 8080
      [Install]
      WantedBy=multi-user.target
runcmd:
  - |
    set -e
    cd /dev/disk/azure/scsi1
    mkdir -p /srv/web /srv/notes
    mkfs.ext4 -q -L web lun0 && mkfs.ext4 -q -L notes lun1
    echo 'LABEL=web /srv/web ext4 defaults,nofail 0 2' >> /etc/fstab
    echo 'LABEL=notes /srv/notes ext4 defaults,nofail 0 2' >> /etc/fstab
    systemctl daemon-reload && mount /srv/web && mount /srv/notes
    echo '{PAGE}' > /srv/web/index.html
    echo '{NOTE}' > /srv/notes/note.txt
    sync
    systemctl enable --now demo-web.service
"""


class Demo:
    """Runs commands, times steps, collects the table."""

    def __init__(self, home: Path, prompt: str = "$") -> None:
        self.home = home
        self.prompt = prompt
        self.rows: list[tuple[str, str, str]] = []
        self.start = time.monotonic()
        self.env = {**os.environ, "CALOTYPE_HOME": str(home)}

    def calotype(self, *arguments: str, show: bool = True) -> Any:
        """Run a command with ``-o json``; its result."""
        if show:
            print(f"    {self.prompt} calotype {' '.join(arguments)}", flush=True)
        done = subprocess.run(
            [CALOTYPE, *self.with_json(arguments)],
            env=self.env,
            check=False,
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode != 0:
            sys.exit(f"    failed with status {done.returncode}\n{done.stdout}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    @staticmethod
    def with_json(arguments: tuple[str, ...]) -> list[str]:
        """Global options stand before ``--``."""
        at = arguments.index("--") if "--" in arguments else len(arguments)
        return [*arguments[:at], "-o", "json", *arguments[at:]]

    def ssh(self, vm: str, command: str) -> str:
        """Run a command in a VM over SSH; what it printed."""
        done = subprocess.run(
            [CALOTYPE, "vm", "ssh", vm, "--", command],
            env=self.env,
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            sys.exit(f"    ssh {vm}: {command}: status {done.returncode}\n{done.stderr}")
        return done.stdout.strip()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One line when it begins, its time when it ends."""
        begin = time.monotonic()
        print(f"\n[{begin - self.start:5.0f} s] {title}", flush=True)
        yield
        print(f"    done in {time.monotonic() - begin:.1f} s", flush=True)

    def row(self, what: str, took: float | None, result: str) -> None:
        """A row of the closing table."""
        self.rows.append((what, "" if took is None else f"{took:.1f} s", result))

    def table(self) -> None:
        """Print the closing table."""
        widths = [max(len(row[column]) for row in self.rows) for column in range(3)]
        print()
        for what, took, result in self.rows:
            print(f"  {what:<{widths[0]}}  {took:>{widths[1]}}  {result}")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def check(claim: str, holds: object) -> None:
    """Say that a claim holds, or end the demo."""
    print(f"    {'ok ' if holds else 'NOT'} {claim}", flush=True)
    if not holds:
        sys.exit(f"the demo failed: {claim}")


def interruptible(main: Callable[[], None]) -> None:
    """Run a demo; Ctrl-C ends it in one line, when all is removed."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; nothing is left")


def build(demo: Demo) -> Path:
    """The Debian image as a raw file, built or taken from the cache."""
    begin = time.monotonic()
    with demo.step("Build (or take from the cache) a Debian 12 image from Debian's packages"):
        built = demo.calotype("recipe", "build", "debian")
    raw = Path(built["path"])
    demo.row("recipe debian", time.monotonic() - begin, f"{size(raw.stat().st_size)} raw disk")
    return raw


def upload(demo: Demo, raw: Path) -> None:
    """As a fixed VHD, then as qcow2: the second adds nothing."""
    with demo.step("Upload it as a fixed VHD, then the same disk as qcow2"):
        vhd, qcow2 = demo.home / "debian.vhd", demo.home / "debian.qcow2"
        convert = ["qemu-img", "convert", "-f", "raw", str(raw)]
        subprocess.run(
            [*convert, "-O", "vpc", "-o", "subformat=fixed,force_size", str(vhd)], check=True
        )
        subprocess.run([*convert, "-c", "-O", "qcow2", str(qcow2)], check=True)
        begin = time.monotonic()
        first = demo.calotype("image", "create", "debian", "--source", str(vhd))
        took = time.monotonic() - begin
        stored = demo.calotype("store", "stats", show=False)["stored"]
        demo.row(
            "upload as fixed VHD", took, f"{size(vhd.stat().st_size)} file, {size(stored)} stored"
        )
        begin = time.monotonic()
        second = demo.calotype("image", "create", "debian-again", "--source", str(qcow2))
        took = time.monotonic() - begin
        grown = demo.calotype("store", "stats", show=False)["stored"] - stored
        check("the same disk in another container has the same Index", same_index(first, second))
        check("the second upload stored no byte", grown == 0)
        demo.row("upload as qcow2", took, f"{size(qcow2.stat().st_size)} file, no new chunk")
        vhd.unlink()
        qcow2.unlink()


def same_index(first: Any, second: Any) -> bool:
    """Whether two images' OS disks are one Index."""
    return bool(first["osDisk"]["index"] == second["osDisk"]["index"])


def customise(demo: Demo) -> Any:
    """VM web1: two data disks, a service, data on both."""
    begin = time.monotonic()
    with demo.step("VM web1 with two data disks, customised by custom data"):
        custom = demo.home / "web1.yaml"
        custom.write_text(CUSTOM_DATA)
        vm = demo.calotype(
            *("vm", "create", "web1", "--image", "debian", "--admin-username", "wilma"),
            *("--custom-data", str(custom), "--forward", "0:8080"),
            *(
                "--data-disk-sizes",
                "0=256M",
                "--data-disk-sizes",
                "1=256M",
                "--vcpus",
                "2",
                "--wait",
            ),
        )
        await_page(vm)
        check("web1 serves its page", fetch(vm) == PAGE)
    demo.row("web1: create, boot, provision", time.monotonic() - begin, "serves its page")
    return vm


def fetch(vm: Any) -> str:
    """The page that a VM serves on its forwarded port."""
    port = vm["forwards"][0][0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
        return str(answer.read().decode().strip())


def await_page(vm: Any, patience: float = 300.0) -> None:
    """Wait until a VM's service answers."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            fetch(vm)
        except OSError:
            time.sleep(1)
        else:
            return
    sys.exit(f"the demo failed: the service of {vm['name']} does not answer")


def capture(demo: Demo) -> Any:
    """Capture web1 while it runs, generalized on the way."""
    before = demo.calotype("store", "stats", show=False)["stored"]
    begin = time.monotonic()
    with demo.step("Capture web1, generalized, while it runs"):
        image = demo.calotype("vm", "capture", "web1", "--image", "web", "--generalize")
        took = time.monotonic() - begin
        check("the image holds the OS disk and both data disks", len(image["dataDisks"]) == 2)
        state = demo.calotype("vm", "show", "web1", show=False)["powerState"]
        check("web1 runs on", state == "running" and fetch_of(demo, "web1") == PAGE)
    stored = demo.calotype("store", "stats", show=False)["stored"] - before
    taken = image["capture"]
    changed = sum(disk["changed"] for disk in taken["disks"])
    demo.row(
        "capture --generalize",
        took,
        f"{taken['consistency']}-consistent, frozen {taken['frozenSeconds']:.2f} s, "
        f"{size(changed)} changed, {size(stored)} stored",
    )
    return image


def fetch_of(demo: Demo, name: str) -> str:
    """The page of a VM by name."""
    return fetch(demo.calotype("vm", "show", name, show=False))


def prove(demo: Demo) -> None:
    """Look at the captured image, compare it, and check the signed report of an exported disk."""
    begin = time.monotonic()
    with demo.step("Prove the image: every check, what changed, a report that anyone can check"):
        proof = demo.calotype("image", "verify", "web")["proof"]
        check(
            f"its verdict is Generalized, by {len(proof['checked'])} checks", not proof["findings"]
        )
        found = demo.calotype("image", "diff", "debian", "web")["guest"]
        check(f"{len(found['files'])} paths differ from the Debian image", found["files"])
        disk = demo.home / "web.qcow2"
        demo.calotype("image", "export", "web", str(disk))
        said = demo.calotype("verify-report", f"{disk}.report.json", "--disk", str(disk))
        check("the report is signed, and of this very disk", said["holds"])
        disk.unlink()
    demo.row(
        "prove: verify, diff, export, verify-report",
        time.monotonic() - begin,
        f"{proof['verdict']}: {len(proof['checked'])} checks found nothing; signed",
    )


def clone(demo: Demo) -> None:
    """Two clones, side by side, and what they share and do not share."""
    begin = time.monotonic()
    with demo.step("Two clones of the image start side by side"):

        def start(name: str, user: str) -> Any:
            vm = demo.calotype(
                *("vm", "create", name, "--image", "web", "--admin-username", user),
                *("--forward", "0:8080", "--wait"),
            )
            await_page(vm)
            return vm

        with ThreadPoolExecutor() as pool:
            started = [pool.submit(start, "clone1", "carl"), pool.submit(start, "clone2", "cora")]
            vms = [future.result() for future in started]
    demo.row("two clones: create, boot, provision", time.monotonic() - begin, "side by side")
    with demo.step("Look at all three over SSH"):
        names = ["web1", "clone1", "clone2"]
        for what, command in {
            "SSH host keys": "cat /etc/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2",
            "machine-ids": "cat /etc/machine-id",
            "host names": "hostname",
        }.items():
            found = [demo.ssh(name, command) for name in names]
            check(
                f"three different {what}: {', '.join(value[-12:] for value in found)}",
                len(set(found)) == 3 and all(found),
            )
            demo.row(what, None, "three different ones")
        for vm in vms:
            name = vm["name"]
            check(f"{name} serves web1's page from its first data disk", fetch(vm) == PAGE)
            note = demo.ssh(name, "cat /srv/notes/note.txt")
            check(f"{name} has web1's note on its second data disk", note == NOTE)
            users = demo.ssh(name, "getent passwd | awk -F: '$3>=1000 && $3<60000{print $1}'")
            check(f"{name} has its own admin user and no other: {users}", users == vm["adminUser"])
            left = demo.ssh(
                name,
                "sudo grep -rIl --exclude-dir=proc --exclude-dir=sys wilma /etc /home /root /var || true",
            )
            check(
                f"nothing of web1's user is left on {name}{': ' + left if left else ''}", not left
            )
        demo.row("clones", None, "same service, same data, own admin user, nothing of web1's user")


def export(demo: Demo) -> None:
    """Export as an Azure VHD."""
    begin = time.monotonic()
    with demo.step("Export the image's OS disk as an Azure VHD"):
        target = demo.home / "web.vhd"
        demo.calotype("image", "export", "web", str(target))
        took = time.monotonic() - begin
        footer = target.read_bytes()[-512:] if target.stat().st_size < 1 << 20 else tail(target)
        virtual = int.from_bytes(footer[48:56], "big")
        check("its footer says conectix, fixed", footer[:8] == b"conectix" and footer[63] == 2)
        check("its size is a multiple of 1 MiB", virtual % (1 << 20) == 0)
        check("the file is its size and the footer", target.stat().st_size == virtual + 512)
        check("no byte of web1's user is in it", not contains(target, b"wilma"))
    demo.row("export as Azure VHD", took, f"{size(virtual)}, passes Azure's gate")
    target.unlink()


def tail(path: Path) -> bytes:
    """The last 512 bytes of a file."""
    with path.open("rb") as file:
        file.seek(-512, os.SEEK_END)
        return file.read()


def contains(path: Path, needle: bytes) -> bool:
    """Whether a (sparse) file holds some bytes."""
    end = b""
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            if needle in end + block:
                return True
            end = block[-len(needle) :]
    return False


def share(demo: Demo) -> None:
    """What is stored, and what the images share."""
    stats = demo.calotype("store", "stats")
    demo.row(
        "store",
        None,
        f"{len(stats['images'])} images, {size(stats['logical'])} logical, "
        f"{size(stats['stored'])} on disk",
    )
    for image in stats["images"]:
        demo.row(
            f"  {image['image']}",
            None,
            f"{size(image['stored'])} stored, {size(image['shared'])} of it shared",
        )


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the demo's home directory")
    keep = parser.parse_args().keep
    home = Path(tempfile.mkdtemp(prefix="calotype-demo-", dir="/var/tmp"))
    demo = Demo(home)
    try:
        raw = build(demo)
        upload(demo, raw)
        customise(demo)
        capture(demo)
        prove(demo)
        clone(demo)
        export(demo)
        share(demo)
        whole = demo.calotype("store", "check")
        check("the store is whole", whole["ok"])
        demo.row("all", time.monotonic() - demo.start, "")
        demo.table()
    finally:
        if keep:
            print(f"\nkept: CALOTYPE_HOME={home}")
        else:
            for vm in demo.calotype("vm", "list", show=False) or []:
                demo.calotype("vm", "delete", vm["name"], show=False)
            shutil.rmtree(home)


if __name__ == "__main__":
    interruptible(main)
