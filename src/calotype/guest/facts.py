"""What two guests are compared by besides packages and files: each fact is a name and what it says."""

import posixpath
from collections.abc import Mapping

from calotype.guest.accounts import rows
from calotype.guest.guest import Tree, glob, join
from calotype.guest.manifest import Entry

Facts = dict[str, str]

_SYSTEMD = "/etc/systemd/system"


def users(tree: Tree) -> Facts:
    """Name -> ids, home and shell."""
    return {
        row[0]: f"uid {row[2]}, gid {row[3]}, {row[5]}, {row[6]}"
        for row in rows(tree, "/etc/passwd")
        if len(row) >= 7
    }


def groups(tree: Tree) -> Facts:
    """Name -> id and members."""
    return {
        row[0]: f"gid {row[2]}" + (f": {row[3]}" if row[3] else "")
        for row in rows(tree, "/etc/group")
        if len(row) >= 4
    }


def services(tree: Tree, entries: Mapping[str, Entry]) -> Facts:
    """Unit (or OpenRC service) -> what starts it, as its administrator set it."""
    found: dict[str, list[str]] = {}
    for kind in ("wants", "requires"):
        for path in glob(tree, f"{_SYSTEMD}/*.{kind}/*"):
            directory, _, unit = path.rpartition("/")
            starter = posixpath.basename(directory).removesuffix(f".{kind}")
            found.setdefault(unit, []).append(starter)
    for level in tree.list("/etc/runlevels"):
        for service in tree.list(join("/etc/runlevels", level)):
            found.setdefault(service, []).append(f"runlevel {level}")
    facts = {unit: ", ".join(sorted(starters)) for unit, starters in found.items()}
    for unit in tree.list(_SYSTEMD):
        entry = entries.get(join(_SYSTEMD, unit))
        if entry is not None and entry.target == "/dev/null":
            facts[unit] = "masked"
    return facts


def kernels(tree: Tree) -> Facts:
    """Version (or file name) -> what is there of it."""
    found: dict[str, list[str]] = {}
    for path in glob(tree, "/boot/vmlinu[xz]*"):
        name = posixpath.basename(path)
        found.setdefault(name.partition("-")[2] or name, []).append("kernel")
    for version in tree.list("/lib/modules"):
        found.setdefault(version, []).append("modules")
    return {version: " and ".join(parts) for version, parts in found.items()}
