"""The life of image versions: promoted, deprecated, revoked, deleted, and back.

Whether something may be done is decided inside the transaction that does it
(:meth:`calotype.catalog.versions.Versions.change`), so no other command comes in between.
"""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from calotype.catalog import Act
from calotype.catalog.lineage import Descendants, Revocation
from calotype.catalog.versions import Change, RolledBack, Standing
from calotype.engine import references
from calotype.engine.context import Context
from calotype.errors import Conflict, GuestError, InvalidInput, NotAllowed, NotFound
from calotype.model import Image, ImageVersion, Lifecycle, Shelf, Stage

if TYPE_CHECKING:
    from calotype.engine.boot.bootreport import BootReport

#: What the audit calls it when a version comes into a state.
_VERBS = {
    Lifecycle.ACTIVE: "activate",
    Lifecycle.DEPRECATED: "deprecate",
    Lifecycle.OBSOLETE: "obsolete",
    Lifecycle.REVOKED: "revoke",
}
_COMMAND = "calotype gallery image-version"
_REASON = 1000  # characters


@dataclass(frozen=True, slots=True)
class Promotion:
    """A version that may be the latest; ``report`` is of the boot test, if there was one."""

    version: ImageVersion
    report: "BootReport | None" = None


@dataclass(frozen=True, slots=True)
class Turned:
    """A version in another state, and what to know of that."""

    version: ImageVersion
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Deletion:
    """A version that was deleted; unless it is ``gone`` for good it can come back until its ``purge_at``."""

    version: ImageVersion
    users: tuple[str, ...]  # VMs that were made of it; they go on
    gone: bool


# -- before a VM is made


def warnings_of(context: Context, image: Image) -> tuple[str, ...]:
    """What to know before a VM is made of an image.

    Raises:
        NotAllowed: none may be made: it is deleted, obsolete or revoked, descends from a revoked image, or is
            not for this region.
    """
    revoked = context.system.lineage.revocation(image.id)
    if revoked is not None:
        raise _revoked(image, revoked)
    if image.shelf is not Shelf.GALLERY:
        return ()
    try:
        version = context.system.versions.of_image(image.id)
    except NotFound:
        raise NotFound(
            f"'{image.name}' was deleted meanwhile", hint="use another version"
        ) from None
    _require_alive(version)
    instead = _instead(context, version)
    if version.state is Lifecycle.OBSOLETE:
        raise NotAllowed(
            f"'{version.reference}' is obsolete{_because(version)}: it makes no new VMs",
            hint=instead,
        )
    if context.region in version.excluded_regions:
        raise NotAllowed(
            f"'{version.reference}' is not for region '{context.region}'",
            hint=f"use another version, or take the region off it: {_COMMAND} update {version.reference} "
            "--excluded-regions ''",
        )
    return tuple(_warnings(context, version, instead))


def _warnings(context: Context, version: ImageVersion, instead: str) -> list[str]:
    found = []
    if version.state is Lifecycle.DEPRECATED:
        found.append(f"'{version.reference}' is deprecated{_because(version)}; {instead}")
    definition = context.system.galleries.definition_of(version.definition_id)
    ends = [end for end in (version.end_of_life, definition.end_of_life) if end is not None]
    if ends and min(ends) <= datetime.now(UTC):
        over = f"has been past its end of life since {min(ends).date()}"
        found.append(f"'{version.reference}' {over}; {instead}")
    return found


def _instead(context: Context, version: ImageVersion) -> str:
    """What to use instead of a version: what its owner names, or the latest one."""
    if version.replacement:
        return f"use '{version.replacement}' instead"
    try:
        latest = context.system.versions.latest(version.definition_id, region=context.region)
    except NotFound:
        return "its owner names no other one"
    return f"use '{latest.reference}' instead"


def _revoked(image: Image, revoked: Revocation) -> NotAllowed:
    why = f": {revoked.reason}" if revoked.reason else ""
    if revoked.id == image.id:
        message, cure = f"'{image.name}' was revoked{why}", "use another image"
    else:
        message = f"'{image.name}' descends from '{revoked.name}', which was revoked{why}"
        cure = "make it anew, from an image that was not revoked"
    if revoked.replacement:
        cure = f"{cure}: '{revoked.replacement}' is its replacement"
    return NotAllowed(message, hint=cure)


