"""From an offer to its releases: one question, whatever the source."""

from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

from msgspec.structs import replace

from calotype.errors import NotFound
from calotype.market import checksums, simplestreams
from calotype.market.offer import (
    Checksums,
    Fetch,
    File,
    FromRecipe,
    Offer,
    Pinned,
    PinnedDisk,
    PinnedFile,
    Release,
    SimpleStreams,
)
from calotype.market.reader import Reader, Seen
from calotype.model import Version


def releases(
    offer: Offer,
    fetch: Fetch,
    at: Version | None = None,
    *,
    seen: Seen | None = None,
    now: datetime | None = None,
) -> list[Release]:
    """The versions of an offer that its publisher has today, newest first.

    Args:
        offer: whose.
        fetch: gets a URL.
        at: look only for this version (for publishers with one checksum file for each it saves requests).
        seen: read, and updated; to be kept until the next time.
        now: the time; for tests.

    Raises:
        NotFound: there is no version, or not ``at``.
        Untrusted: a signature does not hold, is missing, or an index is older than one that was seen.
        InvalidInput: what the publisher serves cannot be understood.
    """
    now = now or datetime.now(UTC)
    reader = Reader(fetch, {} if seen is None else seen, now)
    match offer.source:
        case FromRecipe(recipe=recipe):
            found = [_built_today(recipe, now)]
        case Pinned():
            found = [_pinned(file, offer.source.format) for file in offer.source.files]
        case Checksums():
            found = checksums.releases(offer, offer.source, reader, at)
        case SimpleStreams():
            found = simplestreams.releases(offer, offer.source, reader)
    kept = [release for release in found if at in (None, release.version)]
    if not kept:
        wanted = "no version" if at is None else f"no version {at}"
        raise NotFound(
            f"{offer.urn.base} has {wanted} today",
            hint=f"calotype marketplace show {offer.urn.base} lists those that there are",
        )
    excluded = {Version.parse(text) for text in offer.excluded}
    return [
        replace(release, excluded=True) if release.version in excluded else release
        for release in sorted(kept, key=lambda r: r.version, reverse=True)
    ]


def _built_today(recipe: str, now: datetime) -> Release:
    """What a recipe gives is of the day on which it is built (UTC): packages change daily."""
    day = now.astimezone(UTC).strftime("%Y%m%d")
    return Release(version=Version(int(day), 0, 0), label=day, recipe=recipe)


def _pinned(file: PinnedFile, form: str) -> Release:
    version = Version(*map(int, file.version.split(".")))
    return Release(
        version=version,
        label=file.version,
        os_disk=_file(file),
        format=form,
        data_disks={disk.lun: _file(disk) for disk in file.data_disks},
    )


def _file(of: PinnedFile | PinnedDisk) -> File:
    name = unquote(urlsplit(of.url).path).rpartition("/")[2]
    return File(name=name, urls=(of.url,), size=of.size, sha256=of.sha256)
