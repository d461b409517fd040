"""Versions in several regions: a region is a configured store that holds what a version needs.

A version is usable here from the moment that it exists; its replicas follow. Each region fares for itself:
what fails in one is written down there, and the next ``replicate`` tries it again and goes on where it was.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from threading import Event
from typing import Any

from calotype.catalog import Act
from calotype.engine import storage
from calotype.engine.context import Context
from calotype.engine.gallery import places
from calotype.errors import CalotypeError, Conflict, NotAllowed, NotFound, TimedOut
from calotype.model import ImageVersion, Replica, ReplicationState
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
    places.require_regions(context, regions)
    wanted = tuple(region for region in dict.fromkeys(regions) if region != context.region)
    for region in wanted:
        if region in excluded:
            raise NotAllowed(
                f"the version is excluded from region '{region}'",
                hint="leave the region out, or take it from the version's excluded regions",
            )
    return wanted


def replicate(context: Context, version: ImageVersion, regions: Sequence[str] = ()) -> Replication:
    """Bring a version to regions (without ``regions``, to those that it is to be in), to all at once.

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
    version = context.catalog.versions.of_image(version.id)
    leave_excluded(context, version)  # if it was excluded before the rows were there to be removed
    with context.operation():  # nobody takes its Indexes away meanwhile
        _bring_to_all(context, version, regions)
    clean(context)
    return status(context, version)


def status(context: Context, version: ImageVersion) -> Replication:
    """How far a version's replicas are.

    Raises:
        NotFound: there is no such version, or the caller may not see it.
    """
    written = context.catalog.replicas.of(version.id)
    found = tuple(_as_it_is(context, version.id, replica) for replica in written)
    return Replication(
        reference=version.reference, aggregated_state=_aggregated(found), summary=found
    )


def withdraw(context: Context, version: ImageVersion, regions: Collection[str]) -> Cleaning:
    """Take a version out of regions.

    Raises:
        InvalidInput: there is no such region, and the version is in none of that name.
        NotFound, Forbidden: there is no such version, or the caller may not change it.
    """
    there = {replica.region for replica in context.catalog.replicas.of(version.id)}
    places.require_regions(context, set(regions) - there)
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


# -- the copies


def _bring_to_all(context: Context, version: ImageVersion, regions: Sequence[str]) -> None:
    """Copy a version to regions side by side, so that a slow one does not hold up the others."""
    if not regions:
        return
    assert context.repository  # noqa: S101 (opened here, before several threads ask for it)
    stop = Event()
    phase = context.progress.phase("replicating", 100 * len(regions), unit="%")
    with phase as advance, ThreadPoolExecutor(len(regions)) as pool:
        try:
            jobs = [pool.submit(_bring, context, version, r, advance, stop) for r in regions]
            wait(jobs)
        finally:
            stop.set()  # after Ctrl-C those at work end soon
    for job in jobs:
        job.result()


def _bring(
    context: Context,
    version: ImageVersion,
    region: str,
    advance: Callable[[int], None],
    stop: Event,
) -> None:
    """Copy a version to a region, as soon as no other command holds it."""
    while not stop.is_set():
        with suppress(TimedOut), _held(context, region, patience=1):
            context.system.replicas.interrupt(region, _INTERRUPTED)  # whoever worked on it held it
            found = [r for r in context.system.replicas.of(version.id) if r.region == region]
            for replica in found:  # none, if it was withdrawn while we waited
                _copy(context, version, _Told(context, version.id, replica, advance, stop))
            return


def _copy(context: Context, version: ImageVersion, told: "_Told") -> None:
    """Copy a version to a region that is held; what hinders it is written down, and not raised."""
    told.note(state=ReplicationState.REPLICATING, progress=0, detail="")
    try:
        report = _copied(context, version, told)
    except (CalotypeError, OSError) as error:
        told.note(state=ReplicationState.FAILED, detail=_in_words(error))
        return
    stored = told.replica.bytes_stored + report.bytes_stored
    if report.ok:
        told.note(state=ReplicationState.COMPLETED, progress=100, detail="", bytes_stored=stored)
    else:
        problem = "; ".join(sorted(set(report.failed.values())))
        detail = f"it cannot be read here: {problem}"
        told.note(state=ReplicationState.FAILED, detail=detail, bytes_stored=stored)


def _copied(context: Context, version: ImageVersion, told: "_Told") -> CopyReport:
    region = told.replica.region
    indexes = {disk.index for disk in version.image.disks}
    own = context.settings.values["store.url"] or str(context.home.store)
    if context.settings.store(region) == own:
        raise Conflict(
            f"the store of region '{region}' is this installation's own", hint="name another one"
        )
    with storage.other_store(context, region, create=True) as other:
        _require_alike(context.repository, other, indexes, region)
        # What somebody else put there is not ours to remove.
        context.system.replicas.claim(region, indexes - set(other.indexes()))
        return copy_indexes(context.repository, other, sorted(indexes), progress=told)


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


def _as_it_is(context: Context, image_id: str, replica: Replica) -> Replica:
    """A replica that says that somebody works on it, checked."""
    if replica.state is not ReplicationState.REPLICATING:
        return replica
    try:
        with _held(context, replica.region, patience=0):  # so nobody works on it any more
            written = context.catalog.replicas.of(image_id)
    except TimedOut:
        return replica
    now = next((r for r in written if r.region == replica.region), replica)
    if now.state is ReplicationState.REPLICATING:
        return replace(now, state=ReplicationState.FAILED, detail=_INTERRUPTED)
    return now


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


class _Told:
    """The progress of a copy to one region: a replica's row, and a part of what the user sees.

    Whoever reports to it learns so that the copy is to end.
    """

    def __init__(
        self,
        context: Context,
        image_id: str,
        replica: Replica,
        advance: Callable[[int], None],
        stop: Event,
    ) -> None:
        self.replica = replica
        self._replicas = context.system.replicas
        self._image_id = image_id
        self._advance = advance
        self._stop = stop

    def note(self, **changes: Any) -> bool:
        """Write down what changed, by the names of the replica's fields; whether it is still wanted."""
        before = self.replica.progress
        self.replica = replace(self.replica, updated_at=datetime.now(UTC), **changes)
        self._advance(max(0, self.replica.progress - before))
        return self._replicas.note(self._image_id, self.replica)

    @contextmanager
    def phase(
        self, label: str, total: int | None = None, *, unit: str = "B"
    ) -> Iterator[Callable[[int], None]]:
        """A phase of the copy."""
        del label, unit
        done = 0

        def counted(n: int) -> None:
            nonlocal done
            done += n
            if self._stop.is_set():
                raise Conflict(_INTERRUPTED)
            percent = min(99, 100 * done // total) if total else 0
            if percent > self.replica.progress and not self.note(progress=percent):
                raise Conflict("it was taken out of the region meanwhile")

        yield counted
