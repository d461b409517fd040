"""Quotas: what a subscription has is counted where it changes, and is never more than it may be."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, func, select
from tests import shelf
from tests.shelf import ACT, NOW

from calotype.catalog import Act, Catalog
from calotype.catalog.tables import galleries, image_disks, images, vms
from calotype.catalog.versions import Change
from calotype.errors import CalotypeError, Conflict, InvalidInput, QuotaExceeded
from calotype.model import (
    DEFAULT_SUBSCRIPTION,
    GIB,
    INSTALLATION,
    Caller,
    ImageDisk,
    QuotaKind,
    Scope,
    Shelf,
    Subscription,
    Version,
)

SECOND = "11111111-1111-4111-8111-111111111111"
SCOPES = (Scope(), Scope(DEFAULT_SUBSCRIPTION, "other"), Scope(SECOND))


def an_image(name, scope=SCOPES[0], size=GIB, on=Shelf.MANAGED):
    """One that always has the same bytes."""
    return replace(
        shelf.new_image(name, scope=scope, shelf=on),
        os_disk=ImageDisk(index="a" * 64, size=size),
        data_disks=(ImageDisk(index="b" * 64, size=512, lun=0),),
    )


def a_gallery(name, scope=SCOPES[0]):
    return replace(shelf.a_gallery(name, scope), id=f"{name} {scope}")


def a_definition(scope):
    return replace(shelf.a_definition(a_gallery("first", scope)), id=f"definition {scope}")


def a_version(number, scope=SCOPES[0], size=GIB):
    version = shelf.new_version(a_definition(scope), f"{number}.0.0")
    return replace(version, image=an_image(version.reference, scope, size, Shelf.GALLERY))


def a_vm(name, scope=SCOPES[0], port=1):
    return replace(shelf.a_vm(name, scope=scope), ssh_port=port, mac=str(port))


def used(catalog, subscription):
    return {quota.kind: quota.used for quota in catalog.subscriptions.quotas(subscription)}


def recount(catalog, subscription):
    """What is there, counted anew."""
    with catalog._database.engine.connect() as db:

        def count(table, *where):
            here = table.c.subscription == subscription
            return db.scalar(select(func.count()).select_from(table).where(here, *where))

        sizes = select(func.coalesce(func.sum(image_disks.c.size), 0)).join(
            images, images.c.id == image_disks.c.image_id
        )
        return {
            QuotaKind.IMAGES: count(images, images.c.shelf == Shelf.MANAGED.value),
            QuotaKind.VERSIONS: count(images, images.c.shelf == Shelf.GALLERY.value),
            QuotaKind.GALLERIES: count(galleries),
            QuotaKind.BYTES: db.scalar(sizes.where(images.c.subscription == subscription)),
            QuotaKind.VMS: count(vms),
        }


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A catalogue with two subscriptions, and a definition in each group."""
    path = tmp_path_factory.mktemp("quotas") / "catalog.db"
    catalog = Catalog(path)
    catalog.subscriptions.add(Subscription(id=SECOND, name="second", created_at=NOW), ACT)
    for scope in (SCOPES[0], SCOPES[2]):
        mine = catalog.of(Caller(scope=scope))
        mine.galleries.add(a_gallery("first", scope), ACT)
        mine.galleries.add_definition(a_definition(scope), ACT)
    catalog.close()
    return path


@pytest.fixture
def catalog(template, tmp_path):
    shutil.copy(template, tmp_path / "catalog.db")
    catalog = Catalog(tmp_path / "catalog.db")
    yield catalog
    catalog.close()


# -- the law

NAMES = st.sampled_from(["a", "b"])
SIZES = st.sampled_from([512, GIB, 5 * GIB])
NUMBERS = st.integers(1, 2)
KINDS = st.sampled_from(list(QuotaKind))
LIMITS = st.sampled_from([None, 0, 1, 2, 6 * GIB])


def pull(catalog, _scope, name, size):
    place = Scope(INSTALLATION, Shelf.MARKETPLACE.value)
    catalog.add_image(an_image(name, place, size, Shelf.MARKETPLACE))


def delete_pulled(catalog, _scope, name):
    if (pulled := catalog.find_on(Shelf.MARKETPLACE, name)) is not None:
        catalog.delete_image(pulled.id)


def delete_version(catalog, scope, number):
    found = catalog.versions.get(f"definition {scope}", Version(number, 0, 0))
    gone = replace(found, deleted_at=NOW, purge_at=NOW)
    catalog.versions.change(found.id, lambda _standing: Change(gone, ACT))


def purge_version(catalog, scope, number):
    found = catalog.versions.get(f"definition {scope}", Version(number, 0, 0), deleted=True)
    catalog.versions.change(found.id, lambda _standing: Change(None, ACT))


