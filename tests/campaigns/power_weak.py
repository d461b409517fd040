"""``calotype`` with one of its promises broken: does the campaign notice?"""

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine, event

from calotype.catalog import database
from calotype.cli import main


def _fsync_unless(kind: Callable[[int], bool]) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if not kind(os.fstat(fd).st_mode):
            real(fd)

    os.fsync = fsync  # type: ignore[assignment] # a weaker one, on purpose


def no_file_fsync() -> None:
    """Files are never synced (directories and the catalogue are)."""
    _fsync_unless(stat.S_ISREG)


def no_directory_fsync() -> None:
    """Directories are never synced."""
    _fsync_unless(stat.S_ISDIR)


def no_catalogue_sync() -> None:
    """The catalogue is never synced."""
    real = database.make_engine

    def engine(path: Path) -> Engine:
        made = real(path)
        event.listen(made, "connect", lambda db, _: db.execute("PRAGMA synchronous = OFF"))
        return made

    database.make_engine = engine


def no_sync() -> None:
    """Nothing is ever synced."""
    no_file_fsync()
    no_directory_fsync()
    no_catalogue_sync()


WEAKNESSES = {
    one.__name__: one for one in (no_file_fsync, no_directory_fsync, no_catalogue_sync, no_sync)
}

if __name__ == "__main__":
    WEAKNESSES[sys.argv.pop(1)]()
    main()