def _because(version: ImageVersion) -> str:
    return f" ({version.reason})" if version.reason else ""


# -- promoted, and back


def promote(
    context: Context,
    reference: str,
    *,
    untested: bool = False,
    clones: int = 2,
    timeout: float = 600.0,
) -> Promotion:
    """Make a version a candidate for the latest, after a boot test if it is staged.

    One that was excluded, as by a roll-back, is included again. One that is a candidate is left alone.

    Args:
        context: the installation.
        reference: the version.
        untested: promote a staged one without a boot test, which is recorded.
        clones: how many the boot test starts.
        timeout: seconds that each clone has to start.

    Raises:
        GuestError: it failed the boot test, and stays staged.
        NotAllowed: it is not active, or descends from a revoked image.
    """
    from calotype.engine.proof.settle import noted  # noqa: PLC0415 (loads what looks into guests)

    version = named(context, reference)
    revoked = context.system.lineage.revocation(version.id)
    if revoked is not None and revoked.id != version.id:
        raise _revoked(version.image, revoked)

    def decide(standing: Standing) -> Change | None:
        _require_active(standing)
        now, image = standing.version, standing.version.image
        staged = image.stage is Stage.STAGED
        if not staged and not now.exclude_from_latest:
            return None
        if staged and not untested:
            raise Conflict(
                f"'{now.reference}' was made staged again by another test", hint="test it again"
            )
        if staged:
            image = noted(replace(image, stage=Stage.PROMOTED), "promoted without a boot test")
        detail = {"untested": staged, "included": now.exclude_from_latest}
        promoted = replace(now, image=image, exclude_from_latest=False)
        return Change(promoted, _act("promote", now, **detail))

    versions = context.catalog.versions
    versions.change(version.id, _require_active)  # minutes before the test would tell
    report = None
    if version.image.stage is Stage.STAGED and not untested:
        report = _tested(context, version, clones, timeout)
    return Promotion(there(versions.change(version.id, decide)), report)


def roll_back(context: Context, reference: str, to: str | None = None) -> RolledBack:
    """Make ``to`` the latest version of a definition; without it, the best one below the latest.

    All above it are excluded from being the latest; to promote one includes it again.

    Raises:
        NotAllowed: that would leave the definition without a latest version.
    """
    definition = references.find_definition(context, reference)
    number = references.version(to)
    return context.catalog.versions.roll_back(definition.id, number, region=context.region)


def _tested(context: Context, version: ImageVersion, clones: int, timeout: float) -> "BootReport":
    from calotype.engine.boot.boottest import boot_test  # noqa: PLC0415 (of no use where VMs are made)

    try:
        report = boot_test(context, version.id, clones=clones, timeout=timeout)
    except InvalidInput as error:  # an image that cannot be tested here
        cure = "then promote it with --untested (recorded)"
        error.hint = f"{error.hint}; {cure}" if error.hint else cure
        raise
    if not report.passed:
        raise GuestError(
            f"'{version.reference}' failed its boot test, and stays staged: "
            f"{'; '.join(report.problems)}",
            hint=f"calotype image test {version.reference} --keep DIR keeps what its clones printed; "
            "promote it all the same with --untested (recorded)",
        )
    return report


# -- deprecated, obsolete, revoked, and active again


def turn(
    context: Context,
    reference: str,
    state: Lifecycle,
    *,
    replacement: str | None = None,
    reason: str | None = None,
) -> Turned:
    """Bring a version into a state, from whichever it is in.

    Args:
        context: the installation.
        reference: the version; to be revoked, also one that was deleted.
        state: what it is to be.
        replacement: what to use instead, as one writes it for a new VM.
        reason: why, for those who use it.

    Raises:
        InvalidInput: an active version with a replacement or a reason; a reason that is none.
        NotFound, NotAllowed: there is no such replacement, or it makes no VMs itself.
    """
    version = named(context, reference, deleted=state is Lifecycle.REVOKED)
    _check_words(state, replacement, reason)
    if replacement is not None:
        _check_replacement(context, version, replacement)

    def decide(standing: Standing) -> Change | None:
        now = standing.version
        if state is not Lifecycle.REVOKED:
            _require_alive(now)
        to = replace(now, state=state, replacement=replacement, reason=reason)
        detail = {"replacement": replacement, "reason": reason}
        return None if to == now else Change(to, _act(_VERBS[state], now, **detail))

    turned = there(context.catalog.versions.change(version.id, decide))
    return Turned(turned, tuple(_consequences(context, turned)))


