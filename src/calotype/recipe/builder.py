"""Build a recipe's image, or take it from the cache.

The cache's key is a digest of the recipe and of this room's code, so the same request is answered from
the cache without a network until one of the two changes, or a fresh build is asked for: a recipe names
packages, not their versions, so that is how updates of the distribution come in. An image appears under its
name whole or not at all; whatever an interrupted build leaves is removed by the next.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from calotype.disk.durable import fsync_directory
from calotype.errors import InvalidInput, StoreDamaged
from calotype.model import Generation, OsType
from calotype.progress import SILENT, Progress
from calotype.recipe import grub, install, record, unpack
from calotype.recipe.image import Identity, efi_files, write_image
from calotype.recipe.record import Method, Recipe
from calotype.recipe.tree import Tree
from calotype.run import run

_KEEP = 0o444


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """One image in the cache; ``path`` is a raw disk image, read-only, sparse."""

    name: str
    path: Path
    sha256: str
    size: int  # of the disk, in bytes
    os_type: OsType
    generations: tuple[Generation, ...]  # all that it starts on
    description: str
    digest: str  # of the recipe and the code that built it
    packages: tuple[tuple[str, str], ...]  # (name, version), sorted

    @property
    def generation(self) -> Generation:
        """The firmware to start it with when nobody says."""
        return self.generations[0]


def build(name: str, cache: Path, *, fresh: bool = False, progress: Progress = SILENT) -> Built:
    """The image of the recipe ``name`` (or an alias of it), built when the cache has none.

    Two builds at once of one recipe do the work once. Nothing is mounted on the host; an ordinary user
    can build as well as root.

    Args:
        name: the recipe's name or alias.
        cache: a directory for images and downloaded packages; made when it is missing.
        fresh: build from the newest packages whatever the cache has, and put the image in its place.
        progress: told of each phase.

    Raises:
        NotFound: no recipe of that name.
        ToolMissing: a program is not installed; the hint names its package.
        ToolFailed: the mirror cannot be reached, or a tool failed.
    """
    recipe = record.load(name)
    digest = recipe.digest()
    home = (cache / "recipes").absolute()
    if any(c in str(home) for c in " ',\"\n"):  # debugfs, APT and mtools give such names a meaning
        raise InvalidInput(f"the cache's path has blanks, commas or quotes: {home}")
    image = home / f"{recipe.name}-{digest[:16]}.raw"
    if not fresh and (built := _cached(recipe, digest, image)) is not None:
        return built
    (home / "packages").mkdir(mode=0o755, parents=True, exist_ok=True)
    with _locked(home / f".{recipe.name}.lock"):
        if not fresh and (built := _cached(recipe, digest, image)) is not None:
            return built
        _sweep(home, recipe, spare=image.stem if fresh else None)
        with _workplace(home, recipe) as work:
            debs = home / "packages"
            _build(recipe, digest, debs=debs, work=work, image=image, progress=progress)
    made = _cached(recipe, digest, image)
    if made is None:
        raise StoreDamaged(f"{image} vanished as soon as it was built")
    return made


def _build(
    recipe: Recipe, digest: str, *, debs: Path, work: Path, image: Path, progress: Progress
) -> None:
    identity = Identity.of(digest)
    tree = Tree(work / "root")
    tree.root.mkdir(mode=0o755)
    with progress.phase(f"{recipe.name}: packages"):
        method = unpack.fill if recipe.method is Method.UNPACK else install.fill
        method(recipe, tree, debs, work)
    with progress.phase(f"{recipe.name}: system"):
        packages = _finish(recipe, tree, identity)
    with progress.phase(f"{recipe.name}: disk"):
        efi = efi_files(tree, str(identity.root), signed=recipe.boot.signed, work=work)
        raw = work / "disk.raw"
        write_image(tree, recipe.layout, identity, efi=efi, out=raw, work=work)
    with (
        progress.phase(f"{recipe.name}: checksum", recipe.layout.size) as advance,
        raw.open("rb") as file,
    ):
        state = hashlib.sha256()
        while block := file.read(1 << 22):
            state.update(block)
            advance(len(block))
    facts = {"digest": digest, "sha256": state.hexdigest(), "packages": packages}
    raw.chmod(_KEEP)
    _publish(raw, image, json.dumps(facts, indent=1).encode())


def _finish(recipe: Recipe, tree: Tree, identity: Identity) -> list[list[str]]:
    """What only the whole tree can tell: owners, how it boots, fstab; returns the packages."""
    if recipe.method is Method.INSTALL:
        tree.prune(recipe.prune)
    for name, text in recipe.owners.items():
        uid, gid, mode = text.split(":")
        tree.own(name, int(uid), int(gid), int(mode, 8))
    kernel = max(path.name for path in tree.root.glob("boot/vmlinuz-*"))
    initrd = kernel.replace("vmlinuz-", "initrd.img-")
    cmdline = f"root=UUID={identity.root} {recipe.boot.cmdline}"
    tree.write("boot/grub/grub.cfg", grub.menu(kernel, initrd, cmdline))
    fstab = f"UUID={identity.root} / ext4 rw,discard,errors=remount-ro 0 1\n"
    if recipe.layout.mount_esp:
        fstab += f"UUID={identity.esp_uuid} /boot/efi vfat umask=0077,nofail 0 0\n"
    tree.write("etc/fstab", fstab)
    return _packages((tree.root / "var/lib/dpkg/status").read_text())


def _packages(status: str) -> list[list[str]]:
    found: list[list[str]] = []
    for stanza in status.split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in stanza.splitlines()
            if line.startswith(("Package: ", "Version: ")) and ": " in line
        )
        if len(fields) == 2:
            found.append([fields["Package"], fields["Version"]])
    return sorted(found)


def _cached(recipe: Recipe, digest: str, image: Path) -> Built | None:
    try:
        facts = json.loads(image.with_suffix(".json").read_bytes())
        size = image.stat().st_size
    except (OSError, ValueError):
        return None
    if facts.get("digest") != digest or size != recipe.layout.size:
        return None
    return Built(
        name=recipe.name,
        path=image,
        sha256=facts["sha256"],
        size=size,
        os_type=recipe.os_type,
        generations=recipe.generations,
        description=recipe.description,
        digest=digest,
        packages=tuple((name, version) for name, version in facts["packages"]),
    )


def _publish(raw: Path, image: Path, facts: bytes) -> None:
    """Facts first, then the image under its name: with the image there, both are there, and of one build."""
    temporary = raw.with_name("facts.json")
    image.unlink(missing_ok=True)
    with temporary.open("wb") as file:
        file.write(facts)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(image.with_suffix(".json"))
    raw.replace(image)
    fsync_directory(image.parent)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _workplace(home: Path, recipe: Recipe) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix=f".{recipe.name}.work-", dir=home))
    try:
        yield work
    finally:
        _remove(work)


def _sweep(home: Path, recipe: Recipe, *, spare: str | None) -> None:
    """Remove older images of the recipe (not ``spare``), and what a killed build left; the lock is held."""
    for path in home.glob(f".{recipe.name}.work-*"):
        _remove(path)
    for path in home.glob(f"{recipe.name}-{'[0-9a-f]' * 16}.*"):
        if path.stem != spare:
            path.unlink(missing_ok=True)


def _remove(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    if work.exists():  # as an ordinary user: files of the subordinate users of a killed mmdebstrap
        run(["mmdebstrap", "--unshare-helper", "rm", "-rf", str(work)], check=False)
