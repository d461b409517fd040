"""The method *unpack*: a small system from packages that are only unpacked, never installed.

It needs no privilege at all: APT downloads into the cache, the files are laid into a tree, and what
maintainer scripts would have done (accounts, dpkg's status, applets, modules, the initial RAM disk) is
done here.
"""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

from calotype.errors import InvalidInput
from calotype.recipe import apt, initrd
from calotype.recipe.record import Recipe
from calotype.recipe.tree import Tree
from calotype.run import Limits, run

_MERGED = ("bin", "sbin", "lib", "lib64")


def fill(recipe: Recipe, tree: Tree, debs: Path, work: Path) -> None:
    """Lay the recipe's packages into an empty tree, and make of them a system that starts.

    Raises:
        ToolFailed: the mirror cannot be reached, or lacks a package.
    """
    if recipe.kernel is None:
        raise InvalidInput(f"the recipe {recipe.name} names no kernel")
    archive = apt.Archive(work / "apt", recipe.suite, debs, apt.fetch_options())
    archive.update()
    kernel = archive.real_kernel(recipe.kernel)
    *packages, kernel_deb = archive.download([*recipe.packages, kernel])
    for name in _MERGED:
        tree.mkdir(f"usr/{name}")
        tree.symlink(f"usr/{name}", name)
    for deb in packages:
        _unpack(deb, tree)
    tree.prune(recipe.prune)
    _status(tree, [*packages, kernel_deb])
    _accounts(tree)
    _applets(tree)
    for files in recipe.file_trees:
        tree.lay(files)
    _kernel(recipe, tree, kernel_deb, work)
    tree.mkdir("tmp", 0o1777)
    tree.mkdir("var/tmp", 0o1777)
    for name in ("dev", "proc", "sys", "run", "mnt"):
        tree.mkdir(name)


def _unpack(deb: Path, tree: Tree) -> None:
    done = run(["dpkg-deb", "--fsys-tarfile", str(deb)], limits=Limits(wall=120))
    tree.unpack(io.BytesIO(done.stdout))


def _status(tree: Tree, debs: Sequence[Path]) -> None:
    """``/var/lib/dpkg/status`` as dpkg itself would tell it of packages that are unpacked."""
    stanzas: list[str] = []
    for deb in debs:
        done = run(["dpkg-deb", "--field", str(deb)], limits=Limits(wall=30))
        first, rest = done.stdout.decode().rstrip("\n").split("\n", 1)
        stanzas.append(f"{first}\nStatus: install ok unpacked\n{rest}\n")
    tree.write("var/lib/dpkg/status", "\n".join(sorted(stanzas)))


def _accounts(tree: Tree) -> None:
    """The accounts of base-passwd's masters, none of which can log in."""
    masters = tree.root / "usr/share/base-passwd"
    passwd = (masters / "passwd.master").read_text().replace("root:*:0:0:root:/root:/bin/bash", "")
    passwd = "root:x:0:0:root:/root:/bin/sh" + passwd.replace(":*:", ":x:")
    group = (masters / "group.master").read_text().replace(":*:", ":x:")
    tree.write("etc/passwd", passwd)
    tree.write("etc/group", group)
    shadow = [f"{line.split(':')[0]}:*:19000:0:99999:7:::\n" for line in passwd.splitlines()]
    gshadow = [f"{line.split(':')[0]}:*::\n" for line in group.splitlines()]
    for name, lines in (("etc/shadow", shadow), ("etc/gshadow", gshadow)):
        tree.write(name, "".join(lines), 0o640)
        tree.own(name, 0, 42)


def _applets(tree: Tree) -> None:
    """Links for busybox's applets, wherever no package brought the real program."""
    done = run([str(tree.path("usr/bin/busybox")), "--list-full"], limits=Limits(wall=10))
    for line in done.stdout.decode().split():
        name = f"usr/{line}" if line.startswith(("bin/", "sbin/")) else line
        tree.symlink("/usr/bin/busybox", name)
    tree.symlink("/usr/bin/busybox", "usr/sbin/init")


def _kernel(recipe: Recipe, tree: Tree, deb: Path, work: Path) -> None:
    """The kernel, the modules that the recipe names with all they need, and the initial RAM disk."""
    whole = Tree(work / "kernel")
    whole.root.mkdir()
    _unpack(deb, whole)
    (image,) = whole.root.glob("boot/vmlinuz-*")
    version = image.name.removeprefix("vmlinuz-")
    source = whole.root / "lib/modules" / version
    run(["depmod", "-b", str(whole.root), version], limits=Limits(wall=120))
    deps = initrd.dependencies((source / "modules.dep").read_text())
    builtin = (source / "modules.builtin").read_text()
    early = initrd.closure(recipe.boot.initrd, deps, builtin)
    kept = initrd.closure([*recipe.boot.initrd, *recipe.boot.modules], deps, builtin)
    target = tree.mkdir(f"usr/lib/modules/{version}")
    for name in (*kept, "modules.builtin", "modules.builtin.modinfo", "modules.order"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    run(["depmod", "-b", str(tree.root), version], limits=Limits(wall=120))
    tree.write(
        "etc/modules", "".join(f"{initrd.module_name(name)}\n" for name in recipe.boot.modules)
    )
    tree.write(f"boot/vmlinuz-{version}", image.read_bytes())
    loaded = [
        (f"{initrd.module_name(name)}.ko", initrd.module_bytes(source / name)) for name in early
    ]
    data = initrd.build(recipe.init.read_bytes(), tree.path("usr/bin/busybox").read_bytes(), loaded)
    tree.write(f"boot/initrd.img-{version}", data)
