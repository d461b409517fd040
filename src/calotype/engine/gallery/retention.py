"""Which versions go by themselves: a plan without side effects, and the run that carries it out."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from calotype.engine import references
from calotype.engine.context import Context
from calotype.engine.gallery import lifecycle
from calotype.errors import Conflict, InvalidInput, NotFound
from calotype.model import ImageDefinition, ImageVersion, Retention, Stage


class Decision(NamedTuple):
    """Whether a version goes, and why."""

    version: ImageVersion
    goes: bool
    why: str


@dataclass(frozen=True, slots=True)
class Retained:
    """What a run did to a definition, or would do: decisions from the highest version to the lowest."""

    definition: str  # GALLERY/DEFINITION
    decisions: tuple[Decision, ...]
    purged: tuple[str, ...] = ()  # deleted earlier; their time to come back is over


def plan(
    versions: Collection[ImageVersion],
    policy: Retention,
    now: datetime,
    in_use: Mapping[str, Sequence[str]],
) -> list[Decision]:
    """Decide which versions of one definition go; the highest first.

    The last good one stays, wherever it is that; so does what VMs use, and what must not be deleted yet. Of
    the others, those stay that have fewer than ``policy.keep`` good ones above them, and those younger than
    ``policy.days``; but age alone decides on a staged one, if there is a limit to it.

    Args:
        versions: all that are not deleted.
        policy: what the definition says; without a limit nothing goes.
        now: when it is.
        in_use: the names of VMs by the id of the version that they were made of.
    """
    alive = sorted(versions, key=lambda v: v.version, reverse=True)
    last = _last_good(alive, now)
    decisions, good_above = [], 0
    for version in alive:
        why = _protected(version, now, in_use, last) or _kept(version, policy, now, good_above)
        decisions.append(Decision(version, why is None, why or _gone(policy)))
        good_above += version.eligible
    return decisions


def _last_good(versions: Sequence[ImageVersion], now: datetime) -> set[str]:
    """The ids of versions that are the latest anywhere; where all are over, of the highest good one.

    ``versions``: the highest first.
    """
    good = [v for v in versions if v.eligible]
    current = [v for v in good if v.end_of_life is None or v.end_of_life > now]
    regions = {None, *(region for v in good for region in v.excluded_regions)}
    latest: set[str] = set()
    for region in regions:
        there = [v.id for v in current if region not in v.excluded_regions]
        latest.update(there[:1])
    return latest or {v.id for v in good[:1]}


def _protected(
    version: ImageVersion,
    now: datetime,
    in_use: Mapping[str, Sequence[str]],
    last: Collection[str],
) -> str | None:
    """Why a version stays whatever the policy says."""
    if version.id in last:
        return "the last good one"
    if users := in_use.get(version.id):
        return f"VMs use it: {', '.join(users)}"
    if (day := lifecycle.protected_until(version, now)) is not None:
        return f"protected until its end of life, {day}"
    return None


def _kept(version: ImageVersion, policy: Retention, now: datetime, good_above: int) -> str | None:
    """Why the policy lets a version stay."""
    if policy.keep is None and policy.days is None:
        return "no limit is set"
    by_age_alone = version.image.stage is Stage.STAGED and policy.days is not None
    if policy.keep is not None and good_above < policy.keep and not by_age_alone:
        return f"one of the newest {policy.keep}"
    young = timedelta(days=policy.days or 0)
    if policy.days is not None and now - version.image.created_at < young:
        return f"younger than {policy.days} days"
    return None


def _gone(policy: Retention) -> str:
    limits = []
    if policy.keep is not None:
        limits.append(f"not one of the newest {policy.keep}")
    if policy.days is not None:
        limits.append(f"older than {policy.days} days")
    return " and ".join(limits)


def retain(context: Context, reference: str | None, *, dry_run: bool = False) -> list[Retained]:
    """Apply retention to a definition, or (``None``) to all in the caller's group; purge what is overdue.

    Each version is deleted for itself, and can come back as long as its gallery says. What another command
    has made the last good one, or has begun to use, meanwhile, stays.

    Raises:
        InvalidInput: the definition that is named says nothing of retention.
    """
    if reference is not None:
        definition = references.find_definition(context, reference)
        if definition.retention is None:
            name = definition.reference
            raise InvalidInput(
                f"image definition '{name}' does not say which versions to keep",
                hint=f"calotype gallery image-definition update {name} --retain-versions 5",
            )
        return [_retain(context, definition, dry_run=dry_run)]
    found = []
    for definition in every_definition(context):
        with suppress(NotFound):  # another command deleted it meanwhile
            found.append(_retain(context, definition, dry_run=dry_run))
    return found


def every_definition(context: Context) -> Iterator[ImageDefinition]:
    """All definitions in the caller's group."""
    galleries = context.catalog.galleries
    for gallery in galleries.each():
        yield from galleries.each_definition(gallery.id)


def _retain(context: Context, definition: ImageDefinition, *, dry_run: bool) -> Retained:
    versions, now = context.catalog.versions, datetime.now(UTC)
    if dry_run:
        purged = tuple(v.reference for v in versions.to_purge(now, definition.id))
    else:
        purged = lifecycle.purge_expired(context, definition.id)
    policy = definition.retention or Retention()
    decisions = plan([*versions.each(definition.id)], policy, now, versions.users(definition.id))
    if not dry_run:
        decisions = [_carried_out(context, decision) for decision in decisions]
    return Retained(definition.reference, tuple(decisions), purged)


def _carried_out(context: Context, decision: Decision) -> Decision:
    if not decision.goes:
        return decision
    try:
        done = lifecycle.delete(context, decision.version.id, verb="retain")
    except NotFound:
        return decision._replace(goes=False, why="it was deleted meanwhile")
    except Conflict as error:  # it became the last good one, or a VM was made of it, meanwhile
        return decision._replace(goes=False, why=error.message)
    return decision._replace(version=done.version)
