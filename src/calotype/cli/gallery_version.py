"""``calotype gallery image-version``: versions of an image, published, listed, changed."""

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import App, Parameter

from calotype.cli.arguments import Repeat, by_lun, moment, pairs, sha256
from calotype.cli.common import Common, session
from calotype.cli.gallery import Page
from calotype.cli.generalize import StepOptions
from calotype.cli.image import summary
from calotype.cli.output import Columns, emit, for_people, plain
from calotype.cli.text import one_line
from calotype.cli.text import size as show_size
from calotype.engine import references
from calotype.engine.context import Context
from calotype.engine.gallery import versions
from calotype.engine.gallery.replication import Replication, replicate, require_regions
from calotype.engine.generalize.steps import DEFAULT
from calotype.engine.sources import Upload
from calotype.errors import InvalidInput, NotFound
from calotype.model import ImageVersion, Stage

app = App(name="image-version", help="Image versions.")
app.command(
    "calotype.cli.replication:replicate",
    name="replicate",
    help="Bring a version to regions; what was interrupted or failed goes on where it was.\n\n"
    "Regions are the stores under [stores] in config.toml. Only what a region lacks is moved. Ends with "
    "status 9 when a region does not have the version at the end; the others have it all the same.",
)
app.command(
    "calotype.cli.replication:replication_status",
    name="replication-status",
    help="Show in which regions a version is, and how far the others are.",
)
for _name, _help in {
    "promote": "Make a version a candidate for the latest, after a boot test if it is staged.\n\n"
    "One that was excluded, as by a roll-back, is included again.",
    "rollback": "Make an earlier version the latest again, in one step.",
    "deprecate": "Let a version be the latest no more; VMs can be made of it, with a warning.",
    "obsolete": "Let no new VMs be made of a version.",
    "revoke": "Let no new VMs be made of a version, nor of anything that descends from it, now or later.",
    "activate": "Make a deprecated, obsolete or revoked version active again.",
    "delete": "Delete a version; it can come back as long as its gallery says.",
    "undelete": "Bring a deleted version back as it was.",
    "descendants": "List the images, versions and VMs that come from an image.",
    "retain": "Delete the versions that their definition need not keep; purge those that are overdue.",
}.items():
    app.command(f"calotype.cli.lifecycle:{_name}", name=_name, help=_help)

COLUMNS: Columns = {
    "Version": lambda v: v["version"],
    "Latest": lambda v: "latest" if v["latest"] else None,
    "State": lambda v: v["state"],
    "Stage": lambda v: v["image"]["stage"],
    "Excluded": lambda v: "yes" if v["excludeFromLatest"] else None,
    "End of life": lambda v: (v["endOfLife"] or "")[:10],
    "Disks": lambda v: 1 + len(v["image"]["dataDisks"]),
    "Size": lambda v: show_size(
        v["image"]["osDisk"]["size"] + sum(d["size"] for d in v["image"]["dataDisks"])
    ),
    "From": lambda v: f"{v['image']['provenance']['kind']}: {v['image']['provenance']['source']}",
    "Created": lambda v: v["image"]["createdAt"][:10],
}
_DELETED: Columns = {
    **{name: COLUMNS[name] for name in ("Version", "State", "Size", "From", "Created")},
    "Deleted": lambda v: v["deletedAt"][:10],
    "Goes": lambda v: v["purgeAt"][:10],
}


@Parameter(name="*")
@dataclass(frozen=True)
class Source:
    """What a version is made of: one of these."""

    image: str | None = None
    "Another image: a name, GALLERY/DEFINITION/VERSION, a marketplace or community image."
    vm: str | None = None
    "A VM with all its disks; it goes on."
    disk: str | None = None
    "A managed disk that holds a system."
    snapshot: str | None = None
    "A snapshot of such a disk."
    vhd: str | None = None
    "A disk file, URL or OVA, in any format that calotype image create takes."

    def chosen(self) -> tuple[str, str]:
        """The option and what it names."""
        options = {
            "image": self.image,
            "vm": self.vm,
            "disk": self.disk,
            "snapshot": self.snapshot,
            "vhd": self.vhd,
        }
        given = [(key, value) for key, value in options.items() if value is not None]
        if len(given) != 1:
            raise InvalidInput(
                "say what the version is made of",
                hint="one of --image, --vm, --disk, --snapshot, --vhd",
            )
        return given[0]


