"""Brings a catalogue to the newest schema. Only loaded when one is not there yet."""

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine


def configuration() -> Config:
    """Alembic's settings; the migrations are part of the package."""
    config = Config()
    config.set_main_option("script_location", "calotype.catalog:migrations")
    config.set_main_option("path_separator", "os")
    return config


def upgrade(engine: Engine) -> None:
    """Run the missing migrations; SQLite's write lock lets one process do it at a time."""
    config = configuration()
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
