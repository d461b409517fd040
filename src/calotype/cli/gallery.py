"""``calotype gallery``: galleries of your own, and with whom they are shared."""

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import App, Parameter

from calotype.cli import GROUPS
from calotype.cli.arguments import Repeat, pairs
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit, plain
from calotype.engine import references
from calotype.engine.gallery import galleries
from calotype.errors import InvalidInput
from calotype.model import Gallery


def _shared_with(gallery: dict[str, Any]) -> str:
    if gallery["sharing"] != "Groups":
        return str(gallery["sharing"])
    return "everyone" if gallery["everyone"] else f"{len(gallery['subscriptions'])} subscriptions"


app = App(name="gallery", help=GROUPS["gallery"])
app.command(
    "calotype.cli.gallery_definition:app",
    name="image-definition",
    help="Image definitions: what all versions of an image have in common.",
)
app.command(
    "calotype.cli.gallery_version:app",
    name="image-version",
    help="Image versions: publish, list, show, update; their life and their replicas.",
)

COLUMNS: Columns = {
    "Name": lambda g: g["name"],
    "Sharing": _shared_with,
    "Description": lambda g: g["description"],
    "Created": lambda g: g["createdAt"][:10],
}
_SHARED: Columns = {
    "Unique name": lambda g: g["uniqueName"],
    "Description": lambda g: g["description"],
}
_COMMUNITY: Columns = {
    "Public name": lambda g: g["community"]["publicName"],
    "Publisher": lambda g: g["community"]["publisherUri"],
    "Description": lambda g: g["description"],
}


@Parameter(name="*")
@dataclass(frozen=True)
class Page:
    """Which part of a long list."""

    top: int = 1000
    "As many as are shown."
    after: str | None = None
    "Go on after this one: the last of the page before."

    def __post_init__(self) -> None:
        """Refuse what is no number of lines."""
        if not 0 < self.top <= 100_000:
            raise InvalidInput(f"--top {self.top} is no number of lines", hint="1 to 100000")


@app.command
def create(
    name: str,
    *,
    description: str | None = None,
    soft_delete_days: int = 7,
    tags: Annotated[tuple[str, ...], Repeat] = (),
    common: Common | None = None,
) -> None:
    """Create a gallery.

    Parameters
    ----------
    name
        Its name: letters, digits, '.' and '_'; unique in the subscription.
    description
        What it is for.
    soft_delete_days
        For how many days versions that were deleted can come back; 0 for not at all.
    tags
        KEY=VALUE.
    """
    with session(common) as context:
        made = galleries.create_gallery(
            context,
            name,
            description=description,
            soft_delete_days=soft_delete_days,
            tags=pairs(tags),
        )
        emit(common, _record(made))


@app.command(name="list")
def list_(
    *,
    shared: Annotated[bool, Parameter(negative="")] = False,
    community: Annotated[bool, Parameter(negative="")] = False,
    page: Page | None = None,
    common: Common | None = None,
) -> None:
    """List the galleries of the resource group.

    Parameters
    ----------
    shared
        Instead, those that other subscriptions share with this one, by their unique names.
    community
        Instead, those that are published to the community here, by their public names.
    """
    if shared and community:
        raise InvalidInput("--shared and --community are two lists", hint="leave one of them out")
    page = page or Page()
    with session(common) as context:
        after: tuple[str, ...] = ()
        if page.after is not None:
            after = references.unique_parts(page.after) if shared else (page.after,)
        found = context.catalog.galleries.list(
            shared=shared, community=community, limit=page.top, after=after
        )
        columns = _SHARED if shared else _COMMUNITY if community else COLUMNS
        emit(common, [_record(gallery) for gallery in found], columns)


@app.command
def show(name: str, *, common: Common | None = None) -> None:
    """Show one gallery: with whom it is shared, and how long what was deleted in it can come back.

    Parameters
    ----------
    name
        The gallery: its name, its unique name if another subscription shares it, or its id.
    """
    with session(common) as context:
        emit(common, _record(references.find_gallery(context, name)))


@app.command
def update(
    name: str,
    *,
    description: str | None = None,
    soft_delete_days: int | None = None,
    tags: Annotated[tuple[str, ...] | None, Repeat] = None,
    common: Common | None = None,
) -> None:
    """Change a gallery; what is not named stays.

    Parameters
    ----------
    name
        The gallery.
    description
        What it is for; '' for none.
    soft_delete_days
        For how many days versions that are deleted from now on can come back.
    tags
        KEY=VALUE: all its tags from now on; '' for none.
    """
    changes: dict[str, Any] = {}
    if description is not None:
        changes["description"] = description or None
    if soft_delete_days is not None:
        changes["soft_delete_days"] = soft_delete_days
    if tags is not None:
        changes["tags"] = pairs(tags)
    if not changes:
        raise InvalidInput("nothing to change", hint="--description, --soft-delete-days, --tags")
    with session(common) as context:
        emit(common, _record(galleries.update_gallery(context, name, **changes)))


@app.command
def delete(name: str, *, common: Common | None = None) -> None:
    """Delete a gallery that holds no image definition.

    Parameters
    ----------
    name
        The gallery.
    """
    with session(common) as context:
        galleries.delete_gallery(context, name)


@app.command
def share(
    name: str,
    *,
    add: Annotated[tuple[str, ...], Repeat] = (),
    remove: Annotated[tuple[str, ...], Repeat] = (),
    everyone: bool | None = None,
    reset: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> None:
    """Share a gallery with other subscriptions, which may use its images; only its owners can.

    Parameters
    ----------
    name
        The gallery.
    add
        Subscriptions (names or ids) that may use it.
    remove
        Subscriptions that may no longer.
    everyone
        Whether all subscriptions of this installation may.
    reset
        Share it with nobody.
    """
    if reset == bool(add or remove or everyone is not None):
        raise InvalidInput(
            "say with whom", hint="--add, --remove, --everyone or --no-everyone; or --reset alone"
        )
    with session(common) as context:
        if reset:
            shared = galleries.unshare(context, name)
        else:
            shared = galleries.share(context, name, add=add, remove=remove, everyone=everyone)
        emit(common, _record(shared))


def _record(gallery: Gallery) -> dict[str, Any]:
    return {**plain(gallery), "uniqueName": references.unique_name(gallery)}
