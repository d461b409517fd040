"""The installation's own SSH key pair, for VMs made without one."""

import os
from pathlib import Path

from calotype.config import Home
from calotype.disk.durable import fsync_directory
from calotype.engine.operation import lock
from calotype.run import run


def private_key(home: Home) -> Path:
    """Where the private key is (or will be)."""
    return home.keys / "id_ed25519"


def ensure(home: Home) -> str:
    """The public key; the pair is made, durably, when it is not there."""
    key = private_key(home)
    public = key.with_name(key.name + ".pub")
    with lock(home, "keys"):
        if (
            not public.exists()
        ):  # it gets its name last: without it, a pair is half made and of no use
            new = key.with_name("new")
            new.unlink(missing_ok=True)
            new.with_name("new.pub").unlink(missing_ok=True)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "calotype", "-f", str(new)])
            _name(new, key)
            _name(new.with_name("new.pub"), public)
        return public.read_text().strip()


def _name(path: Path, target: Path) -> None:
    """Make a file's bytes durable, and then its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.rename(target)
    fsync_directory(target.parent)
