"""What this machine can do, found by doing it."""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from calotype.engine.context import Context
from calotype.errors import CalotypeError, ToolMissing
from calotype.run import PACKAGES, Limits, Sandbox, run, which

_ROOM_WANTED = 10 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``limited`` works, but not as well as it could."""

    what: str
    state: Literal["ok", "limited", "missing"]
    found: str
    cure: str = ""


def examine(context: Context) -> list[Finding]:
    """Everything that Calotype needs, by really trying it."""
    context.home.prepare()
    return [
        *_programs(),
        _sandbox(),
        _fuse(),
        _firmware(context),
        _acceleration(context),
        _links(context),
        _room(context),
    ]


def _programs() -> Iterator[Finding]:
    missing: dict[str, list[str]] = {}
    for program, package in PACKAGES.items():
        try:
            which(program)
        except ToolMissing:
            missing.setdefault(package, []).append(program)
    found = len(PACKAGES) - sum(len(programs) for programs in missing.values())
    yield Finding("programs", "ok", f"{found} of {len(PACKAGES)}")
    for package, programs in missing.items():
        yield Finding(", ".join(programs), "missing", "-", f"apt-get install {package}")


def _sandbox() -> Finding:
    try:
        run(["true"], sandbox=Sandbox(), limits=Limits(wall=20))
    except CalotypeError as error:
        return Finding(
            "sandbox",
            "missing",
            error.message,
            error.hint or "allow user namespaces: sysctl kernel.unprivileged_userns_clone=1",
        )
    return Finding("sandbox", "ok", "bubblewrap")


def _fuse() -> Finding:
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        return Finding("FUSE (generalize)", "ok", "/dev/fuse")
    if os.path.exists("/dev/fuse"):
        return Finding(
            "FUSE (generalize)", "missing", "/dev/fuse: permission denied", "chmod 666 /dev/fuse"
        )
    return Finding("FUSE (generalize)", "missing", "there is no /dev/fuse", "modprobe fuse")


def _firmware(context: Context) -> Finding:
    try:
        found = context.driver.firmware()
    except CalotypeError as error:
        return Finding("UEFI firmware (V2)", "missing", error.message, error.hint or "")
    return Finding("UEFI firmware (V2)", "ok", str(found))


def _acceleration(context: Context) -> Finding:
    """KVM counts only when a guest really ran under it: a ``/dev/kvm`` that opens proves nothing."""
    result = context.driver.acceleration()
    if result.name == "kvm":
        return Finding("acceleration", "ok", "KVM: a guest ran under it")
    return Finding(
        "acceleration",
        "limited",
        f"TCG (emulation, slow): {result.reason}",
        "as an ordinary user, join the group of /dev/kvm; else run on hardware, or in a VM with "
        "nested virtualisation",
    )


def _links(context: Context) -> Finding:
    """All of the home on one file system, with hard links."""
    devices = {os.stat(path).st_dev for path in _places(context)}
    if len(devices) == 1:
        return Finding("home", "ok", str(context.home.root))
    return Finding(
        "home",
        "missing",
        f"{context.home.root} spans several file systems",
        "keep bases, disks and vms on one",
    )


def _places(context: Context) -> Iterable[os.PathLike[str]]:
    home = context.home
    return (home.root, home.bases, home.disks, home.vms, home.tmp)


def _room(context: Context) -> Finding:
    free = shutil.disk_usage(context.home.root).free
    text = f"{free >> 30} GiB free"
    if free >= _ROOM_WANTED:
        return Finding("room", "ok", text)
    return Finding("room", "limited", text, "set CALOTYPE_HOME to a directory with more room")
