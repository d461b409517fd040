"""Image versions: made of other images, of VMs, of managed disks and their snapshots, of disk files."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from calotype.engine import lifecycle, names, references
from calotype.engine.context import Context
from calotype.engine.galleries import require_tags
from calotype.engine.places import InGallery
from calotype.errors import ReportRefused
from calotype.model import Image, ImageVersion, Provenance, SourceKind


def place(context: Context, reference: str, **options: Any) -> InGallery:
    """Where ``GALLERY/DEFINITION/VERSION`` is to stand; ``options`` are fields of :class:`InGallery`.

    Raises:
        NotFound: there is no such definition.
        InvalidInput: it is no such reference, or says no number.
    """
    definition, version = references.find_place(context, reference)
    return InGallery(definition=definition, version=version, **options)


def of_image(
    context: Context, where: InGallery, source: str, *, tags: Mapping[str, str] | None = None
) -> ImageVersion:
    """Make a version of an image of any kind: the same disks, as promoted as the image, with its evidence.

    Args:
        context: the installation.
        where: where it is to stand.
        source: a reference to the image.
        tags: the version's, instead of the image's.

    Raises:
        NotFound: there is no such image.
        NotAllowed: the image is obsolete, revoked, or not for this region.
        InvalidInput: it is not what the definition says.
        Conflict, Forbidden: the number is taken, or the caller may not publish there.
    """
    where.check(context)
    with context.operation():
        image = references.find(context, source)
        where.require_fit(image)
        lifecycle.warnings_of(context, image)
        copy = replace(
            image,
            id=names.new_id(),
            name=where.name,
            tags=require_tags(image.tags if tags is None else tags),
            provenance=Provenance(
                kind=SourceKind.IMAGE,
                source=image.name,
                image_id=image.id,
                notes=image.provenance.notes,
            ),
            parent_id=image.id,
            created_at=datetime.now(UTC),
        )
        _carry_evidence(context, image, copy)
        where.put(context, copy, None)
    return context.catalog.versions.of_image(copy.id)


def _carry_evidence(context: Context, source: Image, copy: Image) -> None:
    """What was seen of an image holds for a copy of it, for the disks are the same: sign it anew as that."""
    report = context.home.evidence / source.id
    if not report.exists():
        return
    from calotype.engine.evidence import write_evidence  # noqa: PLC0415 (loads much)

    with suppress(ReportRefused, FileNotFoundError):  # what does not hold is no evidence of a copy
        write_evidence(context, copy, source=source, quick=True)
