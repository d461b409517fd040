"""What is declared against what stands there: both ways, at upload and at capture; overruled and noted."""

from contextlib import closing

import pytest
from tests.roots import build

from calotype.engine.capture import CaptureRequest, capture_vm
from calotype.engine.gallery.places import Managed
from calotype.engine.generalize.generalize import generalize_image, rehearse_image, rehearse_vm
from calotype.engine.generalize.steps import Steps
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.proof.verify import verify_image
from calotype.engine.sources import Upload
from calotype.errors import Conflict, InvalidInput, NotAllowed
from calotype.model import OsState, SourceKind, Verdict

CLEAN, USED = "fresh", "used"
#: (what stands on the disk, what is declared of it and is false)
MATRIX = [(USED, OsState.GENERALIZED), (CLEAN, OsState.SPECIALIZED)]
#: The cure that the refusal names.
CURES = {OsState.GENERALIZED: "calotype generalize", OsState.SPECIALIZED: "leave --os-state out"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A Debian root, laid out, as a cloud image and as a used machine."""
    room = tmp_path_factory.mktemp("roots")
    for state in (CLEAN, USED):
        build("debian", state, room / f"{state}.raw")
    return room


def upload(context, roots, state, declared=None, **options):
    request = ImageRequest(name=f"{state}-image", os_state=declared, **options)
    return import_image(context, request, Upload(location=str(roots / f"{state}.raw")), {}).image


def vm_on(context, roots, state):
    """A VM that was never started, on a disk in that state."""
    image = upload(context, roots, state)
    create_vm(context, VmRequest(name="vm1", image=image.name, start=False))


@pytest.mark.parametrize(("state", "declared"), MATRIX)
def test_an_upload_that_is_declared_wrongly_is_refused(context, roots, state, declared):
    with pytest.raises(InvalidInput, match=f"declared {declared}") as caught:
        upload(context, roots, state, declared)
    assert CURES[declared] in (caught.value.hint or "")
    assert context.catalog.list_images() == []


@pytest.mark.parametrize(("state", "declared"), MATRIX)
def test_a_capture_that_is_declared_wrongly_is_refused(context, roots, state, declared):
    vm_on(context, roots, state)
    with pytest.raises(InvalidInput, match=f"declared {declared}") as caught:
        capture_vm(context, "vm1", CaptureRequest(name="taken", os_state=declared))
    assert CURES[declared] in (caught.value.hint or "")
    assert context.catalog.find_image("taken") is None


@pytest.mark.parametrize(("state", "declared"), MATRIX)
def test_who_forces_it_is_noted_in_the_image(context, roots, state, declared):
    image = upload(context, roots, state, declared, force=True)
    assert image.os_state is declared
    assert any("--force" in note for note in image.provenance.notes)
    (entry,) = context.catalog.audit.list()
    assert (entry.action, entry.resource) == ("image.overrule", f"image {image.name}")
    assert entry.detail["declared"] == declared.value
    verified = verify_image(context, image.name)
    assert verified.contradiction
    assert verified.image.verdict is verified.proof.verdict


@pytest.mark.parametrize(
    ("state", "seen"), [(CLEAN, OsState.GENERALIZED), (USED, OsState.SPECIALIZED)]
)
def test_undeclared_it_is_what_it_shows(context, roots, state, seen):
    image = upload(context, roots, state)
    assert image.os_state is seen
    assert image.verdict is Verdict(seen.value)
    create_vm(context, VmRequest(name="vm1", image=image.name, start=False))
    taken = capture_vm(context, "vm1", CaptureRequest(name="taken")).image
    assert taken.os_state is seen
    assert taken.verdict is Verdict(seen.value)


@pytest.mark.parametrize("state", [CLEAN, USED])
def test_what_is_declared_rightly_is_taken(context, roots, state):
    declared = OsState.GENERALIZED if state == CLEAN else OsState.SPECIALIZED
    image = upload(context, roots, state, declared)
    assert image.os_state is declared
    assert image.provenance.notes == ()


def test_a_refusal_names_what_was_seen(context, roots):
    with pytest.raises(InvalidInput, match=r"looks Specialized: .*: /etc/"):
        upload(context, roots, USED, OsState.GENERALIZED)


def test_a_generalized_copy_of_an_image(context, roots):
    source = upload(context, roots, USED)
    made = generalize_image(context, source.name, Managed("clean"), Steps())
    assert made.image.os_state is OsState.GENERALIZED
    assert made.image.verdict is Verdict.GENERALIZED
    assert made.image.provenance.kind is SourceKind.IMAGE
    assert made.image.provenance.image_id == source.id
    assert not verify_image(context, "clean").contradiction
    assert verify_image(context, source.name).proof.verdict is Verdict.SPECIALIZED
    with closing(context.repository.open(made.image.os_disk.index)) as disk:
        assert disk.size == source.os_disk.size
    with pytest.raises(NotAllowed, match="generalized already"):
        generalize_image(context, "clean", Managed("cleaner"), Steps())
    with pytest.raises(Conflict, match="exists already"):
        generalize_image(context, source.name, Managed("clean"), Steps())


def test_a_step_that_is_left_out_is_the_users_and_noted(context, roots):
    source = upload(context, roots, USED)
    made = generalize_image(context, source.name, Managed("partly"), Steps(disable=("users",)))
    assert made.image.os_state is OsState.GENERALIZED
    assert made.image.verdict is Verdict.MIXED
    (note,) = made.image.provenance.notes
    assert note.startswith(
        "declared Generalized with steps left out (users), but its disk looks Mixed"
    )
    assert {finding.step for finding in verify_image(context, "partly").proof.findings} == {"users"}


def test_a_rehearsal_says_what_would_go_and_keeps_nothing(context, roots):
    source = upload(context, roots, USED)
    create_vm(context, VmRequest(name="vm1", image=source.name, start=False))
    for report in (
        rehearse_image(context, source.name, Steps()),
        rehearse_vm(context, "vm1", Steps()),
    ):
        assert report.dry_run
        assert {step.name for step in report.steps if step.edits} >= {"users", "machine-id", "logs"}
    assert [image.name for image in context.catalog.list_images()] == [source.name]
    assert verify_image(context, source.name).proof.verdict is Verdict.SPECIALIZED
