"""How two images differ, and what is in one, without booting either.

The store knows which bytes of two disks are the same chunks; a file that lies in the same chunks in both
is equal, and is not read.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

from calotype.engine import references
from calotype.engine.context import Context
from calotype.errors import GuestError
from calotype.guest.diff import GuestDiff, Side, diff
from calotype.guest.manifest import Bools, Runs, Spans
from calotype.model import Image
from calotype.store.compare import DiskRows, differing, doubts

_PARALLEL = 2  # both guests are looked at together
_HINT = "--appliance may look into it: it starts a small VM, which takes minutes"


@dataclass(frozen=True, slots=True)
class DiskDiff:
    """A disk of the images; sizes in bytes, None where an image has no disk at this LUN.

    ``differing`` bytes lie in chunks that differ: no more than these bytes do. None is the OS disk's ``lun``.
    """

    lun: int | None
    before: int | None
    after: int | None
    differing: int


@dataclass(frozen=True, slots=True)
class ImageDiff:
    """How image ``after`` differs from ``before``; ``guest`` is None when one has none to look into."""

    before: str
    after: str
    disks: list[DiskDiff]
    guest: GuestDiff | None
    notes: list[str] = field(default_factory=list)

    @property
    def differ(self) -> bool:
        """Whether anything differs, be it only bytes that no file holds."""
        disks = any(disk.differing or disk.before != disk.after for disk in self.disks)
        return disks or bool(self.guest)


def diff_images(context: Context, before: str, after: str, *, appliance: bool = False) -> ImageDiff:
    """Compare two images by name or id; a guest that cannot be looked into is a note.

    With ``appliance``, file systems that we do not read ourselves are walked in a small VM, which takes
    minutes.

    Raises:
        NotFound: there is no such image.
        StoreDamaged: a disk cannot be read.
    """
    a, b = references.find(context, before), references.find(context, after)
    rows = {index: context.repository.rows(index) for index in _indexes(a, b)}
    disks = list(_disks(a, b, rows))
    if a.os_disk.index == b.os_disk.index:
        return ImageDiff(a.name, b.name, disks, GuestDiff())
    one, two = rows[a.os_disk.index], rows[b.os_disk.index]
    try:
        with ExitStack() as stack:
            with ThreadPoolExecutor(_PARALLEL) as pool:
                looked = list(pool.map(lambda image: _side(context, image), (a, b)))
            sides = [
                _by_appliance(context, image, side, stack)
                if isinstance(side, GuestError) and appliance
                else side
                for image, side in zip((a, b), looked, strict=True)
            ]
            first, second = (_there(image, side) for image, side in zip((a, b), sides, strict=True))
            found = diff(first, second, lambda x, y: _judge(one, two, x, y))
    except GuestError as error:
        return ImageDiff(a.name, b.name, disks, None, [error.message])
    return ImageDiff(a.name, b.name, disks, found)


def sbom(context: Context, name: str, *, appliance: bool = False) -> bytes:
    """The software in an image as a CycloneDX document (JSON); ``appliance`` as in :func:`diff_images`.

    Raises:
        NotFound: there is no such image.
        GuestError: its guest cannot be looked into.
    """
    from calotype.guest.sbom import Subject, document, of_tree  # noqa: PLC0415 (its library takes 0.1 s)

    image = references.find(context, name)
    subject = Subject(
        name=image.name,
        id=image.id,
        created_at=image.created_at,
        architecture=image.architecture,
        indexes=tuple(disk.index for disk in image.disks),
    )
    disk = context.repository.open(image.os_disk.index)
    try:
        return document(subject, disk)
    except GuestError as error:
        if not appliance:
            raise GuestError(error.message, hint=_HINT) from error
    from calotype.engine.generalize.appliance import appliance_tree  # noqa: PLC0415 (seldom needed, and large)

    with appliance_tree(context, disk) as mounted:
        return of_tree(subject, mounted.guest)


def _side(context: Context, image: Image) -> Side | GuestError:
    """The guest of an image, or why it cannot be looked into."""
    try:
        return Side.on_disk(context.repository.open(image.os_disk.index))
    except GuestError as error:
        return error


def _by_appliance(context: Context, image: Image, error: GuestError, stack: ExitStack) -> Side:
    """The guest in a small VM that lives as long as the stack."""
    from calotype.engine.generalize.appliance import appliance_tree  # noqa: PLC0415 (seldom needed, and large)

    disk = context.repository.open(image.os_disk.index)
    try:
        return Side.of(stack.enter_context(appliance_tree(context, disk)).guest)
    except GuestError as second:
        raise second from error


def _there(image: Image, side: Side | GuestError) -> Side:
    if isinstance(side, GuestError):
        raise GuestError(f"'{image.name}': {side.message}; --appliance may look into it") from side
    return side


def _judge(a: DiskRows, b: DiskRows, x: Runs, y: Runs) -> tuple[Bools, Spans]:
    """Of the files in these runs of two disks: whose chunks say that they differ, and what else may."""
    one = a.pieces(x.file, x.logical, x.start, x.length)
    two = b.pieces(y.file, y.logical, y.start, y.length)
    found = doubts(one, two, len(x.known), one_domain=a.domain == b.domain)
    return found.unequal, Spans(found.file, found.start, found.end)


def _indexes(a: Image, b: Image) -> set[str]:
    return {disk.index for image in (a, b) for disk in image.disks}


def _disks(a: Image, b: Image, rows: dict[str, DiskRows]) -> Iterator[DiskDiff]:
    before, after = ({disk.lun: disk for disk in image.disks} for image in (a, b))
    luns = [None, *sorted(lun for lun in before.keys() | after.keys() if lun is not None)]
    for lun in luns:
        old, new = before.get(lun), after.get(lun)
        if old is None or new is None:
            yield DiskDiff(lun, old.size if old else None, new.size if new else None, 0)
            continue
        count = 0
        if old.index != new.index:
            count = sum(run.length for run in differing(rows[old.index], rows[new.index]))
        yield DiskDiff(lun, old.size, new.size, count)
