"""``calotype gallery image-version replicate``: versions in several regions."""

from collections.abc import Iterable
from typing import Annotated

from calotype.cli.arguments import Repeat
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit, for_people
from calotype.cli.text import say
from calotype.cli.text import size as show_size
from calotype.engine import references
from calotype.engine.gallery import replication

_INCOMPLETE = 9  # the exit status of StoreUnavailable

COLUMNS: Columns = {
    "Region": lambda r: r["region"],
    "State": lambda r: r["state"],
    "Progress": lambda r: f"{r['progress']} %",
    "Stored": lambda r: show_size(r["bytesStored"]),
    "Updated": lambda r: r["updatedAt"][:19],
    "Detail": lambda r: r["detail"],
}


def replicate(
    reference: str,
    *,
    target_regions: Annotated[tuple[str, ...], Repeat] = (),
    remove_regions: Annotated[tuple[str, ...], Repeat] = (),
    common: Common | None = None,
) -> int:
    """Bring a version to regions, and say how each of them fares.

    Parameters
    ----------
    reference
        GALLERY/DEFINITION/VERSION
    target_regions
        The regions; without them, all that the version is to be in.
    remove_regions
        Regions that the version is to leave.
    """
    with session(common) as context:
        version = references.find_version(context, reference)
        if remove_regions:
            _tell(replication.withdraw(context, version, remove_regions).waiting.items())
        if target_regions or not remove_regions:
            done = replication.replicate(context, version, target_regions)
        else:
            done = replication.status(context, version)
        _emit(common, done)
        return 0 if done.aggregated_state is replication.AggregatedState.COMPLETED else _INCOMPLETE


def replication_status(reference: str, *, common: Common | None = None) -> None:
    """Show in which regions a version is, and how far the others are.

    Parameters
    ----------
    reference
        GALLERY/DEFINITION/VERSION
    """
    with session(common) as context:
        version = references.find_version(context, reference)
        _emit(common, replication.status(context, version))


def _tell(waiting: Iterable[tuple[str, str]]) -> None:
    for region, why in waiting:
        say("note", f"removed from '{region}' when it answers again: {why}")


def _emit(common: Common | None, done: replication.Replication) -> None:
    if not for_people(common):
        emit(common, done)
        return
    emit(common, done.summary, COLUMNS)
    print(f"{done.reference}: {done.aggregated_state}")
