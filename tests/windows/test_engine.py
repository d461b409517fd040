"""Windows disks through the engine: upload, what contradicts what is declared, a VM and its CD."""

import io
from collections.abc import Iterator
from pathlib import Path

import pycdlib
import pytest
from tests.windows import build
from tests.windows.build import COMPLETE, GENERAL

from calotype import wire
from calotype.config import Home
from calotype.engine.context import Context
from calotype.engine.generalize.sysprep import sysprep_vm
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.launch import VmRequest, create_vm
from calotype.engine.machines import seed_path
from calotype.engine.sources import Upload
from calotype.errors import InvalidInput, NotAllowed
from calotype.model import Image, OsState, OsType, Verdict

PASSWORD = "Correct-Horse-1"


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    context = wire.build(home=Home(tmp_path / "home"))
    yield context
    context.close()


def upload(context: Context, scratch: Path, state: str, declared: OsState | None = None) -> Image:
    path = scratch / f"{state}.raw"
    path.write_bytes(build.disk(build.installation(state)).data)
    request = ImageRequest(name=state.lower(), os_state=declared)
    return import_image(context, request, Upload(location=str(path)), {}).image


@pytest.mark.parametrize(
    ("state", "seen", "verdict"),
    [
        (GENERAL, OsState.GENERALIZED, Verdict.GENERALIZED),
        (COMPLETE, OsState.SPECIALIZED, Verdict.SPECIALIZED),
        ("IMAGE_STATE_UNDEPLOYABLE", OsState.SPECIALIZED, Verdict.MIXED),
    ],
)
def test_an_upload_is_what_it_shows(context, tmp_path, state, seen, verdict):
    image = upload(context, tmp_path, state)
    assert (image.os_type, image.os_state, image.verdict) == (OsType.WINDOWS, seen, verdict)


def test_a_wrong_word_is_refused_with_the_reason(context, tmp_path):
    with pytest.raises(InvalidInput, match=r"looks Specialized: .*IMAGE_STATE_COMPLETE"):
        upload(context, tmp_path, COMPLETE, OsState.GENERALIZED)
    with pytest.raises(InvalidInput, match="declared Specialized"):
        upload(context, tmp_path, GENERAL, OsState.SPECIALIZED)


def test_a_vm_of_a_generalized_windows(context, tmp_path):
    image = upload(context, tmp_path, GENERAL)
    with pytest.raises(InvalidInput, match="needs a password"):
        create_vm(context, VmRequest(name="vm1", image=image.name, start=False))
    keys = VmRequest(name="vm1", image=image.name, start=False, ssh_keys=["ssh-ed25519 AAAA"])
    with pytest.raises(InvalidInput, match="a password"):
        create_vm(context, keys)
    weak = VmRequest(name="vm1", image=image.name, start=False, admin_password="weak")
    with pytest.raises(InvalidInput, match="is not one that Windows takes"):
        create_vm(context, weak)
    assert context.catalog.list_vms() == []
    vm = create_vm(
        context,
        VmRequest(
            name="web.server_of_acme",
            image=image.name,
            start=False,
            admin_password=PASSWORD,
            timezone="Europe/Madrid",
        ),
    )
    assert (vm.os_type, vm.computer_name) == (OsType.WINDOWS, "web-server-of-a")
    iso = pycdlib.PyCdlib()
    iso.open(str(seed_path(context.vm_path(vm.id))))
    content = io.BytesIO()
    iso.get_file_from_iso_fp(content, udf_path="/ovf-env.xml")
    iso.close()
    for text in (PASSWORD, "azureuser", "web-server-of-a", "Romance Standard Time"):
        assert text.encode() in content.getvalue()


def test_a_specialized_windows_starts_as_it_was(context, tmp_path):
    image = upload(context, tmp_path, COMPLETE)
    vm = create_vm(context, VmRequest(name="vm1", image=image.name, start=False))
    assert not seed_path(context.vm_path(vm.id)).exists()


def test_sysprep_needs_a_windows_that_runs(context, tmp_path):
    image = upload(context, tmp_path, COMPLETE)
    create_vm(context, VmRequest(name="vm1", image=image.name, start=False))
    with pytest.raises(NotAllowed, match="stopped"):
        sysprep_vm(context, "vm1")
