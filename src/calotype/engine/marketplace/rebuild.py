"""Definitions that name a recipe, built anew: published when something changed, dropped when nothing did.

A rebuild stages a version that is excluded from being the latest, so that nobody gets it before it was looked
into, compared and started; what a killed or failed rebuild leaves is removed by the next one.
"""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import StrEnum

from calotype.engine import references
from calotype.engine.context import Context
from calotype.engine.gallery import lifecycle, retention
from calotype.engine.gallery.places import InGallery
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.marketplace import recipes
from calotype.engine.proof.diff import DiskDiff, ImageDiff, diff_images
from calotype.engine.proof.verify import verify_image
from calotype.engine.sources import Upload
from calotype.errors import CalotypeError, Conflict, GuestError, InvalidInput, NotFound, TimedOut
from calotype.guest.diff import PackagesDiff
from calotype.model import ImageDefinition, ImageVersion, SourceKind, Stage, Verdict, Version
from calotype.model.gallery import MAX_NUMBER
from calotype.recipe import Built

_FIRST = Version(1, 0, 0)
_NEWEST = 100  # versions, among which are leftovers, and the newest that was published


class Outcome(StrEnum):
    """How the rebuild of a definition ended."""

    PUBLISHED = "published"
    UNCHANGED = "unchanged"  # nothing is left of it
    FAILED = "failed"
    BUSY = "busy"  # another command is rebuilding it
    PLANNED = "planned"  # a dry run: nothing was built


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What counts as a change: packages, files, and the sizes of disks.

    What changes by itself does not: caches, logs, byte code, package databases, the initial RAM disk (its
    packages count), times, and bytes that no file holds.
    """

    packages: PackagesDiff = field(default_factory=PackagesDiff)
    paths: tuple[str, ...] = ()
    disks: tuple[str, ...] = ()  # that have another size, or cannot be compared file by file

    def __bool__(self) -> bool:
        return bool(self.packages or self.paths or self.disks)


@dataclass(kw_only=True, slots=True)
class Rebuilt:
    """What happened to a definition.

    ``version`` was published; after a failure it is left, staged, to be looked at; of a dry run it would be
    made. ``changes`` are those since ``before``, the latest version until then; None where there was none.
    Of one that is unchanged, ``before`` is the published version that it equals.
    A ``problem`` of one that is published or unchanged is retention's.
    """

    definition: str  # GALLERY/DEFINITION
    recipe: str | None = None
    outcome: Outcome = Outcome.FAILED
    version: str | None = None
    before: str | None = None
    changes: Changes | None = None
    retired: tuple[str, ...] = ()  # versions that retention deleted
    problem: str | None = None
    hint: str | None = None


def rebuild(
    context: Context,
    definitions: Collection[str] = (),
    *,
    every: bool = False,
    dry_run: bool = False,
    timeout: float = 600.0,
) -> Iterator[Rebuilt]:
    """Build the recipes of definitions anew, and publish what changed; each is told as soon as it is done.

    Each recipe is built once, from the newest packages. The failure of one definition does not stop the
    others. Of two rebuilds of one definition at once, the second leaves it alone.

    Args:
        context: the installation.
        definitions: as GALLERY/DEFINITION.
        every: all definitions in the caller's group that name a recipe.
        dry_run: only say what would be built.
        timeout: seconds that each clone of a boot test has to start.

    Raises:
        InvalidInput: no definition is named, or all and some are.
    """
    if every == bool(definitions):
        raise InvalidInput(
            "which image definitions?", hint="name some (GALLERY/DEFINITION), or all with --all"
        )
    if every:
        found = retention.every_definition(context)
        definitions = [definition.reference for definition in found if definition.recipe]
    built: dict[str, Built] = {}
    for name in definitions:
        told = Rebuilt(definition=name)
        try:
            _rebuild(context, told, built, dry_run=dry_run, timeout=timeout)
        except CalotypeError as error:
            told.problem, told.hint = error.message, error.hint
        except OSError as error:  # such as a disk that is full
            told.problem = str(error)
        yield told


def _rebuild(
    context: Context, told: Rebuilt, built: dict[str, Built], *, dry_run: bool, timeout: float
) -> None:
    """Rebuild one definition and tell what happens; ``built`` are the recipes that this run has built."""
    definition = references.find_definition(context, told.definition)
    told.definition = definition.reference
    told.recipe = _recipe(definition)
    if dry_run:
        told.outcome, told.version = Outcome.PLANNED, _place(context, definition).name
        told.before = _reference(_latest(context, definition))
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(context.lock(f"rebuild-{definition.id}", patience=0))
        except TimedOut:
            told.outcome = Outcome.BUSY
            return
        _drop_leftovers(context, definition)
        place = _place(context, definition)
        place.check(context)
        if told.recipe not in built:
            built[told.recipe] = recipes.build_file(context, told.recipe, fresh=True)
        before, newest = _latest(context, definition), _newest(context, definition)
        _stage(context, built[told.recipe], place)
        told.version, told.before = place.name, _reference(before)
        _decide(context, told, _reference(newest), timeout)
    if definition.retention is not None:
        (kept,) = retention.retain(context, told.definition)
        told.retired = tuple(d.version.reference for d in kept.decisions if d.goes)


def _decide(context: Context, told: Rebuilt, newest: str | None, timeout: float) -> None:
    """Publish the staged version if it is good and something changed; drop it if nothing did.

    What equals the ``newest`` that was published, and is no longer the latest, was taken back by somebody.
    """
    version = str(told.version)
    for before in dict.fromkeys([newest, told.before]):
        if before is None:
            continue
        told.before, told.changes = before, changes_of(diff_images(context, before, version))
        if not told.changes:
            lifecycle.delete(context, version, purge=True, verb="discard")
            told.outcome, told.version = Outcome.UNCHANGED, None
            return
    verdict = verify_image(context, version).proof.verdict
    if verdict is not Verdict.GENERALIZED:
        raise GuestError(
            f"what was built is {verdict.lower()}, not generalized",
            hint=f"calotype image verify {version} says why",
        )
    lifecycle.promote(context, version, timeout=timeout)
    told.outcome = Outcome.PUBLISHED


def changes_of(found: ImageDiff) -> Changes:
    """What of a difference counts."""
    disks = [disk for disk in found.disks if disk.before != disk.after]
    if found.guest is None:
        disks += [disk for disk in found.disks if disk.differing and disk not in disks]
        return Changes(disks=tuple(map(_disk, disks)))
    return Changes(
        packages=found.guest.packages,
        paths=tuple(file.path for file in found.guest.files if not file.noise),
        disks=tuple(map(_disk, disks)),
    )


def _disk(disk: DiskDiff) -> str:
    return "OS disk" if disk.lun is None else f"LUN {disk.lun}"


def _stage(context: Context, built: Built, place: InGallery) -> None:
    """Bring what was built into the gallery, as a version that nobody gets yet."""
    wanted = place.definition
    request = ImageRequest(
        name=place.name,
        os_type=built.os_type,
        os_state=wanted.os_state,
        architecture=wanted.architecture,
        generation=wanted.generation,
        label=built.name,
        description=built.description,
    )
    upload = Upload(location=str(built.path), format="raw", recipe=built.name)
    import_image(context, request, upload, {}, place)


def _drop_leftovers(context: Context, definition: ImageDefinition) -> None:
    """Remove what a killed or failed rebuild staged, unless somebody made a VM of it."""
    for version in context.catalog.versions.list(definition.id, limit=_NEWEST):
        image = version.image
        if (
            image.provenance.kind is SourceKind.RECIPE
            and image.stage is Stage.STAGED
            and version.exclude_from_latest
        ):
            with suppress(Conflict):
                lifecycle.delete(context, version.reference, purge=True, verb="discard")


def _place(context: Context, definition: ImageDefinition) -> InGallery:
    """Where the next version is to stand: a higher number than any had."""
    versions = context.catalog.versions
    taken = [*versions.list(definition.id, limit=1)]
    taken += versions.list(definition.id, limit=1, deleted=True)
    number = max((version.version for version in taken), default=None)
    if number is None:
        number = _FIRST
    elif number.patch < MAX_NUMBER:
        number = number._replace(patch=number.patch + 1)
    else:
        number = Version(number.major, number.minor + 1, 0)
    return InGallery(definition=definition, version=number, exclude_from_latest=True)


def _latest(context: Context, definition: ImageDefinition) -> ImageVersion | None:
    try:
        return context.catalog.versions.latest(definition.id, region=context.region)
    except NotFound:
        return None


def _newest(context: Context, definition: ImageDefinition) -> ImageVersion | None:
    """The highest version that was ever promoted."""
    for version in context.catalog.versions.list(definition.id, limit=_NEWEST):
        if version.image.stage is Stage.PROMOTED:
            return version
    return None


def _reference(version: ImageVersion | None) -> str | None:
    return None if version is None else version.reference


def _recipe(definition: ImageDefinition) -> str:
    if definition.recipe is None:
        raise InvalidInput(
            f"image definition '{definition.reference}' names no recipe",
            hint="calotype gallery image-definition update "
            f"{definition.reference} --recipe NAME; calotype recipe list shows them",
        )
    return definition.recipe
