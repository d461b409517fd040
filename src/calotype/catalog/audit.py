"""The audit: acts that somebody must answer for, in a chain that shows when one is changed or gone.

Each entry's digest covers the entry and the digest before it. Nothing here changes or deletes a row. Who
owns the file can still write a new chain, or cut its end off: that shows against a head that was noted
elsewhere, as every evidence report does.
"""

import hashlib
import json
import os
import pwd
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, select

from calotype.catalog.part import Part
from calotype.catalog.tables import audit
from calotype.errors import CalotypeError, InvalidInput

#: What the first entry has for the digest before it.
GENESIS = "0" * 64
#: The option of a connection that says which principal its transactions work for.
PRINCIPAL = "calotype_principal"
_ACTION = 64  # characters


@dataclass(frozen=True, slots=True)
class Act:
    """Something to record: such as ``Act("image.force", "image web", {"reason": "…"})``.

    ``detail`` holds texts, whole numbers, truth values, ``None``, and lists and mappings of them.
    ``actor`` is who this process works for, unless it is said.
    """

    action: str
    resource: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    actor: str | None = None


class Head(NamedTuple):
    """The newest entry: its number, and the digest of it and all before."""

    number: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A row of the audit."""

    number: int
    at: datetime
    actor: str
    action: str
    resource: str
    detail: Mapping[str, Any]
    previous: str
    digest: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The first place where the chain does not hold."""

    number: int
    problem: str


def append(db: Connection, act: Act) -> Head:
    """Add an entry in an open transaction that holds the write lock: with what it records, or not at all.

    Raises:
        InvalidInput: the detail is not plain JSON.
    """
    if not 0 < len(act.action) <= _ACTION:
        raise InvalidInput(f"{act.action!r} cannot name an act")
    number, previous = _head(db)
    row = {
        "number": number + 1,
        "at": datetime.now(UTC),
        "actor": _encodable(act.actor or current_actor(db.get_execution_options().get(PRINCIPAL))),
        "action": act.action,
        "resource": _encodable(act.resource),
        "detail": _plain(act.detail),
        "previous": previous,
    }
    digest = _digest(row)
    db.execute(insert(audit), {**row, "digest": digest})
    return Head(number + 1, digest)


class Audit(Part):
    """The audit of a catalogue."""

    def append(self, act: Act) -> Head:
        """Add an entry in a transaction of its own (see :func:`append`); everybody's acts are recorded."""
        with self._write() as db:
            return append(db, act)

    def head(self) -> Head | None:
        """The newest entry's number and digest; None when there is none."""
        with self._read() as db:
            head = _head(db)
        return head if head.number else None

    def list(self, limit: int = 100, *, before: int | None = None) -> list[Entry]:
        """The newest ``limit`` entries (with a number below ``before``), newest first.

        Raises:
            Forbidden: the caller is not the installation's owner, whose acts are in it too.
        """
        self._access.require_all("read the audit")
        query = select(audit).order_by(audit.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(audit.c.number < before)
        with self._read() as db:
            try:
                return [Entry(**row) for row in db.execute(query).mappings()]
            except (ValueError, TypeError) as error:
                raise CalotypeError(
                    "an entry of the audit cannot be read", hint="calotype audit verify says which"
                ) from error

    def verify(self, *, against: Head | None = None) -> Broken | None:
        """The first place where the chain does not hold; None when all of it does.

        Args:
            against: a head that was noted earlier, elsewhere: it must be in the chain.

        Raises:
            Forbidden: the caller is not the installation's owner.
        """
        self._access.require_all("verify the audit")
        expected = Head(0, GENESIS)
        with self._read() as db:
            rows = db.execute(select(audit).order_by(audit.c.number)).mappings()
            try:
                for row in rows:
                    if (problem := _problem(dict(row), expected)) is not None:
                        return Broken(expected.number + 1, problem)
                    expected = Head(row["number"], row["digest"])
                    if against and against.number == expected.number and against != expected:
                        return Broken(against.number, "it is not the one that was noted elsewhere")
            except (ValueError, TypeError):  # what stands there is no time, or no JSON
                return Broken(expected.number + 1, "it cannot be read")
        if against and against.number > expected.number:
            return Broken(expected.number + 1, f"the entries up to {against.number} are gone")
        return None


def current_actor(principal: str | None = None) -> str:
    """Who this process works for: the principal, if there is one, and always its user of the system.

    The user by name and number, and who became that by sudo.
    """
    uid = os.getuid()
    name = ""
    with suppress(KeyError):
        name = pwd.getpwuid(uid).pw_name
    actor = f"{name or 'unknown'} ({uid})"
    if uid == 0 and (before := os.environ.get("SUDO_USER")):
        actor += f", by sudo from {before} ({os.environ.get('SUDO_UID', '?')})"
    return actor if principal is None else f"{principal} through {actor}"


def _head(db: Connection) -> Head:
    query = select(audit.c.number, audit.c.digest).order_by(audit.c.number.desc()).limit(1)
    row = db.execute(query).first()
    return Head(0, GENESIS) if row is None else Head(row.number, row.digest)


def _problem(row: Mapping[str, Any], before: Head) -> str | None:
    if row["number"] != before.number + 1:
        return f"it is gone: entry {row['number']} follows"
    if row["previous"] != before.digest:
        return "it does not follow the entry before it"
    if row["digest"] != _digest(row):
        return "it was changed"
    return None


def _digest(row: Mapping[str, Any]) -> str:
    """SHA-256 of the entry in one spelling; ``previous`` makes it a chain."""
    at: datetime = row["at"]
    told = [
        row["number"],
        at.astimezone(UTC).isoformat(timespec="microseconds"),
        row["actor"],
        row["action"],
        row["resource"],
        row["detail"],
        row["previous"],
    ]
    text = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _encodable(text: str) -> str:
    """The text with halves of characters (bytes of names that are no UTF-8) written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _plain(value: Any) -> Any:
    """The value as the database gives it back, or a refusal of what would come back otherwise."""
    if isinstance(value, str):
        return _encodable(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise InvalidInput("the detail of an act has a key that is no text")
        return {_encodable(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise InvalidInput(f"the detail of an act cannot hold {type(value).__name__}")
