"""``calotype gallery image-definition``: what all versions of an image have in common."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any

from cyclopts import App, Parameter

from calotype import units
from calotype.cli.arguments import Repeat, moment, pairs
from calotype.cli.common import Common, session
from calotype.cli.gallery import Page
from calotype.cli.output import Columns, emit
from calotype.engine import references
from calotype.engine.gallery import galleries
from calotype.errors import InvalidInput
from calotype.model import (
    Architecture,
    Generation,
    ImageDefinition,
    OsState,
    OsType,
    PurchasePlan,
    Range,
    Retention,
)

app = App(name="image-definition", help="Image definitions.")

COLUMNS: Columns = {
    "Name": lambda d: d["name"],
    "Publisher": lambda d: d["publisher"],
    "Offer": lambda d: d["offer"],
    "SKU": lambda d: d["sku"],
    "OS": lambda d: f"{d['osType']} {d['osState']}",
    "Gen": lambda d: d["generation"],
    "Arch": lambda d: d["architecture"],
    "End of life": lambda d: (d["endOfLife"] or "")[:10],
}


@Parameter(name="*")
@dataclass(frozen=True)
class About:
    """What can be said of a definition at any time; '' (or 0, or none) takes back what was said."""

    description: str | None = None
    "What it is."
    eula: str | None = None
    "Its licence, or the URL of it."
    privacy_statement_uri: str | None = None
    "URL of the privacy statement."
    release_note_uri: str | None = None
    "URL of the release notes."
    minimum_cpu_core: int | None = None
    "Recommended size of VMs: the least processors."
    maximum_cpu_core: int | None = None
    "... the most."
    minimum_memory: str | None = None
    "Recommended size of VMs: the least memory (2G)."
    maximum_memory: str | None = None
    "... the most."
    features: Annotated[tuple[str, ...] | None, Repeat] = None
    "NAME=VALUE, such as SecurityType=TrustedLaunch."
    end_of_life_date: str | None = None
    "From when on it should not be used: 2027-12-31."
    recipe: str | None = None
    "The recipe that rebuilds it (calotype recipe rebuild)."
    retain_versions: int | None = None
    "As many of the newest good versions stay when retention is applied."
    retain_days: int | None = None
    "Versions that are younger stay when retention is applied."
    tags: Annotated[tuple[str, ...] | None, Repeat] = None
    "KEY=VALUE."

    def changes(self, before: ImageDefinition | None = None) -> dict[str, Any]:
        """The fields of the model that it speaks of; ``before`` has what a part of one leaves as it is."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        found = {field: read(given[name]) for name, (field, read) in _READ.items() if name in given}
        for field, read in (("vcpus", _count), ("memory", _memory)):
            name = "cpu_core" if field == "vcpus" else field
            least, most = given.get(f"minimum_{name}"), given.get(f"maximum_{name}")
            if least is not None or most is not None:
                was = getattr(before, field) if before else Range()
                found[field] = Range(
                    was.min if least is None else read(least),
                    was.max if most is None else read(most),
                )
        keep, days = self.retain_versions, self.retain_days
        if keep is not None or days is not None:
            kept = (before.retention if before else None) or Retention()
            kept = Retention(
                keep=kept.keep if keep is None else keep or None,
                days=kept.days if days is None else days or None,
            )
            found["retention"] = None if kept == Retention() else kept
        return found


def _count(number: int) -> int | None:
    return number or None


def _memory(text: str) -> int | None:
    return units.size(text or "0") or None


def _words(text: str) -> str | None:
    return text or None


#: Option -> the field of the model, and how it is read.
_READ: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "description": ("description", _words),
    "eula": ("eula", _words),
    "privacy_statement_uri": ("privacy_uri", _words),
    "release_note_uri": ("release_notes_uri", _words),
    "features": ("features", pairs),
    "end_of_life_date": ("end_of_life", moment),
    "recipe": ("recipe", _words),
    "tags": ("tags", pairs),
}


