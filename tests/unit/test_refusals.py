"""What people are told when something must not be, and how they come by what they wanted: word for word."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.shelf import DAY, NOW, new_definition, new_gallery, new_image, publish

from calotype import wire
from calotype.engine import roles, subscriptions, usable
from calotype.engine.gallery import galleries, lifecycle, replication, versions
from calotype.engine.marketplace import purchase
from calotype.engine.roles import Where
from calotype.errors import (
    CalotypeError,
    Forbidden,
    InvalidInput,
    NotAllowed,
    NotFound,
    PurchaseRefused,
    QuotaExceeded,
)
from calotype.model import (
    DEFAULT_SUBSCRIPTION,
    MIB,
    Caller,
    ImageDisk,
    OsState,
    PurchasePlan,
    QuotaKind,
    Role,
)

PLAN = PurchasePlan("acme", "os", "gold")


def refused(kind: type[CalotypeError], act: Callable[[], object], message: str, hint: str) -> None:
    """What is done is refused, with these words."""
    with pytest.raises(kind) as caught:
        act()
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.fixture
def web(context):
    return new_definition(context, new_gallery(context))


def test_terms(context):
    refused(
        PurchaseRefused,
        lambda: purchase.require(context, replace(new_image("web"), plan=PLAN)),
        "the terms of plan 'acme:os:gold' were not accepted for this subscription; image 'web' is to be "
        "had only after that",
        "read them: calotype marketplace terms show acme:os:gold; then the same with accept",
    )


def test_entitlements(context, monkeypatch):
    image = replace(new_image("web"), entitlement="msdn")
    cure = f"calotype subscription entitlement grant msdn --subscription {DEFAULT_SUBSCRIPTION}"
    refused(
        PurchaseRefused,
        lambda: purchase.require(context, image),
        f"image 'web' is for subscriptions entitled to 'msdn', and {DEFAULT_SUBSCRIPTION} is not",
        f"the installation's owner can grant it: {cure}",
    )
    until = NOW + timedelta(seconds=2)
    monkeypatch.setattr(purchase, "datetime", Clock(NOW))
    purchase.grant(context, "msdn", until)
    purchase.require(context, image)
    monkeypatch.setattr(purchase, "datetime", Clock(until))  # the moment itself is too late
    refused(
        PurchaseRefused,
        lambda: purchase.require(context, image),
        "image 'web' is for subscriptions entitled to 'msdn', and the entitlement of "
        f"{DEFAULT_SUBSCRIPTION} expired on {until:%Y-%m-%d}",
        f"the installation's owner can renew it: {cure} --expires YYYY-MM-DD",
    )


class Clock:
    """What a module takes for ``datetime``: it is always the same time."""

    def __init__(self, time):
        self._time = time

    def now(self, _zone):
        return self._time


def test_a_property_that_never_changes(context, web):
    change = {"os_state": OsState.SPECIALIZED}
    refused(
        NotAllowed,
        lambda: galleries.update_definition(context, "gal/web", **change),
        "the OS state of image definition 'gal/web' is Generalized and never changes: every version of it "
        "was proved to be in that state",
        "make another definition: calotype gallery image-definition create gal/NAME --os-state Specialized "
        "…, and versions of it of the same images: calotype gallery image-version create … --image "
        "gal/web/VERSION",
    )


def test_two_data_disks_with_one_lun(context, web):
    disks = tuple(ImageDisk(index="b" * 64, size=MIB, lun=lun) for lun in (1, 2, 1))
    context.catalog.add_image(new_image("one"))
    image = replace(new_image("two"), data_disks=disks)
    refused(
        InvalidInput,
        lambda: versions.place(context, "gal/web/1.0.0").put(context, image, None),
        "two data disks have LUN 1",
        "give each a LUN of its own",
    )


def test_the_wrong_os_state(context, web):
    context.catalog.add_image(replace(new_image("one"), os_state=OsState.SPECIALIZED))
    where = versions.place(context, "gal/web/1.0.0")
    refused(
        InvalidInput,
        lambda: versions.of_image(context, where, "one"),
        "the OS state of image definition 'gal/web' is Generalized, and 'one' is Specialized",
        "generalize a copy: calotype generalize one --image NAME, then image-version create --image NAME; "
        "of a VM: image-version create --vm VM --generalize",
    )


def test_a_region_that_is_excluded(context, web):
    here = context.region
    barred = publish(context, web, "1.0.0", excluded_regions=(here,))
    refused(
        NotAllowed,
        lambda: usable.require_usable(context, barred.image),
        f"'gal/web/1.0.0' is not for region '{here}'",
        "use another version, or take the region off it: calotype gallery image-version update "
        "gal/web/1.0.0 --excluded-regions ''",
    )
    refused(
        NotFound,
        lambda: context.catalog.versions.latest(web.id, region=here),
        f"there is no latest version of 'gal/web': 1.0.0, the highest, is not for region '{here}'",
        "publish one that is",
    )


def test_a_region_that_a_version_is_not_brought_to(context):
    context.home.prepare().config.write_text('[stores]\nsouth = "/nowhere"\n')
    refused(
        NotAllowed,
        lambda: replication.require_regions(context, ["south"], ["south"]),
        "the version is excluded from region 'south'",
        "leave the region out, or take it from the version's excluded regions",
    )


def test_the_end_of_life(context, web):
    publish(context, web, "1.0.0", end_of_life=NOW)
    day = NOW.date()
    refused(
        NotFound,
        lambda: context.catalog.versions.latest(web.id),
        f"there is no latest version of 'gal/web': 1.0.0, the highest, is past its end of life ({day})",
        "publish a newer one",
    )
    refused(
        NotAllowed,
        lambda: lifecycle.roll_back(context, "gal/web", "1.0.0"),
        f"'gal/web' cannot be rolled back to 1.0.0: it is past its end of life ({day})",
        "publish a newer one",
    )
    protected = {"end_of_life": NOW + DAY, "block_deletion_before_end_of_life": True}
    publish(context, web, "0.9.0", **protected)
    refused(
        NotAllowed,
        lambda: lifecycle.delete(context, "gal/web/0.9.0", force=True),
        f"'gal/web/0.9.0' cannot be deleted before its end of life, {(NOW + DAY).date()}",
        "wait until then; or take that back: calotype gallery image-version update gal/web/0.9.0 "
        "--no-block-deletion-before-end-of-life",
    )


def test_a_quota(context):
    subscriptions.set_quota(context, QuotaKind.IMAGES, 0)
    refused(
        QuotaExceeded,
        lambda: context.catalog.add_image(new_image("web")),
        "quota 'images': subscription 'default' may have 0 images; 0 are used, and 1 more asked for",
        "make room (calotype image delete); or the installation's owner gives more: calotype subscription "
        "quota set images LIMIT --subscription default",
    )


def test_the_last_good_version(context, web):
    publish(context, web, "1.0.0")
    refused(
        NotAllowed,
        lambda: lifecycle.delete(context, "gal/web/1.0.0"),
        "'gal/web/1.0.0' is the last good version of 'gal/web': it is what 'latest' means",
        "promote another one, or go back behind it: calotype gallery image-version rollback gal/web; or "
        "delete it all the same with --force (recorded)",
    )
    refused(
        NotAllowed,
        lambda: lifecycle.roll_back(context, "gal/web"),
        "'gal/web' cannot be rolled back: no other version could be the latest",
        "calotype gallery image-version list gal/web shows them; promote makes one a candidate",
    )


def test_a_role(context, web):
    roles.assign(context, "rita", Role.READER, Where(group="default"))
    rita = wire.build(home=context.home, caller=Caller("rita"))
    where = versions.place(rita, "gal/web/1.0.0")
    refused(
        Forbidden,
        lambda: versions.of_image(rita, where, "one"),
        "'rita' has not the role Contributor for image definition 'gal/web'",
        "an owner can give it: calotype role assign rita Contributor --subscription default "
        "--resource-group default",
    )
    refused(
        Forbidden,
        lambda: purchase.grant(rita, "msdn"),
        "'rita' may not grant entitlements: that is for the installation's owner",
        "run it without --as (and without CALOTYPE_AS)",
    )
    rita.close()