@Parameter(name="*")
@dataclass(frozen=True)
class Publishing:
    """How long a version is to be used, and where."""

    exclude_from_latest: bool | None = None
    "Whether it is left out when somebody asks for the latest version."
    end_of_life_date: str | None = None
    "From when on it should not be used: 2027-12-31 (none takes it back)."
    block_deletion_before_end_of_life: bool | None = None
    "Whether it cannot be deleted before that."
    excluded_regions: Annotated[tuple[str, ...] | None, Repeat] = None
    "Regions where no VMs may be made of it; '' for none."

    def changes(self) -> dict[str, Any]:
        """The fields of the model that it speaks of."""
        found: dict[str, Any] = {
            "exclude_from_latest": self.exclude_from_latest,
            "block_deletion_before_end_of_life": self.block_deletion_before_end_of_life,
        }
        found = {key: value for key, value in found.items() if value is not None}
        if self.end_of_life_date is not None:
            found["end_of_life"] = moment(self.end_of_life_date)
        if self.excluded_regions is not None:
            found["excluded_regions"] = tuple(filter(None, self.excluded_regions))
        return found


@app.command
def create(
    name: str,
    *,
    source: Source | None = None,
    data_disk: Annotated[tuple[str, ...], Repeat] = (),
    generalize: Annotated[bool, Parameter(negative="")] = False,
    steps: StepOptions | None = None,
    checksum: str | None = None,
    allow_address: Annotated[tuple[str, ...], Repeat] = (),
    force: Annotated[bool, Parameter(negative="")] = False,
    publishing: Publishing | None = None,
    target_regions: Annotated[tuple[str, ...], Repeat] = (),
    tags: Annotated[tuple[str, ...], Repeat] = (),
    common: Common | None = None,
) -> None:
    """Publish a version of an image definition.

    A version of an image that is promoted is so too; every other one is staged, until calotype gallery
    image-version promote has tested it.

    Parameters
    ----------
    name
        GALLERY/DEFINITION/VERSION: three numbers, such as 1.0.0.
    data_disk
        With --vhd, --disk, --snapshot: LUN=FILE, LUN=DISK, LUN=SNAPSHOT (repeat it).
    generalize
        With --vm: generalize a copy on the way.
    checksum
        With --vhd: SHA-256 of the file. Required for a URL.
    allow_address
        With --vhd: a network (CIDR) that a URL may lead to although it is not public.
    force
        Let the definition's OS state hold although the disk contradicts it (recorded).
    target_regions
        Regions to replicate it to; it is usable before they all have it.
    tags
        KEY=VALUE.
    """
    kind, what = (source or Source()).chosen()
    chosen = (steps or StepOptions()).steps
    _require_for(
        kind,
        ("--data-disk", data_disk, ("disk", "snapshot", "vhd")),
        ("--generalize", generalize, ("vm",)),
        ("--checksum", checksum, ("vhd",)),
        ("--allow-address", allow_address, ("vhd",)),
        ("--force", force, ("vm", "disk", "snapshot", "vhd")),
    )
    if chosen != DEFAULT and not generalize:
        raise InvalidInput(
            "--enable and --disable are for --generalize", hint="say --generalize too"
        )
    data = by_lun(data_disk)
    words = pairs(tags)
    options = (publishing or Publishing()).changes()
    with session(common) as context:
        place = versions.place(context, name, **options)
        regions = require_regions(context, target_regions, place.excluded_regions)
        made: ImageVersion
        if kind == "image":
            made = versions.of_image(context, place, what, tags=words or None)
        elif kind == "vm":
            made = versions.of_vm(
                context, place, what, generalize=generalize, force=force, steps=chosen, tags=words
            )
        elif kind == "disk":
            made = versions.of_disks(context, place, what, data, force=force, tags=words)
        elif kind == "snapshot":
            made = versions.of_snapshots(context, place, what, data, force=force, tags=words)
        else:
            upload = Upload(location=what, sha256=sha256(checksum), allow_addresses=allow_address)
            others = {lun: Upload(location=file) for lun, file in data.items()}
            made = versions.of_files(context, place, upload, others, force=force, tags=words)
        emit_version(common, context, made)
        if regions:
            _tell(common, replicate(context, made, regions))


