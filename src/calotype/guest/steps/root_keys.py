"""Root's own keys, the keys that open its account, and the hosts that it knows."""

from calotype.guest.guest import Guest, Tree, walk
from calotype.guest.steps.step import Concern, SysprepStep

_DIRECTORY = "/root/.ssh"


def perform(guest: Guest) -> None:
    """Remove the directory."""
    guest.remove(_DIRECTORY)


def check(guest: Tree) -> list[str]:
    """Files in it that hold something: images are published with empty ones."""
    found = guest.stat(_DIRECTORY)
    if found is not None and not found.is_dir:
        return [f"{_DIRECTORY} is no directory"]
    files = walk(guest, _DIRECTORY)
    return [f"{path} is there" for path, inner in files if not inner.is_dir and inner.size]


STEP = SysprepStep(
    name="root-keys",
    heading="Root's SSH keys and known hosts",
    order=155,
    concern=Concern.CREDENTIAL,
    perform=perform,
    check=check,
)
