"""Root file systems laid out as distributions lay them out: real paths, real forms of their contents.

They are *laid out*, not installed: no package manager ran, and none of them boots. They show what the
steps find and remove in the places of each family.
"""

from pathlib import Path

from tests.roots.alma import ALMA
from tests.roots.alpine import ALPINE
from tests.roots.debian import DEBIAN
from tests.roots.layout import Root
from tests.roots.opensuse import OPENSUSE
from tests.roots.ubuntu import UBUNTU
from tests.roots.used import KEPT

__all__ = ["FAMILIES", "KEPT", "STATES", "Root", "build", "lay_out"]

FAMILIES = {
    "debian": DEBIAN,
    "ubuntu": UBUNTU,
    "alma": ALMA,
    "opensuse": OPENSUSE,
    "alpine": ALPINE,
}
#: ``fresh``: as a cloud image is published. ``used``: provisioned, logged in to, worked on.
STATES = ("fresh", "used")


def lay_out(family: str, state: str) -> Root:
    """The tree of a family in a state."""
    root = Root()
    FAMILIES[family].fresh(root)
    if state == "used":
        FAMILIES[family].used(root)
    return root


def build(family: str, state: str, path: Path, size: int = 32 << 20) -> tuple[str, ...]:
    """Write an ext4 file system (no partition table) of a family in a state.

    Returns:
        The canaries in it: strings that must not be found in the raw bytes after generalizing. None
        are in a fresh one. :data:`KEPT` are those of applications, which stay in a used one.
    """
    root = lay_out(family, state)
    root.ext4(path, size)
    return tuple(root.gone)
