"""``calotype image diff`` and ``calotype image sbom``: what is in images, without booting them."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from calotype.cli.common import Common, session
from calotype.cli.output import emit, for_people, plain
from calotype.cli.text import one_line
from calotype.cli.text import size as show_size
from calotype.engine.proof.diff import DiskDiff, ImageDiff, diff_images
from calotype.engine.proof.diff import sbom as make_sbom
from calotype.guest.diff import Change, FileChange, GuestDiff

_LONGEST = 8192  # characters of a line
_MOST = 40  # lines of a list, unless all are asked for
_DIRECTORIES = 8
_SIGNS = {"added": "+", "removed": "-", "changed": "~"}


def diff(
    a: str,
    b: str,
    *,
    files: Annotated[bool, Parameter(negative="")] = False,
    all_: Annotated[bool, Parameter(name="--all", negative="")] = False,
    exit_code: Annotated[bool, Parameter(negative="")] = False,
    appliance: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> int:
    """Compare two images: packages, kernels, users, services, files, sizes. Neither is booted.

    Parameters
    ----------
    a
        The image before.
    b
        The image after.
    files
        List every file that differs, not only how many.
    all_
        Also the noise: caches, logs, byte code, package databases.
    appliance
        Look into file systems other than ext4 by starting a small VM (minutes).
    exit_code
        End with status 1 when they differ, as git diff --exit-code does.
    """
    with session(common) as context:
        found = diff_images(context, a, b, appliance=appliance)
    if for_people(common):
        for line in _report(found, files=files, noise=all_):
            print(one_line(line, _LONGEST))
    else:
        emit(common, {**plain(found), "differ": found.differ})
    return int(exit_code and found.differ)


def sbom(
    name: str,
    file: Path | None = None,
    *,
    appliance: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> None:
    """Write the software in an image as a CycloneDX 1.6 document (JSON).

    Parameters
    ----------
    name
        The image.
    file
        The file to write; standard output without it.
    appliance
        Look into file systems other than ext4 by starting a small VM (minutes).
    """
    with session(common) as context:
        document = make_sbom(context, name, appliance=appliance)
    if file is None:
        sys.stdout.write(document.decode() + "\n")
    else:
        file.write_bytes(document + b"\n")


def _report(found: ImageDiff, *, files: bool, noise: bool) -> Iterator[str]:
    yield f"{found.before} → {found.after}"
    for disk in found.disks:
        yield from _disk(disk)
    yield from (f"note: {note}" for note in found.notes)
    guest = found.guest
    if guest is None:
        yield "nothing else could be compared: only how many bytes differ is known"
        return
    yield from (f"note: {note}" for note in guest.notes)
    if not guest:
        yield "no packages, files, users or services differ"
        return
    yield from _facts("System", [c for c in guest.release if c.name == "PRETTY_NAME"])
    yield from _facts("Kernels", guest.kernels)
    yield from _packages(guest)
    yield from _facts("Users", guest.users)
    yield from _facts("Groups", guest.groups)
    yield from _facts("Services", guest.services)
    yield from _files(guest, everything=files, noise=noise)
    yield from _sizes(guest)


def _disk(disk: DiskDiff) -> Iterator[str]:
    what = "OS disk" if disk.lun is None else f"LUN {disk.lun}"
    if disk.before is None or disk.after is None:
        yield f"{what}: {'removed' if disk.after is None else 'added'}"
        return
    grown = "" if disk.before == disk.after else f", {_from_to(disk.before, disk.after)}"
    differ = f"at most {show_size(disk.differing)} differ" if disk.differing else "equal"
    yield f"{what}: {differ}{grown}"


def _facts(title: str, changes: Iterable[Change]) -> Iterator[str]:
    for number, change in enumerate(changes):
        if number == 0:
            yield ""
            yield title
        if change.before is None:
            yield f"  + {change.name}  {change.after}"
        elif change.after is None:
            yield f"  - {change.name}  {change.before}"
        else:
            yield f"  ~ {change.name}  {change.before} → {change.after}"


def _packages(guest: GuestDiff) -> Iterator[str]:
    packages = guest.packages
    if not packages:
        return
    yield ""
    counts = {
        "added": len(packages.added),
        "removed": len(packages.removed),
        "upgraded": len(packages.upgraded),
        "downgraded": len(packages.downgraded),
    }
    yield "Packages: " + ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    for package in packages.added:
        yield f"  + {package.name} {package.version}"
    for package in packages.removed:
        yield f"  - {package.name} {package.version}"
    for change in packages.upgraded:
        yield f"  ↑ {change.name} {change.before} → {change.after}"
    for change in packages.downgraded:
        yield f"  ↓ {change.name} {change.before} → {change.after}"


def _files(guest: GuestDiff, *, everything: bool, noise: bool) -> Iterator[str]:
    if not guest.files:
        return
    yield ""
    counts = Counter(change.status for change in guest.files)
    yield "Files: " + ", ".join(f"{counts[what]} {what}" for what in _SIGNS if counts[what])
    quiet = Counter(change.noise for change in guest.files if change.noise)
    if quiet and not noise:
        kinds = ", ".join(f"{count} {what}" for what, count in quiet.most_common())
        yield f"  of them noise: {kinds} (--all lists them too)"
    matter = [c for c in guest.files if noise or not c.noise]
    owned = sum(1 for change in matter if change.package)
    if owned and not everything:
        yield f"  {owned} belong to packages (--files lists them)"
        matter = [change for change in matter if not change.package]
    shown = matter if everything else matter[:_MOST]
    yield from (_file(change) for change in shown)
    if len(shown) < len(matter):
        yield f"  … and {len(matter) - len(shown)} more that no package brought (--files lists them)"


def _file(change: FileChange) -> str:
    what = ", ".join(_aspect(change, aspect) for aspect in change.aspects)
    owner = f"  [{change.package}]" if change.package else ""
    return f"  {_SIGNS[change.status]} {change.path}" + (f"  ({what})" if what else "") + owner


def _aspect(change: FileChange, aspect: str) -> str:
    before, after = change.before, change.after
    if before is None or after is None:
        return aspect
    pairs = {
        "content": (show_size(before.size), show_size(after.size)),
        "mode": (before.mode, after.mode),
        "owner": (f"{before.uid}:{before.gid}", f"{after.uid}:{after.gid}"),
        "type": (before.type, after.type),
        "target": (before.target, after.target),
    }
    old, new = pairs[aspect]
    return f"{aspect} {old} → {new}" if old != new else aspect


def _sizes(guest: GuestDiff) -> Iterator[str]:
    if not guest.directories:
        return
    yield ""
    yield f"Sizes: {_from_to(guest.size.before, guest.size.after)} in files"
    for directory in guest.directories[:_DIRECTORIES]:
        delta = directory.after - directory.before
        sign = "+" if delta > 0 else "-"
        yield (
            f"  {sign}{show_size(abs(delta))}  {directory.path}"
            f"  ({_from_to(directory.before, directory.after)})"
        )


def _from_to(before: int, after: int) -> str:
    return f"{show_size(before)} → {show_size(after)}"
