"""The three sources of images, end to end from an empty installation, by the ``calotype`` command alone.

A marketplace image is pulled and becomes a VM; the VM with its data disks becomes versions in a gallery, one
of which is the latest; the gallery is published, exported and served; another installation follows it and
pulls two versions, of which the second moves only what differs. Ends with a table; everything happens in
two homes of its own, which are removed at the end (``--keep`` keeps them).

    .venv/bin/python scripts/demo_sources.py [--tiny] [--keep]

``--tiny`` takes the smallest guest that there is, by an offer in a catalogue of its own.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import CALOTYPE, Demo, check, interruptible, size

#: What the versions differ by: random bytes, which nothing compresses.
BLOB = 8 << 20
#: Signed lists, and the lists of chunks.
OVERHEAD = 256 << 10

TINY_OFFER = """
format = 1

[[offers]]
publisher = "calotype"
offer = "tiny"
sku = "busybox"
title = "The smallest guest"
description = "busybox, dropbear, guest agent"
os_type = "Linux"
source = { kind = "recipe", recipe = "tiny" }
"""


@dataclass(frozen=True)
class Guest:
    """An offer, and how its guests reach and format their data disks (shell, as root)."""

    urn: str
    disks: str
    format: str
    options: tuple[str, ...] = ()


DEBIAN = Guest(
    urn="debian:debian-12:cloud",
    disks="d0=/dev/disk/azure/scsi1/lun0; d1=/dev/disk/azure/scsi1/lun1",
    format="mkfs.ext4 -q $d0 && mkfs.ext4 -q $d1",
)
TINY = Guest(
    urn="calotype:tiny:busybox",
    disks="""
