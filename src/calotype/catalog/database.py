"""The SQLite file: opened, brought to the newest schema, and its transactions."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError

from calotype.catalog.audit import PRINCIPAL
from calotype.errors import CalotypeError, Conflict, InvalidInput

#: The newest migration; a test holds it against the migrations' own list.
HEAD = "0005"


class Database:
    """A catalogue's file; safe for several processes at once."""

    def __init__(self, path: Path) -> None:
        """Open the file at ``path``; create or migrate it when needed.

        Raises:
            CalotypeError: it cannot be opened, is damaged, or was written by a newer version.
        """
        self.path = path
        if not path.exists():
            path.touch(mode=0o600)  # SQLite's other files take its mode
        self.engine = make_engine(path)
        with self._in_words():
            if _revision(path) != HEAD:
                from calotype.catalog.migrate import upgrade  # noqa: PLC0415 (Alembic takes long to load)

                upgrade(self.engine)

    def close(self) -> None:
        """Give back the connections."""
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that reads: all its statements see one state."""
        with self._in_words(), self.engine.connect() as db:
            db.exec_driver_sql("BEGIN")
            yield db

    @contextmanager
    def write(self, principal: str | None) -> Iterator[Connection]:
        """A transaction that writes, for a principal; what it reads nobody changes until it ends."""
        with self._in_words(), self.engine.connect() as db:
            db.execution_options(**{PRINCIPAL: principal})
            db.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield db
            except IntegrityError as error:
                db.rollback()
                raise Conflict(
                    f"the catalogue refuses: {error.orig}",
                    hint="another command may have been first: look, and run this one again",
                ) from error
            except BaseException:
                db.rollback()
                raise
            db.commit()

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """What SQLite refuses (a full disk, a file of another user, a damaged one), as our error."""
        try:
            yield
        except (DBAPIError, sqlite3.Error) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise CalotypeError(
                f"the catalogue {self.path} cannot be used: {reason}",
                hint="check that there is room, and that the file is yours and whole",
            ) from error
        except (UnicodeEncodeError, OverflowError) as error:
            raise InvalidInput(
                f"the catalogue cannot hold that value: {error}",
                hint="texts are UTF-8, and numbers below 2^63",
            ) from error


def make_engine(path: Path) -> Engine:
    """SQLAlchemy's engine for a file, as every connection of ours is configured."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),  # whatever characters the path has
        connect_args={"timeout": 60, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # an acknowledged row survives power loss
        connection.execute("PRAGMA foreign_keys = ON")
        # A checkpoint syncs twice more: one in about two hundred writers pays for it, not one in fifty.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")  # pages: 16 MiB of log
        # A page of 100 versions among a million touches more than the 2 MiB that SQLite keeps by itself.
        connection.execute("PRAGMA cache_size = -16384")  # KiB

    return engine


def _revision(path: Path) -> str | None:
    """The migration that the file is at, found without Alembic."""
    connection = sqlite3.connect(path, timeout=60)
    try:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError:
        return None
    finally:
        connection.close()
    return row[0] if row else None
