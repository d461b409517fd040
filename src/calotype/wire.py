"""The one place that chooses implementations."""

from calotype.config import Home
from calotype.engine.context import Context
from calotype.machine import QemuDriver
from calotype.model import Caller
from calotype.progress import SILENT, Progress


def build(
    *, home: Home | None = None, progress: Progress = SILENT, caller: Caller | None = None
) -> Context:
    """An embedded installation for ``caller`` (its owner): SQLite, a directory, QEMU on this host."""
    home = home or Home.from_environment()
    return Context(home, QemuDriver(home.cache), progress, caller or Caller())
