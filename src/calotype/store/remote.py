"""Objects on a server (S3, Azure Blob), through obstore: what both have in common.

One call here is one attempt: :mod:`calotype.store.retry` repeats what may be repeated. An error says what
the server answered in words of ours; the server's own text, which may quote URLs and headers, is not shown.
"""

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import obstore
from blake3 import blake3
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, S3Store

from calotype.errors import CalotypeError, Conflict, InvalidInput, NotFound, StoreUnavailable
from calotype.store.directory import write_all
from calotype.store.objects import (
    Bytes,
    Stored,
    as_buffers,
    check_key,
    missing,
    truncated,
    write_through,
)

if TYPE_CHECKING:  # obstore has these names for type checkers only
    from obstore.store import ClientConfig, RetryConfig

PART = 8 << 20  # bytes of one part of an upload
_PARTS_AT_ONCE = 4
_UPLOADS_AT_ONCE = 2  # with the parts in flight, 64 MiB of memory at most
_ASIDE = "."  # objects whose keys start so are the store's own, and no repository's
_DIGEST = "blake3"  # metadata of an object that was put in one piece

_ERRORS = (BaseError, OSError, ValueError)
_STATUS = re.compile(r"status code: (\d{3})|\(code: (\d{3})\)")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_KIND = re.compile(r"kind: ([A-Z][a-z]+)")
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"}
_PASSING = {  # statuses and codes of refusals that pass
    *("408", "409", "425", "429"),
    *("RequestTimeout", "IncompleteBody", "BadDigest", "NoSuchUpload", "InvalidPart"),
    *("InvalidBlockList", "Md5Mismatch", "XAmzContentSHA256Mismatch"),
}
_WORDS = {"Connect": "cannot be reached", "Timeout": "did not answer in time"}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long one request may take, in seconds."""

    connect: float = 10
    answer: float = 60  # until an answer starts, and between two pieces of it

    def options(self, *, allow_http: bool) -> "ClientConfig":
        """The same as obstore takes it."""
        return {
            "allow_http": allow_http,
            "connect_timeout": timedelta(seconds=self.connect),
            "read_timeout": timedelta(seconds=self.answer),
            "timeout": timedelta(seconds=15 * self.answer),
            "user_agent": "calotype",
        }


# Every request is tried once, except an upload's parts: one lost part should not cost the whole upload.
ONCE: "RetryConfig" = {"max_retries": 0}
PARTS: "RetryConfig" = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=5),
        "base": 2,
    },
}


class Uploads(Protocol):
    """The unfinished uploads that a server keeps for writers that are gone."""

    def find(self) -> Sequence[str]:
        """Their names."""
        ...

    def remove(self) -> Sequence[str]:
        """Drop them, and return their names."""
        ...


@dataclass(frozen=True, slots=True)
class Connection:
    """One server's place for objects. Holds credentials: not to be shown."""

    name: str  # for messages, such as ``s3://bucket/prefix``
    requests: S3Store | AzureStore
    parts: S3Store | AzureStore  # the same place, with the parts of uploads tried more than once
    credentials: str  # where they come from, for a hint
    found: bool  # else obstore asks the machine for a role
    uploads: Uploads | None = None  # None where the server itself drops the unfinished

    def __repr__(self) -> str:
        return f"Connection({self.name})"


