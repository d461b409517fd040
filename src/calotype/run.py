"""The only door to subprocesses: argument lists, a sandbox, limits, a wall clock.

A command runs as given, or inside a :class:`Sandbox` built by bubblewrap: no network, its own process
table, no home, nothing of the host but ``/usr`` and the files it was given by name. If no sandbox can be
built, a command that asked for one is refused (fail closed).
"""

import contextlib
import functools
import logging
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from calotype.errors import TimedOut, ToolFailed, ToolMissing

log = logging.getLogger("calotype.run")

#: The Debian package that carries each program we call; used by error hints and ``calotype doctor``.
PACKAGES: Mapping[str, str] = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "qemu-storage-daemon": "qemu-utils",
    "bwrap": "bubblewrap",
    "prlimit": "util-linux",
    "setpriv": "util-linux",
    "setsid": "util-linux",
    "openssl": "openssl",
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mke2fs": "e2fsprogs",
    "zerofree": "zerofree",
    "sgdisk": "gdisk",
    "mkfs.fat": "dosfstools",
    "mcopy": "mtools",
    "mmd": "mtools",
    "grub-mkimage": "grub-common",
    "mmdebstrap": "mmdebstrap",
    "depmod": "kmod",
    "unshare": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "ssh-keyscan": "openssh-client",
    "fusermount3": "fuse3",
    "xz": "xz-utils",
    "gpgv": "gpgv",
}

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a command may use; ``None`` lifts a limit. Sizes in bytes, times in seconds."""

    wall: float | None = 120.0
    cpu: int | None = None
    memory: int | None = None  # address space
    file_size: int | None = None
    open_files: int | None = None

    def argv(self) -> list[str]:
        """The ``prlimit`` prefix that sets these limits (empty when there are none)."""
        flags = {
            "--cpu": self.cpu,
            "--as": self.memory,
            "--fsize": self.file_size,
            "--nofile": self.open_files,
        }
        args = [f"{flag}={value}" for flag, value in flags.items() if value is not None]
        return [which("prlimit"), *args, "--"] if args else []


#: For programs that read a stranger's disk image.
HOSTILE = Limits(wall=120.0, cpu=120, memory=1 << 30, open_files=64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sandbox:
    """What a command sees: paths inside the sandbox, mapped to paths on the host.

    ``uid``: as root, drop to this user and group before the command starts (without it the command keeps
    uid 0 but no capability). As an ordinary user it is ignored: a user namespace already holds.
    ``capabilities`` are kept, for the ordinary user as root of that namespace. ``environment`` lets the
    command see the environment that it is given, instead of an empty one.
    """

    read_only: Mapping[str, str] = field(default_factory=dict)
    read_write: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[str] = ()
    capabilities: Sequence[str] = ()
    network: bool = False
    environment: bool = False
    die_with_parent: bool = True
    uid: int | None = None
    groups: Sequence[int] = ()  # kept with ``uid``; none else
    chdir: str = "/"

    def argv(self) -> list[str]:
        """The ``bwrap`` prefix (and ``setpriv``'s) that builds this sandbox."""
        root = os.geteuid() == 0
        args = [which("bwrap"), "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
        args += ["--unshare-cgroup-try", "--new-session"]
        args += [] if self.environment else ["--clearenv"]
        args += ["--setenv", "PATH", _SYSTEM_PATH, "--setenv", "LC_ALL", "C.UTF-8"]
        if not root:
            args += ["--unshare-user"]
        args += self._keep(root=root)
        if not self.network:
            args += ["--unshare-net"]
        if self.die_with_parent:
            args += ["--die-with-parent"]
        args += ["--ro-bind", "/usr", "/usr"]
        for link in ("bin", "sbin", "lib", "lib64"):
            args += ["--symlink", f"usr/{link}", f"/{link}"]
        args += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
        for device in self.devices:
            args += ["--dev-bind", device, device]
        for inside, host in self.read_write.items():
            args += ["--bind", host, inside]
        for inside, host in self.read_only.items():
            args += ["--ro-bind", host, inside]
        args += ["--chdir", self.chdir]
        if root and self.uid is not None:
            for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
                args += ["--cap-add", capability]
            drop = [which("setpriv"), f"--reuid={self.uid}", f"--regid={self.uid}"]
            drop += [
                f"--groups={','.join(map(str, self.groups))}" if self.groups else "--clear-groups",
                "--no-new-privs",
                "--inh-caps=-all",
                "--bounding-set=-all",
                "--",
            ]
            return [*args, "--", *drop]
        return [*args, "--"]

    def _keep(self, *, root: bool) -> list[str]:
        """The ``bwrap`` arguments that keep ``capabilities``."""
        become_root = ["--uid", "0", "--gid", "0"] if self.capabilities and not root else []
        return [*become_root, *(f for c in self.capabilities for f in ("--cap-add", c))]


@functools.cache
def which(program: str) -> str:
    """The full path of ``program``.

    Raises:
        ToolMissing: with the Debian package to install as the hint.
    """
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")
    if found is None:
        package = PACKAGES.get(program)
        hint = f"install it: apt-get install {package}" if package else None
        raise ToolMissing(f"{program} is not installed on this machine", hint=hint)
    return found


def command(argv: Sequence[str], *, sandbox: Sandbox | None = None, limits: Limits) -> list[str]:
    """The whole argument list: sandbox, limits, program."""
    program = argv[0] if argv[0].startswith("/") else which(argv[0])
    prefix = sandbox.argv() if sandbox else []
    full = [*prefix, *limits.argv(), program, *argv[1:]]
    log.info("%s", shlex.join(full))
    return full


def run(
    argv: Sequence[str],
    *,
    sandbox: Sandbox | None = None,
    limits: Limits | None = None,
    data: bytes | None = None,
    stdout: IO[bytes] | int = subprocess.PIPE,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end, and return what it printed (bytes).

    On a time-out, Ctrl-C or any other exception the command's whole process group is killed.

    Raises:
        ToolMissing: the program, or the sandbox it asked for, is not on this machine.
        ToolFailed: it ended with an error and ``check`` is set.
        TimedOut: it ran longer than ``limits.wall``.
    """
    limits = limits or Limits()
    with spawn(
        argv,
        sandbox=sandbox,
        limits=limits,
        stdin=subprocess.PIPE if data is not None else subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=env,
        pass_fds=pass_fds,
    ) as process:
        try:
            out, err = process.communicate(data, timeout=limits.wall)
        except subprocess.TimeoutExpired:
            kill_group(process)
            process.communicate()
            raise TimedOut(f"{argv[0]} did not end within {limits.wall:g} s") from None
        except BaseException:
            kill_group(process)
            raise
    done = subprocess.CompletedProcess(list(argv), process.returncode, out or b"", err or b"")
    if check and done.returncode != 0:
        raise ToolFailed(f"{argv[0]} failed ({_ending(done)})")
    return done


def spawn(
    argv: Sequence[str],
    *,
    sandbox: Sandbox | None = None,
    limits: Limits | None = None,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own and return at once; the caller looks after it.

    ``limits.wall`` is not watched here. A sandboxed command outlives the caller only when its sandbox
    says ``die_with_parent=False``.
    """
    return subprocess.Popen(
        command(argv, sandbox=sandbox, limits=limits or Limits(wall=None)),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=dict(env) if env is not None else None,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a command that :func:`spawn` started, and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _ending(done: subprocess.CompletedProcess[bytes]) -> str:
    last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-3:]
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    return f"{how}: {' / '.join(last)}" if last else how