UNWRITABLE = Act("x", "x", {"seconds": 1.5})
#: What may happen in a group, and what it happens with.
STEPS = {
    (NAMES, SIZES): (
        lambda c, s, name, size: c.add_image(an_image(name, s, size)),
        lambda c, s, name, size: c.add_image(an_image(name, s, size), act=UNWRITABLE),
        pull,
    ),
    (NAMES,): (
        lambda c, _s, name: c.delete_image(c.image(name).id),
        delete_pulled,
        lambda c, _s, name: c.delete_vm(c.vm(name).id, delete_disks=[]),
        lambda c, s, name: c.galleries.add(a_gallery(name, s), ACT),
        lambda c, _s, name: c.galleries.delete(c.galleries.get(name).id, ACT),
    ),
    (NUMBERS, SIZES): (lambda c, s, n, size: c.versions.add(a_version(n, s, size), ACT),),
    (NUMBERS,): (delete_version, purge_version),
    (NAMES, NUMBERS): (lambda c, s, name, port: c.add_vm(a_vm(name, s, port)),),
    (KINDS, LIMITS): (
        lambda c, s, kind, most: c.subscriptions.set_quota(s.subscription, kind, most, ACT),
    ),
}
SEQUENCES = st.lists(
    st.one_of(
        [
            st.tuples(st.just(step), st.sampled_from(SCOPES), *arguments)
            for arguments, steps in STEPS.items()
            for step in steps
        ]
    ),
    max_size=30,
)


