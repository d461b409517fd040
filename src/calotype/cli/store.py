"""``calotype store``: what the store holds, whether it is whole, and what keeps it so."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from cyclopts import App, Parameter

from calotype import units
from calotype.cli import GROUPS
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit, for_people
from calotype.cli.text import size as show_size
from calotype.engine import adopt as engine_adopt
from calotype.engine import storage

app = App(name="store", help=GROUPS["store"])

_DAMAGED = 7  # the exit status of StoreDamaged

COLUMNS: Columns = {
    "Image": lambda r: r["image"],
    "Logical": lambda r: show_size(r["logical"]),
    "Stored": lambda r: show_size(r["stored"]),
    "Shared": lambda r: show_size(r["shared"]),
    "Its own": lambda r: show_size(r["unique"]),
}


@app.command
def stats(*, common: Common | None = None) -> None:
    """Logical, stored and shared bytes; and what is each image's own: what its deletion would free."""
    with session(common) as context:
        result = storage.stats(context)
        if not for_people(common):
            emit(common, result)
            return
        emit(common, result.images, COLUMNS)
        print(
            f"{len(result.images)} images: {show_size(result.logical)} logical, "
            f"{show_size(result.stored)} on disk in {result.packs} packs; "
            f"`calotype store prune` can free {show_size(result.unreferenced)} of it"
        )
        if result.condemned:
            print(f"condemned, freed by the next prune: {show_size(result.condemned)}")
        print(f"bases for VMs, made again when needed: {show_size(result.bases)}")


@app.command
def check(
    *,
    quick: Annotated[bool, Parameter(negative="")] = False,
    sample: str | None = None,
    time: str | None = None,
    common: Common | None = None,
) -> int:
    """Read everything and hold it against its checksums; name the images that damage touches.

    A check that was interrupted goes on where it was. Parts: `--sample 10%` each night reads everything in
    ten nights.

    Parameters
    ----------
    quick
        Only indexes and leaves, not the data.
    sample
        Read this share of the data, such as 10%: what was not read for longest.
    time
        Read for so long, such as 15m: what was not read for longest.
    """
    with session(common) as context:
        result = storage.check(
            context,
            read_data=not quick,
            sample=units.share(sample) if sample else None,
            limit=units.duration(time).total_seconds() if time else None,
        )
        if for_people(common):
            _report(result, quick=quick)
        else:
            emit(common, result)
        return 0 if result.ok else _DAMAGED


def _report(result: storage.StoreCheck, *, quick: bool) -> None:
    what = "indexes, leaves and footers" if quick else _amount(result)
    print(f"{'whole' if result.ok else 'DAMAGED'}: {what} read")
    _list("damaged", result.damaged)
    _list("images touched", result.images)
    if not result.ok:
        print("cure: calotype store repair [--source STORE], or upload the images again")


def _amount(result: storage.StoreCheck) -> str:
    read, total = show_size(result.checked_bytes), show_size(result.total_bytes)
    if result.checked_bytes >= result.total_bytes:
        return f"all {total}"
    if result.oldest is None:
        return f"{read} of {total}; some was never read yet"
    since = datetime.fromtimestamp(result.oldest, UTC).astimezone()
    return f"{read} of {total}; everything was read since {since:%Y-%m-%d %H:%M}"


def _list(what: str, rows: Sequence[str]) -> None:
    if rows:
        print(f"{what}:", *rows, sep="\n  ")


@app.command
def prune(
    *,
    grace: str = "1h",
    recompress: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    empty: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> None:
    """Give back the space of deleted images; safe beside uploads, captures and VMs.

    Packs that no image needs are condemned first, and freed by the first prune that comes after the grace
    and after everything that ran when they were condemned. Packs that are mostly dead are repacked.

    Parameters
    ----------
    grace
        How long a pack stays condemned, such as 0, 30m or 7d.
    recompress
        Compress what uploads and captures stored fast once more, and better: slow, about a sixth smaller, and
        as fast to read. Only what was not recompressed before.
    dry_run
        Only say what would be done.
    empty
        Also when there is no image left at all.
    """
    with session(common) as context:
        result = storage.prune(
            context,
            grace=units.duration(grace),
            recompress=recompress,
            empty=empty,
            dry_run=dry_run,
        )
        if not for_people(common):
            emit(common, result)
            return
        freed = "would free" if dry_run else "freed"
        print(f"{freed} {show_size(result.freed)} in {result.deleted} packs")
        if result.repacked:
            moved = f"{result.repacked} packs, {show_size(result.moved)} of them needed"
            print(f"{'would repack' if dry_run else 'repacked'} {moved}")
        if result.waiting:
            waiting = f"{show_size(result.waiting_bytes)} in {result.waiting} packs"
            print(f"condemned, freed by the first prune after {grace}: {waiting}")
        _list("damaged and left alone (see `calotype store check`)", result.unreadable)


@app.command
def repair(*, source: str | None = None, common: Common | None = None) -> int:
    """Check everything, and mend what is damaged.

    Bytes come from another store, and from the bases on this host. What neither has is taken out of use:
    an upload of the same image stores it anew.

    Parameters
    ----------
    source
        Another store, such as a copy: a directory, a URL, or a name under [stores] in config.toml.
    """
    with session(common) as context:
        result = storage.repair(context, source)
        if not for_people(common):
            emit(common, result)
            return 0 if result.ok else _DAMAGED
        if result.ok and not (result.restored or result.replaced or result.chunks):
            print("whole: there was nothing to mend")
        _list("as they were again", result.restored)
        _list("replaced by new packs", result.replaced)
        _list("set aside, for something in them is missed", result.aside)
        if result.chunks:
            print(f"{result.chunks} chunks came from elsewhere")
        _list("lost", result.lost)
        _list("images that cannot be read in full", result.images)
        if not result.ok:
            print("cure: name a store that has them (--source), or upload them again")
        return 0 if result.ok else _DAMAGED


@app.command
def copy(target: str, /, *images: str, common: Common | None = None) -> int:
    """Copy images (all, when none is named) to another store; only what it lacks is moved.

    The images stay byte-identical, and `calotype store repair --source` takes from there.

    Parameters
    ----------
    target
        A directory, a URL (s3://, az://), or a name under [stores] in config.toml.
    images
        Names or ids.
    """
    with session(common) as context:
        result = storage.copy(context, target, images)
        if not for_people(common):
            emit(common, result)
            return 0 if result.ok else _DAMAGED
        print(
            f"{len(result.images)} images are in {result.target}: "
            f"{show_size(result.bytes_stored)} moved in {result.chunks} chunks, "
            f"{result.already_there} disks were there already"
        )
        _list("not copied, for they cannot be read in full", result.failed)
        return 0 if result.ok else _DAMAGED


@app.command
def adopt(*, common: Common | None = None) -> None:
    """Make this installation the one that changes the store, when the catalogue that did is lost.

    No other installation may use the store any more. A store knows disks and not their names: each becomes
    an image of its own.
    """
    with session(common) as context:
        found = engine_adopt.adopt(context)
        emit(common, found, {"New image": lambda r: r["name"], "State": lambda r: r["osState"]})
