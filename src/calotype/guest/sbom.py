"""The software in a guest as a CycloneDX 1.6 document: deterministic, so that one image has one document."""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from cyclonedx.model import Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from calotype import __version__
from calotype.disk.base import Disk
from calotype.guest.guest import Tree
from calotype.guest.locate import find_root, survey
from calotype.guest.os_release import os_release
from calotype.guest.packages import Family, Package, inventory
from calotype.model import Architecture

_NAMESPACE = uuid.UUID("7f0f3f5c-7b0e-5d0a-9f55-0c6b2f4a51c3")


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """The image that a document is about; ``indexes`` are its disks' Index digests (BLAKE3, in hex)."""

    name: str
    id: str
    created_at: datetime
    architecture: Architecture
    indexes: tuple[str, ...]


def document(subject: Subject, disk: Disk) -> bytes:
    """The document of an image whose OS disk this is.

    Raises:
        GuestError: there is no guest, or one that cannot be looked into.
    """
    _, tree = find_root(disk, survey(disk))
    return of_tree(subject, tree)


def of_tree(subject: Subject, tree: Tree) -> bytes:
    """The document of an image whose guest this is."""
    release = os_release(tree)
    found = inventory(tree)
    image = Component(
        type=ComponentType.CONTAINER,
        bom_ref=f"image:{subject.id}",
        name=_clean(subject.name),
        properties=[
            Property(name="calotype:image-id", value=subject.id),
            Property(name="calotype:architecture", value=subject.architecture),
            *(
                Property(name=f"calotype:disk:{number}:index:blake3", value=index)
                for number, index in enumerate(subject.indexes)
            ),
            *(Property(name="calotype:note", value=_clean(note)) for note in found.notes),
        ],
    )
    system = _system(release)
    packages = list(_components(found.packages, release))
    bom = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, "\n".join((subject.id, *subject.indexes))),
        version=1,
        metadata=BomMetaData(
            timestamp=subject.created_at,
            component=image,
            tools=ToolRepository(
                components=[
                    Component(
                        type=ComponentType.APPLICATION,
                        name="calotype",
                        version=__version__,
                        bom_ref="tool:calotype",
                    )
                ]
            ),
        ),
        components=[system, *packages],
    )
    bom.register_dependency(image, [system, *packages])
    return JsonV1Dot6(bom).output_as_string(indent=1).encode()


def _system(release: Mapping[str, str]) -> Component:
    return Component(
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref="os",
        name=_clean(release.get("ID", "")) or "unknown",
        version=_clean(release.get("VERSION_ID", "")) or None,
        description=_clean(release.get("PRETTY_NAME", "")) or None,
    )


def _components(packages: list[Package], release: Mapping[str, str]) -> Iterator[Component]:
    seen: set[str] = set()
    for package in packages:
        found = purl(package, release)
        reference = str(found) if found else f"package:{len(seen)}"
        if reference in seen:
            continue
        seen.add(reference)
        yield Component(
            type=ComponentType.LIBRARY,
            bom_ref=reference,
            name=_clean(package.name),
            version=_clean(package.version),
            purl=found,
            licenses=[DisjunctiveLicense(name=_clean(package.license))]
            if package.license
            else None,
            properties=[Property(name="calotype:source", value=_clean(package.source))]
            if package.source
            else None,
        )


def purl(package: Package, release: Mapping[str, str]) -> PackageURL | None:
    """``pkg:deb/debian/bash@5.2?arch=amd64&distro=debian-12``; None for a name that no purl can have."""
    name = _clean(package.name).strip("/ ")
    if not name:
        return None
    distribution = _clean(release.get("ID", "")) or None
    number = _clean(release.get("VERSION_ID", ""))
    qualifiers = {
        "arch": _clean(package.architecture),
        "distro": f"{distribution}-{number}" if distribution and number else "",
    }
    version = package.version
    if package.family is Family.RPM and ":" in version:
        epoch, _, version = version.partition(":")
        qualifiers["epoch"] = _clean(epoch)
    return PackageURL(
        type="generic" if package.family is Family.FREEBSD else package.family.value,
        namespace=distribution,
        name=name,
        version=_clean(version),
        qualifiers={key: value for key, value in qualifiers.items() if value},
    )


def _clean(text: str) -> str:
    """A stranger's text without what no JSON reader or terminal should see."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:1024])
