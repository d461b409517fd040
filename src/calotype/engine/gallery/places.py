"""Where a new image is to stand: by itself, or as a version in a gallery."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from calotype.catalog import Act
from calotype.engine import names
from calotype.engine.context import Context
from calotype.engine.proof import look
from calotype.errors import InvalidInput
from calotype.model import (
    MAX_LUN,
    Image,
    ImageDefinition,
    ImageVersion,
    OsState,
    OsType,
    Recommended,
    Shelf,
    SourceKind,
    Stage,
    Version,
    VirtualMachine,
)
from calotype.units import one_line

#: Whose firmware is known: of what came otherwise the disk says which it can be.
_STARTED = (SourceKind.VM, SourceKind.IMAGE)


class Place(Protocol):
    """A place for one image that does not exist yet."""

    @property
    def name(self) -> str:
        """What the image will be called."""
        ...

    def check(self, context: Context) -> None:
        """Refuse early what would be refused at the end.

        Raises:
            InvalidInput, Conflict, NotFound, Forbidden: no image can stand there.
        """
        ...

    def put(self, context: Context, image: Image, act: Act | None) -> Image:
        """Make the image exist there, and record ``act`` with it; the image as it stands.

        Raises:
            InvalidInput, Conflict, NotFound, Forbidden: it cannot stand there.
        """
        ...


@dataclass(frozen=True, slots=True)
class Managed:
    """By itself, in the caller's group."""

    name: str

    def check(self, context: Context) -> None:
        """Refuse a name that is none, or is taken, and whoever may not make an image (more)."""
        names.resource(self.name, "an image")
        context.catalog.require_free("image", self.name)

    def put(self, context: Context, image: Image, act: Act | None) -> Image:
        """Make the image exist."""
        placed = replace(image, name=self.name, scope=context.scope, shelf=Shelf.MANAGED)
        context.catalog.add_image(placed, act=act)
        return placed


