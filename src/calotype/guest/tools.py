"""e2fsprogs, each run in a sandbox that sees one open file and nothing else of the host."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from calotype import run
from calotype.errors import GuestError

#: For a check or an edit of a whole file system that a stranger made.
LIMITS = replace(run.HOSTILE, wall=600.0, cpu=600, memory=4 << 30)

_CHECK_FIXED = 3  # bits of e2fsck's status that tell of success


def on_file(
    argv: Sequence[str],
    path: Path,
    *,
    data: bytes | None = None,
    files: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program with the file at ``path`` as its last argument.

    Args:
        argv: the program and its other arguments.
        path: the file, which the program gets as an open descriptor.
        data: its standard input.
        files: what else it may read: path in the sandbox to path on the host.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return run.run(
            [*argv, f"/proc/self/fd/{fd}"],
            sandbox=run.Sandbox(read_only=files or {}),
            limits=LIMITS,
            data=data,
            pass_fds=(fd,),
            check=False,
        )
    finally:
        os.close(fd)


def repair(path: Path, *, directories: bool = False) -> None:
    """Replay the journal and mend what can be mended without a question.

    Args:
        path: a file that holds one ext4 file system.
        directories: also write every directory anew, which drops the names that were removed.

    Raises:
        GuestError: the file system needs more than that.
    """
    flags = ["-D"] if directories else []
    done = on_file(["e2fsck", "-f", "-p", *flags], path)
    if done.returncode & ~_CHECK_FIXED:
        raise GuestError(
            f"the guest's file system is damaged: {_last_lines(done)}",
            hint="repair it in the VM (fsck at boot), then capture again",
        )


def verify(path: Path) -> str:
    """Check a file system without changing it; e2fsck's closing line.

    Raises:
        GuestError: it is not clean.
    """
    done = on_file(["e2fsck", "-f", "-n"], path)
    if done.returncode != 0:
        raise GuestError(f"the file system is not clean: {_last_lines(done)}")
    return done.stdout.decode("utf-8", "replace").strip().splitlines()[-1].partition(": ")[2]


def _last_lines(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"its check ended by signal {-done.returncode}"
    text = done.stdout.decode("utf-8", "replace").strip().splitlines()
    return " / ".join(text[-3:]) or f"status {done.returncode}"
