"""``calotype community``: galleries that are shown to everybody, here and of other installations."""

from typing import Annotated, Any

from cyclopts import App, Parameter

from calotype.cli import GROUPS
from calotype.cli.common import Common, session
from calotype.cli.output import Columns, emit, for_people, plain
from calotype.cli.text import say, visible
from calotype.cli.text import size as show_size
from calotype.engine.community import community
from calotype.model import ReportCategory

app = App(name="community", help=GROUPS["community"])
#: Commands between installations, which load much: what ``--help`` says without loading them.
_BETWEEN = {
    "export": "Write the public galleries as signed static files that any web server or bucket can hold.",
    "rotate": "Sign a new root: new keys where they were lost or stolen, or only for another year.",
    "serve": "Serve an exported tree over HTTP, for those without a web server.",
    "add": "Follow the public galleries of another installation.",
    "update": "Ask followed installations what they show now.",
    "remove": "Follow an installation no longer; images that were pulled stay.",
    "followed": "List the followed installations, as they were seen last.",
    "pull": "Bring an image of a followed gallery here: only the chunks that are missing.",
}
for _name, _help in _BETWEEN.items():
    app.command(f"calotype.cli.followed:{_name}", name=_name, help=_help)

COLUMNS: Columns = {
    "Image": lambda r: r["reference"],
    "Publisher": lambda r: r["publisher"],
    "OS": lambda r: r["osType"],
    "Arch": lambda r: r["architecture"],
    "Size": lambda r: show_size(r["size"]),
    "Published": lambda r: r["publishedAt"][:10],
    "From": lambda r: r["origin"] or "this installation",
}
REPORTS: Columns = {
    "When": lambda r: r["at"][:19],
    "Of": lambda r: r["reference"],
    "Category": lambda r: r["category"],
    "Reason": lambda r: r["reason"],
    "By": lambda r: r["reporter"],
}


@app.command
def publish(
    gallery: str,
    *,
    publisher_uri: str,
    publisher_contact: Annotated[str, Parameter(name=("--publisher-contact", "--publisher-email"))],
    eula: str,
    public_name_prefix: str,
    force: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> None:
    """Show a gallery to everybody: in this installation, and to those that follow it.

    Its public name is the prefix and a random suffix, and stays its own for ever. Promoted versions of
    generalized images are shown, the latest of each unless all are asked for.

    Parameters
    ----------
    gallery
        The gallery; you must be its owner.
    publisher_uri
        Your web site (https).
    publisher_contact
        Where people can reach you: a mail address, or a URL.
    eula
        The URL of the licence.
    public_name_prefix
        How the public name begins: 5 to 16 letters and digits.
    force
        Show images although they hold what looks like secrets of applications (recorded).
    """
    with session(common) as context:
        from calotype.engine.community import publishing  # noqa: PLC0415 (loads what looks into disks)

        wanted = publishing.Publication(
            publisher_uri=publisher_uri,
            publisher_contact=publisher_contact,
            eula=eula,
            prefix=public_name_prefix,
        )
        done = publishing.publish(context, gallery, wanted, force=force)
        if not for_people(common):
            emit(common, done)
            return
        print(f"public as {community.public_name(done.gallery)}")
        for warning in done.warnings:
            say("note", warning)


@app.command
def withdraw(gallery: str, *, common: Common | None = None) -> None:
    """Show a gallery to nobody any more but whom it is shared with; VMs that were made of it go on.

    Parameters
    ----------
    gallery
        The gallery; you must be its owner.
    """
    with session(common) as context:
        from calotype.engine.community import publishing  # noqa: PLC0415 (loads what looks into disks)

        emit(common, publishing.withdraw(context, gallery))


@app.command(name="list")
def list_(
    *,
    all_versions: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> None:
    """List what everybody may use: of this installation, and of those that it follows.

    Parameters
    ----------
    all_versions
        Not only the latest version of each image.
    """
    with session(common) as context:
        _emit_listing(common, community.listing(context, all_versions=all_versions))


@app.command
def search(
    *words: str,
    all_versions: Annotated[bool, Parameter(negative="")] = False,
    common: Common | None = None,
) -> None:
    """Search what everybody may use.

    Parameters
    ----------
    words
        All must occur in the names, the publisher, or the description.
    all_versions
        Not only the latest version of each image.
    """
    with session(common) as context:
        _emit_listing(common, community.listing(context, words, all_versions=all_versions))


def _emit_listing(common: Common | None, found: list[community.Listing]) -> None:
    emit(common, [_flat(item) for item in found], COLUMNS)


def _flat(item: community.Listing) -> dict[str, Any]:
    image = plain(item.image)
    del image["versions"], image["latest"]
    about = {"publicName": item.gallery.info.public_name, "origin": item.gallery.origin}
    return _words({**image, **plain(item.version), **about})


def _words(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its versions as people write them."""
    for key, value in record.items():
        if key in ("version", "latest") and value is not None:
            record[key] = ".".join(str(number) for number in value.values())
        elif isinstance(value, list):
            record[key] = [_words(item) if isinstance(item, dict) else item for item in value]
    return record


@app.command
def show(reference: str, *, common: Common | None = None) -> None:
    """Show a public gallery and who publishes it, an image of it with all versions, or one version.

    Parameters
    ----------
    reference
        PUBLIC_NAME[/DEFINITION[/VERSION]]
    """
    with session(common) as context:
        emit(common, _words(plain(community.show(context, reference))))


@app.command
def report(
    reference: str,
    *,
    reason: str,
    category: ReportCategory = ReportCategory.OTHER,
    common: Common | None = None,
) -> None:
    """Report what is wrong with a community gallery or image, to whoever publishes it.

    Parameters
    ----------
    reference
        PUBLIC_NAME[/DEFINITION[/VERSION]]
    reason
        What is wrong.
    category
        What kind of thing that is.
    """
    with session(common) as context:
        done = community.report(context, reference, reason, category)
        if not for_people(common):
            emit(common, done)
            return
        print("reported: the owners of the gallery and of this installation see it")
        if done.origin is not None:
            told = f"it comes from '{done.origin}', whose publisher does not: tell {done.publisher_contact}"
            print(visible(told))


@app.command
def reports(*, common: Common | None = None) -> None:
    """List what was reported of galleries that are yours; to the installation's owner, of all."""
    with session(common) as context:
        emit(common, context.catalog.community.reports(), REPORTS)