def _check_words(state: Lifecycle, replacement: str | None, reason: str | None) -> None:
    if state is Lifecycle.ACTIVE and (replacement or reason):
        raise InvalidInput("an active version has no replacement", hint="leave both out")
    if reason is not None and not (0 < len(reason) <= _REASON and reason.isprintable()):
        raise InvalidInput(
            f"a reason is a line of at most {_REASON} characters", hint="say the rest elsewhere"
        )


def _check_replacement(context: Context, version: ImageVersion, replacement: str) -> None:
    """Refuse what cannot take the place of a version."""
    instead = references.find_version(context, replacement)
    if instead.id == version.id:
        raise InvalidInput(
            f"'{version.reference}' cannot replace itself", hint="name a newer version"
        )
    warnings_of(context, instead.image)


def _consequences(context: Context, version: ImageVersion) -> list[str]:
    """What people should know now that a version is in another state."""
    found = []
    if version.state is not Lifecycle.ACTIVE and version.deleted_at is None:
        try:
            context.system.versions.latest(version.definition_id, region=context.region)
        except NotFound as error:
            found.append(error.message)
    if version.state is Lifecycle.REVOKED:
        below = context.catalog.lineage.descendants(version.id)
        if count := len(below.found) + below.hidden:
            things = "image or VM descends" if count == 1 else "images and VMs descend"
            found.append(f"{count} {things} from it: {_COMMAND} descendants {version.reference}")
    return found


def descendants(context: Context, reference: str) -> Descendants:
    """The images and VMs that come from an image or a version, also from one that was deleted.

    Raises:
        NotFound: there is no such image.
    """
    image = context.catalog.find_image(reference)
    for shelf in (Shelf.MARKETPLACE, Shelf.COMMUNITY):  # what was not pulled has no descendants
        image = image or context.catalog.find_on(shelf, reference)
    if image is None:
        image = references.find_version(context, reference, deleted=True).image
    return context.catalog.lineage.descendants(image.id)


# -- deleted, and back


def delete(
    context: Context,
    reference: str,
    *,
    force: bool = False,
    purge: bool = False,
    verb: str = "delete",
) -> Deletion:
    """Delete a version; it can come back as long as its gallery says. VMs that were made of it go on.

    Args:
        context: the installation.
        reference: the version; to be purged, also one that was deleted.
        force: delete it although VMs were made of it, or it is the last good one; recorded.
        purge: it cannot come back.
        verb: what the audit calls it.

    Raises:
        Conflict: VMs were made of it, and ``force`` is not set.
        NotAllowed: it is the last good one, and ``force`` is not set; or it is protected until it is over.
    """
    version = named(context, reference, deleted=purge)
    definition = context.catalog.galleries.definition_of(version.definition_id)
    days = context.catalog.galleries.get(definition.gallery_id).soft_delete_days
    now = datetime.now(UTC)
    seen: list[Standing] = []

    def decide(standing: Standing) -> Change | None:
        seen.append(standing)
        before = standing.version
        if before.deleted_at is not None:
            return Change(None, _act("purge", before)) if purge else None
        _require_deletable(standing, now, force=force)
        detail = {"forced": force, "vms": list(standing.users), "purged": purge or not days}
        act = _act(verb, before, **detail)
        if purge or not days:
            return Change(None, act)
        until = now + timedelta(days=days)
        return Change(replace(before, deleted_at=now, purge_at=until), act)

    after = context.catalog.versions.change(version.id, decide, region=context.region, now=now)
    if after is None:
        _drop(context, [disk.index for disk in version.image.disks])
    return Deletion(after or version, seen[-1].users, gone=after is None)