@app.command
def create(
    name: str,
    *,
    publisher: str,
    offer: str,
    sku: str,
    os_type: OsType,
    os_state: OsState = OsState.GENERALIZED,
    generation: Annotated[
        Generation, Parameter(name=("--hyper-v-generation", "--generation"))
    ] = Generation.V2,
    architecture: Architecture = Architecture.X64,
    plan_publisher: str | None = None,
    plan_product: str | None = None,
    plan_name: str | None = None,
    about: About | None = None,
    common: Common | None = None,
) -> None:
    """Create an image definition in a gallery.

    Publisher, offer, SKU, OS type, OS state, generation, architecture and plan never change.

    Parameters
    ----------
    name
        GALLERY/NAME.
    publisher
        Who publishes the image; publisher, offer and SKU together are unique in a gallery.
    offer
        What a group of related images is called.
    sku
        Which of them it is.
    os_type
        Linux or Windows.
    os_state
        Generalized (makes many VMs) or Specialized (one machine).
    generation
        V1 (BIOS) or V2 (UEFI).
    architecture
        The processor.
    plan_publisher
        Its purchase plan, whose terms must be accepted before the first VM: the publisher.
    plan_product
        ... the product.
    plan_name
        ... the plan's name.
    """
    gallery, _, rest = name.partition("/")
    if not rest or "/" in rest:
        raise InvalidInput(f"'{name}' is not GALLERY/NAME", hint="such as mine/web")
    with session(common) as context:
        made = galleries.create_definition(
            context,
            gallery,
            rest,
            publisher=publisher,
            offer=offer,
            sku=sku,
            os_type=os_type,
            os_state=os_state,
            generation=generation,
            architecture=architecture,
            plan=_plan(plan_publisher, plan_product, plan_name),
            **(about or About()).changes(),
        )
        emit(common, made)


@app.command(name="list")
def list_(gallery: str, *, page: Page | None = None, common: Common | None = None) -> None:
    """List the image definitions in a gallery.

    Parameters
    ----------
    gallery
        The gallery: its name, its unique name if another subscription shares it, or its id.
    """
    page = page or Page()
    with session(common) as context:
        owner = references.find_gallery(context, gallery)
        found = context.catalog.galleries.definitions(owner.id, limit=page.top, after=page.after)
        emit(common, found, COLUMNS)


@app.command
def show(name: str, *, common: Common | None = None) -> None:
    """Show one image definition.

    Parameters
    ----------
    name
        GALLERY/NAME, or its id as Azure writes it.
    """
    with session(common) as context:
        emit(common, references.find_definition(context, name))


@app.command
def update(
    name: str,
    *,
    publisher: str | None = None,
    offer: str | None = None,
    sku: str | None = None,
    os_type: OsType | None = None,
    os_state: OsState | None = None,
    generation: Annotated[
        Generation | None, Parameter(name=("--hyper-v-generation", "--generation"))
    ] = None,
    architecture: Architecture | None = None,
    about: About | None = None,
    common: Common | None = None,
) -> None:
    """Change an image definition; what is not named stays.

    Parameters
    ----------
    name
        GALLERY/NAME.
    publisher
        Never changes.
    offer
        Never changes.
    sku
        Never changes.
    os_type
        Never changes.
    os_state
        Never changes.
    generation
        Never changes.
    architecture
        Never changes.
    """
    fixed = {
        "publisher": publisher,
        "offer": offer,
        "sku": sku,
        "os_type": os_type,
        "os_state": os_state,
        "generation": generation,
        "architecture": architecture,
    }
    given = {key: value for key, value in fixed.items() if value is not None}
    with session(common) as context:
        before = references.find_definition(context, name)
        given |= (about or About()).changes(before)
        if not given:
            raise InvalidInput("nothing to change", hint="--description, --tags, …: see --help")
        emit(common, galleries.update_definition(context, name, **given))


@app.command
def delete(name: str, *, common: Common | None = None) -> None:
    """Delete an image definition of which there are no versions.

    Parameters
    ----------
    name
        GALLERY/NAME.
    """
    with session(common) as context:
        galleries.delete_definition(context, name)


def _plan(publisher: str | None, product: str | None, name: str | None) -> PurchasePlan | None:
    if publisher is None and product is None and name is None:
        return None
    if publisher is None or product is None or name is None:
        raise InvalidInput(
            "a plan has a publisher, a product and a name",
            hint="say --plan-publisher, --plan-product and --plan-name",
        )
    return PurchasePlan(publisher, product, name)
