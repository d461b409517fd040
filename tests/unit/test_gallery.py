"""Galleries and image definitions: what can be made, what never changes, with whom they are shared."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from calotype.engine import galleries, references, versions
from calotype.errors import Conflict, InvalidInput, NotAllowed, NotFound
from calotype.model import (
    GIB,
    Architecture,
    Generation,
    Image,
    ImageDisk,
    OsState,
    OsType,
    Provenance,
    PurchasePlan,
    Range,
    Retention,
    Scope,
    Sharing,
    SourceKind,
    Stage,
)

OTHER = "11111111-1111-4111-8111-111111111111"


def an_image(name="web", *, stage=Stage.PROMOTED, state=OsState.GENERALIZED, **fields):
    return Image(
        id=str(uuid4()),
        name=name,
        os_type=OsType.LINUX,
        os_state=state,
        os_disk=ImageDisk(index="a" * 64, size=GIB),
        generation=Generation.V2,
        stage=stage,
        provenance=Provenance(kind=SourceKind.FILE, source="web.raw"),
        created_at=datetime.now(UTC),
        **fields,
    )


def a_definition(context, gallery="gal", name="web", **properties):
    triple = {"publisher": "contoso", "offer": "server", "sku": name}
    wanted = {"os_type": OsType.LINUX, "os_state": OsState.GENERALIZED, **triple, **properties}
    return galleries.create_definition(context, gallery, name, **wanted)


@pytest.fixture
def gallery(context):
    galleries.create_gallery(context, "gal")
    a_definition(context)
    return context.catalog.galleries.get("gal")


def publish(context, number, **image):
    made = an_image(f"image-{number}", **image)
    context.catalog.add_image(made)
    return versions.of_image(context, versions.place(context, f"gal/web/{number}"), made.name)


def test_a_version_of_an_image_is_that_image_again(context, gallery):
    plan = PurchasePlan("contoso", "server", "gold")
    made = an_image(plan=plan, entitlement="msdn", tags={"team": "a"})
    context.catalog.add_image(made)
    version = versions.of_image(context, versions.place(context, "gal/web/1.0.0"), "web")
    assert version.reference == version.image.name == "gal/web/1.0.0"
    assert version.image.disks == made.disks
    assert (version.image.parent_id, version.image.provenance.image_id) == (made.id, made.id)
    assert (version.image.plan, version.image.entitlement) == (plan, "msdn")
    assert version.image.stage is Stage.PROMOTED
    assert references.find(context, "gal/web") == version.image
    assert [entry.action for entry in context.catalog.audit.list()][0] == "version.create"
