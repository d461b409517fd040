"""The used machine: a Debian guest provisioned, worked with, planted with canaries and shut down."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.images import image
from bench.leaks import plan
from bench.leaks.canaries import HOST, Canary, File, Group, Taken, filled, planted, word
from bench.leaks.guest import Room
from bench.leaks.search import search

from calotype.machine.seed import Provisioning, hash_password

#: What a server has besides the recipe.
_TABLE = {
    "archives": "today",
    "packages": [
        *("rsyslog", "systemd-coredump", "exim4-daemon-light", "bsd-mailx"),
        *("at", "git", "nginx-light"),
    ],
}


@dataclass(frozen=True, slots=True)
class Used:
    """The disk (read-only), the canaries that it holds, and where its root file system begins."""

    disk: Path
    canaries: tuple[Canary, ...]
    root: int
    missing: tuple[str, ...] = ()  # planted, but not found: nothing is said of them

    @property
    def needles(self) -> dict[str, tuple[bytes, ...]]:
        """What to search for."""
        return {canary.name: canary.needles for canary in self.canaries}


def used(work: Path) -> Used:
    """The used machine, made where ``work`` has none."""
    home = work / "used"
    manifest = home / "manifest.json"
    if not current(manifest):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        base = image("used", _TABLE).path
        disk = home / "disk.raw"
        copy(base, disk)
        _live(Room(work / "vm"), disk)
        _record(base, disk, manifest)
        disk.chmod(0o444)
    return load(manifest)


def current(manifest: Path) -> bool:
    """Whether it is there and records what would be planted today."""
    try:
        return bool(json.loads(manifest.read_text())["plan"] == _plan())
    except (OSError, ValueError, KeyError):
        return False


def _plan() -> str:
    sources = (Path(__file__).with_name(name) for name in ("plan.py", "canaries.py"))
    content = b"".join(source.read_bytes() for source in sources)
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def load(manifest: Path) -> Used:
    """What was recorded."""
    record = json.loads(manifest.read_text())
    canaries = (
        Canary(
            kind=c["kind"],
            group=Group(c["group"]),
            name=c["name"],
            path=c["path"],
            needles=tuple(bytes.fromhex(n) for n in c["needles"]),
        )
        for c in record["canaries"]
    )
    disk = manifest.with_name("disk.raw")
    return Used(disk, tuple(canaries), record["root"], tuple(record["missing"]))


def save(found: Used, manifest: Path) -> None:
    """Record it."""
    record = {
        "plan": _plan(),
        "root": found.root,
        "missing": found.missing,
        "canaries": [
            {
                "kind": c.kind,
                "group": c.group.value,
                "name": c.name,
                "path": c.path,
                "needles": [n.hex() for n in c.needles],
            }
            for c in found.canaries
        ],
    }
    manifest.write_text(json.dumps(record, indent=1) + "\n")


def copy(source: Path, target: Path) -> None:
    """A sparse copy that can be written."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, target], check=True)
    target.chmod(0o600)


def root_offset(disk: Path) -> int:
    """Where a disk's first partition begins, in bytes; 0 without a table."""
    done = subprocess.run(["sgdisk", "-i", "1", disk], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("First sector:")]
    return int(lines[0].split()[2]) * 512 if lines else 0


def read_file(disk: Path, root: int, path: str) -> bytes:
    """A file of the root file system, by debugfs."""
    argv = ["debugfs", "-R", f"cat {path}", f"{disk}?offset={root}"]
    return subprocess.run(argv, capture_output=True, check=True).stdout


def _live(room: Room, disk: Path) -> None:
    who = Provisioning(
        instance_id=word("instance-id"),
        hostname=HOST,
        admin_user="alice",
        ssh_keys=[room.public_key],
        password_hash=hash_password("correct-horse-4"),
        custom_data=plan.USER_DATA.encode(),
    )
    with room.boot(disk, "used", who) as vm:
        vm.root("cloud-init status --wait > /dev/null; true")
        vm.root(plan.FIRST)
        for deed in plan.DEEDS:
            if deed.by == "root":
                vm.root(filled(deed))
        vm.root("\n".join(written(file) for file in plan.FILES))
        for deed in plan.DEEDS:
            if deed.by == "alice":
                vm.as_user("alice", filled(deed))
            elif deed.by == "alice, typing":
                vm.typed("alice", filled(deed))
        vm.root("journalctl --sync; sync")


def written(file: File) -> str:
    """A shell command that writes a file."""
    quoted = filled(file).replace("\\", "\\\\").replace("'", "'\\''").replace("%", "%%")
    made = f"mkdir -p '{Path(file.path).parent}' && printf -- '{quoted}' > '{file.path}'"
    if file.owner == "root":
        return made
    home = f"/home/{file.owner}"
    return f"{made} && chown -R {file.owner}: {home}"


def _record(base: Path, disk: Path, manifest: Path) -> None:
    """Take what the guest made itself; then only what is on the disk, and not in the image, counts."""
    root = root_offset(disk)
    canaries = [
        *plan.NAMES,
        *(planted(file) for file in plan.FILES),
        *(planted(deed) for deed in plan.DEEDS),
        *(_taken(disk, root, taken) for taken in plan.TAKEN),
    ]
    needles = {canary.name: canary.needles for canary in canaries}
    before = {hit.name for hit in search(base, needles)}
    if before:
        raise SystemExit(f"not only on the used machine: {sorted(before)}")
    there = {hit.name for hit in search(disk, needles)}
    kept = tuple(canary for canary in canaries if canary.name in there)
    save(Used(disk, kept, root, tuple(sorted(set(needles) - there))), manifest)


def _taken(disk: Path, root: int, taken: Taken) -> Canary:
    path = taken.path.partition(" ")[0]
    needles = extract(read_file(disk, root, path), taken)
    return Canary(
        kind=taken.kind, group=taken.group, name=taken.path, path=path, needles=tuple(needles)
    )


def extract(content: bytes, taken: Taken) -> Iterable[bytes]:
    """The byte strings that stand for a file's content."""
    if not taken.find:
        middle = len(content) // 2
        return [content[max(0, middle - 16) : middle + 16]]
    found = re.search(taken.find, content)
    if found is None:
        raise SystemExit(f"{taken.path} is not as it was expected")
    text = found[found.lastindex or 0].strip()
    return [text, bytes.fromhex(text.decode())] if taken.also == "hex" else [text]
