"""The CD of a new Windows VM: what is on it, and what no name or password can do to it."""

import base64
import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pycdlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.errors import InvalidInput
from calotype.machine.windows_seed import WindowsProvisioning, build_windows_seed

UNATTEND = "{urn:schemas-microsoft-com:unattend}"
AZURE = "{http://schemas.microsoft.com/windowsazure}"
SECRET = "Tr0ub4dor&<3>]]>"  # not a secret of anybody


def provisioning(**changes: Any) -> WindowsProvisioning:
    given = {"computer_name": "WEB01", "admin_user": "alice", "password": SECRET}
    return WindowsProvisioning(**{**given, **changes})


def texts(document: bytes, path: str) -> list[str]:
    return [found.text or "" for found in ET.fromstring(document).findall(f".//{path}")]


def passwords(seed: WindowsProvisioning) -> set[str]:
    """The passwords that the answer file sets, decoded."""
    root = ET.fromstring(seed.files()["unattend.xml"])
    found = set()
    for name in ("AdministratorPassword", "Password"):
        for element in root.findall(f".//{UNATTEND}{name}"):
            assert element.findtext(f"{UNATTEND}PlainText") == "false"
            encoded = element.findtext(f"{UNATTEND}Value") or ""
            found.add(base64.b64decode(encoded).decode("utf-16-le").removesuffix(name))
    return found


def test_the_answer_file():
    seed = provisioning(timezone="Europe/Berlin", first_logon=["cmd.exe /c echo <hi> & ver"])
    files = seed.files()
    document = files["unattend.xml"]
    assert files["Autounattend.xml"] == document
    root = ET.fromstring(document)
    assert root.tag == f"{UNATTEND}unattend"
    assert document.count(b"xmlns=") == 1  # Windows' parser sees the default name space
    assert b"ns0" not in document
    assert [s.get("pass") for s in root] == ["specialize", "oobeSystem"]
    assert texts(document, f"{UNATTEND}ComputerName") == ["WEB01"]
    assert set(texts(document, f"{UNATTEND}TimeZone")) == {"W. Europe Standard Time"}
    assert texts(document, f"{UNATTEND}Name") == ["alice"]
    assert texts(document, f"{UNATTEND}CommandLine") == ["cmd.exe /c echo <hi> & ver"]
    assert passwords(seed) == {SECRET}
    assert SECRET.encode() not in document


def test_the_environment_of_azure():
    data = bytes(range(256))
    seed = provisioning(custom_data=data, timezone="Etc/UTC")
    document = seed.files()["ovf-env.xml"]
    assert texts(document, f"{AZURE}ComputerName") == ["WEB01"]
    assert texts(document, f"{AZURE}AdminUsername") == ["alice"]
    assert texts(document, f"{AZURE}AdminPassword") == [SECRET]
    assert texts(document, f"{AZURE}TimeZone") == ["UTC"]
    assert base64.b64decode(texts(document, f"{AZURE}CustomData")[0]) == data
    assert b"CustomData.bin" in seed.files()["unattend.xml"]
    assert b"CustomData" not in provisioning().files()["unattend.xml"]


PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=40)


@given(PRINTABLE)
def test_no_password_breaks_out(text):
    seed = provisioning(password=f"Aa1!Aa1!Aa1!{text}")
    assert passwords(seed) == {f"Aa1!Aa1!Aa1!{text}"}
    document = seed.files()["ovf-env.xml"]
    assert texts(document, f"{AZURE}AdminPassword") == [f"Aa1!Aa1!Aa1!{text}"]
    assert texts(document, f"{AZURE}AdminUsername") == ["alice"]


@given(st.text(max_size=25))
def test_a_name_is_refused_or_kept(text):
    try:
        seed = provisioning(admin_user=text)
    except InvalidInput:
        return
    assert texts(seed.files()["unattend.xml"], f"{UNATTEND}Name") == [text]
    assert texts(seed.files()["ovf-env.xml"], f"{AZURE}AdminUsername") == [text]


@pytest.mark.parametrize(
    "changes",
    [
        {"computer_name": "a-name-of-sixteen"},
        {"computer_name": "12345"},
        {"computer_name": "under_score"},
        {"computer_name": ""},
        {"admin_user": "Administrator"},
        {"admin_user": "a<b"},
        {"admin_user": "dot."},
        {"admin_user": ""},
        {"admin_user": "x" * 21},
        {"password": "short1!A"},
        {"password": "alllowercaseletters"},
        {"password": "Line\nBreak12345!"},
        {"password": "Aa1!" * 40},
        {"timezone": "Mars/Olympus"},
        {"custom_data": bytes(70_000)},
        {"first_logon": ["two\nlines"]},
    ],
)
def test_what_windows_would_not_take(changes):
    with pytest.raises(InvalidInput) as caught:
        provisioning(**changes)
    if "password" in changes:
        assert changes["password"] not in caught.value.message


def test_the_image_reads_alike_by_every_name(tmp_path: Path) -> None:
    seed = provisioning(custom_data=b"data")
    path = tmp_path / "seed.iso"
    build_windows_seed(path, seed)
    assert path.stat().st_mode & 0o777 == 0o600
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    for view in ("joliet_path", "udf_path"):
        for name, expected in seed.files().items():
            data = io.BytesIO()
            iso.get_file_from_iso_fp(data, **{view: f"/{name}"})
            assert data.getvalue() == expected
    iso.close()
