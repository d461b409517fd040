"""What is kept here of followed installations: what was seen last, which can be asked without the network."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from calotype.disk.durable import read_map
from calotype.engine.community.mirror import HttpMirror
from calotype.engine.community.trusted import Tree
from calotype.engine.context import Context
from calotype.errors import NotFound
from calotype.model import FollowedCommunity
from calotype.public import form
from calotype.public.form import Definition, GalleryDocument, PublishedVersion
from calotype.units import one_line

STATE = "state.json"  # in an installation's directory


def directory_of(context: Context, name: str) -> Path:
    """Where all that belongs to the installation of this name is kept."""
    return context.home.community / name


def tree_of(context: Context, community: FollowedCommunity) -> Tree:
    """Its tree, as far as it was verified."""
    mirrors = mirrors_of(community)
    return Tree(directory_of(context, community.name), community.root.encode(), mirrors)


def mirrors_of(community: FollowedCommunity) -> list[HttpMirror]:
    """Where its tree is to be had."""
    return [HttpMirror(url, community.allow_addresses) for url in community.mirrors]


def state_of(context: Context, community: FollowedCommunity) -> dict[str, Any]:
    """What the last update wrote down; empty when there was none."""
    return read_map(directory_of(context, community.name) / STATE)


def documents(context: Context, community: FollowedCommunity) -> Iterator[GalleryDocument]:
    """Its galleries as they were seen last."""
    directory = directory_of(context, community.name) / "targets"
    for public_name, digest in sorted(state_of(context, community).get("galleries", {}).items()):
        with suppress(OSError):
            data = (directory / digest).read_bytes()
            if sha256(data).hexdigest() == digest:
                yield form.decode_gallery(data, public_name)


def bearer(context: Context, public_name: str) -> tuple[FollowedCommunity, GalleryDocument]:
    """The followed installation that has a gallery, and the gallery as it was seen last.

    Raises:
        NotFound: none has.
    """
    for community in context.catalog.communities.list():
        for document in documents(context, community):
            if document.public_name.lower() == public_name.lower():
                return community, document
    raise NotFound(
        f"nobody that is followed has a gallery '{one_line(public_name, 80)}'",
        hint="calotype community list shows what there is; calotype community add URL follows others",
    )


def versions(galleries: Sequence[GalleryDocument]) -> Iterator[tuple[str, PublishedVersion]]:
    """All versions in these galleries, by their references."""
    for document in galleries:
        for definition in document.definitions:
            for version in definition.versions:
                yield reference(document, definition, version), version


def reference(document: GalleryDocument, definition: Definition, version: PublishedVersion) -> str:
    """What a version is called here, pulled or not."""
    return f"community/{document.public_name}/{definition.name}/{version.number}"
