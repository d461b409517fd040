"""Rebuilds of recipes: what is published, what is dropped, what stays after a failure; no guest starts."""

import json
from types import SimpleNamespace

import pytest
from tests.roots import lay_out

from calotype import cli
from calotype.engine.boot import boottest
from calotype.engine.gallery import galleries, lifecycle
from calotype.engine.marketplace import recipes
from calotype.engine.marketplace.rebuild import Outcome, rebuild
from calotype.errors import InvalidInput, ToolFailed
from calotype.model import (
    Generation,
    OsState,
    OsType,
    Retention,
    SourceKind,
    Stage,
    Verdict,
)
from calotype.recipe import Built

STATUS = "Package: dpkg\nStatus: install ok installed\nVersion: {}\n\n"
RECIPE = "debian-nginx"


class Archive:
    """A distribution whose packages change, and the disks that are built of them."""

    def __init__(self, room):
        self.room = room
        self.version = "1"  # of its only package
        self.files = {}
        self.state = "fresh"
        self.built = []  # the recipes, in order
        self.broken = set()  # recipes that cannot be built

    def build_file(self, _context, recipe, *, fresh=False):
        assert fresh
        if recipe in self.broken:
            raise ToolFailed("the mirror is gone", hint="later")
        self.built.append(recipe)
        root = lay_out("debian", self.state)
        root.file("/var/lib/dpkg/status", STATUS.format(self.version))
        root.file("/usr/bin/dpkg", f"dpkg {self.version}")
        root.file("/var/log/dpkg.log", f"built {len(self.built)} times")
        root.file("/boot/initrd.img-6.1", f"initrd {len(self.built)}")
        for path, content in self.files.items():
            root.file(path, content)
        path = self.room / f"{recipe}-{len(self.built)}.raw"
        root.ext4(path)
        return Built(
            name=recipe,
            path=path,
            sha256="0" * 64,
            size=path.stat().st_size,
            os_type=OsType.LINUX,
            generations=(Generation.V1, Generation.V2),
            description="Debian",
            digest="d" * 32,
            packages=(("dpkg", self.version),),
        )


class Boots:
    """Boot tests that end as they are told."""

    def __init__(self):
        self.passed = True
        self.raises = None
        self.tested = []

    def __call__(self, context, image_name, *, clones, **_options):
        self.tested.append((context.catalog.image(image_name).name, clones))
        if self.raises is not None:
            raise self.raises
        stage = Stage.PROMOTED if self.passed else Stage.STAGED
        context.catalog.promote_image(image_name, stage)
        return SimpleNamespace(passed=self.passed, problems=() if self.passed else ("no kernel",))


@pytest.fixture
def archive(tmp_path, monkeypatch):
    archive = Archive(tmp_path)
    monkeypatch.setattr(recipes, "build_file", archive.build_file)
    return archive


@pytest.fixture
def boots(monkeypatch):
    boots = Boots()
    monkeypatch.setattr(boottest, "boot_test", boots)
    return boots


def define(context, name="web", recipe=RECIPE, **properties):
    galleries.create_definition(
        context,
        "gal",
        name,
        os_type=OsType.LINUX,
        os_state=OsState.GENERALIZED,
        publisher="contoso",
        offer="server",
        sku=name,
        recipe=recipe,
        **properties,
    )


@pytest.fixture
def web(context, archive, boots):
    """The definition gal/web, of which there is no version."""
    galleries.create_gallery(context, "gal")
    define(context)
    return context.catalog.galleries.definition("gal", "web")


def one(context, *names, **options):
    (told,) = rebuild(context, names or ["gal/web"], **options)
    return told


def numbers(context, definition, **options):
    return [str(v.version) for v in context.catalog.versions.list(definition.id, **options)]


def test_the_first_version(context, web, archive, boots):
    told = one(context)
    assert (told.outcome, told.version, told.before) == (Outcome.PUBLISHED, "gal/web/1.0.0", None)
    assert told.changes is None
    made = context.catalog.versions.latest(web.id)
    assert (str(made.version), made.exclude_from_latest) == ("1.0.0", False)
    assert (made.image.stage, made.image.verdict) == (Stage.PROMOTED, Verdict.GENERALIZED)
    assert (made.image.provenance.kind, made.image.label) == (SourceKind.RECIPE, RECIPE)
    assert boots.tested == [("gal/web/1.0.0", 2)]
    assert (context.home.evidence / made.id).exists()


