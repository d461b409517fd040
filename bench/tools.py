"""Calotype and its peers behind one interface: put a disk into a store, get it back.

Every tool works with local files on one file system. Peers run with their own defaults for chunking; what
differs is said in ``note``. No tool is given a cache of what it saw before (restic ``--force``, borg
``--files-cache=disabled``), since a disk image that changed is a file that changed.
"""

import os
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench import glance
from bench.measure import Command

OURS = Path(__file__).with_name("ours.py")


class Tool(Protocol):
    """One way to keep disk images."""

    @property
    def name(self) -> str:
        """What it is called in the tables."""

    @property
    def program(self) -> str:
        """The program that its version depends on; empty for Python's own."""

    @property
    def note(self) -> str:
        """What a reader has to know to compare."""

    @property
    def installed(self) -> bool:
        """Whether it can be measured here."""

    def open(self, room: Path) -> None:
        """Make an empty store in ``room``; not measured."""

    def put(self, room: Path, image: Path, name: str) -> Command:
        """Store a raw disk under a name."""

    def get(self, room: Path, name: str, image: Path, out: Path) -> Command:
        """Write the disk that was stored under a name (from the file ``image``) to a raw file."""

    def kept(self, room: Path) -> Path:
        """The file or directory that counts as stored."""

    def close(self) -> None:
        """End what ``open`` started."""


@dataclass(kw_only=True)
class _Tool:
    name: str
    note: str
    program: str = ""

    @property
    def installed(self) -> bool:
        """Whether its program is there."""
        return not self.program or shutil.which(self.program) is not None

    def open(self, room: Path) -> None:
        """Nothing to make."""

    def kept(self, room: Path) -> Path:
        """Everything."""
        return room / "store"

    def close(self) -> None:
        """Nothing to end."""


def ours(work: str, *args: Path | str) -> Command:
    """One work of Calotype's store."""
    return Command(argv=[sys.executable, str(OURS), work, *map(str, args)])


def facts(room: Path, name: str) -> Path:
    """Where Calotype's ``put`` keeps what it did, as JSON."""
    return room / f"{name}.json"


@dataclass(kw_only=True)
class Calotype(_Tool):
    """The store."""

    name: str = "calotype"
    note: str = "dedup, keyed BLAKE3, zstd; syncs what it acknowledges"

    def put(self, room: Path, image: Path, name: str) -> Command:
        """Ingest."""
        return ours("put", room / "store", image, facts(room, name))

    def get(self, room: Path, name: str, image: Path, out: Path) -> Command:
        """Materialize."""
        del image
        return ours("get", room / "store", facts(room, name), out)


@dataclass(kw_only=True)
class CalotypeCommand(_Tool):
    """The whole command line: catalogue, gate, inspection of the guest, SHA-256 of the upload."""

    name: str = "calotype, whole command"
    note: str = "`image create`, `image export`: gate, inspection, catalogue, ledger"

    def put(self, room: Path, image: Path, name: str) -> Command:
        """``image create``."""
        argv = [str(Path(sys.executable).with_name("calotype")), "image", "create", name]
        argv += ["--source", str(image), "--format", "raw", "--quiet"]
        return Command(argv=argv, env=self._home(room))

    def get(self, room: Path, name: str, image: Path, out: Path) -> Command:
        """``image export``."""
        del image
        argv = [str(Path(sys.executable).with_name("calotype")), "image", "export", name]
        argv += ["--format", "raw", str(out), "--quiet"]
        return Command(argv=argv, env=self._home(room))

    @staticmethod
    def _home(room: Path) -> dict[str, str]:
        return {"CALOTYPE_HOME": str(room / "store")}