def undelete(context: Context, reference: str) -> ImageVersion:
    """Bring a deleted version back as it was; one that is there is left alone.

    Raises:
        NotFound: there is none (any more).
    """
    version = named(context, reference, deleted=True)

    def decide(standing: Standing) -> Change | None:
        now = standing.version
        if now.deleted_at is None:
            return None
        return Change(replace(now, deleted_at=None, purge_at=None), _act("undelete", now))

    return there(context.catalog.versions.change(version.id, decide))


def purge_expired(context: Context, definition_id: str) -> tuple[str, ...]:
    """Purge the deleted versions of a definition whose time to come back is over; their references."""
    now = datetime.now(UTC)

    def decide(standing: Standing) -> Change | None:
        until = standing.version.purge_at  # None: it came back meanwhile
        if until is None or until > now:
            return None
        return Change(None, _act("purge", standing.version, expired=True))

    purged, indexes = [], []
    for version in context.catalog.versions.to_purge(now, definition_id):
        with suppress(NotFound):  # another command purged it meanwhile
            if context.catalog.versions.change(version.id, decide) is None:
                purged.append(version.reference)
                indexes += [disk.index for disk in version.image.disks]
    if purged:
        _drop(context, indexes)
    return tuple(purged)


def _drop(context: Context, indexes: Collection[str]) -> None:
    """Remove what nobody needs any more, here and in the regions."""
    from calotype.engine.gallery import replication  # noqa: PLC0415 (loads the store)

    context.drop_unused(indexes)
    replication.clean(context)


def _require_deletable(standing: Standing, now: datetime, *, force: bool) -> None:
    """Refuse to delete what must stay; ``force`` overrules that it is used, or the last good one."""
    version = standing.version
    owner, _, _ = version.reference.rpartition("/")
    if (day := protected_until(version, now)) is not None:
        raise NotAllowed(
            f"'{version.reference}' cannot be deleted before its end of life, {day}",
            hint=f"wait until then; or take that back: {_COMMAND} update {version.reference} "
            "--no-block-deletion-before-end-of-life",
        )
    if standing.last_good and not force:
        raise NotAllowed(
            f"'{version.reference}' is the last good version of '{owner}': it is what 'latest' means",
            hint=f"promote another one, or go back behind it: {_COMMAND} rollback {owner}; "
            "or delete it all the same with --force (recorded)",
        )
    if standing.users and not force:
        raise Conflict(
            f"VMs were made of '{version.reference}': {', '.join(standing.users)}",
            hint="they would go on to work; say --force to delete it all the same (recorded)",
        )


def protected_until(version: ImageVersion, now: datetime) -> date | None:
    """The day of the end of life before which a version must not be deleted; ``None``: it may be."""
    ends = version.end_of_life
    if not version.block_deletion_before_end_of_life or ends is None or ends <= now:
        return None
    return ends.date()


# -- what all of them need


def named(context: Context, reference: str, *, deleted: bool = False) -> ImageVersion:
    """The version that somebody names by its number or its id: what is done to it is not for the latest.

    Raises:
        NotFound: there is none.
        InvalidInput: the reference says no number.
    """
    if "/" not in reference:
        return references.find_version(context, reference, deleted=deleted)
    definition, number = references.find_place(context, reference)
    return context.catalog.versions.get(definition.id, number, deleted=deleted)


def _require_alive(version: ImageVersion) -> None:
    if version.deleted_at is not None:
        raise NotAllowed(
            f"image version '{version.reference}' was deleted",
            hint=f"{_COMMAND} undelete {version.reference} brings it back",
        )


def _require_active(standing: Standing) -> None:
    version = standing.version
    _require_alive(version)
    if version.state is not Lifecycle.ACTIVE:
        raise NotAllowed(
            f"'{version.reference}' is {version.state.lower()}{_because(version)}",
            hint=f"promote a newer one, or first {_COMMAND} activate {version.reference}",
        )


def there(version: ImageVersion | None) -> ImageVersion:
    """A version after a change that does not purge."""
    assert version is not None  # noqa: S101 (for the type checker)
    return version


def _act(verb: str, version: ImageVersion, **detail: object) -> Act:
    resource = f"image version {version.reference}"
    return Act(f"version.{verb}", resource, {"image": version.id, **detail})
