"""``kill -9`` at any call that changes a file: what was there is whole, and the next command converges.

Each point kills a command right before its Nth such call (see :mod:`tests.contract.tripwire`). Afterwards
the installation holds either what it held before or what the command was to bring about, every byte of it;
the same command then brings it about, and nothing half-made is left. A few points are hit under strace, from
outside a process that was started as a user starts it.
"""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from tests.campaigns.power_check import Observer, State, of_file, opened
from tests.contract.tripwire import Tripwire

from calotype.engine import images, machines, storage
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
    """A command to kill at ``points`` points, and what there is before it: with a new home nothing.

    ``alike``: whether what it makes is the same each time, to the byte.
    """

    arguments: Sequence[str]
    points: int
    prepare: Callable[[Context, Path], None] | None
    alike: bool = True


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
        options = f"driver=qcow2,file.filename={context.disk_path(managed.file)}"
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


def garbage(context: Context, disk: Path) -> None:
    """Two images that had much in common; one was deleted, and what it alone needed is condemned."""
    image(context, disk)
    request = ImageRequest(name="other", os_state=OsState.SPECIALIZED)
    import_image(context, request, Upload(location=str(disk / "other.raw")), {})
    images.delete(context, "img")
    storage.prune(context, grace=timedelta())


UPLOAD = ("image", "create", "new", "--source", "{disk}/other.raw", "--os-state", "Specialized")
CASES = {
    "first upload": Case(UPLOAD, 20, None),
    "upload": Case(UPLOAD, 36, image),
    "vm create": Case(("vm", "create", "vm2", "--image", "img", "--no-start"), 28, image),
    "capture": Case(("vm", "capture", "vm1", "--image", "snap"), 36, machine),
    "generalize": Case(
        ("vm", "capture", "vm1", "--image", "snap", "--generalize"), 8, machine, alike=False
    ),
    "vm delete": Case(("vm", "delete", "vm1"), 24, machine),
    "image delete": Case(("image", "delete", "img", "--force"), 16, machine),
    "prune": Case(("store", "prune", "--grace", "0s"), 36, garbage),
    "disk create": Case(("disk", "create", "spare2", "--size", "4M"), 12, spare),
    "disk delete": Case(("disk", "delete", "spare"), 12, spare),
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


def look(context: Context) -> tuple[State, list[str]]:
    """What an installation holds; and what is wrong or left over in it."""
    observer = Observer(context)
    state = observer.observe()
    return state, [*observer.problems, *observer.left_over()]


def settled(home: Path) -> tuple[State, list[str]]:
    """The same after one more operation, which clears up."""
    with opened(home) as context:
        machines.create_disk(context, "tidy", MIB)
        machines.delete_disk(context, "tidy")
        return look(context)


def later(home: Path) -> None:
    """Let the leases of killed commands run out, as two minutes would."""
    if (home / "catalog.db").exists():
        with (
            closing(sqlite3.connect(home / "catalog.db")) as db,
            suppress(sqlite3.OperationalError),
        ):
            db.execute("UPDATE ledger_operations SET until = 0")  # no such table yet: no leases
            db.commit()


def lean(home: Path) -> bool:
    """Whether nothing is left to prune after two prunes, the second of which frees."""
    later(home)
    with opened(home) as context:
        for _ in range(2):
            storage.prune(context, grace=timedelta(), empty=True)
        usage = storage.stats(context)
        return usage.unreferenced == usage.condemned == 0 and storage.check(context).ok


class Trial:
    """A command that is killed, and held to all or nothing."""

    def __init__(self, tripwire: Tripwire, case: Case, disk: Path, place: Path) -> None:
        self._tripwire = tripwire
        self._case = case
        self._command = [word.format(disk=disk) for word in case.arguments]
        self._template = place / "template"
        self._template.mkdir(parents=True)
        self._before: State = {}
        if case.prepare:
            with opened(self._template) as context:
                case.prepare(context, disk)
                self._before, _ = look(context)
        undisturbed = place / "undisturbed"
        shutil.copytree(self._template, undisturbed, symlinks=True)
        whole = tripwire.run(undisturbed, *self._command)
        assert whole.status == 0
        self._after, problems = settled(undisturbed)
        assert not problems
        self.calls = whole.calls
        self.changes = self._after != self._before

    def kill(self, home: Path, at: int) -> None:
        """Run the command on a copy of the installation, to its call number ``at``."""
        shutil.copytree(self._template, home, symlinks=True)
        while not self._tripwire.run(home, *self._command, at=at).killed:
            at -= 1  # its threads made fewer calls this time
            shutil.rmtree(home)
            shutil.copytree(self._template, home, symlinks=True)

    def converge(self, home: Path) -> bool:
        """Run the command again unless its work is there; whether it was."""
        with opened(home) as context:
            observer = Observer(context)
            state = self._shown(observer.observe())
        assert not observer.problems
        done = state == self._shown(self._after)
        assert done or state == self._before
        if not done or not self.changes:
            later(home)
            assert self._tripwire.run(home, *self._command).status == 0
        state, problems = settled(home)
        assert self._shown(state) == self._shown(self._after)
        assert not problems
        return done

    def _shown(self, state: State) -> State:
        """The state, without what differs each time."""
        if self._case.alike:
            return state
        return {
            key: value if key in self._before or value.startswith("cannot") else "made"
            for key, value in state.items()
        }


@pytest.mark.parametrize("name", CASES)
def test_killed_anywhere(place, disk, tripwire, name):
    case, room = CASES[name], place / name
    trial = Trial(tripwire, case, disk, room)
    reached = set()
    for number in range(case.points):
        home = room / str(number)
        trial.kill(home, at=1 + number * (trial.calls - 1) // (case.points - 1))
        reached.add(trial.converge(home))
        if number % 8 == 0:
            assert lean(home)
        shutil.rmtree(home)
    if trial.changes:
        assert reached == {False, True}, "killed only before, or only after, its commit"


@pytest.mark.skipif(not STRACE, reason="strace is not installed")
@pytest.mark.parametrize("point", [2, 12, 30])
def test_killed_from_outside(place, disk, tmp_path, point):
    home = tmp_path / "home"
    command = [word.format(disk=disk) for word in UPLOAD]
    done = subprocess.run(
        [
            *(STRACE, "-f", "-qq", "-o", os.devnull, "-e", f"trace={CALLS}"),
            *("-e", f"inject={CALLS}:signal=SIGKILL:when={point}"),
            *(sys.executable, "-m", "calotype", *command),
        ],
        env={**os.environ, "CALOTYPE_HOME": str(home)},
        capture_output=True,
        check=False,
    )
    assert done.returncode in (-9, 137), done.stderr.decode()
    with opened(home) as context:
        state, problems = look(context)
        assert not [p for p in problems if not p.startswith(("tmp/", "store/"))]
        if "image/new" not in state:
            request = ImageRequest(name="new", os_state=OsState.SPECIALIZED)
            import_image(context, request, Upload(location=str(disk / "other.raw")), {})
        state, problems = look(context)
        assert state == {"image/new": of_file(disk / "other.raw")}
        assert not problems
