"""The installation's own SSH key pair, for VMs made without one."""

from pathlib import Path

from calotype.config import Home
from calotype.engine.operation import lock
from calotype.run import run


def private_key(home: Home) -> Path:
    """Where the private key is (or will be)."""
    return home.keys / "id_ed25519"


def ensure(home: Home) -> str:
    """The public key; the pair is made when it is not there."""
    key = private_key(home)
    public = key.with_name(key.name + ".pub")
    with lock(home, "keys"):
        if not public.exists():
            key.unlink(missing_ok=True)  # a pair that was half made is of no use
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "calotype", "-f", str(key)])
        return public.read_text().strip()
