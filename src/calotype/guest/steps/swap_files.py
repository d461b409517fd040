"""What was swapped out: the pages in swap files, not the files themselves."""

from collections.abc import Iterator

from calotype.guest.fstab import fstab
from calotype.guest.guest import Guest, Tree
from calotype.guest.steps.step import Concern, SysprepStep

#: A swap space's first page says what it is.
PAGE = 4096
_SIGNATURE = b"SWAPSPACE2"


def perform(guest: Guest) -> None:
    """Overwrite the pages."""
    for path, keep in list(_swap_files(guest)):
        if not guest.is_blank(path, keep):
            guest.blank(path, keep)


def check(guest: Tree) -> list[str]:
    """Swap files that hold something."""
    left = [path for path, keep in _swap_files(guest) if not guest.is_blank(path, keep)]
    return [f"{path} holds swapped pages" for path in left]


def _swap_files(guest: Tree) -> Iterator[tuple[str, int]]:
    """(path, bytes to keep) of each: of one that was never made a swap file, nothing is kept."""
    named = {"/swapfile", "/swap.img", "/swap", "/var/swap", "/var/swapfile", "/swapfile.sys"}
    named |= {
        entry.spec for entry in fstab(guest) if entry.type == "swap" and entry.spec[:1] == "/"
    }
    for path in sorted(named):
        found = guest.stat(path)
        if found is not None and found.is_file:
            signed = (guest.read(path, PAGE) or b"").endswith(_SIGNATURE)
            yield path, PAGE if signed else 0


STEP = SysprepStep(
    name="swap-files",
    heading="Contents of swap files",
    order=460,
    concern=Concern.TRACE,
    perform=perform,
    check=check,
)
