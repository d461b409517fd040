"""The directory of a VM: what lies where, who may write it, and its locks.

    machine.json        the VM as it was started last
    qemu.log            what QEMU printed
    alive               locked for as long as the VM's process lives
    pid                 that process; of no meaning while ``alive`` is not locked
    known_hosts         the guest's SSH host keys
    lock, agent.lock, console.lock
    run/                written by QEMU: sockets, serial.log; the only directory it can write to
    disks/              hard links of the VM's own disks
    base/               hard links of their bases, and the seed; read-only for QEMU

QEMU sees `run`, `disks` and `base` at its root, and `/usr`; no other file of the host. Whatever it
could have written is opened without following links.
"""

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from calotype.errors import Conflict, InvalidInput, NotFound
from calotype.run import Sandbox


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below a VM's directory."""

    root: Path

    @property
    def run(self) -> Path:
        """The directory that QEMU writes to."""
        return self.root / "run"

    @property
    def disks(self) -> Path:
        """The links of the VM's disks."""
        return self.root / "disks"

    @property
    def base(self) -> Path:
        """The links of the disks' bases, and the seed."""
        return self.root / "base"

    @property
    def control(self) -> Path:
        """The monitor for whoever holds the lock."""
        return self.run / "control.sock"

    @property
    def query(self) -> Path:
        """The monitor for short questions."""
        return self.run / "query.sock"

    @property
    def agent(self) -> Path:
        """The guest agent's channel."""
        return self.run / "agent.sock"

    @property
    def serial(self) -> Path:
        """The guest's serial port."""
        return self.run / "serial.sock"

    @property
    def serial_log(self) -> Path:
        """What the guest printed on it."""
        return self.run / "serial.log"

    @property
    def record(self) -> Path:
        """The VM as it was started last."""
        return self.root / "machine.json"

    @property
    def alive(self) -> Path:
        """The file whose lock the VM's process inherits."""
        return self.root / "alive"

    @property
    def pid(self) -> Path:
        """The number of the VM's process."""
        return self.root / "pid"

    @property
    def log(self) -> Path:
        """What QEMU printed."""
        return self.root / "qemu.log"

    def prepare(self) -> None:
        """Create the directories."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.run.mkdir(mode=0o700, exist_ok=True)
        for directory in (self.disks, self.base):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o711)  # the caller's own, whatever its umask; QEMU only passes through

    def sandbox(
        self, uid: int | None, *, devices: tuple[str, ...] = (), groups: tuple[int, ...] = ()
    ) -> Sandbox:
        """What QEMU sees of the host."""
        return Sandbox(
            read_write={"/run": str(self.run), "/disks": str(self.disks)},
            read_only={"/base": str(self.base)},
            devices=devices,
            network=True,  # user networking listens on the host's loopback
            die_with_parent=False,
            uid=uid,
            groups=groups,
            chdir="/run",
        )

    @contextlib.contextmanager
    def lock(self, timeout: float = 10.0, name: str = "lock") -> Iterator[None]:
        """Hold one of the VM's locks; it falls with the process, however that ends.

        Raises:
            NotFound: there is no such directory.
            Conflict: another command held it for ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        try:
            descriptor = os.open(self.root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise NotFound(f"there is no VM in {self.root}") from None
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Conflict(
                            f"another command is working on the VM in {self.root}",
                            hint="wait until it has ended",
                        ) from None
                    time.sleep(0.02)  # flock has no time-out of its own
            yield
        finally:
            os.close(descriptor)


def link(source: Path, target: Path, *, socket: bool = False) -> None:
    """Make ``target`` a hard link of ``source``, in one step; whatever stood there is replaced.

    Raises:
        NotFound: there is no such file.
        InvalidInput: ``source`` is not a regular file (or ``socket``), or lies on another file system.
    """
    try:
        status = source.stat(follow_symlinks=False)
    except FileNotFoundError:
        raise NotFound(f"there is no file {source}") from None
    if not (stat.S_ISSOCK if socket else stat.S_ISREG)(status.st_mode):
        raise InvalidInput(f"{source} is not a {'socket' if socket else 'regular file'}")
    if target.exists() and target.samefile(source):
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary, follow_symlinks=False)
    except OSError as error:
        raise InvalidInput(
            f"{source} cannot be linked into {target.parent}: {error.strerror}",
            hint="keep disks, bases and VMs on one file system that has hard links",
        ) from error
    temporary.replace(target)


def give(path: Path, uid: int | None) -> None:
    """Make ``uid`` the owner of ``path``, when the caller is root."""
    if uid is not None and os.geteuid() == 0:
        os.chown(path, uid, uid, follow_symlinks=False)


def read_guarded(path: Path, limit: int | None = None) -> bytes:
    """The (last ``limit``) bytes of a file that QEMU may have written; no link is followed.

    Raises:
        NotFound: there is no such regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise NotFound(f"there is no file {path}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise NotFound(f"{path} is not a regular file")
    with open(descriptor, "rb") as file:
        if limit is not None:
            file.seek(max(0, status.st_size - limit))
        return file.read(limit if limit is not None else -1)
