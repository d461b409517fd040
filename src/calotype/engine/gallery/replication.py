"""Versions in several regions: a region is a configured store that holds what a version needs.

A version is usable here from the moment that it exists; its replicas follow. Each region fares for itself:
what fails in one is written down there, and the next ``replicate`` tries it again and goes on where it was.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any

from calotype.catalog import Act
from calotype.engine import storage
from calotype.engine.context import Context
from calotype.errors import CalotypeError, Conflict, InvalidInput, NotAllowed, NotFound, TimedOut
from calotype.model import ImageVersion, Replica, ReplicationState
from calotype.progress import Progress
from calotype.store import Repository
from calotype.store.copy import CopyReport
from calotype.store.copy import copy as copy_indexes

_INTERRUPTED = "it was interrupted; replicate goes on with it"


class AggregatedState(StrEnum):
    """How far a version's replicas are together; Azure's values."""

    UNKNOWN = "Unknown"
    IN_PROGRESS = "InProgress"
    COMPLETED = "Completed"
    FAILED = "Failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Replication:
    """Where a version is, region by region."""

    reference: str
    aggregated_state: AggregatedState
    summary: tuple[Replica, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cleaning:
    """What was removed from regions; ``waiting``: the regions where it could not be, and why."""

    removed: int = 0
    waiting: dict[str, str] = field(default_factory=dict)


def require_regions(
    context: Context, regions: Collection[str], excluded: Collection[str] = ()
) -> tuple[str, ...]:
    """The regions to replicate to; this installation's own has the version anyway, and is left out.

    Raises:
        InvalidInput: there is no such region.
        NotAllowed: a version that is ``excluded`` from regions is not brought there.
    """
    known = context.settings.stores
    wanted = [region for region in dict.fromkeys(regions) if region != context.region]
    for region in wanted:
        if region not in known:
            names = f"there are {', '.join(sorted(known))}" if known else "there is none yet"
            raise InvalidInput(
                f"there is no region '{region}'",
                hint=f"regions are the stores under [stores] in config.toml: {names}",
            )
        if region in excluded:
            raise NotAllowed(
                f"the version is excluded from region '{region}'",
                hint="leave the region out, or take it from the version's excluded regions",
            )
    return tuple(wanted)


def replicate(context: Context, version: ImageVersion, regions: Sequence[str] = ()) -> Replication:
    """Bring a version to regions (without ``regions``, to those that it is to be in).

    Raises:
        InvalidInput, NotAllowed: see :func:`require_regions`.
        NotFound, Forbidden: there is no such version, or the caller may not change it.
    """
    wanted = require_regions(context, regions, version.excluded_regions)
    before = (replica.region for replica in context.catalog.replicas.of(version.id))
    regions = wanted or [region for region in before if region not in version.excluded_regions]
    act = Act(
        "version.replicate",
        f"image version {version.reference}",
        {"image": version.id, "regions": list(regions)},
    )
    context.catalog.replicas.add(version.id, wanted, act)
    with context.operation():  # nobody takes its Indexes away meanwhile
        for region in regions:
            _bring(context, version, region)
    clean(context)
    return status(context, version)


def status(context: Context, version: ImageVersion) -> Replication:
    """How far a version's replicas are.

    Raises:
        NotFound: there is no such version, or the caller may not see it.
    """
    found = tuple(_as_it_is(context, r) for r in context.catalog.replicas.of(version.id))
    return Replication(
        reference=version.reference, aggregated_state=_aggregated(found), summary=found
    )


def withdraw(context: Context, version: ImageVersion, regions: Collection[str]) -> Cleaning:
    """Take a version out of regions.

    Raises:
        NotFound, Forbidden: there is no such version, or the caller may not change it.
    """
    act = Act(
        "version.withdraw",
        f"image version {version.reference}",
        {"image": version.id, "regions": sorted(regions)},
    )
    context.catalog.replicas.remove(version.id, regions, act)
    return clean(context)


def leave_excluded(context: Context, version: ImageVersion) -> None:
    """Take a version out of the regions that it is excluded from.

    Raises:
        NotFound, Forbidden: there is no such version, or the caller may not change it.
    """
    there = {replica.region for replica in context.catalog.replicas.of(version.id)}
    if barred := there & set(version.excluded_regions):
        withdraw(context, version, barred)


def clean(context: Context) -> Cleaning:
    """Remove from the regions what no version needs there any more; what cannot be now, is next time."""
    removed, waiting = 0, {}
    for region, indexes in context.system.replicas.unneeded().items():
        try:
            with _held(context, region, patience=0), _opened(context, region) as other:
                for index in indexes:
                    other.delete_index(index)
                    context.system.replicas.forget(region, index)
                    removed += 1
        except (CalotypeError, OSError) as error:
            waiting[region] = _in_words(error)
    return Cleaning(removed=removed, waiting=waiting)


# -- one region


def _bring(context: Context, version: ImageVersion, region: str) -> None:
    """Copy a version to a region; what hinders it is written down, and not raised."""
    replicas = context.system.replicas
    with _held(context, region):
        replicas.interrupt(region, _INTERRUPTED)  # whoever worked on it held the region
        found = [r for r in replicas.of(version.id) if r.region == region]
        if not found:
            return  # withdrawn, or purged, while we waited
        note = _Note(context, version.id, found[0])
        note(state=ReplicationState.REPLICATING, progress=0, detail="")
        try:
            report = _copied(context, version, region, note)
        except (CalotypeError, OSError) as error:
            note(state=ReplicationState.FAILED, detail=_in_words(error))
            return
        stored = note.replica.bytes_stored + report.bytes_stored
        if report.ok:
            note(state=ReplicationState.COMPLETED, progress=100, detail="", bytes_stored=stored)
        else:
            problem = "; ".join(sorted(set(report.failed.values())))
            detail = f"it cannot be read here: {problem}"
            note(state=ReplicationState.FAILED, detail=detail, bytes_stored=stored)


def _copied(context: Context, version: ImageVersion, region: str, note: "_Note") -> CopyReport:
    indexes = {disk.index for disk in version.image.disks}
    with storage.other_store(context, region, create=True) as other:
        _require_alike(context.repository, other, indexes, region)
        # What somebody else put there is not ours to remove.
        context.system.replicas.claim(region, indexes - set(other.indexes()))
        progress = _Told(context.progress, note, region)
        return copy_indexes(context.repository, other, sorted(indexes), progress=progress)


def _require_alike(
    here: Repository, there: Repository, indexes: Collection[str], region: str
) -> None:
    """Refuse a store that names chunks otherwise: nothing that is damaged here could come back from it."""
    alike = here.chunking == there.chunking
    for domain in {here.root(index).domain for index in indexes}:
        with suppress(NotFound):  # a domain that it does not have gets our key
            alike = alike and here.domain(domain) == there.domain(domain)
    if not alike:
        raise Conflict(
            f"the store of region '{region}' was not made for this installation: it names the same bytes "
            "otherwise",
            hint="name an empty one",
        )


@contextmanager
def _held(context: Context, region: str, patience: float | None = None) -> Iterator[None]:
    """Hold a region against all other commands that change it.

    Raises:
        TimedOut: another command held it for ``patience`` seconds (``None``: wait for ever).
    """
    name = sha256(region.encode()).hexdigest()[:16]
    with context.lock(f"region-{name}", patience=patience):
        yield


@contextmanager
def _opened(context: Context, region: str) -> Iterator[Repository]:
    """A region's repository, if it is still configured and there."""
    if region not in context.settings.stores:
        raise NotFound("it is not configured any more", hint="under [stores] in config.toml")
    with storage.other_store(context, region) as other:
        yield other


