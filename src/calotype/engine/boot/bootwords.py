"""Why a guest does not answer: the usual causes, by what it printed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: Escape sequences of terminals, and other control characters but line ends and tabs.
_CONTROL = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b.|[\x00-\x08\x0b-\x1f\x7f]")

#: As much of the line that shows a cause as is repeated.
_SHOWN = 120


@dataclass(frozen=True, slots=True)
class Cause:
    """A cause, and the words that show it. After a ``final`` one nothing more will come."""

    pattern: re.Pattern[str]
    words: str
    final: bool = False


def _cause(pattern: str, words: str, *, final: bool = False) -> Cause:
    return Cause(re.compile(pattern), words, final)


#: The first that fits is named: the particular before the general.
_CAUSES = (
    _cause(r"Unable to mount root fs", "the kernel found no root file system", final=True),
    _cause(
        r"CPU does not support x86-64-v\d", "it wants a newer processor than the VM has", final=True
    ),
    _cause(
        r"Kernel panic - not syncing: .*(out of memory|OOM)|System is deadlocked on memory",
        "it ran out of memory",
        final=True,
    ),
    _cause(r"Kernel panic - not syncing", "the kernel panicked", final=True),
    _cause(
        r"Gave up waiting for (root|suspend/resume)|ALERT! .* does not exist|"
        r"dracut-initqueue.*timeout|Cannot find root device|mounting .* on (/root|/sysroot) failed",
        "the initial RAM disk found no root file system",
    ),
    _cause(
        r"(?m)^\(initramfs\)|initramfs emergency|dracut:/#",
        "it stands in the initial RAM disk's shell",
        final=True,
    ),
    _cause(
        r"You are in (emergency|rescue) mode|Give root password for maintenance|"
        r"Press Enter for maintenance|sulogin: ",
        "it stands in an emergency shell",
        final=True,
    ),
    _cause(r"(?m)^grub( rescue)?>", "the boot loader does not find its files", final=True),
    _cause(
        r"No bootable device|not a bootable disk|Boot failed: could not read",
        "the firmware (BIOS) found nothing to start on its OS disk",
        final=True,
    ),
    _cause(
        r"(?m)UEFI Interactive Shell|^Shell> |BdsDxe: No bootable option",
        "the firmware (UEFI) found nothing to start on its OS disk",
        final=True,
    ),
    _cause(
        r"DataSourceNone|[Nn]o (instance )?datasource found|Used fallback datasource|"
        r"cloud-init.*disabled",
        "cloud-init found no datasource, so nobody provisioned it",
    ),
    _cause(
        r"Failed to start .*([Nn]etwork|DHCP)|No (DHCPOFFERS|working leases)|udhcpc: no lease|"
        r"ci-info: \|\s*(eth|en)\S+\s*\|\s*False",
        "it has no network",
    ),
    _cause(r"error: (unknown filesystem|no such partition)", "the boot loader misses files"),
    _cause(r"Out of memory: Kill", "it ran out of memory"),
    _cause(r"A start job is running for", "a service of it does not end its start"),
    _cause(
        r"login: *$|login:", "it reached its login prompt, but neither an agent nor SSH answers"
    ),
)


def lines(log: bytes, count: int = 12) -> tuple[str, ...]:
    """The last ``count`` lines of a log that say something, without control characters."""
    text = _CONTROL.sub("", log.decode("utf-8", "replace").replace("\r", "\n"))
    return tuple([line.rstrip()[:200] for line in text.split("\n") if line.strip()][-count:])


def hopeless(log: bytes, screen: Sequence[str]) -> bool:
    """Whether a guest's start has ended, and nothing more will come."""
    text = _text(log, screen)
    return any(known.final and known.pattern.search(text) for known in _CAUSES)


def cause(log: bytes, screen: Sequence[str]) -> str:
    """The likeliest cause that a guest does not answer, with the line that shows it."""
    text = _text(log, screen)
    for known in _CAUSES:
        if found := known.pattern.search(text):
            line = text[text.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0]
            return f"{known.words} ({line.strip()[:_SHOWN]})"
    if not log.strip():
        return "it printed nothing on its serial port (its kernel may lack console=ttyS0)"
    return "it was still starting"


def _text(log: bytes, screen: Sequence[str]) -> str:
    return "\n".join([*lines(log, 400), *screen])
