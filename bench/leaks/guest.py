"""A virtual machine of the benches: its disk is a raw file, which it writes."""

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.leaks.canaries import MAC

from calotype.errors import CalotypeError
from calotype.machine import Agent, DiskSpec, MachineSpec, QemuDriver, ssh
from calotype.machine.seed import Provisioning, build_seed

_MEMORY = 1 << 30
_USER = 64322  # QEMU's, when we are root
#: Guests are emulated, and the machine may be busy: seconds until one counts as dead.
PATIENCE = 1500.0


class Refused(Exception):
    """A guest did not do what was asked of it."""


@dataclass(frozen=True, slots=True)
class Vm:
    """A running machine."""

    agent: Agent
    directory: Path
    port: int
    key: Path

    def root(self, script: str) -> str:
        """Run a script as root; what it printed.

        Raises:
            Refused: it failed.
        """
        done = self.agent.script(script, timeout=PATIENCE)
        if done.status:
            raise Refused(f"{script}: {done.status}: {done.stderr.decode(errors='replace')[-500:]}")
        return done.stdout.decode(errors="replace")

    def typed(self, user: str, lines: str) -> str:
        """Type lines into a login shell on a terminal over SSH; what the terminal showed.

        Commands that empty the terminal's input (sudo) would swallow the lines after them.
        """
        argv = self._ssh(user, options=("-tt",))
        done = subprocess.run(
            argv,
            input=f"{lines}\nexit\n".encode(),
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode == 255:
            raise Refused(f"ssh {user}: {done.stderr.decode(errors='replace')[-500:]}")
        return done.stdout.decode(errors="replace")

    def as_user(self, user: str, command: str) -> str:
        """Run one command over SSH; what it printed.

        Raises:
            Refused: it failed, or nobody may log in by that name.
        """
        argv = self._ssh(user, command)
        done = subprocess.run(argv, capture_output=True, timeout=PATIENCE, check=False)
        if done.returncode:
            raise Refused(f"ssh {user}: {done.stderr.decode(errors='replace')[-500:]}")
        return done.stdout.decode(errors="replace")

    def _ssh(self, user: str, *command: str, options: tuple[str, ...] = ()) -> list[str]:
        return ssh.command(
            self.directory,
            self.port,
            user=user,
            identity=self.key,
            command=command,
            options=options,
        )


class Room:
    """A directory for machines, one at a time under a name, and the key pair of their people."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._driver = QemuDriver(root / "probe")
        self._key = root / "key"
        root.mkdir(parents=True, exist_ok=True)
        if not self._key.exists():
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f"]
            subprocess.run([*argv, str(self._key)], check=True)

    @property
    def public_key(self) -> str:
        """What a person's ``authorized_keys`` is to hold."""
        return self._key.with_suffix(".pub").read_text().strip()

    @contextlib.contextmanager
    def boot(
        self,
        disk: Path,
        name: str,
        who: Provisioning | None = None,
        *,
        mac: str = MAC,
        patience: float = PATIENCE,
    ) -> Iterator[Vm]:
        """A machine on a disk, up to an answer of its agent; powered off in an orderly way at the end."""
        directory = self.root / name
        directory.mkdir(exist_ok=True)
        (directory / "known_hosts").unlink(missing_ok=True)
        seed = directory / "seed.iso" if who is not None else None
        if who is not None and seed is not None:
            build_seed(seed, who)
        port = ssh.free_port(31000)
        spec = MachineSpec(
            id=str(uuid.uuid4()),
            name=name,
            directory=directory,
            vcpus=1,
            memory=_MEMORY,
            disks=(DiskSpec(id="os", path=disk, size=disk.stat().st_size, fmt="raw"),),
            mac=mac,
            seed=seed,
            forwards=((port, 22),),
            uid=_USER if os.geteuid() == 0 else None,
        )
        self._driver.start(spec)
        try:
            agent = Agent(directory)
            agent.wait(patience)
            yield Vm(agent, directory, port, self._key)
            self._driver.shutdown(directory, PATIENCE)
        except CalotypeError as error:
            raise Refused(f"{name}: {error.message}") from error
        finally:
            self._driver.kill(directory)
            self._driver.release(directory)
