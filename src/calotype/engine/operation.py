"""Operations: work that either reaches the catalogue or leaves nothing.

A command that makes or deletes files holds an :class:`Operation`. It writes down ("claims") each VM or disk
whose files it is about to make or remove; the row in the catalogue is the commit point. When the operation
ends, in whatever way, the files of claims that the catalogue does not know are removed. A command that was
killed could not do so: the next operation finds its lock free and does it for it.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

from calotype.config import Home
from calotype.errors import TimedOut

#: A ``capture`` is what a capture leaves in the process of a running VM; it is never known.
Kind = Literal["vm", "disk", "capture"]
_KINDS: Mapping[str, Kind] = {"vm": "vm", "disk": "disk", "capture": "capture"}

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
        self.claim_all([(kind, identifier)])

    def claim_all(self, resources: Iterable[tuple[Kind, str]]) -> None:
        """Write down several at once."""
        with (self.directory / "claims").open("a") as claims:
            claims.writelines(f"{kind} {identifier}\n" for kind, identifier in resources)
            claims.flush()
            os.fsync(claims.fileno())


@contextmanager
def operation(home: Home, *, known: Known, discard: Discard) -> Iterator[Operation]:
    """Hold an operation; first finish those whose command was killed."""
    with _locked(home.tmp / "operations.lock"):
        for leftover in sorted(home.tmp.glob("op-*")):
            if not _lives(leftover):
                _finish(leftover, known, discard)
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
def quiet(home: Home) -> Iterator[bool]:
    """Let no operation begin; says whether none is under way."""
    with _locked(home.tmp / "operations.lock"):
        yield not any(_lives(directory) for directory in home.tmp.glob("op-*"))


@contextmanager
def lock(home: Home, name: str, *, patience: float | None = None) -> Iterator[None]:
    """Hold a named lock against every other command of this installation.

    Raises:
        TimedOut: another command held it for ``patience`` seconds (``None``: wait for ever).
    """
    with _locked(home.tmp / f"{name}.lock", patience):
        yield


@contextmanager
def _locked(path: Path, patience: float | None = None) -> Iterator[None]:
    descriptor = _acquire(path, patience)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock falls, so that it is ours
        os.close(descriptor)


def _acquire(path: Path, patience: float | None) -> int:
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _flock(descriptor, patience)
            if os.fstat(descriptor).st_nlink:  # else its last holder removed it while we waited
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int, patience: float | None) -> None:
    if patience is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimedOut("another command holds the lock") from None
            time.sleep(0.05)  # flock has no time-out of its own
        else:
            return


def _lives(directory: Path) -> bool:
    """Whether the command of an operation lives."""
    try:
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _finish(directory: Path, known: Known, discard: Discard) -> None:
    try:
        lines = (directory / "claims").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        word, _, identifier = line.partition(" ")
        kind = _KINDS.get(word)
        if kind and identifier and not known(kind, identifier):
            discard(kind, identifier)
    shutil.rmtree(directory, ignore_errors=True)
