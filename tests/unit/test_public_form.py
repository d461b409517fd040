"""Documents of strangers: what is signed is still read as if it were hostile."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from calotype.errors import NotFound, Untrusted
from calotype.model import (
    Architecture,
    Generation,
    Lifecycle,
    OsState,
    OsType,
    PurchasePlan,
    Version,
)
from calotype.public import form
from calotype.public.domain import COMMUNITY
from calotype.public.form import Definition, Disk, GalleryDocument, PacksDocument, PublishedVersion

NOW = datetime(2026, 11, 23, tzinfo=UTC)
INDEX = "ab" * 32
USABLE = (Lifecycle.ACTIVE, Lifecycle.DEPRECATED)


def version(number, state=Lifecycle.ACTIVE, **more):
    disks = (Disk(index=INDEX, size=1 << 20),) if state in USABLE else ()
    wanted = {"version": number, "published_at": NOW, "state": state, "disks": disks}
    return PublishedVersion(**wanted | more)


def gallery(*versions, **more):
    definition = Definition(
        name="web",
        publisher="contoso",
        offer="server",
        sku="one",
        os_type=OsType.LINUX,
        os_state=OsState.GENERALIZED,
        generation=Generation.V2,
        architecture=Architecture.X64,
        versions=versions,
    )
    wanted = {
        "public_name": "Contoso-1",
        "publisher_uri": "https://contoso.example",
        "publisher_contact": "a@contoso.example",
        "eula": "https://contoso.example/eula",
        "definitions": (definition,),
    }
    return GalleryDocument(**wanted | more)


def changed(document, path, value):
    """The document's bytes with something else at a path of keys."""
    data = msgspec.json.decode(form.encode(document))
    here = data
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return msgspec.json.encode(data)


def test_a_gallery_comes_back_as_it_was():
    plan = form.plan_of(PurchasePlan("contoso", "server", "one"))
    document = gallery(version("1.9.0", plan=plan), version("1.10.0", report="cd" * 32))
    assert form.decode_gallery(form.encode(document), "contoso-1") == document
    assert form.encode(document) == form.encode(document)
    shown = document.shown("there").images[0]
    assert [str(v.version) for v in shown.versions] == ["1.10.0", "1.9.0"]
    assert shown.latest == Version(1, 10, 0)


def test_the_latest_is_active_not_excluded_and_not_over():
    document = gallery(
        version("1.0.0"),
        version("1.9.0"),
        version("1.10.0", exclude_from_latest=True),
        version("1.11.0", Lifecycle.DEPRECATED),
        version("1.12.0", Lifecycle.REVOKED),
        version("1.13.0", end_of_life=datetime.now(UTC) - timedelta(days=1)),
    )
    assert document.find("WEB", None)[1].number == Version(1, 9, 0)
    assert document.find("web", Version(1, 12, 0))[1].state is Lifecycle.REVOKED
    with pytest.raises(NotFound, match=r"no version 9\.9\.9"):
        document.find("web", Version(9, 9, 9))
    with pytest.raises(NotFound, match="no image"):
        document.find("db", None)
    with pytest.raises(NotFound, match="the latest"):
        gallery().find("web", None)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["publicName"], "../evil"),
        (["publicName"], "contoso-1\n"),
        (["publicName"], "Other-2"),
        (["format"], "calotype packs"),
        (["formatVersion"], 2),
        (["definitions", 0, "name"], "a/b"),
        (["definitions", 0, "name"], ".."),
        (["definitions", 0, "name"], "web\n"),
        (["definitions", 0, "endOfLife"], "2027-12-31T00:00:00"),
        (["definitions", 0, "publisher"], "a:b"),
        (["definitions", 0, "publisher"], "a\x1b[2J"),
        (["definitions", 0, "osType"], "BeOS"),
        (["definitions", 0, "description"], "x" * 20_000),
        (["definitions", 0, "versions", 0, "version"], "1.0"),
        (["definitions", 0, "versions", 0, "publishedAt"], "2026-12-31T00:00:00"),
        (["definitions", 0, "versions", 0, "version"], "1.0.4294967296"),
        (["definitions", 0, "versions", 0, "state"], "Perfect"),
        (["definitions", 0, "versions", 0, "state"], "Revoked"),
        (["definitions", 0, "versions", 0, "disks"], []),
        (["definitions", 0, "versions", 0, "disks", 0, "index"], "../../x"),
        (["definitions", 0, "versions", 0, "disks", 0, "index"], INDEX + "\n"),
        (["definitions", 0, "versions", 0, "disks", 0, "size"], -1),
        (["definitions", 0, "versions", 0, "disks", 0, "size"], 1 << 60),
        (["definitions", 0, "versions", 0, "disks", 0, "lun"], 3),
        (["definitions", 0, "versions", 0, "disks", 0, "lun"], 64),
        (["definitions", 0, "versions", 0, "disks"], [{"index": INDEX, "size": 1}] * 2),
    ],
)
def test_what_is_no_gallery(path, value):
    with pytest.raises(Untrusted) as caught:
        form.decode_gallery(changed(gallery(version("1.0.0")), path, value), "contoso-1")
    assert "\x1b" not in caught.value.message


def test_what_is_there_twice_is_no_gallery():
    """Whoever asks for it would get the one or the other."""
    twice = gallery(version("1.0.0"), version("1.0.0"))
    with pytest.raises(Untrusted, match="one version twice"):
        form.decode_gallery(form.encode(twice), "contoso-1")
    plain = gallery(version("1.0.0"))
    (web,) = plain.definitions
    upper = msgspec.structs.replace(web, name=web.name.upper())
    twice = msgspec.structs.replace(plain, definitions=(web, upper))
    with pytest.raises(Untrusted, match="one image twice"):
        form.decode_gallery(form.encode(twice), "contoso-1")


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"format":'])
def test_what_is_no_document(data):
    with pytest.raises(Untrusted, match="is not what Calotype knows"):
        form.decode_packs(data)


def test_a_list_of_packs():
    listed = PacksDocument(config="c", packs=((INDEX, 100, 10),), indexes={INDEX: (88, (0,))})
    assert form.decode_packs(form.encode(listed)) == listed
    with pytest.raises(Untrusted, match="does not have"):
        form.decode_packs(changed(listed, ["indexes", INDEX], [88, [1]]))
    with pytest.raises(Untrusted):
        form.decode_packs(changed(listed, ["packs", 0, 2], 1 << 40))


def test_the_shared_domain_never_changes():
    """Every installation names public chunks alike: another key would be another world."""
    expected = "6179dfb5012a27d2e9971dd4093780fd66fa7d1cf3451de0378c9304a518c2d8"
    assert COMMUNITY.name == "community"
    assert COMMUNITY.key.hex() == expected
