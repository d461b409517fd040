"""The names under which the machine logs in to storage: iSCSI's initiator, NVMe's host."""

from calotype.guest.guest import Guest, Tree, glob, lines
from calotype.guest.steps.step import Concern, SysprepStep

_INITIATOR = "/etc/iscsi/initiatorname.iscsi"
#: Tells Debian's open-iscsi to make a name at its next start; others make one where the file is missing.
_MAKE_ONE = b"GenerateName=yes\n"
_NVME = ("/etc/nvme/hostnqn", "/etc/nvme/hostid")


def perform(guest: Guest) -> None:
    """Forget the names."""
    if _initiators(guest) and guest.stat("/var/lib/dpkg") is not None:
        guest.write(_INITIATOR, _MAKE_ONE)
    elif _initiators(guest):
        guest.remove(_INITIATOR)
    for path in _NVME:
        guest.remove(path)


def check(guest: Tree) -> list[str]:
    """Names that are set."""
    left = [f"{_INITIATOR} says {name}" for name in _initiators(guest)]
    return left + [f"{path} is there" for pattern in _NVME for path in glob(guest, pattern)]


def _initiators(guest: Tree) -> list[str]:
    return [line for line in lines(guest, _INITIATOR) if line.startswith("InitiatorName=")]


STEP = SysprepStep(
    name="storage-identity",
    heading="Names for iSCSI and NVMe storage",
    order=520,
    concern=Concern.IDENTITY,
    perform=perform,
    check=check,
)