@dataclass(frozen=True, kw_only=True, slots=True)
class InGallery:
    """As a version of an image definition; :func:`calotype.engine.gallery.versions.place` finds it.

    What is put there has what the definition says, or is refused. It is promoted if the image is.
    """

    definition: ImageDefinition
    version: Version
    exclude_from_latest: bool = False
    end_of_life: datetime | None = None
    block_deletion_before_end_of_life: bool = False
    excluded_regions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``GALLERY/DEFINITION/VERSION``."""
        return f"{self.owner}/{self.version}"

    @property
    def owner(self) -> str:
        """``GALLERY/DEFINITION``."""
        return self.definition.reference

    def check(self, context: Context) -> None:
        """Refuse a number that is taken, and what contradicts itself."""
        require_end(self.end_of_life, blocks=self.block_deletion_before_end_of_life)
        context.catalog.versions.require_free(self.definition.id, self.version)

    def require_like(self, source: Image | VirtualMachine) -> None:
        """Refuse what has another system, processor or plan than the definition says.

        Raises:
            InvalidInput: so it is.
        """
        wanted = self.definition
        for what, said, is_, option in (
            ("OS type", wanted.os_type, source.os_type, "--os-type"),
            ("architecture", wanted.architecture, source.architecture, "--architecture"),
        ):
            if said is not is_:
                raise self._unlike(what, said, source.name, is_, option)
        if wanted.plan is not None and source.plan not in (None, wanted.plan):
            raise InvalidInput(
                f"the plan of image definition '{self.owner}' differs from that of '{source.name}'",
                hint="a plan goes with an image wherever it goes: make a definition without a plan, and its "
                "versions have the image's",
            )

    def fitted(self, context: Context, image: Image) -> Image:
        """The image, if it is what the definition says; a disk that starts by both firmwares fits both.

        Raises:
            InvalidInput: another system, state, firmware, processor or plan; two data disks with one LUN.
        """
        self.require_like(image)
        if self.definition.os_state is not image.os_state:
            raise InvalidInput(
                f"the OS state of image definition '{self.owner}' is {self.definition.os_state}, and "
                f"'{image.name}' is {image.os_state}",
                hint=self._cure(image),
            )
        require_luns(disk.lun for disk in image.data_disks)
        said, is_ = self.definition.generation, image.generation
        if said is is_ and image.provenance.kind in _STARTED:
            return image
        seen = look.firmware(context, image.os_disk.index)
        if said in seen or (said is is_ and not seen):
            stage = image.stage if said is is_ else Stage.STAGED  # nobody saw it start like that
            return replace(image, generation=said, stage=stage)
        raise self._unlike("generation", said, image.name, is_, "--hyper-v-generation")

    def put(self, context: Context, image: Image, act: Act | None) -> Image:
        """Make the version exist."""
        size = image.recommended
        placed = replace(
            self.fitted(context, image),
            name=self.name,
            scope=self.definition.scope,
            shelf=Shelf.GALLERY,
            plan=image.plan or self.definition.plan,
            eula=image.eula or self.definition.eula,
            recommended=Recommended(
                vcpus=size.vcpus or self.definition.vcpus.min,
                memory=size.memory or self.definition.memory.min,
            ),
        )
        version = ImageVersion(
            definition_id=self.definition.id,
            reference=self.name,
            version=self.version,
            image=placed,
            exclude_from_latest=self.exclude_from_latest,
            end_of_life=self.end_of_life,
            block_deletion_before_end_of_life=self.block_deletion_before_end_of_life,
            excluded_regions=self.excluded_regions,
        )
        detail = {
            "image": placed.id,
            "from": f"{placed.provenance.kind} {placed.provenance.source}",
            "stage": placed.stage.value,
        }
        created = Act("version.create", f"image version {self.name}", detail)
        context.catalog.versions.add(version, *([act] if act else []), created)
        return placed

    def _unlike(self, what: str, said: str, name: str, is_: str, option: str) -> InvalidInput:
        return InvalidInput(
            f"the {what} of image definition '{self.owner}' is {said}, and '{name}' is {is_}",
            hint=self._another(f"{option} {is_}"),
        )

    def _another(self, options: str) -> str:
        return (
            "make a definition for it: calotype gallery image-definition create "
            f"{self.definition.gallery}/NAME {options} …"
        )

    def _cure(self, image: Image) -> str:
        """How to come by an image in the state that the definition wants."""
        if self.definition.os_state is OsState.SPECIALIZED:
            return self._another("--os-state Generalized")
        if image.os_type is OsType.WINDOWS:
            return (
                "let Sysprep run in a VM of it: calotype vm generalize VM, then image-version create "
                "--vm VM"
            )
        return (
            f"generalize a copy: calotype generalize {image.name} --image NAME, then image-version create "
            "--image NAME; of a VM: image-version create --vm VM --generalize"
        )


def require_end(end: datetime | None, *, blocks: bool) -> None:
    """Refuse to block deletion until an end of life that nobody said.

    Raises:
        InvalidInput: so it is.
    """
    if blocks and end is None:
        raise InvalidInput(
            "deletion cannot be blocked until the end of life: none is said",
            hint="say --end-of-life-date too",
        )


def require_regions(context: Context, regions: Collection[str]) -> None:
    """Refuse regions that there are not: one that nobody knows would hold, or be barred from, nothing.

    Raises:
        InvalidInput: so it is.
    """
    known = {context.region, *context.settings.stores}
    if strange := set(regions) - known:
        raise InvalidInput(
            f"there is no region '{one_line(min(strange))}'",
            hint=f"there are {', '.join(sorted(known))}: this installation's, and the stores under [stores] "
            "in config.toml",
        )


def require_luns(luns: Iterable[int | None]) -> None:
    """Refuse two data disks with one LUN, and LUNs that there are not.

    Raises:
        InvalidInput: so it is.
    """
    seen = set()
    for lun in luns:
        if lun is None or not 0 <= lun <= MAX_LUN:
            raise InvalidInput(f"{lun} is not a LUN", hint=f"0 to {MAX_LUN}")
        if lun in seen:
            raise InvalidInput(f"two data disks have LUN {lun}", hint="give each a LUN of its own")
        seen.add(lun)