@dataclass(kw_only=True)
class Restic(_Tool):
    """restic; it always encrypts."""

    name: str = "restic"
    note: str = (
        "dedup by content (1 MiB), SHA-256, zstd, always encrypts; syncs its packs; out by `restic dump` "
        "and dd, since `restore` of 0.14 writes the holes too"
    )
    program: str = "restic"
    compression: str = "auto"

    def env(self, room: Path) -> dict[str, str]:
        """The repository and its password."""
        return {
            "RESTIC_PASSWORD": "bench",
            "RESTIC_REPOSITORY": str(room / "store"),
            "RESTIC_CACHE_DIR": str(room / "restic-cache"),
        }

    def open(self, room: Path) -> None:
        """``restic init``."""
        env = {**os.environ, **self.env(room)}
        subprocess.run(["restic", "init", "-q"], env=env, check=True, stdout=subprocess.DEVNULL)

    def put(self, room: Path, image: Path, name: str) -> Command:
        """Backup, always reading the whole file."""
        argv = ["restic", "backup", "-q", "--force", "--compression", self.compression]
        return Command(argv=[*argv, "--tag", name, str(image)], env=self.env(room))

    def get(self, room: Path, name: str, image: Path, out: Path) -> Command:
        """Through dd, which makes holes: this version's ``restore`` writes all zeros, which is slower."""
        script = (
            'restic dump -q --tag "$1" latest "$2" | dd of="$3" bs=64k conv=sparse iflag=fullblock'
        )
        made = Command.shell(script, name, image, out)
        return Command(argv=made.argv, env=self.env(room))


