"""What an installation holds, and whether that is what it had acknowledged.

A state is a mapping: ``image/NAME``, ``disk/NAME``, ``vm/NAME`` to a fingerprint of every byte of it. The
workload writes down what each command was to change and when it was acknowledged; after a power cut the
installation is observed and must hold all that, and of unfinished commands either all or nothing.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from calotype import wire
from calotype.config import Home
from calotype.disk.base import Disk
from calotype.disk.overlay import OverlayDisk
from calotype.engine import images, machines, storage
from calotype.engine.context import Context
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.machines import seed_path
from calotype.engine.proof.keys import private_key
from calotype.engine.sources import Upload
from calotype.errors import CalotypeError
from calotype.model import OsState

State = dict[str, str]
ANY = "*"  # a guest was writing: every content is right
ABSENT = ""
_WINDOW = 1 << 20
_BLOCK = 4096


class Fingerprint:
    """Of a disk's size and all its blocks that are not zero, whatever the format."""

    def __init__(self, size: int) -> None:
        self._hash = blake3(size.to_bytes(8, "little"))

    def add(self, offset: int, data: bytes | memoryview) -> None:
        """Add what stands at ``offset`` (a multiple of 4096), in ascending order."""
        whole = bytes(data).ljust(-(-len(data) // _BLOCK) * _BLOCK, b"\0")
        words = np.frombuffer(whole, dtype="<u8").reshape(-1, _BLOCK // 8)
        full = np.flatnonzero(words.any(axis=1))
        named = np.empty((len(full), 1 + _BLOCK // 8), dtype="<u8")
        named[:, 0] = offset + full * _BLOCK
        named[:, 1:] = words[full]
        self._hash.update(named.tobytes())

    def text(self) -> str:
        """The fingerprint."""
        return self._hash.hexdigest()[:24]


def of_file(path: Path) -> str:
    """The fingerprint of a raw file."""
    size = path.stat().st_size
    result = Fingerprint(size)
    with path.open("rb") as file:
        for offset in range(0, size, _WINDOW):
            result.add(offset, file.read(_WINDOW))
    return result.text()


def of_disk(disk: Disk) -> str:
    """The fingerprint of a disk; what it says is zero is not read."""
    result = Fingerprint(disk.size)
    buffer = memoryview(bytearray(_WINDOW))
    for number in _windows(disk):
        start = number * _WINDOW
        part = buffer[: min(_WINDOW, disk.size - start)]
        disk.read_into(start, part)
        result.add(start, part)
    return result.text()


def _windows(disk: Disk) -> Iterator[int]:
    done = -1
    for extent in disk.extents():
        if extent.zero:
            continue
        for number in range(max(done + 1, extent.offset // _WINDOW), -(-extent.end // _WINDOW)):
            yield number
            done = number


# -- what was acknowledged


@dataclass
class Ledger:
    """What the marks up to some entry of a log say. Feed it marks in order."""

    results: Mapping[int, State]  # by command: what it had changed in the end
    state: State = field(default_factory=dict)  # acknowledged
    running: dict[int, dict[str, Any]] = field(default_factory=dict)  # begun commands, by number
    kind: str = "none"  # of the work that the present writes belong to

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> "Ledger":
        """An empty ledger for a log with these events."""
        return cls({e["command"]: e["changes"] for e in events if e["event"] == "done"})

    def feed(self, event: dict[str, Any]) -> None:
        """Take in the next mark."""
        self.kind = event["kind"]
        if event["event"] == "begin":
            self.running[event["command"]] = event
            return
        del self.running[event["command"]]
        self.state.update(event["changes"])

    def allowed(self) -> dict[str, set[str]]:
        """What each resource may be after a power cut now."""
        result = {key: {value} for key, value in self.state.items()}
        for number, event in self.running.items():
            for key, value in event["changes"].items():
                new = self.results.get(number, {}).get(key, ANY)
                result.setdefault(key, {ABSENT}).update({value, new} if value == ANY else {new})
        return result


# -- what is there


@contextmanager
def opened(home: Path) -> Iterator[Context]:
    """The installation as the next command opens it."""
    context = wire.build(home=Home(home))
    try:
        yield context
    finally:
        context.close()


class Observer:
    """Reads every byte of what the catalogue names, and collects what is wrong by itself."""

    def __init__(self, context: Context, *, read_data: bool = True) -> None:
        """With ``read_data`` also what nothing names is read from the store."""
        self._context = context
        self._read_data = read_data
        self._indexes: dict[str, str] = {}  # fingerprints
        self._leftovers: set[str] = set()  # in the store
        self.problems: list[str] = []

    def observe(self) -> State:
        """The present state."""
        catalog, state = self._context.catalog, State()
        for image in catalog.list_images():
            disks = [self._index(disk.index) for disk in image.disks]
            state[f"image/{image.name}"] = ",".join(disks)
        for disk in catalog.list_disks():
            state[f"disk/{disk.name}"] = self._said(lambda d=disk: self._overlay(d))
        for vm in catalog.list_vms():
            state[f"vm/{vm.name}"] = of_vm(self._context.vm_path(vm.id))
        self._store()
        self._bases()
        return state

    def _said(self, look: Any) -> str:
        try:
            return str(look())
        except (CalotypeError, OSError) as error:
            return f"cannot be read: {error}"

    def _index(self, index: str) -> str:
        def look() -> str:
            with closing(self._context.repository.open(index)) as disk:
                return of_disk(disk)

        if index not in self._indexes:
            self._indexes[index] = self._said(look)
        return self._indexes[index]

    def _overlay(self, disk: Any) -> str:
        base = self._context.repository.open(disk.index) if disk.index else None
        with closing(OverlayDisk(self._context.disk_path(disk.file), base)) as overlay:
            return of_disk(overlay)

    def _store(self) -> None:
        report = self._context.repository.check(read_data=self._read_data)
        self._leftovers = set(report.leftovers)
        self.problems += [f"{damage.key}: {damage.problem}" for damage in report.damage]
        missing = self._context.catalog.indexes_in_use() - set(self._context.repository.indexes())
        self.problems += [f"indexes/{index}: missing" for index in sorted(missing)]

    def _bases(self) -> None:
        """A base is there whole or not at all."""
        in_use = self._context.catalog.indexes_in_use()
        for path in sorted(self._context.home.bases.glob("*.raw")):
            if path.stem in in_use and of_file(path) != self._index(path.stem):
                self.problems.append(f"bases/{path.name}: differs from its Index")

    def left_over(self) -> list[str]:
        """What no operation holds and the catalogue does not know, or misses (of what was observed)."""
        home, catalog = self._context.home, self._context.catalog
        vms, disks = catalog.list_vms(), catalog.list_disks()
        expected: dict[str, tuple[set[str], set[str]]] = {
            "tmp": (set(), {path.name for path in home.tmp.glob("op-*")}),
            "vms": ({vm.id for vm in vms}, {path.name for path in home.vms.iterdir()}),
            "disks": ({disk.file for disk in disks}, {path.stem for path in home.disks.iterdir()}),
            "store": (set(), self._leftovers),
        }
        return [
            f"{place}/: {json.dumps(sorted(found ^ right))}"
            for place, (right, found) in expected.items()
            if found != right
        ]


def of_vm(directory: Path) -> str:
    """The fingerprint of a VM's directory: its seed, and the key that opens such a VM."""
    seed = seed_path(directory)
    if not seed.exists():
        return "no seed" if directory.is_dir() else "no directory"
    key = private_key(Home(directory.parents[1]))
    content = seed.read_bytes() + (key.read_bytes() if key.exists() else b"no key")
    return hashlib.sha256(content).hexdigest()[:24]


def judge(home: Path, ledger: Ledger, *, read_data: bool) -> list[str]:
    """Open an installation after a power cut; everything in it that is wrong."""
    with opened(home) as context:
        observer = Observer(context, read_data=read_data)
        present = observer.observe()
    allowed = ledger.allowed()
    wrong = [
        f"{key}: {present.get(key, ABSENT) or 'absent'}, not {' or '.join(sorted(rights))!r}"
        for key, rights in sorted(allowed.items())
        if ANY not in rights and present.get(key, ABSENT) not in rights
    ]
    wrong += [f"{key}: nobody made it" for key in sorted(present.keys() - allowed.keys())]
    return wrong + observer.problems


def converge(home: Path, ledger: Ledger, source: Path, fingerprint: str) -> list[str]:
    """Go on to work after a power cut: what was under way again, a fresh upload, nothing left over."""
    wrong = []
    with opened(home) as context:
        machines.create_disk(context, "after", 1 << 20)  # every operation clears up first
        machines.delete_disk(context, "after")
        _repeat_uploads(context, ledger)
        request = ImageRequest(name="after", os_state=OsState.SPECIALIZED)
        import_image(context, request, Upload(location=str(source)), {})
        observer = Observer(context)
        if observer.observe()["image/after"] != fingerprint:
            wrong.append("image/after: an upload after the power cut is not whole")
        images.delete(context, "after")
        wrong += observer.left_over()
        if not storage.check(context).ok:
            wrong.append("store check fails after going on")
    return wrong


def _repeat_uploads(context: Context, ledger: Ledger) -> None:
    for event in ledger.running.values():
        if upload := event.get("upload"):
            request = ImageRequest(name=upload["name"], os_state=OsState.SPECIALIZED)
            data = {int(lun): Upload(location=path) for lun, path in upload["data"].items()}
            import_image(context, request, Upload(location=upload["source"]), data)