def test_nothing_is_left_of_a_rebuild_that_changed_nothing(context, web, archive, boots):
    """Logs and the initial RAM disk differ each time: they are no change."""
    one(context)
    told = one(context)
    assert (told.outcome, told.version, told.before) == (Outcome.UNCHANGED, None, "gal/web/1.0.0")
    assert not told.changes
    assert archive.built == [RECIPE] * 2
    assert numbers(context, web) == ["1.0.0"]
    assert numbers(context, web, deleted=True) == []
    assert len(boots.tested) == 1
    (index,) = context.catalog.indexes_in_use()
    assert context.repository.indexes() == [index]


def test_a_newer_package_is_published_and_what_is_old_goes(context, web, archive):
    galleries.update_definition(context, "gal/web", retention=Retention(keep=1))
    one(context)
    archive.version = "2"
    told = one(context)
    assert (told.outcome, told.version) == (Outcome.PUBLISHED, "gal/web/1.0.1")
    (upgraded,) = told.changes.packages.upgraded
    assert (upgraded.name, upgraded.before, upgraded.after) == ("dpkg", "1", "2")
    assert told.changes.paths == ("/usr/bin/dpkg",)
    assert told.retired == ("gal/web/1.0.0",)
    assert numbers(context, web) == ["1.0.1"]
    assert one(context).outcome is Outcome.UNCHANGED
    archive.version = "3"
    assert one(context).version == "gal/web/1.0.2"


def test_a_file_of_the_recipe_is_a_change_too(context, web, archive):
    one(context)
    archive.files["/etc/motd"] = "new"
    told = one(context)
    assert (told.outcome, told.changes.paths) == (Outcome.PUBLISHED, ("/etc/motd",))
    assert not told.changes.packages


def test_what_is_one_machine_is_not_published(context, web, archive, boots):
    one(context)
    archive.state = "used"
    told = one(context)
    assert told.outcome is Outcome.FAILED
    assert "declared Generalized" in told.problem
    assert numbers(context, web) == ["1.0.0"]
    assert len(boots.tested) == 1


def test_what_nobody_can_look_into_is_not_published(context, web, boots, monkeypatch):
    unknown = SimpleNamespace(proof=SimpleNamespace(verdict=Verdict.UNKNOWN))
    module = "calotype.engine.marketplace.rebuild"
    monkeypatch.setattr(f"{module}.verify_image", lambda *_: unknown)
    told = one(context)
    assert (told.outcome, told.problem, told.hint) == (
        Outcome.FAILED,
        "what was built is unknown, not generalized",
        "calotype image verify gal/web/1.0.0 says why",
    )
    assert context.catalog.versions.list(web.id)[0].image.stage is Stage.STAGED
    assert boots.tested == []


def test_a_failed_boot_test_leaves_the_version_staged_until_the_next_rebuild(context, web, boots):
    boots.passed = False
    told = one(context)
    assert (told.outcome, told.version) == (Outcome.FAILED, "gal/web/1.0.0")
    assert "no kernel" in told.problem
    assert "--keep" in told.hint
    (staged,) = context.catalog.versions.list(web.id)
    assert (staged.image.stage, staged.eligible) == (Stage.STAGED, False)
    boots.passed = True
    assert one(context).outcome is Outcome.PUBLISHED
    assert numbers(context, web) == ["1.0.0"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ToolFailed("no QEMU")])
def test_nobody_gets_what_an_interrupted_rebuild_left(context, web, archive, boots, error):
    one(context)
    archive.version = "2"
    boots.raises = error
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            one(context)
    else:
        assert one(context).problem == "no QEMU"
    assert numbers(context, web) == ["1.0.1", "1.0.0"]
    assert str(context.catalog.versions.latest(web.id).version) == "1.0.0"
    boots.raises = None
    told = one(context)
    assert (told.outcome, told.before, told.version) == (
        Outcome.PUBLISHED,
        "gal/web/1.0.0",
        "gal/web/1.0.1",
    )


