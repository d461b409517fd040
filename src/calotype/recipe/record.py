"""What a recipe is: one small record and a tree of files, shipped as ``data/NAME/``.

``data/NAME/recipe.toml`` holds the record, ``data/NAME/files/`` what is laid over the packages' own
files, and ``data/NAME/setup`` (for the method *install*) a shell script that runs inside the new
system before it is written to a disk. A recipe may ``extend`` another: lists are joined, tables merged,
files laid over the base's, and the base's script runs first.
"""

import functools
import hashlib
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from calotype.errors import InvalidInput, NotFound
from calotype.model import MIB, Generation, OsType

_ROOM = Path(__file__).parent
_DATA = _ROOM / "data"


class Method(StrEnum):
    """How packages become a file system."""

    UNPACK = "unpack"  # only unpacked, named one by one: no maintainer scripts, no dependencies
    INSTALL = "install"  # installed with all that they depend on, as on a real machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The disk: BIOS boot (p14), EFI system partition (p15), root (p1, last, so that it can grow)."""

    size: int  # of the disk, in bytes
    esp: int  # of the EFI system partition, in bytes
    label: str  # of the root file system
    mount_esp: bool = False  # on /boot/efi


@dataclass(frozen=True, kw_only=True, slots=True)
class Boot:
    """How the system starts; the modules are those of the initial RAM disk we write ourselves."""

    cmdline: str
    initrd: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()  # kept in /lib/modules, besides those of ``initrd``
    signed: bool = False  # start by the distribution's signed shim and GRUB (Secure Boot)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to make one disk image from a distribution's packages."""

    name: str
    aliases: tuple[str, ...]
    description: str
    os_type: OsType
    generations: tuple[Generation, ...]
    suite: str
    method: Method
    kernel: str | None  # unpack: the (meta) package whose kernel and chosen modules are taken
    packages: tuple[str, ...]
    prune: tuple[str, ...]  # glob patterns of paths that the image does without
    owners: dict[str, str]  # path: "uid:gid"
    layout: Layout
    boot: Boot
    lineage: tuple[str, ...]  # this recipe's directories, the oldest base first

    @property
    def file_trees(self) -> list[Path]:
        """The trees of files to lay over the packages', in order."""
        return [path for name in self.lineage if (path := _DATA / name / "files").is_dir()]

    @property
    def scripts(self) -> list[Path]:
        """The scripts to run inside the new system, in order."""
        return [path for name in self.lineage if (path := _DATA / name / "setup").is_file()]

    @property
    def init(self) -> Path:
        """The script that the initial RAM disk starts (method *unpack*)."""
        return _DATA / self.lineage[0] / "init"

    def digest(self) -> str:
        """What the image depends on: these records and files, and the code that builds (hex)."""
        sources = sorted(_ROOM.glob("*.py"))
        for name in self.lineage:
            sources += sorted(path for path in (_DATA / name).rglob("*") if path.is_file())
        state = hashlib.blake2b(digest_size=16)
        for path in sources:
            data = path.read_bytes()
            state.update(f"{path.relative_to(_ROOM)}\0{len(data)}\0".encode())
            state.update(data)
        return state.hexdigest()


def names() -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(path.parent.name for path in _DATA.glob("*/recipe.toml"))


def load(name: str) -> Recipe:
    """The recipe of that name or alias.

    Raises:
        NotFound: no recipe of that name.
    """
    for known in names():
        recipe = _load(known)
        if name in {recipe.name, *recipe.aliases}:
            return recipe
    raise NotFound(f"there is no recipe {name!r}", hint=f"there are: {', '.join(names())}")


@functools.cache
def _load(name: str) -> Recipe:
    table, lineage = _merged(name)
    return parse(name, table, tuple(lineage))


def _merged(name: str) -> tuple[dict[str, Any], list[str]]:
    table = tomllib.loads((_DATA / name / "recipe.toml").read_text())
    base = table.pop("extends", None)
    if base is None:
        return table, [name]
    below, lineage = _merged(base)
    below.pop("aliases", None)
    return merge(below, table), [*lineage, name]


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``: lists joined, tables merged, everything else replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = merge(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            merged[key] = old + [item for item in value if item not in old]
        else:
            merged[key] = value
    return merged


def parse(name: str, table: dict[str, Any], lineage: tuple[str, ...] = ()) -> Recipe:
    """The record of a table as read from ``recipe.toml``.

    Raises:
        InvalidInput: a key is missing or unknown, or a value cannot be used.
    """
    try:
        fields = dict(table)
        layout, boot = fields.pop("layout"), fields.pop("boot")
        recipe = Recipe(
            name=name,
            aliases=tuple(fields.pop("aliases", ())),
            description=fields.pop("description"),
            os_type=OsType(fields.pop("os_type", "Linux")),
            generations=tuple(Generation(g) for g in fields.pop("generations", ("V1", "V2"))),
            suite=fields.pop("suite"),
            method=Method(fields.pop("method")),
            kernel=fields.pop("kernel", None),
            packages=tuple(fields.pop("packages")),
            prune=tuple(fields.pop("prune", ())),
            owners=dict(fields.pop("owners", {})),
            layout=Layout(
                size=layout["size_mib"] * MIB,
                esp=layout["esp_mib"] * MIB,
                label=layout["label"],
                mount_esp=layout.get("mount_esp", False),
            ),
            boot=Boot(
                cmdline=boot["cmdline"],
                initrd=tuple(boot.get("initrd", ())),
                modules=tuple(boot.get("modules", ())),
                signed=boot.get("signed", False),
            ),
            lineage=lineage or (name,),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(f"the recipe {name} cannot be read: {error!r}") from error
    if fields:
        raise InvalidInput(f"the recipe {name} has unknown keys: {', '.join(sorted(fields))}")
    if recipe.method is Method.UNPACK and recipe.kernel is None:
        raise InvalidInput(f"the recipe {name} unpacks its packages but names no kernel")
    return recipe
