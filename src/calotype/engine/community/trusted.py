"""A public tree as far as it can be trusted: its signed metadata, up to date from mirrors, and documents.

What was verified stays in a directory: the next state is held against it, so nobody can go back, and
documents are there without the network. A mirror that shows something that does not hold is passed over; what
was wrong with it is said.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import IO

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from calotype.disk.durable import fsync_directory, write_private
from calotype.engine.community.mirror import HttpMirror
from calotype.errors import CalotypeError, InvalidInput, NotFound, StoreUnavailable, Untrusted
from calotype.public.metadata import METADATA, TARGETS
from calotype.strict import require_shallow

_LIMITS = UpdaterConfig(
    max_root_rotations=64,
    root_max_length=512 << 10,
    timestamp_max_length=16 << 10,
    snapshot_max_length=64 << 10,
    targets_max_length=32 << 20,
)
MAX_ROOT = _LIMITS.root_max_length

_ENDED = (
    "ask the publisher to renew it (calotype community export TARGET --refresh), compare this machine's "
    "clock, or name another mirror"
)
_FALSE = "nothing of it was used; name another mirror, and tell the publisher"


class Tree:
    """One tree: trusted from ``root`` on, kept in ``directory``, read from ``mirrors``."""

    def __init__(self, directory: Path, root: bytes, mirrors: Sequence[HttpMirror]) -> None:
        self._metadata = directory / "metadata"
        self._documents = directory / "targets"
        for path in (self._metadata, self._documents):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root = root
        self._mirrors = list(mirrors)
        self.passed_over: list[str] = []  # mirrors that were not believed or not reached, and why

    def refresh(self) -> None:
        """Bring the metadata up to date, from the first mirror whose state holds.

        Raises:
            Untrusted: no state holds, and at least one mirror shows one that does not.
            StoreUnavailable: no mirror can be reached.
        """
        problems: list[CalotypeError] = []
        for mirror in self._mirrors:
            try:
                self._refresh_from(mirror)
            except (Untrusted, StoreUnavailable) as error:
                problems.append(error)
                self.passed_over.append(error.message)
            else:
                return
        raise _worst(problems)

    def _refresh_from(self, mirror: HttpMirror) -> None:
        try:
            Updater(
                str(self._metadata),
                mirror.url + METADATA,
                fetcher=_Fetcher(mirror),
                config=_LIMITS,
                bootstrap=self._root,
            ).refresh()
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise _refusal(mirror.name, error) from None
        finally:
            self.__dict__.pop("_targets", None)
            _sync(self._metadata)

    @property
    def expires_at(self) -> datetime | None:
        """When what was seen last is to be asked for anew; ``None``: nothing was seen."""
        try:
            found = Metadata[Timestamp].from_file(str(self._metadata / "timestamp.json"))
        except (exceptions.RepositoryError, exceptions.StorageError):
            return None
        return found.signed.expires

    @cached_property
    def _targets(self) -> Targets:
        """The list that :meth:`refresh` has verified and kept."""
        return Metadata[Targets].from_file(str(self._metadata / "targets.json")).signed

    def names(self) -> Sequence[str]:
        """The names of the documents in the newest state."""
        return sorted(self._targets.targets)

    def document(self, name: str, limit: int) -> bytes:
        """A document of the newest state, of ``limit`` bytes at most; kept once it was read.

        Raises:
            NotFound: there is none of that name.
            Untrusted: it is too large, or no mirror sends what is signed.
            StoreUnavailable: no mirror delivers it.
        """
        target = self._targets.targets.get(name)
        digest = target.hashes.get("sha256", "") if target is not None else ""
        if target is None:
            raise NotFound(f"the publisher lists no {name}")
        if len(digest) != 64 or set(digest) - set("0123456789abcdef") or target.length > limit:
            raise Untrusted(f"{name} is listed with a size or digest that cannot be", hint=_FALSE)
        path = self._documents / digest
        with suppress(OSError, exceptions.LengthOrHashMismatchError):
            data = path.read_bytes()
            target.verify_length_and_hashes(data)
            return data
        directory, slash, base = name.rpartition("/")
        where = f"{TARGETS}{directory}{slash}{digest}.{base}"
        problems: list[CalotypeError] = []
        for mirror in list(self._mirrors):
            try:
                data = mirror.get(where, target.length)
                target.verify_length_and_hashes(data)
            except exceptions.LengthOrHashMismatchError:
                problems.append(
                    Untrusted(
                        f"{mirror.name}: it sends another {name} than was signed", hint=_FALSE
                    )
                )
                self._mirrors.remove(mirror)  # who lies once is asked no more
            except CalotypeError as error:
                kind = Untrusted if isinstance(error, Untrusted) else StoreUnavailable
                problems.append(kind(f"{mirror.name}: {error.message}", hint=error.hint or _FALSE))
            else:
                write_private(path, data, durable=False)
                self.passed_over += [problem.message for problem in problems]
                return data
        raise _worst(problems)

    def size(self, names: Iterable[str]) -> int:
        """How large the documents of these names are, in bytes; those that are not listed are nothing."""
        listed = self._targets.targets
        return sum(listed[name].length for name in names if name in listed)

    def sweep(self, names: Iterable[str], digests: Collection[str]) -> None:
        """Remove the documents that have neither one of these names now nor one of these SHA-256."""
        listed = self._targets.targets
        kept = {listed[name].hashes.get("sha256") for name in names if name in listed}
        for path in self._documents.iterdir():
            if path.name not in kept and path.name not in digests:
                path.unlink(missing_ok=True)


class _Fetcher(FetcherInterface):
    """How the library reads from a mirror: bounded in size and time, and never inside our network."""

    def __init__(self, mirror: HttpMirror) -> None:
        self._mirror = mirror

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError(url)

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        try:
            data = self._mirror.get(url.removeprefix(self._mirror.url), max_length)
        except NotFound as error:
            raise exceptions.DownloadHTTPError(error.message, 404) from None
        except Untrusted as error:
            raise exceptions.DownloadLengthMismatchError(error.message) from None
        except CalotypeError as error:
            raise exceptions.DownloadError(error.message) from None
        try:
            require_shallow(data, "it")
        except InvalidInput as error:
            raise DeserializationError(error.message) from None
        yield BytesIO(data)


def _refusal(mirror: str, error: Exception) -> Untrusted | StoreUnavailable:
    """What was wrong, and what to do."""
    match error:
        case exceptions.ExpiredMetadataError():
            return Untrusted(
                f"{mirror} shows a state that has ended ({error}): it holds back the new one, or the "
                "publisher has stopped",
                hint=_ENDED,
            )
        case exceptions.UnsignedMetadataError():
            return Untrusted(
                f"{mirror} shows metadata that the publisher's keys have not signed ({error})",
                hint=f"{_FALSE}: who publishes there has not the keys that you trusted",
            )
        case exceptions.BadVersionNumberError():
            return Untrusted(
                f"{mirror} shows an older state than was seen here, or a mixture of two ({error})",
                hint=_FALSE,
            )
        case exceptions.LengthOrHashMismatchError():
            return Untrusted(
                f"{mirror} mixes states, or has changed something: what it sends is not what was signed "
                f"({error})",
                hint=_FALSE,
            )
        case exceptions.DownloadLengthMismatchError():
            return Untrusted(f"{mirror} sends more than was asked for ({error})", hint=_FALSE)
        case exceptions.DownloadError():
            return StoreUnavailable(
                f"{mirror} does not deliver: {error}",
                hint="try again later, or name another mirror",
            )
        case _:
            return Untrusted(f"{mirror} shows metadata that is none ({error})", hint=_FALSE)


def _worst(problems: Sequence[CalotypeError]) -> CalotypeError:
    """One error for all mirrors; that one lies says more than that one is not there."""
    first = next((p for p in problems if isinstance(p, Untrusted)), None)
    told = "; ".join(problem.message for problem in problems)
    if first is not None:
        return Untrusted(told, hint=first.hint)
    return StoreUnavailable(
        told or "no mirror is known", hint="try again later, or name another mirror"
    )


def _sync(directory: Path) -> None:
    """Make what was written durable: a power cut must not make an older state new."""
    for path in [*directory.glob("*.json"), *directory.glob("root_history/*.json")]:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    for path in (directory, directory / "root_history"):
        if path.is_dir():
            fsync_directory(path)