def test_a_published_version_that_fails_a_later_test_is_no_leftover(context, web, archive):
    one(context)
    published = context.catalog.versions.latest(web.id)
    context.catalog.promote_image(published.id, Stage.STAGED)
    told = one(context)
    assert (told.outcome, told.before, told.version) == (Outcome.PUBLISHED, None, "gal/web/1.0.1")
    assert numbers(context, web) == ["1.0.1", "1.0.0"]


def test_what_was_rolled_back_is_not_published_again(context, web, archive):
    one(context)
    archive.version = "2"
    one(context)
    lifecycle.roll_back(context, "gal/web")
    told = one(context)
    assert (told.outcome, told.before) == (Outcome.UNCHANGED, "gal/web/1.0.1")
    assert str(context.catalog.versions.latest(web.id).version) == "1.0.0"
    archive.version = "3"
    told = one(context)
    assert (told.outcome, told.before, told.version) == (
        Outcome.PUBLISHED,
        "gal/web/1.0.0",
        "gal/web/1.0.2",
    )
    assert told.changes.packages.upgraded[0].before == "1"


def test_a_full_disk_is_one_definitions_failure_too(context, web, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device", "/var/cache")

    monkeypatch.setattr(recipes, "build_file", full)
    told = one(context)
    assert told.outcome is Outcome.FAILED
    assert "No space left" in told.problem


def test_a_number_never_comes_back(context, web, archive):
    one(context)
    archive.version = "2"
    one(context)
    lifecycle.delete(context, "gal/web/1.0.1", force=True)
    archive.version = "3"
    assert one(context).version == "gal/web/1.0.2"


def test_two_at_once(context, web, archive):
    with context.lock(f"rebuild-{web.id}"):
        told = one(context)
    assert told.outcome is Outcome.BUSY
    assert archive.built == []


def test_the_failure_of_one_stops_none(context, web, archive):
    define(context, "bad", recipe="debian-dev")
    define(context, "none", recipe=None)
    archive.broken = {"debian-dev"}
    told = list(rebuild(context, ["gal/bad", "gal/none", "gal/gone", "gal/web"]))
    assert [one.outcome for one in told] == [Outcome.FAILED] * 3 + [Outcome.PUBLISHED]
    assert [one.problem for one in told[:3]] == [
        "the mirror is gone",
        "image definition 'gal/none' names no recipe",
        "there is no image definition 'gal/gone'",
    ]
    assert told[0].hint == "later"
    assert "--recipe" in (told[1].hint or "")


def test_all_that_name_a_recipe_and_each_recipe_once(context, web, archive):
    define(context, "none", recipe=None)
    define(context, "twin")
    told = list(rebuild(context, every=True))
    assert {one.definition: one.outcome for one in told} == {
        "gal/twin": Outcome.PUBLISHED,
        "gal/web": Outcome.PUBLISHED,
    }
    assert archive.built == [RECIPE]


def test_a_dry_run_builds_nothing(context, web, archive):
    told = one(context, dry_run=True)
    assert (told.outcome, told.version) == (Outcome.PLANNED, "gal/web/1.0.0")
    assert archive.built == []
    one(context)
    told = one(context, dry_run=True)
    assert (told.before, told.version) == ("gal/web/1.0.0", "gal/web/1.0.1")


@pytest.mark.parametrize(("names", "every"), [([], False), (["gal/web"], True)])
def test_what_is_meant_must_be_said(context, names, every):
    with pytest.raises(InvalidInput, match="which image definitions"):
        list(rebuild(context, names, every=every))


def test_the_command(context, web, archive, boots, monkeypatch, capsys):
    monkeypatch.setenv("CALOTYPE_HOME", str(context.home.root))
    assert cli.run(["recipe", "rebuild", "gal/web", "-o", "json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["outcome"], told["version"]) == ("published", "gal/web/1.0.0")
    archive.version, boots.passed = "2", False
    assert cli.run(["recipe", "rebuild", "--all"]) == 1
    shown = capsys.readouterr().out
    assert "failed" in shown
    assert "no kernel" in shown
    boots.passed = True
    assert cli.run(["recipe", "rebuild", "--all"]) == 0
    assert "1 packages upgraded, 1 files differ" in capsys.readouterr().out
