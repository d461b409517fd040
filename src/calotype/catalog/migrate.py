"""Brings a catalogue to the newest schema. Only loaded when one is not there yet."""

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine

from calotype.errors import InvalidInput


def configuration() -> Config:
    """Alembic's settings; the migrations are part of the package."""
    config = Config()
    config.set_main_option("script_location", "calotype.catalog:migrations")
    config.set_main_option("path_separator", "os")
    return config


def upgrade(engine: Engine) -> None:
    """Run the missing migrations; SQLite's write lock lets one process do it at a time.

    Raises:
        InvalidInput: the catalogue is at a migration that this version does not know.
    """
    config = configuration()
    with engine.connect() as connection:
        # A table that is made anew is dropped in between, and its children's rows must stay.
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise InvalidInput(
                f"the catalogue was written by a newer version of Calotype: {error}",
                hint="use that version",
            ) from error
        connection.commit()
        connection.exec_driver_sql("PRAGMA foreign_keys = ON")
