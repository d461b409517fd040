"""What is done to an installation while its disk is recorded: real commands, and what each acknowledged."""

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.campaigns.power_check import ABSENT, ANY, State, of_file, of_vm, opened
from tests.campaigns.power_disk import Recorder

Kind = Literal["upload", "capture", "delete", "prune", "create", "guest"]
TREE = Path(__file__).parents[2]
OS_SIZE, DATA_SIZE = 16 << 20, 8 << 20
TREE_SIZE = 12 << 20  # of an OS disk's file system; what is behind it belongs to nobody
#: How ``qemu-img`` makes an upload of each format from a raw disk; None: the raw disk itself.
FORMATS: Mapping[str, Sequence[str] | None] = {
    "raw": None,
    "vhd": ("-O", "vpc", "-o", "subformat=fixed,force_size=on"),
    "vhd-dynamic": ("-O", "vpc", "-o", "subformat=dynamic,force_size=on"),
    "vhdx": ("-O", "vhdx"),
    "qcow2": ("-O", "qcow2"),
    "qcow2-zstd": ("-O", "qcow2", "-c", "-o", "compression_type=zstd"),
    "vmdk": ("-O", "vmdk"),
    "vmdk-stream": ("-O", "vmdk", "-o", "subformat=streamOptimized"),
}
_SUFFIX = {"raw": "raw", "vhd": "vhd", "vhd-dynamic": "vhd", "qcow2-zstd": "qcow2"}