def _as_it_is(context: Context, replica: Replica) -> Replica:
    """A replica that says that somebody works on it, checked."""
    if replica.state is not ReplicationState.REPLICATING:
        return replica
    try:
        with _held(context, replica.region, patience=0):
            return replace(replica, state=ReplicationState.FAILED, detail=_INTERRUPTED)
    except TimedOut:
        return replica


def _aggregated(replicas: Collection[Replica]) -> AggregatedState:
    states = {replica.state for replica in replicas}
    if ReplicationState.REPLICATING in states:
        return AggregatedState.IN_PROGRESS
    if ReplicationState.FAILED in states:
        return AggregatedState.FAILED
    if ReplicationState.UNKNOWN in states:
        return AggregatedState.UNKNOWN
    return AggregatedState.COMPLETED


def _in_words(error: CalotypeError | OSError) -> str:
    if isinstance(error, CalotypeError):
        return error.message
    return error.strerror or str(error)


class _Note:
    """A replica's row, written as it changes."""

    def __init__(self, context: Context, image_id: str, replica: Replica) -> None:
        self.replica = replica
        self._replicas = context.system.replicas
        self._image_id = image_id

    def __call__(self, **changes: Any) -> None:
        """Write down what changed, by the names of the replica's fields."""
        self.replica = replace(self.replica, updated_at=datetime.now(UTC), **changes)
        self._replicas.note(self._image_id, self.replica)


class _Told:
    """Progress that is also written down, percent by percent."""

    def __init__(self, inner: Progress, note: _Note, region: str) -> None:
        self._inner = inner
        self._note = note
        self._region = region

    @contextmanager
    def phase(
        self, label: str, total: int | None = None, *, unit: str = "B"
    ) -> Iterator[Callable[[int], None]]:
        """A phase of the copy to this region."""
        done = 0

        with self._inner.phase(f"{label} to {self._region}", total, unit=unit) as report:

            def counted(n: int) -> None:
                nonlocal done
                report(n)
                done += n
                percent = min(99, 100 * done // total) if total else 0
                if percent > self._note.replica.progress:
                    self._note(progress=percent)

            yield counted
