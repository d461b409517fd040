"""The bench set: six disk images that share much and are equal in little.

    .venv/bin/python bench/images.py [NAME...]

Builds what ``images.toml`` lists by the rooms of ``calotype.recipe`` into ``~/.cache/calotype/bench`` (or
``CALOTYPE_BENCH_CACHE``) and prints the paths; what is there already is left alone. Each image is an
installation of its own: mmdebstrap, a new file system with new UUIDs and times. An older state of the
archive is had by leaving out bookworm-updates and bookworm-security.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calotype.recipe import Recipe, grub, install, load
from calotype.recipe.image import Identity, efi_files, write_image
from calotype.recipe.tree import Tree

TABLE = Path(__file__).with_suffix(".toml")
RECIPE = "debian-12"
_LAYOUT = 1  # raised when this script makes other images of the same table
_SHUFFLED = Path("/dev/shm")  # a tmpfs lists files in the order in which they were made


@dataclass(frozen=True, slots=True)
class BenchImage:
    """One image of the set; ``path`` is a sparse raw disk, ``packages`` maps names to versions."""

    name: str
    path: Path
    packages: dict[str, str]

    @property
    def data(self) -> int:
        """Bytes that are not holes."""
        return self.path.stat().st_blocks * 512


def cache() -> Path:
    """Where the images are kept: outside of the repository, since they are large."""
    if path := os.environ.get("CALOTYPE_BENCH_CACHE"):
        return Path(path).absolute()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "calotype" / "bench"


def names() -> list[str]:
    """The set, in its order."""
    return list(tomllib.loads(TABLE.read_text()))


def image(name: str, table: dict[str, Any] | None = None) -> BenchImage:
    """The image ``name`` of the set (or of a ``table`` like its own), built when the cache has none."""
    table = table or tomllib.loads(TABLE.read_text())[name]
    recipe = _recipe(name, table)
    key = json.dumps([_LAYOUT, name, table, repr(recipe)], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()
    home = cache()
    path = home / f"{name}-{digest[:12]}.raw"
    facts = path.with_suffix(".json")
    (home / "packages").mkdir(parents=True, exist_ok=True)
    with (home / f".{name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            for old in home.glob(f"{name}-{'[0-9a-f]' * 12}.*"):
                old.unlink()
            with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=home) as work:
                _build(recipe, table, digest, path, Path(work))
    return BenchImage(name, path, json.loads(facts.read_text())["packages"])


def images() -> list[BenchImage]:
    """The whole set, built where it is missing."""
    return [image(name) for name in names()]


def _recipe(name: str, table: dict[str, Any]) -> Recipe:
    recipe = load(RECIPE)
    layout = recipe.layout
    if mib := table.get("size_mib"):
        layout = replace(layout, size=mib << 20)
    packages = (*recipe.packages, *table.get("packages", ()))
    return replace(recipe, name=name, packages=packages, layout=layout)


def _build(recipe: Recipe, table: dict[str, Any], digest: str, path: Path, work: Path) -> None:
    started = time.monotonic()
    print(f"{recipe.name}: building ...", file=sys.stderr, flush=True)
    identity = Identity.of(digest)
    tree = Tree(work / "root")
    tree.root.mkdir(mode=0o755)
    _install(recipe, tree, work, release=table["archives"] == "release")
    kernel = max(found.name for found in tree.root.glob("boot/vmlinuz-*"))
    initrd = kernel.replace("vmlinuz-", "initrd.img-")
    cmdline = f"root=UUID={identity.root} {recipe.boot.cmdline}"
    tree.write("boot/grub/grub.cfg", grub.menu(kernel, initrd, cmdline))
    tree.write("etc/fstab", f"UUID={identity.root} / ext4 rw,discard,errors=remount-ro 0 1\n")
    packages = _packages((tree.root / "var/lib/dpkg/status").read_text())
    efi = efi_files(tree, str(identity.root), signed=recipe.boot.signed, work=work)
    order = _shuffled if table.get("order") == "shuffled" else contextlib.nullcontext
    raw = work / "disk.raw"
    with order(tree) as laid:
        write_image(laid, recipe.layout, identity, efi=efi, out=raw, work=work)
    path.with_suffix(".json").write_text(json.dumps({"packages": packages}, indent=1))
    raw.chmod(0o444)
    raw.replace(path)
    print(f"{recipe.name}: {time.monotonic() - started:.0f} s", file=sys.stderr)


def _install(recipe: Recipe, tree: Tree, work: Path, *, release: bool) -> None:
    """Install the packages into an empty tree; as ``release``, from the point release alone."""
    root = os.geteuid() == 0
    target = tree.root if root else work / "root.tar"
    argv = install.arguments(recipe, target, cache() / "packages", work, root=root)
    if release:
        argv = [arg for arg in argv if not _newer(arg)]
    contained = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"] if root else []
    env = {**os.environ, "LC_ALL": "C.UTF-8", "TMPDIR": str(work)}
    subprocess.run([*contained, *argv], env=env, check=True, stdout=subprocess.DEVNULL)
    if root:
        tree.prune(["dev/*"])
    else:
        tree.unpack_file(target)
        target.unlink()


def _newer(arg: str) -> bool:
    """Whether an argument is the line of an archive that gets packages after the point release."""
    return arg.startswith("deb ") and ("-updates " in arg or "-security " in arg)


@contextlib.contextmanager
def _shuffled(tree: Tree) -> Iterator[Tree]:
    """The tree once more, its files made in another order, which is then that of the new inodes."""
    rng = random.Random(2)
    order: list[str] = []
    for directory, below, files in os.walk(tree.root):
        here = os.path.relpath(directory, tree.root)
        rng.shuffle(below)
        links = [name for name in below if os.path.islink(os.path.join(directory, name))]
        entries = files + links
        rng.shuffle(entries)
        order += [here, *(os.path.join(here, name) for name in entries)]
    with tempfile.TemporaryDirectory(prefix="calotype-bench-", dir=_SHUFFLED) as copy:
        read = ["tar", "-C", str(tree.root), "--no-recursion", "--null", "-T", "-"]
        write = ["tar", "-C", copy, "--numeric-owner", "--preserve-permissions", "-xf", "-"]
        with subprocess.Popen(write, stdin=subprocess.PIPE) as writer:
            listed = b"\0".join(os.fsencode(name) for name in order)
            both = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-cf", "-"]
            subprocess.run([*read, *both], input=listed, stdout=writer.stdin, check=True)
        if writer.returncode:
            raise SystemExit("tar could not copy the tree")
        yield Tree(Path(copy), tree.owners)


def _packages(status: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for stanza in status.split("\n\n"):
        lines = [line.split(": ", 1) for line in stanza.splitlines() if ": " in line]
        fields = {pair[0]: pair[1] for pair in lines if pair[0] in {"Package", "Version"}}
        if len(fields) == 2:
            found[fields["Package"]] = fields["Version"]
    return dict(sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names())}; all when none is given")
    args = parser.parse_args()
    for name in args.names or names():
        made = image(name)
        print(f"{made.path}\t{made.data >> 20} MiB of data\t{len(made.packages)} packages")


if __name__ == "__main__":
    main()