@dataclass(frozen=True, slots=True)
class Disk:
    """A raw disk that an upload is made of."""

    path: Path
    fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command: what it changes (``ANY``: known only afterwards), and how it is run.

    ``note`` goes into the log; ``settle`` finds out values that were not known before.
    """

    kind: Kind
    arguments: Sequence[str | Path]
    changes: State
    note: Mapping[str, Any] = field(default_factory=dict)
    settle: Callable[[], State] | None = None
    own: bool = True  # a command of Calotype, not of another program


class Workload:
    """Runs commands on the recorded disk, and marks them in its log."""

    def __init__(
        self, recorder: Recorder, home: Path, room: Path, seed: int, weakness: str | None = None
    ) -> None:
        self.home = home
        self._recorder = recorder
        self._room = room
        self._weakness = weakness
        self._lock = threading.Lock()
        self._count = 0
        self._disks = 0
        self.rng = random.Random(seed)
        self.state = State()
        self.commands: list[dict[str, Any]] = []

    # -- running

    def run(self, *commands: Command) -> None:
        """Run commands, several at once, and mark the beginning and the acknowledgement of each."""
        threads = [threading.Thread(target=self._one, args=(command,)) for command in commands]
        before = len(self.commands)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        failed = [done for done in self.commands[before:] if done["status"]]
        if failed or len(self.commands) - before != len(commands):
            raise RuntimeError(f"a command of the workload failed: {failed}")

    def _one(self, command: Command) -> None:
        with self._lock:
            number, self._count = self._count, self._count + 1
            event = {"event": "begin", "command": number, "kind": command.kind}
            self._recorder.mark({**event, "changes": command.changes, **command.note})
        done = subprocess.run(
            [*(self._calotype() if command.own else ()), *map(str, command.arguments)],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        record = {"command": " ".join(map(str, command.arguments)), "status": done.returncode}
        with self._lock:
            if done.returncode == 0:
                changes = command.settle() if command.settle else command.changes
                self._recorder.mark({**event, "event": "done", "changes": changes})
                self.state.update(changes)
            else:
                record["error"] = done.stderr[-1000:]
            self.commands.append(record)

    def _calotype(self) -> list[str]:
        if self._weakness:
            return [sys.executable, "-m", "tests.campaigns.power_weak", self._weakness]
        return [sys.executable, "-m", "calotype"]

    def _environment(self) -> dict[str, str]:
        path = f"{TREE}/src:{TREE}"
        return {**os.environ, "CALOTYPE_HOME": str(self.home), "PYTHONPATH": path}

    # -- disks to upload

    def os_disk(self, like: Disk | None = None) -> Disk:
        """A small disk with a Linux tree; ``like`` another one: that one, partly overwritten."""
        path = self._fresh("raw")
        if like is not None:
            data = bytearray(like.path.read_bytes())
            for _ in range(self.rng.randint(1, 6)):
                length = self.rng.choice((4096, 65536, 262144))
                at = self.rng.randrange(4 << 20, OS_SIZE - length, 4096)
                data[at : at + length] = self.rng.randbytes(length)
            path.write_bytes(data)
            return Disk(path, of_file(path))
        tree = path.with_suffix(".tree")
        self._plant(tree)
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-d", tree, path, f"{TREE_SIZE >> 10}k"],
            check=True,
            capture_output=True,
        )
        os.truncate(path, OS_SIZE)
        return Disk(path, of_file(path))

    def _plant(self, tree: Path) -> None:
        files = {
            "etc/os-release": b"ID=debian\nVERSION_ID=12\n",
            "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n",
            "etc/shadow": b"root:*:19000:0:99999:7:::\nann:*:19000:0:99999:7:::\n",
            "etc/group": b"root:x:0:\nann:x:1000:\n",
            "etc/gshadow": b"root:*::\nann:!::\n",
            "etc/machine-id": self.rng.randbytes(16).hex().encode() + b"\n",
            "etc/hostname": b"host\n",
            "home/ann/.bash_history": b"secret\n" * 50,
            "usr/bin/big": self.rng.randbytes(600_000),
            "usr/share/text": b"the same again and again\n" * 20_000,
        }
        files |= {f"usr/lib/{n}": self.rng.randbytes(5000 * n) for n in range(8)}
        for name, content in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(content)

    def data_disk(self) -> Disk:
        """A small disk without a file system."""
        path = self._fresh("raw")
        with path.open("wb") as file:
            file.truncate(DATA_SIZE)
            for _ in range(self.rng.randint(1, 4)):
                file.seek(self.rng.randrange(0, DATA_SIZE - (1 << 18), 4096))
                file.write(self.rng.randbytes(self.rng.randrange(4096, 1 << 18)))
        return Disk(path, of_file(path))

    def as_format(self, disk: Disk, name: str) -> Path:
        """The disk in another format."""
        options = FORMATS[name]
        if options is None:
            return disk.path
        path = self._fresh(_SUFFIX.get(name, name.split("-", maxsplit=1)[0]))
        subprocess.run(["qemu-img", "convert", "-f", "raw", *options, disk.path, path], check=True)
        return path

    def _fresh(self, suffix: str) -> Path:
        self._disks += 1
        return self._room / f"disk{self._disks}.{suffix}"

    # -- commands

    def upload(
        self, name: str, disk: Disk, form: str = "raw", data: Mapping[int, Disk] | None = None
    ) -> Command:
        """``image create``, also with data disks."""
        source, extra = self.as_format(disk, form), {}
        arguments: list[str | Path] = ["image", "create", name, "--source", source]
        arguments += ["--os-state", "Specialized"]
        for lun, one in (data or {}).items():
            extra[lun] = str(self.as_format(one, "raw"))
            arguments += ["--data-disk", f"{lun}={extra[lun]}"]
        prints = [disk.fingerprint, *(one.fingerprint for one in (data or {}).values())]
        again = {"name": name, "source": str(source), "data": extra}
        return Command(
            kind="upload",
            arguments=arguments,
            changes={f"image/{name}": ",".join(prints)},
            note={"upload": again},
        )

    def create_vm(self, name: str, image: str, sizes: Mapping[int, int] | None = None) -> Command:
        """``vm create --no-start``."""
        arguments: list[str | Path] = ["vm", "create", name, "--image", image, "--no-start"]
        arguments += ["--allow-duplicate-identity"]
        for lun, size in (sizes or {}).items():
            arguments += ["--data-disk-sizes", f"{lun}={size}"]

        def settle() -> State:
            with opened(self.home) as context:
                vm = context.catalog.vm(name)
                state = {f"vm/{name}": of_vm(context.vm_path(vm.id))}
                return state | {f"disk/{d.name}": self._overlay(d.id, d.index) for d in vm.disks}

        disks = [f"{name}-os", *(f"{name}-lun{lun}" for lun in self._luns(image))]
        disks += [f"{name}-lun{lun}" for lun in sizes or {}]
        changes = {f"vm/{name}": ANY} | {f"disk/{disk}": ANY for disk in disks}
        return Command(kind="create", arguments=arguments, changes=changes, settle=settle)

    def _luns(self, image: str) -> list[int]:
        with opened(self.home) as context:
            found = context.catalog.image(image).data_disks
            return [disk.lun for disk in found if disk.lun is not None]

    def write(self, disk: str) -> Command:
        """A guest that writes to its disk and flushes."""
        with opened(self.home) as context:
            managed = context.catalog.disk(disk)
        free = TREE_SIZE if managed.index and managed.size == OS_SIZE else 0
        orders: list[str | Path] = []
        for _ in range(self.rng.randint(2, 8)):
            length = self.rng.choice((4096, 8192, 65536, 200_704))
            at = self.rng.randrange(free, managed.size - length, 4096)
            junk = self._room / "junk"
            junk.write_bytes(self.rng.randbytes(1 << 18))
            orders += ["-c", f"write -s {junk} {at} {length}"]
        orders += ["-c", f"write -z {self.rng.randrange(free, managed.size - 65536, 65536)} 65536"]
        arguments = ["qemu-io", "--image-opts", self._options(managed.id, managed.index), *orders]
        return Command(
            kind="guest",
            arguments=[*arguments, "-c", "flush"],
            changes={f"disk/{disk}": ANY},
            settle=lambda: {f"disk/{disk}": self._overlay(managed.id, managed.index)},
            own=False,
        )

    def _options(self, disk_id: str, index: str | None) -> str:
        options = f"driver=qcow2,file.driver=file,file.filename={self.home}/disks/{disk_id}.qcow2"
        if index is not None:
            base = self.home / "bases" / f"{index}.raw"
            options += f",backing.driver=raw,backing.file.driver=file,backing.file.filename={base}"
        return options

    def _overlay(self, disk_id: str, index: str | None) -> str:
        """The fingerprint of a disk, as QEMU reads it."""
        flat = self._room / f"{disk_id}.flat"
        options = self._options(disk_id, index)
        subprocess.run(
            ["qemu-img", "convert", "--image-opts", options, "-O", "raw", flat], check=True
        )
        try:
            return of_file(flat)
        finally:
            flat.unlink()

    def capture(self, vm: str, image: str, *, generalize: bool = False) -> Command:
        """``vm capture`` of a stopped VM."""
        arguments = ["vm", "capture", vm, "--image", image]
        disks = [self.state[f"disk/{vm}-os"]]
        names = (key for key, value in self.state.items() if value != ABSENT)
        disks += [self.state[key] for key in sorted(names) if key.startswith(f"disk/{vm}-lun")]
        if not generalize:
            changes = {f"image/{image}": ",".join(disks)}
            return Command(kind="capture", arguments=arguments, changes=changes)

        def settle() -> State:  # only Calotype knows what it took out
            flat = self._room / "generalized.raw"
            self._quiet("image", "export", image, flat, "--overwrite")
            return {f"image/{image}": ",".join([of_file(flat), *disks[1:]])}

        arguments.append("--generalize")
        changes = {f"image/{image}": ANY}
        return Command(kind="capture", arguments=arguments, changes=changes, settle=settle)

    def _quiet(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", "calotype", *map(str, arguments)]
        subprocess.run(command, env=self._environment(), check=True, capture_output=True)

    def delete_image(self, name: str) -> Command:
        """``image delete``."""
        arguments = ["image", "delete", name, "--force"]
        return Command(kind="delete", arguments=arguments, changes={f"image/{name}": ABSENT})

    def delete_vm(self, name: str) -> Command:
        """``vm delete`` with its disks."""
        disks = [
            key for key in self.state if key.startswith((f"disk/{name}-os", f"disk/{name}-lun"))
        ]
        changes = {f"vm/{name}": ABSENT} | dict.fromkeys(disks, ABSENT)
        return Command(kind="delete", arguments=["vm", "delete", name], changes=changes)

    def create_disk(self, name: str, size: int = DATA_SIZE) -> Command:
        """``disk create``."""

        def settle() -> State:
            with opened(self.home) as context:
                return {f"disk/{name}": self._overlay(context.catalog.disk(name).id, None)}

        arguments = ["disk", "create", name, "--size", f"{size >> 20}M"]
        changes = {f"disk/{name}": ANY}
        return Command(kind="create", arguments=arguments, changes=changes, settle=settle)

    def delete_disk(self, name: str) -> Command:
        """``disk delete``."""
        arguments = ["disk", "delete", name]
        return Command(kind="delete", arguments=arguments, changes={f"disk/{name}": ABSENT})

    def prune(self) -> Command:
        """``store prune``, which condemns what nothing needs and frees what was condemned before."""
        return Command(kind="prune", arguments=["store", "prune", "--grace", "0s"], changes={})


# -- whole sessions


def uploads(work: Workload) -> None:
    """Images of every format, with data disks, alike and unlike, one after the other."""
    first = work.os_disk()
    forms = list(FORMATS)
    work.rng.shuffle(forms)
    work.run(work.upload("up0", first, forms[0]))
    for number, form in enumerate(forms[1:5], 1):
        disk = work.os_disk(first) if work.rng.random() < 0.6 else work.os_disk()
        data = {lun: work.data_disk() for lun in range(work.rng.randint(0, 2))}
        work.run(work.upload(f"up{number}", disk, form, data))
    work.run(work.upload("twin", first, forms[5]))  # the same bytes under another name


def captures(work: Workload) -> None:
    """A VM with data disks, written to and captured, generalized too."""
    work.run(work.upload("base", work.os_disk(), data={0: work.data_disk()}))
    work.run(work.create_vm("vm", "base", {3: DATA_SIZE}))
    for number in range(3):
        for disk in work.rng.sample(["vm-os", "vm-lun0", "vm-lun3"], 2):
            work.run(work.write(disk))
        work.run(work.capture("vm", f"snap{number}"))
    work.run(work.capture("vm", "clean", generalize=True))
    work.run(work.create_vm("clone", "clean"))
    work.run(work.write("clone-lun3"))
    work.run(work.capture("clone", "second"))


def deletes(work: Workload) -> None:
    """Images, VMs and disks come and go."""
    first = work.os_disk()
    work.run(work.upload("one", first))
    work.run(work.upload("two", work.os_disk(first), "qcow2", {1: work.data_disk()}))
    work.run(work.create_vm("vm", "two"))
    work.run(work.create_disk("spare"))
    work.run(work.delete_image("one"))
    work.run(work.delete_disk("spare"))
    work.run(work.delete_image("two"))  # its VM goes on
    work.run(work.write("vm-os"))
    work.run(work.capture("vm", "three"))
    work.run(work.delete_vm("vm"))
    work.run(work.upload("one", first, "vhdx"))  # chunks that nothing needed are needed again
    work.run(work.delete_image("three"))
    work.run(work.create_disk("spare"), work.delete_image("one"))
    work.run(work.delete_disk("spare"))


def together(work: Workload) -> None:
    """Commands at the same time in one installation."""
    first = work.os_disk()
    work.run(work.upload("one", first), work.upload("two", work.os_disk(first), "qcow2"))
    work.run(work.create_vm("vm", "one"), work.upload("three", work.os_disk(first)))
    work.run(work.write("vm-os"))
    work.run(work.capture("vm", "snap"), work.delete_image("two"))
    work.run(work.delete_image("one"), work.upload("four", work.os_disk(first), "vmdk"))
    work.run(work.delete_vm("vm"), work.delete_image("three"), work.upload("five", first))


def prunes(work: Workload) -> None:
    """Images are deleted and their chunks pruned, alone and beside uploads and captures."""
    first, second = work.os_disk(), work.os_disk()
    work.run(work.upload("one", first))
    work.run(work.upload("two", work.os_disk(first)))
    work.run(work.upload("three", second, data={0: work.data_disk()}))
    work.run(work.delete_image("one"))  # half of its pack lives on in "two"
    work.run(work.prune())
    work.run(work.prune())
    work.run(work.create_vm("vm", "two"))
    work.run(work.delete_image("three"))
    work.run(work.prune())  # condemns what the next upload needs again
    work.run(work.prune(), work.upload("four", second, "qcow2"))
    work.run(work.write("vm-os"))
    work.run(work.capture("vm", "snap"), work.prune())
    work.run(work.delete_vm("vm"), work.delete_image("two"))
    work.run(work.prune())
    work.run(work.prune(), work.delete_image("snap"))
    work.run(work.upload("one", first))
    work.run(work.delete_image("four"))
    work.run(work.prune())
    work.run(work.prune())
    work.run(work.prune(), work.upload("two", second, "vmdk"))
    work.run(work.prune())


SESSIONS: Mapping[str, Callable[[Workload], None]] = {
    one.__name__: one for one in (uploads, captures, deletes, together, prunes)
}


def record(
    name: str,
    recorder: Recorder,
    home: Path,
    room: Path,
    seed: int,
    weakness: str | None = None,
) -> Workload:
    """Run a session while the disk is recorded; ``room`` gets ``after.raw`` and ``session.json``."""
    work = Workload(recorder, home, room, seed, weakness)
    after = work.data_disk()
    after.path.rename(room / "after.raw")
    SESSIONS[name](work)
    story = {
        "session": name,
        "seed": seed,
        "commit": _commit(),
        "after": after.fingerprint,
        "commands": work.commands,
    }
    (room / "session.json").write_text(json.dumps(story, indent=1) + "\n")
    return work


def _commit() -> str:
    """The version of the code that is tried, so that a report can say it."""
    done = subprocess.run(
        ["git", "-C", TREE, "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
