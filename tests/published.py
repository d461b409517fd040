"""Galleries with versions whose disks are in the store, and callers of other subscriptions."""

import os

from calotype import wire
from calotype.engine import roles
from calotype.engine import subscriptions as engine_subscriptions
from calotype.engine.community import community, publishing
from calotype.engine.community.publishing import Publication
from calotype.engine.gallery import galleries, versions
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.sources import Upload
from calotype.model import MIB, Caller, Generation, OsState, OsType, Role, Scope

WANTED = Publication(
    publisher_uri="https://contoso.example/images",
    publisher_contact="images@contoso.example",
    eula="https://contoso.example/eula",
    prefix="Contoso",
)


def an_image(context, name, content=None, *, state=OsState.GENERALIZED, promoted=True, data=()):
    """An image of its own; ``data`` are the contents of data disks by LUN."""
    uploads = []
    for number, disk in enumerate((content or os.urandom(MIB), *data)):
        path = context.home.prepare().tmp / f"{name}-{number}.raw"
        path.write_bytes(disk)
        uploads.append(Upload(location=str(path)))
    request = ImageRequest(name=name, os_state=state, generation=Generation.V2)
    made = import_image(context, request, uploads[0], dict(enumerate(uploads[1:]))).image
    if promoted:
        context.catalog.promote_image(made.id)
    return context.catalog.image(made.id)


def a_definition(context, gallery="gal", name="web", **properties):
    """An image definition, and its gallery if there is none."""
    if gallery not in {g.name for g in context.catalog.galleries.list()}:
        galleries.create_gallery(context, gallery)
    triple = {"publisher": "contoso", "offer": "server", "sku": name}
    wanted = {"os_type": OsType.LINUX, "os_state": OsState.GENERALIZED, "generation": Generation.V2}
    return galleries.create_definition(context, gallery, name, **wanted | triple | properties)


def a_version(context, number="1.0.0", owner="gal/web", *, content=None, source=None, **image):
    """A version of a new image, or of ``source``."""
    name = (
        source
        or an_image(context, f"source-{owner.replace('/', '-')}-{number}", content, **image).name
    )
    return versions.of_image(context, versions.place(context, f"{owner}/{number}"), name)


def public(context, gallery="gal", **changes):
    """The public name of a gallery that is published now."""
    return community.public_name(publishing.publish(context, gallery, WANTED, **changes).gallery)


def a_subscription(context, name):
    """The id of a new subscription."""
    return engine_subscriptions.create(context, name).id


def caller_in(context, subscription, principal=None, role=None):
    """A context for somebody in a subscription, with a role in all of it (its owner: without)."""
    there = wire.build(home=context.home, caller=Caller(None, Scope(subscription)))
    if principal is None:
        return there
    if role is not None:
        roles.assign(there, principal, Role(role), roles.Where())
    there.close()
    return wire.build(home=context.home, caller=Caller(principal, Scope(subscription)))
