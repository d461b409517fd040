"""The committed corpus: one ZIP archive of inputs for each target, each named by its SHA-1."""

import zipfile
from collections.abc import Iterable, Iterator
from hashlib import sha1
from pathlib import Path

HERE = Path(__file__).parent / "corpus"


def inputs(target: str) -> Iterator[tuple[str, bytes]]:
    """The names and bytes of all committed inputs of a target."""
    path = HERE / f"{target}.zip"
    if path.exists():
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name, archive.read(name)


def unpack(target: str, directory: str) -> None:
    """Write the committed inputs into a directory."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name, data in inputs(target):
        (Path(directory) / name).write_bytes(data)


def pack(target: str, found: Iterable[bytes]) -> None:
    """Make the inputs the committed ones; the archive's bytes depend on them alone."""
    HERE.mkdir(exist_ok=True)
    named = {sha1(data, usedforsecurity=False).hexdigest(): data for data in found}
    path = HERE / f"{target}.zip"
    fresh = path.with_suffix(".new")  # a campaign may be reading the old one
    with zipfile.ZipFile(fresh, "w", zipfile.ZIP_LZMA) as archive:
        for name in sorted(named):
            archive.writestr(zipfile.ZipInfo(name), named[name], zipfile.ZIP_LZMA)
    fresh.replace(path)
