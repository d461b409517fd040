"""A gallery for tests: versions that have no bytes, and VMs that never start.

``a_…`` is in no catalogue yet; ``new_…`` is, but for images and versions.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from calotype.catalog import Act
from calotype.engine.context import Context
from calotype.model import (
    GIB,
    Gallery,
    Generation,
    Image,
    ImageDefinition,
    ImageDisk,
    ImageVersion,
    OsState,
    OsType,
    Provenance,
    Retention,
    Scope,
    Shelf,
    SourceKind,
    Stage,
    Version,
    VirtualMachine,
)

ACT = Act("test.make", "test")
NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def a_gallery(name: str, scope: Scope = Scope()) -> Gallery:
    """A gallery."""
    return Gallery(id=str(uuid4()), name=name, soft_delete_days=7, created_at=NOW, scope=scope)


def new_gallery(context: Context, name: str = "gal", *, soft_delete_days: int = 7) -> Gallery:
    """A gallery in the default group."""
    gallery = replace(a_gallery(name), soft_delete_days=soft_delete_days)
    context.catalog.galleries.add(gallery, ACT)
    return gallery


def a_definition(gallery: Gallery, name: str = "web") -> ImageDefinition:
    """An image definition."""
    return ImageDefinition(
        id=str(uuid4()),
        gallery_id=gallery.id,
        gallery=gallery.name,
        name=name,
        publisher="contoso",
        offer="server",
        sku=name,
        os_type=OsType.LINUX,
        os_state=OsState.GENERALIZED,
        generation=Generation.V2,
        created_at=NOW,
        scope=gallery.scope,
    )


def new_definition(
    context: Context,
    gallery: Gallery,
    name: str = "web",
    *,
    retention: Retention | None = None,
    end_of_life: datetime | None = None,
    generation: Generation = Generation.V2,
) -> ImageDefinition:
    """An image definition."""
    definition = replace(
        a_definition(gallery, name),
        retention=retention,
        end_of_life=end_of_life,
        generation=generation,
    )
    context.catalog.galleries.add_definition(definition, ACT)
    return definition


def new_image(
    name: str,
    *,
    parent: str | None = None,
    stage: Stage = Stage.PROMOTED,
    scope: Scope = Scope(),
    shelf: Shelf = Shelf.MANAGED,
) -> Image:
    """An image."""
    return Image(
        id=str(uuid4()),
        name=name,
        os_type=OsType.LINUX,
        os_state=OsState.GENERALIZED,
        os_disk=ImageDisk(index="a" * 64, size=GIB),
        generation=Generation.V2,
        stage=stage,
        parents=(parent,) if parent else (),
        provenance=Provenance(kind=SourceKind.FILE, source="web.raw"),
        created_at=NOW,
        scope=scope,
        shelf=shelf,
    )


def new_version(
    definition: ImageDefinition,
    number: str | Version,
    *,
    stage: Stage = Stage.PROMOTED,
    parent: str | None = None,
    **fields: object,
) -> ImageVersion:
    """A version."""
    reference = f"{definition.gallery}/{definition.name}/{number}"
    image = new_image(
        reference, parent=parent, stage=stage, scope=definition.scope, shelf=Shelf.GALLERY
    )
    version = number if isinstance(number, Version) else Version.parse(number)
    assert version is not None
    return ImageVersion(
        definition_id=definition.id,
        reference=reference,
        version=version,
        image=image,
        **fields,  # type: ignore[arg-type]
    )


def publish(
    context: Context, definition: ImageDefinition, number: str | Version, **fields: object
) -> ImageVersion:
    """A version in the catalogue, as it stands there."""
    version = new_version(definition, number, **fields)  # type: ignore[arg-type]
    context.catalog.versions.add(version, ACT)
    return context.catalog.versions.of_image(version.id)


def a_vm(name: str, image_id: str | None = None, scope: Scope = Scope()) -> VirtualMachine:
    """A VM that has no disks."""
    serial = uuid4().int
    return VirtualMachine(
        id=str(uuid4()),
        name=name,
        vcpus=1,
        memory=GIB,
        os_type=OsType.LINUX,
        generation=Generation.V2,
        image_id=image_id,
        os_state=OsState.GENERALIZED,
        ssh_port=serial % 40_000 + 20_000,
        mac=f"52:54:00:{serial % 256:02x}:{serial // 256 % 256:02x}:{serial // 65536 % 256:02x}",
        created_at=NOW,
        scope=scope,
    )


def new_vm(context: Context, name: str, image_id: str, scope: Scope = Scope()) -> VirtualMachine:
    """A VM that was made of an image; it has no disks."""
    vm = a_vm(name, image_id, scope)
    context.catalog.add_vm(vm)
    return vm
