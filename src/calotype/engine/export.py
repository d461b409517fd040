"""From an image to a file that other systems read."""

from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from calotype.disk.export import ExportFormat, azure_gate, parse_target, write
from calotype.disk.ova_write import Machine, write_ova
from calotype.engine import references
from calotype.engine.base import bases
from calotype.engine.context import Context
from calotype.engine.marketplace import purchase
from calotype.engine.operation import Operation
from calotype.errors import InvalidInput, NotFound
from calotype.model import GIB, Generation, Image, ImageDisk

if TYPE_CHECKING:
    from calotype.engine.proof.evidence import Report

_PACKED = (".gz", ".xz", ".zst")
_BY_SUFFIX = {".img": "raw", ".vpc": "vhd"}
_OVA = "ova"


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written, and the evidence report beside it, where the image has one.

    ``azure`` lists what Azure's gate would refuse (fixed VHD only).
    """

    path: Path
    format: str
    size: int  # of the file, in bytes
    virtual_size: int
    azure: tuple[str, ...] | None = None
    report: Path | None = None


def export_image(
    context: Context,
    name: str,
    target: Path,
    *,
    format: str | None = None,  # noqa: A002 (the field's word)
    lun: int | None = None,
    overwrite: bool = False,
    report: bool = True,
) -> Exported:
    """Write the OS disk of an image (or the data disk at ``lun``; as OVA: all disks) to a file.

    With ``report`` the image's evidence report, if it has one, is put beside it as ``FILE.report.json``.

    Raises:
        InvalidInput: no format is known for that name.
        ReportRefused: the evidence report was changed by somebody.
        PurchaseRefused: its terms were not accepted, or the subscription is not entitled to it.
        NotFound: the image has no such data disk.
        Conflict: the file exists, and ``overwrite`` is not set.
    """
    wanted = format or _format_of(target)
    if not target.parent.is_dir():
        raise NotFound(f"there is no directory '{target.parent}'")
    with context.operation() as operation:
        image = references.find(context, name)
        purchase.require(context, image)  # uploaded again, it would be rid of its plan
        evidence = _evidence(context, image, target, overwrite=overwrite) if report else None
        if wanted == _OVA:
            exported = _export_ova(context, operation, image, target, overwrite=overwrite)
        else:
            disk = _disk_of(image, lun)
            exported = _export_disk(context, operation, disk, target, wanted, overwrite=overwrite)
        if evidence:
            exported = replace(exported, report=evidence.put_beside(target))
    context.drop_unused()
    return exported


def _evidence(context: Context, image: Image, target: Path, *, overwrite: bool) -> "Report | None":
    """The report that is to stand beside the file, if there is one and it has room there."""
    from calotype.engine.proof.evidence import find_evidence  # noqa: PLC0415 (what others do without)

    report = find_evidence(context, image)
    if report is not None:
        report.require_place(target, overwrite=overwrite)
    return report


def _export_disk(
    context: Context,
    operation: Operation,
    disk: ImageDisk,
    target: Path,
    wanted: str,
    *,
    overwrite: bool,
) -> Exported:
    kind, packing = parse_target(wanted)
    own = kind in (ExportFormat.RAW, ExportFormat.VHD)
    raw = None if own else bases.ensure(context, disk.index, operation.directory)
    with closing(context.repository.open(disk.index)) as opened:
        write(
            opened,
            target,
            kind,
            scratch=operation.directory,
            packing=packing,
            raw=raw,
            overwrite=overwrite,
            progress=context.progress,
        )
    azure = tuple(azure_gate(target)) if kind is ExportFormat.VHD and packing is None else None
    return Exported(target, wanted, target.stat().st_size, disk.size, azure)


def _export_ova(
    context: Context, operation: Operation, image: Image, target: Path, *, overwrite: bool
) -> Exported:
    machine = Machine(
        name=image.name,
        vcpus=image.recommended.vcpus or 1,
        memory=image.recommended.memory or GIB,
        efi=image.generation is Generation.V2,
        os_type=image.os_type.value,
    )
    with ExitStack() as stack:
        write_ova(
            [
                stack.enter_context(closing(context.repository.open(disk.index)))
                for disk in image.disks
            ],
            target,
            machine,
            scratch=operation.directory,
            raws=[bases.ensure(context, disk.index, operation.directory) for disk in image.disks],
            overwrite=overwrite,
            progress=context.progress,
        )
    return Exported(target, _OVA, target.stat().st_size, image.size)


def _disk_of(image: Image, lun: int | None) -> ImageDisk:
    if lun is None:
        return image.os_disk
    for disk in image.data_disks:
        if disk.lun == lun:
            return disk
    luns = ", ".join(str(disk.lun) for disk in image.disks[1:]) or "none"
    raise NotFound(f"image '{image.name}' has no data disk at LUN {lun}", hint=f"LUNs: {luns}")


def _format_of(target: Path) -> str:
    """The format that a file name promises: ``web.qcow2.xz`` is ``qcow2.xz``."""
    packing = target.suffix if target.suffix in _PACKED else ""
    suffix = Path(target.stem).suffix if packing else target.suffix
    kind = _BY_SUFFIX.get(suffix, suffix.removeprefix("."))
    if not kind:
        raise InvalidInput(
            f"'{target.name}' names no format", hint="end it in .vhd, or say --format"
        )
    return kind + packing
