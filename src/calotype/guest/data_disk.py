"""What a data disk holds of people and of applications. It has no state: no verdict is given on it."""

from dataclasses import dataclass

from calotype.disk.base import Disk
from calotype.errors import GuestError
from calotype.guest.guest import Tree, glob
from calotype.guest.locate import Filesystem, Partition, survey
from calotype.guest.offline import ExtGuest
from calotype.guest.secrets import Secret, secrets

#: What people's homes hold, wherever on a data disk the homes stand.
_OF_PEOPLE = {
    ".ssh/authorized_keys": "keys that open an account",
    ".ssh/id_*": "private SSH key",
    ".*_history": "command history",
    ".aws/credentials": "cloud credentials",
    ".azure/*": "cloud credentials",
    ".config/gcloud/credentials.db": "cloud credentials",
    ".gnupg/private-keys-v1.d/*": "private PGP key",
}
_HOMES = ("/", "/*", "/home/*", "/*/*")
_MOST = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class DataProof:
    """What was found on a data disk.

    ``filesystems`` are (partition number, kind) of all that was recognised, ``people`` and ``secrets``
    have paths that begin with the partition's number (``1:/home/alice/.ssh/id_rsa``), ``notes`` say what
    could not be looked into, and why.
    """

    filesystems: tuple[tuple[int, str], ...] = ()
    people: tuple[Secret, ...] = ()
    secrets: tuple[Secret, ...] = ()
    notes: tuple[str, ...] = ()


def prove_data_disk(disk: Disk) -> DataProof:
    """Look at a data disk; what cannot be looked into is noted, and never an error."""
    found = survey(disk)
    people: list[Secret] = []
    held: list[Secret] = []
    notes: list[str] = []
    for partition in found.partitions:
        if partition.filesystem is None:
            continue
        if partition.filesystem is not Filesystem.EXT:
            notes.append(
                f"partition {partition.number} holds {partition.filesystem}: not looked into"
            )
            continue
        try:
            tree = ExtGuest.on_disk(disk, partition.offset, partition.size)
            people += _named(partition, people_of(tree))
            held += _named(partition, secrets(tree, ("/",)))
            notes += _notes(partition, tree)
        except GuestError as error:
            notes.append(f"partition {partition.number}: {error.message}")
    if not any(partition.filesystem for partition in found.partitions):
        notes.append("no file system was found on it")
    kinds = tuple((p.number, str(p.filesystem)) for p in found.partitions if p.filesystem)
    both = {secret.path for secret in people}
    return DataProof(
        filesystems=kinds,
        people=tuple(people),
        secrets=tuple(secret for secret in held if secret.path not in both),
        notes=tuple(notes),
    )


def people_of(tree: Tree) -> list[Secret]:
    """What belongs to people, in what looks like a home, by path."""
    found: dict[str, str] = {}
    for home in _HOMES:
        for pattern, kind in _OF_PEOPLE.items():
            for path in glob(tree, f"{home.rstrip('/')}/{pattern}"):
                stat = tree.stat(path)
                if stat is not None and stat.is_file and stat.size and not path.endswith(".pub"):
                    found.setdefault(path, kind)
                if len(found) >= _MOST:
                    return [Secret(kind, path) for path, kind in sorted(found.items())]
    return [Secret(kind, path) for path, kind in sorted(found.items())]


def _named(partition: Partition, found: list[Secret]) -> list[Secret]:
    return [Secret(secret.kind, f"{partition.number}:{secret.path}") for secret in found]


def _notes(partition: Partition, tree: ExtGuest) -> list[str]:
    notes = []
    if tree.fs.needs_recovery:
        notes.append(f"partition {partition.number}: its journal was not replayed")
    if tree.stat("/etc/os-release") is not None or tree.stat("/usr/lib/os-release") is not None:
        notes.append(f"partition {partition.number} holds an operating system")
    return notes
