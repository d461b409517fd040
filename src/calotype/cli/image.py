"""``calotype image``: images."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from calotype import units
from calotype.cli import GROUPS
from calotype.cli.arguments import Repeat, StdinPath, by_lun, pairs, sha256
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit, for_people, plain
from calotype.cli.text import size as show_size
from calotype.engine import images, references
from calotype.engine.community import community
from calotype.engine.export import export_image
from calotype.engine.import_ import ImageRequest, Imported, import_image
from calotype.engine.sources import Upload
from calotype.model import Architecture, Caching, Generation, Image, OsState, OsType, Recommended

app = App(name="image", help=GROUPS["image"])
# These texts are all that --help says of them, before their options; the functions load much.
app.command("calotype.cli.capture:image_capture", name="capture", help="Make an image of a VM.")
app.command(
    "calotype.cli.verify:verify",
    name="verify",
    help="Look into an image's disks, and judge: every check of every step, and the verdict.\n\n"
    "Nothing of the image is changed; the verdict is written into the catalogue, and signed. Ends with "
    "status 1 when the disks contradict the OS state that the image was declared to have.",
)
app.command(
    "calotype.cli.boottest:image_test",
    name="test",
    help="Start two clones in throw-away overlays, look at them, and promote the image.\n\n"
    "Host keys, machine-ids, host names and random seeds must differ. A specialized image is started "
    "once. Ends with status 8 when the image fails.",
)
app.command(
    "calotype.cli.report:image_report",
    name="report",
    help="Show what was proved of an image: verdict, checks, boot test, digests, who signed.",
)
app.command(
    "calotype.cli.diff:diff",
    name="diff",
    help="Compare two images without booting: packages, kernels, users, services, files, sizes.",
)
app.command(
    "calotype.cli.diff:sbom",
    name="sbom",
    help="Write the software in an image as a CycloneDX 1.6 document (JSON).",
)

_KINDS = {"OSImage": "OS image", "VMImage": "VM image"}

COLUMNS: Columns = {
    "Name": lambda i: i["name"],
    "Kind": lambda i: _KINDS[i["kind"]],
    "State": lambda i: i["osState"],
    "Stage": lambda i: i["stage"],
    "Gen": lambda i: i["generation"],
    "Disks": lambda i: 1 + len(i["dataDisks"]),
    "Size": lambda i: show_size(i["osDisk"]["size"] + sum(d["size"] for d in i["dataDisks"])),
    "From": lambda i: f"{i['provenance']['kind']}: {i['provenance']['source']}",
    "Created": lambda i: i["createdAt"][:10],
}


@app.command
def create(
    name: str,
    *,
    source: StdinPath,
    format: Annotated[str | None, Parameter(name="--format")] = None,  # noqa: A002 (the option's name)
    checksum: str | None = None,
    vhd_size: Literal["current", "geometry"] = "current",
    data_disk: Annotated[tuple[str, ...], Repeat] = (),
    os_type: OsType = OsType.LINUX,
    os_state: OsState | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    architecture: Architecture = Architecture.X64,
    generation: Annotated[
        Generation | None, Parameter(name=("--generation", "--hyper-v-generation"))
    ] = None,
    caching: Caching = Caching.READ_WRITE,
    label: str | None = None,
    family: str | None = None,
    description: str | None = None,
    eula: str | None = None,
    recommended_vcpus: int | None = None,
    recommended_memory: str | None = None,
    allow_address: Annotated[tuple[str, ...], Repeat] = (),
    tags: Annotated[tuple[str, ...], Repeat] = (),
    common: Common | None = None,
) -> None:
    """Create an image from disk files: upload.

    Parameters
    ----------
    name
        The image's name.
    source
        The OS disk (or an OVA with all disks): a file, a block device, an http(s) URL, or '-' for
        standard input. raw, VHD, VHDX, qcow2, VMDK, also as .gz, .xz, .zst.
    format
        Declare the format (raw, vhd, vhdx, qcow2, vmdk, ova); the file must agree. Found out otherwise.
    checksum
        SHA-256 of the file: sha256:HEX or HEX. Required for a URL.
    vhd_size
        What a VHD's size is: its footer's current size (as on Azure), or its geometry (Virtual PC).
    data_disk
        A data disk: LUN=FILE (repeat it).
    os_type
        The operating system, where the disk does not show it.
    os_state
        Generalized or Specialized; without it Calotype takes what the disk shows.
    force
        Let the declared state hold although the disk contradicts it (recorded).
    architecture
        The processor.
    generation
        V1 (BIOS) or V2 (UEFI); without it Calotype looks at the partitions.
    caching
        Host caching of the disks.
    label
        A line for people.
    family
        The family that the image belongs to.
    description
        What it is.
    eula
        Its licence, or the URL of it.
    recommended_vcpus
        VM size that it wants: processors.
    recommended_memory
        VM size that it wants: memory (2G).
    allow_address
        A network (CIDR) that a URL may lead to although it is not public.
    tags
        KEY=VALUE.
    """
    request = ImageRequest(
        name=name,
        os_type=os_type,
        os_state=os_state,
        force=force,
        architecture=architecture,
        generation=generation,
        label=label,
        family=family,
        description=description,
        eula=eula,
        recommended=Recommended(
            vcpus=recommended_vcpus,
            memory=units.size(recommended_memory) if recommended_memory else None,
        ),
        tags=pairs(tags),
    )
    upload = Upload(
        location=source,
        format=format,
        sha256=sha256(checksum),
        caching=caching,
        allow_addresses=allow_address,
        vhd_size=vhd_size,
    )
    data = {
        lun: Upload(location=location, caching=caching, vhd_size=vhd_size)
        for lun, location in by_lun(data_disk).items()
    }
    with session(common) as context:
        _emit_imported(common, import_image(context, request, upload, data))


@app.command(name="list")
def list_(*, common: Common | None = None) -> None:
    """List the images."""
    with session(common) as context:
        emit(common, context.catalog.list_images(), COLUMNS)


@app.command
def show(name: str, *, common: Common | None = None) -> None:
    """Show one image: its disks, its properties, where it came from.

    Parameters
    ----------
    name
        The image: of its own, or a version in a gallery; of the marketplace or the community, pulled if it
        is missing.
    """
    with session(common) as context:
        image = references.find(context, name)
        lineage = community.lineage(context, image)
        if for_people(common):
            emit(common, {**summary(image), "descends from": "\n".join(lineage)})
        else:
            emit(common, {**plain(image), "lineage": list(lineage)})


@app.command
def export(
    name: str,
    file: Path,
    *,
    format: Annotated[str | None, Parameter(name="--format")] = None,  # noqa: A002
    lun: int | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    report: bool = True,
    common: Common | None = None,
) -> None:
    """Write a disk of an image (or all of them, as OVA) to a file.

    Parameters
    ----------
    name
        The image.
    file
        The file to write; its ending names the format unless --format does. .gz, .xz, .zst compress.
    format
        raw, vhd (fixed, passes Azure's gate), vhd-dynamic, vhdx, qcow2, qcow2-zstd, vmdk, vmdk-stream,
        each also with .gz, .xz or .zst; ova.
    overwrite
        Replace an existing file.
    lun
        The data disk at this LUN instead of the OS disk.
    report
        Put the image's evidence report, if it has one, beside it as FILE.report.json.
    """
    with session(common) as context:
        exported = export_image(
            context, name, file, format=format, lun=lun, overwrite=overwrite, report=report
        )
        emit(common, exported)


@app.command
def tag(
    name: str,
    tags: tuple[str, ...] = (),
    *,
    remove: Annotated[tuple[str, ...], Repeat] = (),
    common: Common | None = None,
) -> None:
    """Set tags: calotype image tag NAME team=a stage=test --remove old.

    Parameters
    ----------
    name
        The image.
    tags
        KEY=VALUE.
    remove
        The key of a tag to take away.
    """
    with session(common) as context:
        emit(common, images.tag(context, name, pairs(tags), remove).tags)


@app.command
def delete(
    name: str,
    *,
    force: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> None:
    """Delete an image.

    Parameters
    ----------
    name
        The image; of one that was pulled, its whole name, with the version.
    force
        Although VMs were made from it (they go on to work).
    """
    with session(common) as context:
        images.delete(context, name, force=force)


def summary(image: Image) -> dict[str, Any]:
    """What people want to know of an image; ``-o json`` has the rest."""
    record = plain(image)
    disks = [
        f"{'OS disk' if disk.lun is None else f'LUN {disk.lun}'}: {show_size(disk.size)}"
        for disk in image.disks
    ]
    wanted = image.recommended
    took = image.provenance.consistency
    return {
        "name": image.name,
        "kind": _KINDS[record["kind"]],
        "state": f"{image.os_type} {image.os_state}",
        "stage": image.stage,
        "starts by": {"V1": "BIOS (V1)", "V2": "UEFI (V2)"}[image.generation],
        "disks": "\n".join(disks),
        "recommended": f"{wanted.vcpus or '-'} vCPU, {show_size(wanted.memory) or '-'}"
        if wanted.vcpus or wanted.memory
        else None,
        "from": f"{image.provenance.kind} {image.provenance.source}"
        + (f", {took}-consistent" if took else ""),
        "sha256": image.provenance.sha256,
        **{key: record[key] for key in ("label", "family", "description", "eula", "tags")},
        "notes": "\n".join(image.provenance.notes),
        "created": record["createdAt"][:19],
        "id": image.id,
    }


def _emit_imported(common: Common | None, imported: Imported) -> None:
    """The image; for people also what it cost the store."""
    emit(common, summary(imported.image) if for_people(common) else imported.image)
    if for_people(common):
        if imported.existed:
            print("this upload was there already: nothing was done")
        for disk, cost in zip(imported.image.disks, imported.ingested, strict=False):
            what = "OS disk" if disk.lun is None else f"LUN {disk.lun}"
            print(
                f"{what}: {show_size(disk.size)}, {cost.chunks} chunks, {cost.new_chunks} new, "
                f"{show_size(cost.stored_bytes)} stored"
            )
