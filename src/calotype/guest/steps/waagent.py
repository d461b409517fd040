"""What the Azure Linux Agent keeps of the machine; ``provisioned`` names the VM that it was."""

from collections.abc import Iterator

from calotype.guest.guest import Guest, Tree, glob, is_dir, join, strays, text
from calotype.guest.steps.step import Concern, SysprepStep

_EMPTY = ("/var/lib/waagent", "/var/log/azure", "/var/lib/hyperv", "/var/db/hyperv/pool")
_LOGS = ("/var/log/waagent.log*", "/etc/waagent.conf.bak")
#: Its files, by name: the directory may be a link, whose target is not emptied as a whole.
_STATE = ("ovf-env.xml*", "provisioned", "*.pem", "*.prv", "*.crt", "*.p7m", "*.xml", "*.json")
_PROVISIONED = "/var/lib/waagent/provisioned"


def perform(guest: Guest) -> None:
    """Remove all of it; the agent's configuration stays."""
    for path in list(_logs(guest)):
        guest.remove(path)
    for path in _EMPTY:
        if is_dir(guest, path) and guest.list(path):
            guest.truncate(path)


def check(guest: Tree) -> list[str]:
    """What is there, first of all the VM that was provisioned."""
    left = []
    if guest.stat(_PROVISIONED) is not None:
        left.append(f"{_PROVISIONED} names the VM {text(guest, _PROVISIONED).strip()[:64]}")
    full = (path for path in _EMPTY if is_dir(guest, path) and guest.list(path))
    left += [f"{path} is not empty" for path in full]
    return left + [f"{path} is there" for path in _logs(guest)]


def _logs(guest: Tree) -> Iterator[str]:
    for pattern in _LOGS:
        yield from glob(guest, pattern)
    if not is_dir(guest, _EMPTY[0]) and not strays(guest, _EMPTY[0]):
        for name in _STATE:
            yield from glob(guest, join(_EMPTY[0], name))


STEP = SysprepStep(
    name="waagent",
    heading="The Azure Linux Agent's state and Hyper-V's key-value pools",
    order=320,
    concern=Concern.IDENTITY,
    perform=perform,
    check=check,
)
