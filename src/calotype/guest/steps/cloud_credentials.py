"""Credentials of clouds in the homes of accounts that stay, root's first."""

from collections.abc import Iterator

from calotype.guest.accounts import homes
from calotype.guest.guest import Guest, Tree, glob, join
from calotype.guest.steps.step import Concern, SysprepStep, tells

_PATTERNS = (
    ".aws",
    ".azure",
    ".config/gcloud",
    ".config/doctl",
    ".config/hcloud",
    ".config/openstack",
    ".oci",
    ".aliyun",
    ".bluemix",
    ".boto",
    ".gsutil",
    ".s3cfg",
)


def perform(guest: Guest) -> None:
    """Remove them."""
    for path in list(_credentials(guest)):
        guest.remove(path)


def check(guest: Tree) -> list[str]:
    """Those that are there."""
    return [f"{path} is there" for path in _credentials(guest) if tells(guest, path)]


def _credentials(guest: Tree) -> Iterator[str]:
    for home in (*homes(guest), "/etc/skel"):
        for pattern in _PATTERNS:
            yield from glob(guest, join(home, pattern))


STEP = SysprepStep(
    name="cloud-credentials",
    heading="Credentials of clouds of root and of system accounts",
    order=170,
    concern=Concern.CREDENTIAL,
    perform=perform,
    check=check,
)