@app.command(name="list")
def list_(
    name: str,
    *,
    deleted: Annotated[bool, Parameter(negative="")] = False,
    page: Page | None = None,
    common: Common | None = None,
) -> None:
    """List the versions of an image definition, the highest first.

    Parameters
    ----------
    name
        GALLERY/DEFINITION.
    deleted
        Those that were deleted and can come back.
    """
    page = page or Page()
    before = references.version(page.after)
    with session(common) as context:
        definition = references.find_definition(context, name)
        found = context.catalog.versions.list(
            definition.id, limit=page.top, before=before, deleted=deleted
        )
        latest = _latest(context, definition.id)
        emit(common, [_record(one, latest) for one in found], _DELETED if deleted else COLUMNS)


@app.command
def show(name: str, *, common: Common | None = None) -> None:
    """Show one version: its disks, where it came from, how long it is to be used.

    Parameters
    ----------
    name
        GALLERY/DEFINITION/VERSION, or its id as Azure writes it; without a version the latest.
    """
    with session(common) as context:
        emit_version(common, context, references.find_version(context, name))


@app.command
def update(
    name: str,
    *,
    publishing: Publishing | None = None,
    common: Common | None = None,
) -> None:
    """Change a version; what is not named stays. Its number and its disks never change.

    Parameters
    ----------
    name
        GALLERY/DEFINITION/VERSION.
    """
    changes = (publishing or Publishing()).changes()
    if not changes:
        raise InvalidInput(
            "nothing to change",
            hint="--exclude-from-latest, --end-of-life-date, --block-deletion-before-end-of-life, "
            "--excluded-regions; tags: calotype image tag",
        )
    with session(common) as context:
        emit_version(common, context, versions.update_version(context, name, **changes))


def _require_for(kind: str, *options: tuple[str, object, tuple[str, ...]]) -> None:
    """Refuse options that say nothing of this kind of source."""
    for option, given, kinds in options:
        if given and kind not in kinds:
            sources = ", ".join(f"--{kind}" for kind in kinds)
            raise InvalidInput(f"{option} says nothing of --{kind}", hint=f"it is for {sources}")


def _latest(context: Context, definition_id: str) -> str | None:
    """The id of a definition's latest version here."""
    try:
        return context.catalog.versions.latest(definition_id, region=context.region).id
    except NotFound:
        return None


def _record(version: ImageVersion, latest: str | None) -> dict[str, Any]:
    record = {**plain(version), "id": version.id, "version": str(version.version)}
    return {**record, "latest": version.id == latest}


def version_record(context: Context, version: ImageVersion) -> dict[str, Any]:
    """What programs are told of a version."""
    return _record(version, _latest(context, version.definition_id))


def emit_version(common: Common | None, context: Context, version: ImageVersion) -> None:
    """Print a version."""
    record = version_record(context, version)
    if not for_people(common):
        emit(common, record)
        return
    life = {
        "latest": "yes" if record["latest"] else _why_not(version),
        "life cycle": f"{version.state}{f': {version.reason}' if version.reason else ''}",
        "use instead": version.replacement,
        "end of life": str(version.end_of_life.date()) if version.end_of_life else None,
        "deletion": "not before its end of life"
        if version.block_deletion_before_end_of_life
        else None,
        "not for": ", ".join(version.excluded_regions),
        "can come back until": str(version.purge_at)[:16] if version.purge_at else None,
    }
    emit(common, {**summary(version.image), **life})


def _why_not(version: ImageVersion) -> str:
    if version.image.stage is Stage.STAGED:
        return f"no: staged (calotype gallery image-version promote {version.reference})"
    return "no: excluded" if version.exclude_from_latest else "no"


def _tell(common: Common | None, done: Replication) -> None:
    """How the regions fared, for people; ``replication-status`` has it for programs."""
    if for_people(common):
        for replica in done.summary:
            why = f": {one_line(replica.detail)}" if replica.detail else ""
            print(f"{replica.region}: {replica.state}{why}")