@dataclass(kw_only=True)
class Borg(_Tool):
    """borg without encryption."""

    name: str = "borg lz4"
    note: str = "dedup by content (2 MiB), no encryption; syncs its segments"
    program: str = "borg"
    compression: str = "lz4"

    @staticmethod
    def env(room: Path) -> dict[str, str]:
        """Its own home, and leave to use a repository without encryption."""
        return {
            "BORG_BASE_DIR": str(room / "borg-home"),
            "BORG_REPO": str(room / "store"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }

    def open(self, room: Path) -> None:
        """``borg init``."""
        env = {**os.environ, **self.env(room)}
        subprocess.run(["borg", "init", "-e", "none"], env=env, check=True, capture_output=True)

    def put(self, room: Path, image: Path, name: str) -> Command:
        """Create an archive."""
        argv = ["borg", "create", "-C", self.compression, "--files-cache=disabled", f"::{name}"]
        return Command(argv=[*argv, str(image)], env=self.env(room))

    def get(self, room: Path, name: str, image: Path, out: Path) -> Command:
        """Extract, with holes."""
        script = (
            'mkdir "$3.d"; cd "$3.d"; borg extract --sparse "::$1"; mv "$3.d$2" "$3"; rm -r "$3.d"'
        )
        made = Command.shell(script, name, image, out)
        return Command(argv=made.argv, env=self.env(room))


@dataclass(kw_only=True)
class Casync(_Tool):
    """casync with a store of chunk files."""

    name: str = "casync"
    note: str = "dedup by content (64 KiB), SHA-512/256, zstd; a file a chunk, does not sync"
    program: str = "casync"

    def put(self, room: Path, image: Path, name: str) -> Command:
        """Make a blob index."""
        argv = ["casync", "make", f"--store={room / 'store' / 'chunks.castr'}"]
        index = room / "store" / f"{name}.caibx"
        return Command(argv=[*argv, str(index), str(image)])

    def open(self, room: Path) -> None:
        """A directory for chunks and indexes."""
        (room / "store").mkdir()

    def get(self, room: Path, name: str, image: Path, out: Path) -> Command:
        """Extract a blob; not seeded by what is there."""
        del image
        argv = [
            "casync",
            "extract",
            f"--store={room / 'store' / 'chunks.castr'}",
            "--seed-output=no",
        ]
        return Command(argv=[*argv, str(room / "store" / f"{name}.caibx"), str(out)])


@dataclass(kw_only=True)
class QemuImg(_Tool):
    """A qcow2 file for each image."""

    note: str = "no hash, no dedup, does not sync"
    program: str = "qemu-img"
    options: tuple[str, ...] = field(default=())

    def open(self, room: Path) -> None:
        """A directory for the files."""
        (room / "store").mkdir()

    def put(self, room: Path, image: Path, name: str) -> Command:
        """Convert from raw."""
        argv = ["qemu-img", "convert", "-f", "raw", str(image), "-O", "qcow2", *self.options]
        return Command(argv=[*argv, str(room / "store" / f"{name}.qcow2")])

    def get(self, room: Path, name: str, image: Path, out: Path) -> Command:
        """Convert to raw."""
        del image
        argv = ["qemu-img", "convert", "-f", "qcow2", str(room / "store" / f"{name}.qcow2")]
        return Command(argv=[*argv, "-O", "raw", str(out)])


@dataclass(kw_only=True)
class Glance(_Tool):
    """Upload and download over HTTP on this machine; the server's CPU and memory count."""

    name: str = "glance, raw"
    note: str = "SHA-512 and MD5, no dedup, no compression, does not sync; sends the holes"
    qcow2: bool = False
    _server: glance.Glance | None = None

    @property
    def installed(self) -> bool:
        """Whether ``make bench-setup`` could install it."""
        return glance.installed()

    def open(self, room: Path) -> None:
        """Start a server of one's own."""
        self._server = glance.Glance(room / "store")

    def put(self, room: Path, image: Path, name: str) -> Command:
        """PUT the file; as qcow2, converted before (the conversion counts)."""
        del room
        server = self._running
        url = self._file(name, create=True)
        put = 'curl -sSf -X PUT -H "Content-Type: application/octet-stream" -T "$source" "$2" >&2'
        if self.qcow2:
            script = (
                'source="$3"; qemu-img convert -f raw "$1" -O qcow2 "$source"; '
                + put
                + '; rm "$source"'
            )
        else:
            script = 'source="$1"; ' + put
        copy = server.images.parent / "staging" / f"{name}.qcow2"
        return Command.shell(script, image, url, copy, servers=(server.pid,))

    def get(self, room: Path, name: str, image: Path, out: Path) -> Command:
        """GET the file; qcow2 is converted to raw."""
        del room, image
        server, url = self._running, self._file(name)
        if not self.qcow2:
            return Command.shell('curl -sSf -o "$2" "$1"', url, out, servers=(server.pid,))
        script = (
            'curl -sSf -o "$2.qcow2" "$1"; qemu-img convert -f qcow2 "$2.qcow2" -O raw "$2"; '
            'rm "$2.qcow2"'
        )
        return Command.shell(script, url, out, servers=(server.pid,))

    def _file(self, name: str, *, create: bool = False) -> str:
        image = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
        if create:
            self._running.create(image, "qcow2" if self.qcow2 else "raw")
        return f"{self._running.url}/{image}/file"

    @property
    def _running(self) -> glance.Glance:
        if self._server is None:
            raise RuntimeError("the server was not started")
        return self._server

    def kept(self, room: Path) -> Path:
        """The stored files."""
        return room / "store" / "images"

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.close()
            self._server = None


def every() -> list[Tool]:
    """All tools, Calotype first."""
    zlib = QemuImg(name="qemu-img -c zlib", options=("-c",))
    zstd = QemuImg(name="qemu-img -c zstd", options=("-c", "-o", "compression_type=zstd"))
    return [
        Calotype(),
        CalotypeCommand(),
        Restic(),
        Restic(name="restic max", compression="max"),
        Borg(),
        Borg(name="borg zstd,1", compression="zstd,1"),
        Casync(),
        QemuImg(name="qemu-img convert"),
        zlib,
        zstd,
        Glance(),
        Glance(name="glance, qcow2", qcow2=True),
    ]


def named(*names: str) -> list[Tool]:
    """The tools of these names that are installed, in this order."""
    by_name = {tool.name: tool for tool in every()}
    return [by_name[name] for name in names if by_name[name].installed]