@given(sequence=SEQUENCES)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_used_is_what_is_there(template, sequence):
    """After any sequence; and nothing that was let in made it more than it may be."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalog.db"
        shutil.copy(template, path)
        catalog = Catalog(path)
        for step, scope, *arguments in sequence:
            before = {s: used(catalog, s) for s in (DEFAULT_SUBSCRIPTION, SECOND)}
            try:
                step(catalog.of(Caller(scope=scope)), scope, *arguments)
            except CalotypeError:
                assert {s: used(catalog, s) for s in before} == before
            for subscription in before:
                assert used(catalog, subscription) == recount(catalog, subscription)
                for quota in catalog.subscriptions.quotas(subscription):
                    grown = quota.used > before[subscription][quota.kind]
                    assert not grown or quota.most is None or quota.used <= quota.most
        catalog.close()


# -- refusals


@pytest.mark.parametrize(
    ("kind", "most", "fill", "words"),
    [
        (
            QuotaKind.IMAGES,
            1,
            lambda c, n: c.add_image(an_image(f"i{n}")),
            "quota 'images': subscription 'default' may have 1 images; 1 are used, and 1 more asked for",
        ),
        (
            QuotaKind.VERSIONS,
            1,
            lambda c, n: c.versions.add(a_version(n + 1), ACT),
            "quota 'versions': subscription 'default' may have 1 image versions; 1 are used, and 1 more",
        ),
        (
            QuotaKind.GALLERIES,
            2,
            lambda c, n: c.galleries.add(a_gallery(f"g{n}"), ACT),
            "quota 'galleries': subscription 'default' may have 2 galleries; 2 are used, and 1 more",
        ),
        (
            QuotaKind.BYTES,
            2 * GIB,
            lambda c, n: c.add_image(an_image(f"i{n}", size=GIB + GIB // 2)),
            "may have 2.0 GiB of images and image versions; 1.5 GiB are used, and 1.5 GiB more",
        ),
        (
            QuotaKind.VMS,
            1,
            lambda c, n: c.add_vm(a_vm(f"v{n}", port=n)),
            "quota 'vms': subscription 'default' may have 1 VMs; 1 are used, and 1 more asked for",
        ),
    ],
)
def test_more_than_the_quota_is_refused(catalog, kind, most, fill, words):
    catalog.subscriptions.set_quota(DEFAULT_SUBSCRIPTION, kind, most, ACT)
    fill(catalog, 0)
    with pytest.raises(QuotaExceeded) as refused:
        fill(catalog, 1)
    assert words in refused.value.message
    assert refused.value.hint is not None
    assert (
        f"calotype subscription quota set {kind} LIMIT --subscription default" in refused.value.hint
    )
    catalog.subscriptions.set_quota(DEFAULT_SUBSCRIPTION, kind, None, ACT)  # the cure
    fill(catalog, 1)


def test_one_subscriptions_quota_is_not_anothers(catalog):
    catalog.subscriptions.set_quota(DEFAULT_SUBSCRIPTION, QuotaKind.IMAGES, 0, ACT)
    catalog.add_image(an_image("a", SCOPES[2]))
    with pytest.raises(QuotaExceeded):
        catalog.add_image(an_image("a", SCOPES[1]))  # another group of the same one


def test_what_was_pulled_for_everybody_counts_for_nobody(catalog):
    for subscription in (DEFAULT_SUBSCRIPTION, SECOND):
        for kind in QuotaKind:
            catalog.subscriptions.set_quota(subscription, kind, 0, ACT)
    before = used(catalog, DEFAULT_SUBSCRIPTION)
    place = Scope(INSTALLATION, Shelf.COMMUNITY.value)
    image = an_image("community/x/y/1.0.0", place, on=Shelf.COMMUNITY)
    catalog.add_image(image)
    with catalog._database.engine.connect() as db:
        counted = db.exec_driver_sql("SELECT DISTINCT subscription FROM usage").scalars()
        assert INSTALLATION not in set(counted)
    catalog.delete_image(image.id)
    assert used(catalog, DEFAULT_SUBSCRIPTION) == before


def test_what_goes_is_given_back(catalog):
    before = used(catalog, DEFAULT_SUBSCRIPTION)
    image, vm, version, gallery = an_image("a"), a_vm("a"), a_version(1), a_gallery("a")
    catalog.add_image(image)
    catalog.add_vm(vm)
    catalog.versions.add(version, ACT)
    catalog.galleries.add(gallery, ACT)
    assert used(catalog, DEFAULT_SUBSCRIPTION) == {
        kind: count + (2 * GIB + 1024 if kind is QuotaKind.BYTES else 1)
        for kind, count in before.items()
    }
    catalog.delete_image(image.id)
    catalog.delete_vm(vm.id, delete_disks=[])
    catalog.versions.change(version.id, lambda _standing: Change(None, ACT))
    catalog.galleries.delete(gallery.id, ACT)
    assert used(catalog, DEFAULT_SUBSCRIPTION) == before


def test_bytes_that_the_store_knew_count_as_new_ones(catalog):
    """Every image of these tests has the same two disks."""
    for number in range(3):
        catalog.add_image(an_image(f"i{number}"))
    assert used(catalog, DEFAULT_SUBSCRIPTION)[QuotaKind.BYTES] == 3 * (GIB + 512)


def test_a_quota_below_what_is_there_takes_nothing_away(catalog):
    image = an_image("a")
    catalog.add_image(image)
    catalog.subscriptions.set_quota(DEFAULT_SUBSCRIPTION, QuotaKind.IMAGES, 0, ACT)
    assert catalog.image("a") == image
    with pytest.raises(QuotaExceeded):
        catalog.add_image(an_image("b"))
    catalog.delete_image(image.id)
    assert used(catalog, DEFAULT_SUBSCRIPTION)[QuotaKind.IMAGES] == 0


def test_a_size_that_no_counter_holds_is_refused(catalog):
    catalog.add_image(an_image("a", size=1 << 62))
    before = used(catalog, DEFAULT_SUBSCRIPTION)
    with pytest.raises(InvalidInput, match="cannot hold"):
        catalog.add_image(an_image("b", size=1 << 62))
    assert used(catalog, DEFAULT_SUBSCRIPTION) == before == recount(catalog, DEFAULT_SUBSCRIPTION)


def test_a_subscription_goes_when_it_is_empty_with_all_that_is_its_own(catalog):
    catalog.subscriptions.set_quota(SECOND, QuotaKind.VMS, 3, ACT)
    mine = catalog.of(Caller(scope=SCOPES[2]))
    with pytest.raises(Conflict, match="is not empty: there is gallery 'first'"):
        catalog.subscriptions.delete(SECOND, ACT)
    mine.galleries.delete_definition(a_definition(SCOPES[2]).id, ACT)
    mine.galleries.delete(a_gallery("first", SCOPES[2]).id, ACT)
    catalog.subscriptions.delete(SECOND, ACT)
    assert [found.name for found in catalog.subscriptions.list()] == ["default"]
    with catalog._database.engine.connect() as db:
        assert db.exec_driver_sql("PRAGMA foreign_key_check").fetchall() == []
        assert db.exec_driver_sql("SELECT DISTINCT subscription FROM usage").fetchall() == [
            (DEFAULT_SUBSCRIPTION,)
        ]


def test_counting_takes_as_many_statements_however_much_there_is(catalog):
    seen = []
    event.listen(catalog._database.engine, "before_cursor_execute", lambda *t: seen.append(t[2]))
    took = []
    for number in range(20):
        seen.clear()
        catalog.add_image(an_image(f"i{number}"))
        took.append(len(seen))
        assert not any(word in s.lower() for s in seen for word in ("count(", "sum("))
    assert len(set(took)) == 1
