"""Bases: the read-only raw file of an Index that all its VMs on this host share."""

from pathlib import Path

from calotype.disk.draft import fsync_directory
from calotype.engine.context import Context


def ensure(context: Context, index: str, scratch: Path) -> Path:
    """The base of ``index``; made from the store when it is not there yet.

    Two commands that want the same base wait for one that makes it. A base appears under its name only
    whole, on disk, and read-only.
    """
    path = context.base_path(index)
    if path.exists():
        return path
    with context.lock(f"base-{index}"):
        if not path.exists():
            new = scratch / f"{index}.raw"
            context.repository.materialize(index, new, progress=context.progress)
            new.chmod(0o444)
            new.rename(path)
            fsync_directory(path.parent)
    return path
