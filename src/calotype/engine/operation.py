"""Operations: work that either reaches the catalogue or leaves nothing.

A command that makes or deletes files holds an :class:`Operation`. It writes down ("claims") each VM or disk
whose files it is about to make or remove; the row in the catalogue is the commit point. When the operation
ends, in whatever way, the files of claims that the catalogue does not know are removed. A command that was
killed could not do so: the next operation finds its lock free and does it for it.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

from calotype.config import Home

Kind = Literal["vm", "disk"]

#: Removes the files of a claim; called only when the catalogue does not know it.
Discard = Callable[[Kind, str], None]
#: Says whether the catalogue knows a claim.
Known = Callable[[Kind, str], bool]


@dataclass(frozen=True, slots=True)
class Operation:
    """One command's work in progress; ``directory`` is its scratch space."""

    directory: Path

    def claim(self, kind: Kind, identifier: str) -> None:
        """Write down that this operation makes or removes the files of a resource (durably)."""
        with (self.directory / "claims").open("a") as claims:
            claims.write(f"{kind} {identifier}\n")
            claims.flush()
            os.fsync(claims.fileno())


@contextmanager
def operation(home: Home, *, known: Known, discard: Discard) -> Iterator[Operation]:
    """Hold an operation; first finish those whose command was killed."""
    with _locked(home.tmp / "operations.lock"):
        for leftover in sorted(home.tmp.glob("op-*")):
            _finish_if_dead(leftover, known, discard)
        directory = home.tmp / f"op-{uuid4()}"
        directory.mkdir(mode=0o700)
        lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield Operation(directory)
    finally:
        try:
            _finish(directory, known, discard)
        finally:
            os.close(lock)


@contextmanager
def lock(home: Home, name: str) -> Iterator[None]:
    """Hold a named lock against every other command of this installation."""
    with _locked(home.tmp / f"{name}.lock"):
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _finish_if_dead(directory: Path, known: Known, discard: Discard) -> None:
    try:
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # killed between mkdir and the lock: nothing was claimed yet
        shutil.rmtree(directory, ignore_errors=True)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _finish(directory, known, discard)
    except BlockingIOError:
        pass  # its command is alive
    finally:
        os.close(descriptor)


def _finish(directory: Path, known: Known, discard: Discard) -> None:
    try:
        lines = (directory / "claims").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        word, _, identifier = line.partition(" ")
        kind: Kind = "vm" if word == "vm" else "disk"
        if identifier and not known(kind, identifier):
            discard(kind, identifier)
    shutil.rmtree(directory, ignore_errors=True)