for d in /sys/class/scsi_disk/*; do
  lun=${d##*:}; target=${d%:*}; target=${target##*:}
  [ "$target" = 0 ] || continue
  eval d$lun=/dev/$(ls $d/device/block)
done
""",
    format="mke2fs $d0 > /dev/null && mke2fs $d1 > /dev/null",
    options=("--memory", "256M"),
)
#: The running VM as the source of a version; it goes on.
OF_THE_VM = ("--vm", "web", "--generalize")
MOUNT = "mkdir -p /srv/web /srv/notes; mount $d0 /srv/web; mount $d1 /srv/notes"


class Sources(Demo):
    """The demo in one of its two homes."""

    def __init__(self, home: Path, guest: Guest) -> None:
        super().__init__(home, f"{home.name}$")
        self.guest = guest

    def inside(self, vm: str, script: str) -> str:
        """Run a script in a guest as root; what it printed."""
        print(f"    {self.prompt} calotype vm run-command {vm} --script -")
        for line in script.splitlines():
            print(f"    {' ' * len(self.prompt)} | {line}", flush=True)
        done = subprocess.run(
            [CALOTYPE, "vm", "run-command", vm, "--script", "-"],
            env=self.env,
            input=f"set -e\n{self.guest.disks}\n{script}",
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            sys.exit(f"    in {vm}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def create(self, name: str, image: str, *options: str) -> Any:
        """A VM that is provisioned."""
        return self.calotype(
            *("vm", "create", name, "--image", image, "--admin-username", "wilma"),
            *self.guest.options,
            *options,
            "--wait",
        )

    def remove(self) -> None:
        """Remove the VMs and the home."""
        for vm in self.calotype("vm", "list", show=False) or []:
            self.calotype("vm", "delete", vm["name"], show=False)
        shutil.rmtree(self.home)

    @contextmanager
    def timed(self, title: str, result: list[str]) -> Iterator[None]:
        """A step, and its row of the table, whose last column is what ``result`` holds then."""
        begin = time.monotonic()
        with self.step(title):
            yield
        self.row(title, time.monotonic() - begin, ", ".join(result))


def pull(demo: Sources) -> Any:
    """An offer of the marketplace, found and pulled."""
    told: list[str] = []
    with demo.timed("Find an image in the marketplace, and pull it", told):
        check("the installation is empty", not demo.calotype("image", "list"))
        if demo.guest is TINY:
            offers = demo.home / "offers.toml"
            offers.write_text(TINY_OFFER)
            demo.calotype("marketplace", "catalog", "add", "demo", str(offers))
        found = demo.calotype("marketplace", "search", demo.guest.urn.split(":")[1])
        for offer in found:
            print(f"        {offer['urn']}  {offer['title']}")
        check(f"{demo.guest.urn} is offered", demo.guest.urn in [offer["urn"] for offer in found])
        (image,) = demo.calotype("marketplace", "pull", demo.guest.urn)
        check("it is here", image["shelf"] == "Marketplace")
        told += [image["name"]]
    return image


def customise(demo: Sources) -> None:
    """A VM with two data disks, and something on each of its disks."""
    told: list[str] = []
    with demo.timed("VM web with two data disks, customised", told):
        sizes = ("--data-disk-sizes", "0=64M", "--data-disk-sizes", "1=64M")
        demo.create("web", demo.guest.urn, *sizes)
        demo.inside(
            "web",
            f"{demo.guest.format}; {MOUNT}\n"
            "echo 'version 1.0.0' > /srv/web/page; echo 'kept' > /srv/notes/note\n"
            "echo 'made for the demo' > /etc/motd; sync",
        )
        told += ["its own page, note and message of the day"]


def publish(demo: Sources, number: str, *source: str, tested: bool) -> None:
    """Make a version of an image, or of the running VM with its data disks, and promote it."""
    reference = f"shop/web/{number}"
    made = demo.calotype("gallery", "image-version", "create", reference, *source)
    check(f"{number} has both data disks", len(made["image"]["dataDisks"]) == 2)
    check(f"{number} is staged: nobody gets it yet", made["image"]["stage"] == "Staged")
    how = () if tested else ("--untested",)
    report = demo.calotype("gallery", "image-version", "promote", reference, *how)["report"]
    if tested:
        check(f"two clones of {number} started, and differ", not report["problems"])


def latest(demo: Sources) -> str:
    """The number of the latest version."""
    shown = demo.calotype("gallery", "image-version", "show", "shop/web/latest", show=False)
    return str(shown["reference"].rpartition("/")[2])


def gallery(demo: Sources, image: Any) -> None:
    """Three versions; which one is the latest, and back and forth."""
    told: list[str] = []
    with demo.timed("Version 1.0.0 in a gallery: two clones of it start and differ", told):
        demo.calotype("gallery", "create", "shop")
        triple = ("--publisher", "contoso", "--offer", "shop", "--sku", "web")
        system = ("--os-type", "Linux", "--os-state", "Generalized")
        firmware = ("--generation", image["generation"])
        demo.calotype(
            "gallery", "image-definition", "create", "shop/web", *triple, *system, *firmware
        )
        publish(demo, "1.0.0", *OF_THE_VM, tested=True)
        check("it is the latest", latest(demo) == "1.0.0")
        told += ["OS disk and two data disks, generalized, boot-tested"]
    told = []
    with demo.timed("Versions 1.10.0, then 1.9.0: the latest is the highest number", told):
        demo.inside("web", "echo 'version 1.9.0' > /srv/web/page; sync")
        demo.calotype("vm", "capture", "web", "--image", "nine", "--generalize")
        blob = f"head -c {BLOB} /dev/urandom > /srv/web/blob"
        demo.inside("web", f"{blob}; echo 'version 1.10.0' > /srv/web/page; sync")
        publish(demo, "1.10.0", *OF_THE_VM, tested=False)
        publish(demo, "1.9.0", "--image", "nine", tested=False)
        for version in demo.calotype("gallery", "image-version", "list", "shop/web"):
            print(f"        {version['reference']}  {version['state']}")
        check("the latest is 1.10.0, though 1.9.0 came later", latest(demo) == "1.10.0")
        told += ["1.10.0"]
    told = []
    with demo.timed("Roll back, and forward again", told):
        demo.calotype("gallery", "image-version", "rollback", "shop/web")
        check("the latest is 1.9.0", latest(demo) == "1.9.0")
        demo.calotype("gallery", "image-version", "promote", "shop/web/1.10.0")
        check("the latest is 1.10.0 again", latest(demo) == "1.10.0")
        told += ["1.9.0, then 1.10.0"]


def export(demo: Sources) -> tuple[str, str, Path]:
    """The gallery's public name, the fingerprint of the publisher's root, and the exported tree."""
    told: list[str] = []
    tree = demo.home / "tree"
    with demo.timed("Publish the gallery to the community; write it as signed static files", told):
        public = demo.calotype(
            *("community", "publish", "shop", "--publisher-uri", "https://contoso.example"),
            *("--publisher-contact", "shop@contoso.example"),
            *("--eula", "https://contoso.example/eula", "--public-name-prefix", "contoso"),
        )
        name = public["gallery"]["community"]["publicName"]
        done = demo.calotype("community", "export", str(tree))
        told += [f"{name}: {size(done['stored'])} stored"]
    return name, done["fingerprint"], tree


@contextmanager
def served(demo: Sources, tree: Path) -> Iterator[str]:
    """The tree behind HTTP; its URL."""
    argv = [CALOTYPE, "community", "serve", str(tree), "--port", "0", "--quiet"]
    print(f"\n    {demo.prompt} calotype {' '.join(argv[1:])} &", flush=True)
    with subprocess.Popen(argv, env=demo.env, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[-1]
        finally:
            server.terminate()


def follow(demo: Sources, url: str, fingerprint: str, name: str, differing: int) -> None:
    """Another installation: follow, pull one version, then another."""
    told: list[str] = []
    with demo.timed("Another installation follows it", told):
        demo.calotype(
            *("community", "add", url, "--name", "contoso", "--fingerprint", fingerprint),
            *("--allow-address", "127.0.0.0/8"),
        )
        shown = demo.calotype("community", "list")
        check(f"it sees {name}", name in str(shown))
        told += [f"root {fingerprint[:16]}… as the publisher says"]
    told = []
    with demo.timed("Pull 1.9.0, then 1.10.0, which moves only what differs", told):
        whole = demo.calotype("community", "pull", f"community/{name}/web/1.9.0")["moved"]
        moved = demo.calotype("community", "pull", f"community/{name}/web/1.10.0")["moved"]
        check(f"1.9.0 moved {size(whole)}", whole > 0)
        check(
            f"1.10.0 moved {size(moved)}: its {size(BLOB)} of new data are among them",
            moved >= BLOB,
        )
        check(
            f"no more than the {size(differing)} by which the disks differ (and signed lists)",
            moved <= differing + OVERHEAD,
        )
        told += [f"{size(whole)}, then {size(moved)}"]
    told = []
    with demo.timed("A VM of the pulled image has the publisher's data", told):
        demo.create("shop", f"community/{name}/web/1.10.0")
        page = demo.inside(
            "shop", f"{MOUNT}; cat /srv/web/page /srv/notes/note; wc -c < /srv/web/blob"
        )
        check(
            "page, note and data are there",
            page.split("\n") == ["version 1.10.0", "kept", str(BLOB)],
        )
        told += ["page and note on both data disks"]


def difference(demo: Sources) -> int:
    """By how many bytes the disks of 1.9.0 and 1.10.0 differ, as the publisher's store sees it."""
    found = demo.calotype("image", "diff", "shop/web/1.9.0", "shop/web/1.10.0", show=False)
    return sum(disk["differing"] for disk in found["disks"])


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="with the smallest guest")
    parser.add_argument("--keep", action="store_true", help="keep the demo's homes")
    args = parser.parse_args()
    guest = TINY if args.tiny else DEBIAN
    room = Path(tempfile.mkdtemp(prefix="calotype-sources-", dir="/var/tmp"))
    publisher, follower = (Sources(room / name, guest) for name in ("publisher", "follower"))
    follower.rows, follower.start = publisher.rows, publisher.start
    for demo in (publisher, follower):
        demo.home.mkdir()
        print(f"{demo.prompt} stands for CALOTYPE_HOME={demo.home}")
    with ExitStack() as stack:
        if args.keep:
            stack.callback(print, f"\nkept: CALOTYPE_HOME={publisher.home} and {follower.home}")
        else:
            stack.callback(shutil.rmtree, room)
            for demo in (publisher, follower):
                stack.callback(demo.remove)
        image = pull(publisher)
        customise(publisher)
        gallery(publisher, image)
        name, fingerprint, tree = export(publisher)
        with served(publisher, tree) as url:
            follow(follower, url, fingerprint, name, difference(publisher))
        with publisher.step("Both stores are whole"):
            for demo in (publisher, follower):
                check(f"that of the {demo.home.name} is", demo.calotype("store", "check")["ok"])
        publisher.row("all", time.monotonic() - publisher.start, "")
        publisher.table()


if __name__ == "__main__":
    interruptible(main)
