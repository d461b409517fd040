"""``calotype gallery image-version``: the life of versions, from promotion to deletion and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from calotype import units
from calotype.cli.common import Common, session
from calotype.cli.gallery_version import emit_version, version_record
from calotype.cli.output import Columns, emit, for_people, plain
from calotype.cli.text import one_line, say
from calotype.engine.context import Context
from calotype.engine.gallery import lifecycle, retention
from calotype.engine.gallery.retention import Retained
from calotype.errors import InvalidInput
from calotype.model import ImageVersion, Lifecycle

_DESCENDANTS: Columns = {
    "Kind": lambda d: d["kind"],
    "Name": lambda d: d["name"],
    "From": lambda d: d["parent"],
    "Deleted": lambda d: "yes" if d["deleted"] else None,
}


@Parameter(name="*")
@dataclass(frozen=True)
class Instead:
    """What is to be used instead of a version, and why."""

    replacement: str | None = None
    "What to use instead: GALLERY/DEFINITION[/VERSION]."
    reason: str | None = None
    "Why."


def promote(
    reference: str,
    *,
    untested: Annotated[bool, Parameter(negative="")] = False,
    clones: Annotated[int, Parameter(show_default=True)] = 2,
    timeout: str = "10m",
    common: Common | None = None,
) -> None:
    """Make a version a candidate for the latest, after a boot test if it is staged.

    One that was excluded, as by a roll-back, is included again.

    Parameters
    ----------
    reference
        GALLERY/DEFINITION/VERSION.
    untested
        Without a boot test (recorded).
    clones
        How many clones the boot test starts.
    timeout
        How long each clone may take to start (90s, 10m).
    """
    seconds = units.duration(timeout).total_seconds()
    with session(common) as context:
        done = lifecycle.promote(
            context, reference, untested=untested, clones=clones, timeout=seconds
        )
        report = done.report
        notes = [f"its boot test passed in {report.seconds:.0f} s"] if report is not None else []
        _emit(common, context, done.version, notes, report=plain(report))


def rollback(definition: str, *, to: str | None = None, common: Common | None = None) -> None:
    """Make an earlier version the latest again, in one step; promote what is above to go forward.

    Parameters
    ----------
    definition
        GALLERY/DEFINITION.
    to
        The version that is to be the latest; without it, the next one below.
    """
    with session(common) as context:
        done = lifecycle.roll_back(context, definition, to)
        notes = [f"excluded from latest: {', '.join(done.excluded)}"] if done.excluded else []
        _emit(common, context, done.latest, notes, excluded=list(done.excluded))


def deprecate(
    reference: str, *, instead: Instead | None = None, common: Common | None = None
) -> None:
    """Let a version be the latest no more; VMs can be made of it, with a warning.

    Parameters
    ----------
    reference
        GALLERY/DEFINITION/VERSION.
    """
    _turn(common, reference, Lifecycle.DEPRECATED, instead)


def obsolete(
    reference: str, *, instead: Instead | None = None, common: Common | None = None
) -> None:
    """Let no new VMs be made of a version.

    Parameters
    ----------
    reference
        GALLERY/DEFINITION/VERSION.
    """
    _turn(common, reference, Lifecycle.OBSOLETE, instead)


def revoke(reference: str, *, instead: Instead | None = None, common: Common | None = None) -> None:
    """Let no new VMs be made of a version, nor of anything that descends from it, now or later.

    Parameters
    ----------
    reference
        GALLERY/DEFINITION/VERSION, also of one that was deleted.
    """
    _turn(common, reference, Lifecycle.REVOKED, instead)


def activate(reference: str, *, common: Common | None = None) -> None:
    """Make a deprecated, obsolete or revoked version active again.

    Parameters
    ----------
    reference
        GALLERY/DEFINITION/VERSION.
    """
    _turn(common, reference, Lifecycle.ACTIVE, None)


def delete(
    reference: str,
    *,
    force: Annotated[bool, Parameter(negative="")] = False,
    purge: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> None:
    """Delete a version; it can come back as long as its gallery says. VMs that were made of it go on.

    Parameters
    ----------
    reference
        GALLERY/DEFINITION/VERSION; with --purge, also of one that was deleted.
    force
        Although VMs were made of it, or it is the last good one (recorded).
    purge
        For good, and at once.
    """
    with session(common) as context:
        done = lifecycle.delete(context, reference, force=force, purge=purge)
    version = done.version
    if not for_people(common):
        told = {"id": version.id, "reference": version.reference, "gone": done.gone}
        emit(common, {**told, "vms": list(done.users), "purgeAt": plain(version.purge_at)})
        return
    name = one_line(version.reference)
    if done.users:
        say("note", f"VMs that were made of it go on: {', '.join(done.users)}")
    if done.gone:
        print(f"{name} is gone")
    else:
        print(
            f"{name} was deleted; until {str(version.purge_at)[:16]} it can come back: "
            f"calotype gallery image-version undelete {name}"
        )


def undelete(reference: str, *, common: Common | None = None) -> None:
    """Bring a deleted version back as it was.

    Parameters
    ----------
    reference
        GALLERY/DEFINITION/VERSION.
    """
    with session(common) as context:
        emit_version(common, context, lifecycle.undelete(context, reference))


def descendants(reference: str, *, common: Common | None = None) -> None:
    """List the images, versions and VMs that come from an image, also through images that are gone.

    Parameters
    ----------
    reference
        An image: NAME, GALLERY/DEFINITION/VERSION, also of one that was deleted.
    """
    with session(common) as context:
        below = lifecycle.descendants(context, reference)
    if not for_people(common):
        emit(common, below)
        return
    emit(common, list(below.found), _DESCENDANTS)
    if below.hidden:
        say("note", f"and {below.hidden} that you may not see")


def retain(
    definition: str | None = None,
    *,
    all: Annotated[bool, Parameter(negative="")] = False,  # noqa: A002 (the option's name)
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> None:
    """Delete the versions that their definition need not keep; purge deleted ones that are overdue.

    The last good version stays, and so does what VMs use and what is protected until its end of life.

    Parameters
    ----------
    definition
        GALLERY/DEFINITION.
    all
        All definitions in the group.
    dry_run
        Change nothing; say what would go, and why the others stay.
    """
    if all == (definition is not None):
        raise InvalidInput("which image definition?", hint="GALLERY/DEFINITION, or --all")
    with session(common) as context:
        done = retention.retain(context, definition, dry_run=dry_run)
    if not for_people(common):
        emit(common, [_retained(one) for one in done])
        return
    going = "would go" if dry_run else "went"
    columns: Columns = {
        "Version": lambda d: d["reference"],
        "Decision": lambda d: going if d["goes"] else "stays",
        "Why": lambda d: d["why"],
    }
    emit(common, [row for one in done for row in _retained(one)["decisions"]], columns)
    for reference in (reference for one in done for reference in one.purged):
        say("note", f"{reference}, deleted earlier, {going} for good")


def _retained(done: Retained) -> dict[str, Any]:
    decisions = [
        {"reference": one.version.reference, "goes": one.goes, "why": one.why}
        for one in done.decisions
    ]
    return {"definition": done.definition, "purged": list(done.purged), "decisions": decisions}


def _turn(
    common: Common | None,
    reference: str,
    state: Lifecycle,
    instead: Instead | None,
) -> None:
    said = instead or Instead()
    with session(common) as context:
        turned = lifecycle.turn(
            context, reference, state, replacement=said.replacement, reason=said.reason
        )
        _emit(common, context, turned.version, turned.warnings, warnings=list(turned.warnings))


def _emit(
    common: Common | None,
    context: Context,
    version: ImageVersion,
    notes: Sequence[str],
    **told: object,
) -> None:
    """The version; ``notes`` on it for people, what is ``told`` of it for programs."""
    if not for_people(common):
        emit(common, {**version_record(context, version), **told})
        return
    emit_version(common, context, version)
    for note in notes:
        say("note", note)