class RemoteStore:
    """Objects on a server; several threads and processes may use it at once."""

    def __init__(
        self, connection: Connection, *, spool: Path | None = None, part: int = PART
    ) -> None:
        """Keep objects at ``connection``; ``spool`` is the directory for packs on their way there."""
        self._at = connection
        self._spool = spool or Path(os.environ.get("TMPDIR") or "/var/tmp")
        self._part = part
        self._uploading = threading.BoundedSemaphore(_UPLOADS_AT_ONCE)

    def get(self, key: str) -> bytes:
        """The whole object; one that does not match its checksum is asked for twice."""
        check_key(key)
        data, right = self._get(key)
        # What is wrong both times is wrong at rest: whoever reads it has checksums of its own.
        return data if right else self._get(key)[0]

    def _get(self, key: str) -> tuple[bytes, bool]:
        with self._asking(key):
            answer = obstore.get(self._at.requests, key)
            data = bytes(answer.bytes())
            if len(data) != answer.meta["size"]:
                raise self._cut_short(key)
            digest = answer.attributes.get(_DIGEST)
        return data, digest is None or digest == blake3(data).hexdigest()

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes of an object."""
        check_key(key)
        if offset < 0 or length < 0:
            raise truncated(key, offset + length)
        data = b""
        if length:
            with contextlib.suppress(_BeyondEnd), self._asking(key):
                data = bytes(obstore.get_range(self._at.requests, key, start=offset, length=length))
            if len(data) == length:
                return data
        if self.size(key) < offset + length:
            raise truncated(key, offset + length)
        if length:
            raise self._cut_short(key)
        return data

    def size(self, key: str) -> int:
        """The object's size in bytes."""
        check_key(key)
        with self._asking(key):
            return obstore.head(self._at.requests, key)["size"]

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """The objects whose keys start with ``prefix``, sorted by key."""
        # obstore's prefixes are directories; ours are strings.
        directory = prefix.rpartition("/")[0]
        found: list[Stored] = []
        with self._asking(prefix):
            for batch in obstore.list(self._at.requests, directory or None, chunk_size=1000):
                found += (Stored(meta["path"], meta["size"]) for meta in batch)
        return iter(
            sorted(s for s in found if s.key.startswith(prefix) and not s.key.startswith(_ASIDE))
        )

    def put(self, key: str, data: Bytes | Iterable[Bytes], *, if_absent: bool = False) -> bool:
        """Keep ``data`` as ``key``; with ``if_absent`` all of it is held in memory."""
        check_key(key)
        if if_absent or isinstance(data, bytes | bytearray | memoryview):
            whole = b"".join(as_buffers(data))
            if if_absent or len(whole) <= self._part:
                return self._put(key, whole, if_absent=if_absent)
            data = whole
        write_through(self.writer(), key, as_buffers(data))
        return True

    def _put(self, key: str, whole: bytes, *, if_absent: bool) -> bool:
        with self._asking(key):
            try:
                obstore.put(
                    self._at.requests,
                    key,
                    whole,
                    attributes={_DIGEST: blake3(whole).hexdigest()},
                    mode="create" if if_absent else "overwrite",
                    use_multipart=False,
                )
            except (AlreadyExistsError, PreconditionError) as error:
                if "ConditionalRequestConflict" in str(error):  # S3: of two at once, neither yet
                    raise StoreUnavailable(f"{self._at.name}: two writers of {key} met") from None
                return False
        return True

    def writer(self) -> "RemoteWriter":
        """Start an object whose key is known only at its end; until then it is a local file."""
        return RemoteWriter(self, self._spool)

    def upload(self, key: str, file: BinaryIO) -> None:
        """Send a file, in parts when it is large."""
        check_key(key)
        size = os.fstat(file.fileno()).st_size
        if size <= self._part:
            self._put(key, os.pread(file.fileno(), size, 0), if_absent=False)
            return
        with self._uploading, self._asking(key):
            # The path opens the file once more, from its start, though it has no name.
            obstore.put(
                self._at.parts,
                key,
                Path(f"/proc/self/fd/{file.fileno()}"),
                use_multipart=True,
                chunk_size=self._part,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def delete(self, key: str) -> None:
        """Remove an object."""
        check_key(key)
        with contextlib.suppress(NotFound), self._asking(key):
            obstore.delete(self._at.requests, key)

    def persist(self, prefix: str) -> None:
        """What the server has acknowledged, it keeps."""

    def leftovers(self) -> Sequence[str]:
        """Uploads that were not finished in a day."""
        return self._at.uploads.find() if self._at.uploads else ()

    def sweep(self) -> Sequence[str]:
        """Drop the leftovers, and return their names."""
        return self._at.uploads.remove() if self._at.uploads else ()

    def close(self) -> None:
        """Nothing to release."""

    @contextlib.contextmanager
    def _asking(self, key: str) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            # Its text may hold what nobody should read in a log.
            raise self._translated(error, key) from None

    def _translated(self, error: Exception, key: str) -> CalotypeError:
        text = str(error)
        status, code = _first(_STATUS, text), _first(_CODE, text)
        if code in _NO_BUCKET:
            return InvalidInput(
                f"{self._at.name}: the server has no such bucket or container",
                hint="create it, or correct the store's URL",
            )
        if isinstance(error, FileNotFoundError) and code not in _PASSING:
            return missing(key)
        denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        if denied or status in {"401", "403"}:
            what = "these credentials" if self._at.found else "access, and no credentials are set"
            return InvalidInput(
                f"{self._at.name}: the server refuses {what} ({code or status or 403})",
                hint=f"credentials come from {self._at.credentials}",
            )
        if status == "416":
            return _BeyondEnd(key)
        if "non-partial response" in text:
            return InvalidInput(f"{self._at.name}: the server answers a range with everything")
        said = f"{status} {code or ''}".strip()
        if status.startswith("4") and not {status, code} & _PASSING:
            return InvalidInput(f"{self._at.name}: the server refuses the request ({said})")
        what = f"answered {said}" if status else _WORDS.get(_first(_KIND, text), "broke off")
        return StoreUnavailable(
            f"{self._at.name}: the server {what}",
            hint="check the network and the server, then repeat the command"
            if self._at.found
            else f"no credentials are set; they come from {self._at.credentials}",
        )

    def _cut_short(self, key: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self._at.name}: an answer for {key or 'a listing'} was cut short"
        )


class _BeyondEnd(CalotypeError):
    """A range starts beyond the end of its object."""


class RemoteWriter:
    """An object of a :class:`RemoteStore` that is being written: a file without a name, until commit."""

    def __init__(self, store: RemoteStore, spool: Path) -> None:
        self._store = store
        self._file: BinaryIO | None = tempfile.TemporaryFile(dir=spool, buffering=0)  # noqa: SIM115 (closed by abort)

    def write(self, buffers: Sequence[Bytes]) -> None:
        """Append the buffers."""
        write_all(self._open().fileno(), buffers)

    def commit(self, key: str) -> None:
        """Send it as ``key``. After an error it may be committed again."""
        self._store.upload(key, self._open())
        self.abort()

    def abort(self) -> None:
        """Drop what was written; harmless after a commit."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        if self._file is None:
            raise Conflict("this object is already finished")
        return self._file


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return next(filter(None, found.groups()), "") if found else ""
