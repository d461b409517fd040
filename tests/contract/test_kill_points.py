"""``kill -9`` at any call that changes a file: what was there is whole, and the next command converges.

Each point kills a command right before its Nth such call (see :mod:`tests.contract.tripwire`). Afterwards
the installation holds either what it held before or what the command was to bring about, every byte of it;
the same command then brings it about, and nothing half-made is left. A few points are hit under strace, from
outside a process that was started as a user starts it.
"""

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.campaigns.power_check import Observer, State, opened
from tests.contract.tripwire import Tripwire

from calotype.engine import machines
from calotype.engine.context import Context
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.sources import Upload
from calotype.model import OsState

STRACE = shutil.which("strace") or ""
CALLS = "fsync,fdatasync,rename,renameat2,link,linkat,unlink,unlinkat,mkdir"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """A command to kill at ``points`` points, and what there is before it: with a new home nothing."""

    arguments: Sequence[str]
    points: int
    prepare: Callable[[Context, Path], None] | None


def image(context: Context, disk: Path) -> None:
    """An image ``img``."""
    request = ImageRequest(name="img", os_state=OsState.SPECIALIZED)
    import_image(context, request, Upload(location=str(disk / "disk.raw")), {})


def machine(context: Context, disk: Path) -> None:
    """An image and a VM of it with a data disk; both its disks were written to."""
    image(context, disk)
    vm = create_vm(
        context, VmRequest(name="vm1", image="img", start=False, new_data_disks={0: 4 * MIB})
    )
    for managed in vm.disks:
        options = f"driver=qcow2,file.filename={context.disk_path(managed.id)}"
        if managed.index:
            options += (
                f",backing.driver=raw,backing.file.filename={context.base_path(managed.index)}"
            )
        orders = ("-c", f"write -s {disk / 'junk'} {MIB} 200k", "-c", "flush")
        subprocess.run(
            ["qemu-io", "--image-opts", options, *orders], check=True, capture_output=True
        )


def spare(context: Context, _disk: Path) -> None:
    """A managed disk."""
    machines.create_disk(context, "spare", 4 * MIB)


UPLOAD = ("image", "create", "new", "--source", "{disk}/other.raw", "--os-state", "Specialized")
CASES = {
    "first upload": Case(UPLOAD, 20, None),
    "upload": Case(UPLOAD, 40, image),
    "vm create": Case(("vm", "create", "vm2", "--image", "img", "--no-start"), 30, image),
    "capture": Case(("vm", "capture", "vm1", "--image", "snap"), 40, machine),
    "generalize": Case(("vm", "capture", "vm1", "--image", "snap", "--generalize"), 20, machine),
    "vm delete": Case(("vm", "delete", "vm1"), 25, machine),
    "image delete": Case(("image", "delete", "img", "--force"), 20, machine),
    "disk create": Case(("disk", "create", "spare2", "--size", "4M"), 15, spare),
    "disk delete": Case(("disk", "delete", "spare"), 15, spare),
}


def test_there_are_points_enough():
    assert sum(case.points for case in CASES.values()) >= 200


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory in memory where there is one: nothing here cuts the power."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def disk(place):
    """A directory with two disks that have much in common, and junk for a guest to write."""
    room = place / "disk"
    generator = random.Random(1)
    for path, content in {
        "etc/os-release": b"ID=debian\n",
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
        "etc/machine-id": b"0123456789abcdef0123456789abcdef\n",
        "usr/data": generator.randbytes(300_000),
    }.items():
        (room / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (room / "tree" / path).write_bytes(content)
    first = room / "disk.raw"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", room / "tree", first, "8M"], check=True)
    data = bytearray(first.read_bytes())
    data[6 * MIB : 6 * MIB + 100_000] = generator.randbytes(100_000)
    (room / "other.raw").write_bytes(data)
    (room / "junk").write_bytes(generator.randbytes(MIB))
    return room


@pytest.fixture(scope="module")
def tripwire() -> Iterator[Tripwire]:
    """The warm interpreter."""
    with Tripwire() as wire:
        yield wire


def look(home: Path) -> tuple[State, list[str]]:
    """What an installation holds; and what in it is wrong."""
    with opened(home) as context:
        observer = Observer(context)
        return observer.observe(), observer.problems


def settled(home: Path) -> tuple[State, list[str]]:
    """The same after one more operation, which clears up; and what is left over then."""
    with opened(home) as context:
        machines.create_disk(context, "tidy", MIB)
        machines.delete_disk(context, "tidy")
        observer = Observer(context)
        return observer.observe(), [*observer.problems, *observer.left_over()]


@pytest.mark.parametrize("name", CASES)
def test_killed_anywhere(place, disk, tripwire, name):
    case = CASES[name]
    command = [word.format(disk=disk) for word in case.arguments]
    template, undisturbed = place / f"{name} template", place / f"{name} undisturbed"
    before: State = {}
    if case.prepare:
        with opened(template) as context:
            case.prepare(context, disk)
        before, _ = look(template)
    else:
        template.mkdir()
    shutil.copytree(template, undisturbed, symlinks=True)
    calls = tripwire.run(undisturbed, *command)
    assert calls.status == 0
    after, problems = settled(undisturbed)
    assert after != before
    assert not problems
    reached = set()
    for number in range(case.points):
        home = place / f"{name} {number}"
        shutil.copytree(template, home, symlinks=True)
        at = 1 + number * (calls.calls - 1) // (case.points - 1)
        while not tripwire.run(home, *command, at=at).killed:
            at -= 1  # its threads made fewer calls this time
            shutil.rmtree(home)
            shutil.copytree(template, home, symlinks=True)
        reached.add(converged(home, before, after, tripwire, command))
        shutil.rmtree(home)
    assert reached == {False, True}, "killed only before, or only after, its commit"


def converged(
    home: Path, before: State, after: State, tripwire: Tripwire, command: Sequence[str]
) -> bool:
    """Hold a killed command to all or nothing, and run it again; whether it had been all."""
    state, problems = look(home)
    assert not problems
    assert state in (before, after)
    if state == before:
        assert tripwire.run(home, *command).status == 0
    assert settled(home) == (after, [])
    return state == after
