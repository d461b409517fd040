"""The seed: what is in it, who may be named in it, what custom data cannot do."""

import base64
import email
import gzip
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pycdlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.errors import InvalidInput
from calotype.machine.seed import MAX_CUSTOM_DATA, Provisioning, build_seed, hash_password
from calotype.machine.userdata import CUSTOM_DATA_FILE, MAX_UNPACKED

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOqnKiavuJ72j7f9/eWIkOh1yhO/jKcBwccETcuE0XOn me@host x"


def provisioning(**changes: Any) -> Provisioning:
    given = {"instance_id": "i-1", "hostname": "web1", "admin_user": "alice", "ssh_keys": [KEY]}
    return Provisioning(**{**given, **changes})


def parts(seed: Provisioning) -> list[tuple[str, bytes]]:
    """The leaves of the user-data, decoded, in order."""
    document = email.message_from_bytes(seed.files()["user-data"])
    leaves = [part for part in document.walk() if not part.is_multipart()]
    return [(part.get_content_type(), part.get_payload(decode=True)) for part in leaves]  # type: ignore[misc]  # decode=True gives bytes


def config(part: tuple[str, bytes]) -> dict[str, Any]:
    kind, text = part
    assert kind == "text/cloud-config"
    first, _, rest = text.partition(b"\n")
    assert first == b"#cloud-config"
    result: dict[str, Any] = json.loads(rest)
    return result


def read_iso(path: Path) -> dict[str, bytes]:
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    assert iso.pvd.volume_identifier.strip() == b"cidata"
    files = {}
    for view, read in (("rr_path", "rr_path"), ("joliet_path", "joliet_path")):
        names = [c for c in iso.list_children(**{view: "/"}) if not c.is_dir()]
        found = {}
        for child in names:
            name = iso.full_path_from_dirrecord(child, rockridge=view == "rr_path")
            data = io.BytesIO()
            iso.get_file_from_iso_fp(data, **{read: name})
            found[name.lstrip("/")] = data.getvalue()
        files[view] = found
    iso.close()
    assert files["rr_path"] == files["joliet_path"]
    return files["rr_path"]


def test_the_iso_holds_the_files_for_cloud_init_and_for_a_shell(tmp_path: Path) -> None:
    seed = provisioning(timezone="Europe/Berlin", custom_data=b"\x00\xffraw", locale="de_DE.UTF-8")
    path = tmp_path / "seed.iso"
    build_seed(path, seed)
    files = read_iso(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["seed.iso"]
    assert files["meta-data"] == b'instance-id: "i-1"\nlocal-hostname: "web1"\n'
    assert files["custom-data"] == b"\x00\xffraw"
    assert files["authorized_keys"] == KEY.encode() + b"\n"
    assert files["user-data"].startswith(b"Content-Type: multipart/mixed")
    keys = "INSTANCE_ID HOSTNAME ADMIN_USER PASSWORD_HASH TIMEZONE LOCALE"
    script = f'. {tmp_path}/env; for k in {keys}; do eval "echo \\"\\$$k\\""; done'
    (tmp_path / "env").write_bytes(files["calotype.env"])
    done = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == [
        *("i-1", "web1", "alice", "", "Europe/Berlin", "de_DE.UTF-8"),
        "",
    ]


def test_without_custom_data_there_is_no_such_file() -> None:
    assert "custom-data" not in provisioning().files()
    assert len(parts(provisioning())) == 2


def test_the_admin_user_is_the_last_word() -> None:
    seed = provisioning(custom_data=b"#cloud-config\nuser: mallory\nusers: []\n")
    first, custom, last = parts(seed)
    assert "user" not in config(first)
    assert custom == ("text/cloud-config", b"#cloud-config\nuser: mallory\nusers: []\n")
    assert config(last) == {
        "user": {
            "name": "alice",
            "gecos": "alice",
            "shell": "/bin/bash",
            "sudo": ["ALL=(ALL) NOPASSWD:ALL"],
            "lock_passwd": True,
            "ssh_authorized_keys": [KEY],
        }
    }
    document = email.message_from_bytes(seed.files()["user-data"])
    ours, theirs, end = [part for part in document.walk() if not part.is_multipart()]
    assert ours["Merge-Type"] == end["Merge-Type"] == "dict(replace)+list()+str()"
    assert theirs["Merge-Type"] is None  # read as if it stood alone


def test_a_password_unlocks_logins_by_password() -> None:
    hashed = hash_password("correct horse")
    first, last = map(config, parts(provisioning(password_hash=hashed, ssh_keys=[])))
    assert first["ssh_pwauth"] is True
    assert config(parts(provisioning())[0])["ssh_pwauth"] is False
    assert last["user"]["hashed_passwd"] == hashed
    assert last["user"]["lock_passwd"] is False
    _, method, salt, _ = hashed.split("$")
    assert method == "6"
    again = ["openssl", "passwd", "-6", "-salt", salt, "correct horse"]
    assert subprocess.run(again, capture_output=True, check=True).stdout.decode().strip() == hashed
    assert hash_password("correct horse") != hashed


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"#cloud-config\nruncmd: []\n", "text/cloud-config"),
        (b"#Cloud-Config\n{}\n", "text/cloud-config"),
        (b"#!/bin/sh\nexit\n", "text/x-shellscript"),
        (b"#include\nhttp://x/\n", "text/x-include-url"),
        (b"#include-once\nhttp://x/\n", "text/x-include-once-url"),
        (b"#cloud-config-archive\n- x\n", "text/cloud-config-archive"),
        (b"#cloud-boothook\n", "text/cloud-boothook"),
        (b"#part-handler\n", "text/part-handler"),
        (b"## template: jinja\n#cloud-config\n", "text/jinja2"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_custom_data_of_each_kind_is_a_part_of_its_own(data: bytes, kind: str, pack: Any) -> None:
    seed = provisioning(custom_data=pack(data))
    assert parts(seed)[1] == (kind, data)
    assert seed.files()["custom-data"] == pack(data)


def test_mime_custom_data_is_nested() -> None:
    data = (
        b'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="B"\n\n'
        b"--B\nContent-Type: text/x-shellscript\n\n#!/bin/sh\necho \xc3\xa4\n"
        b"--B\nContent-Type: text/cloud-config\n\n#cloud-config\n{}\n--B--\n"
    )
    kinds = [kind for kind, _ in parts(provisioning(custom_data=data))]
    assert kinds == [
        *("text/cloud-config", "text/x-shellscript", "text/cloud-config", "text/cloud-config"),
    ]


def test_user_data_of_another_seed_can_be_custom_data() -> None:
    inner = provisioning(custom_data=b"#!/bin/sh\n").files()["user-data"]
    assert len(parts(provisioning(custom_data=inner))) == 5


@given(st.binary(max_size=300))
def test_any_other_bytes_become_a_file(data: bytes) -> None:
    data = b"\x00" + data
    last = config(parts(provisioning(custom_data=data))[-1])
    (file,) = last["write_files"]
    assert file["path"] == CUSTOM_DATA_FILE
    assert file["permissions"] == "0600"
    assert base64.b64decode(file["content"]) == data
    assert last["user"]["name"] == "alice"


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(b"#" * 50, mtime=0)[:-9],
        b"\x1f\x8bnot gzip",
        gzip.compress(bytes(MAX_UNPACKED + 1), mtime=0),
    ],
)
def test_damaged_or_huge_gzip_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="custom data"):
        provisioning(custom_data=data).files()


@pytest.mark.parametrize(
    "changes",
    [
        {"hostname": ""},
        {"hostname": "-x"},
        {"hostname": "a b"},
        {"hostname": "x" * 64},
        {"hostname": "12345"},
        {"hostname": "a\ninstance-id: x"},
        {"instance_id": "a b"},
        {"admin_user": "root"},
        {"admin_user": "Al"},
        {"admin_user": "a:b"},
        {"admin_user": "-a"},
        {"admin_user": "alice\n"},
        {"admin_user": None},
        {"timezone": "../etc/passwd"},
        {"timezone": "/etc/x"},
        {"timezone": "a'b"},
        {"locale": "de DE"},
        {"password_hash": "plain"},
        {"password_hash": "$6$x$y\nz"},
        {"ssh_keys": ["ssh-ed25519 AAAA"]},
        {"ssh_keys": [KEY + "\n" + KEY]},
        {"ssh_keys": ['command="x" ' + KEY]},
        {"ssh_keys": [KEY.replace("ssh-ed25519", "ssh-rsa")]},
        {"ssh_keys": ["-----BEGIN OPENSSH PRIVATE KEY-----"]},
        {"custom_data": bytes(MAX_CUSTOM_DATA + 1)},
    ],
)
def test_what_no_guest_can_take_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        provisioning(**changes)


@pytest.mark.parametrize("password", ["", "a\nb", "x" * 129, "a\x00b"])
def test_passwords_that_cannot_be_typed_are_refused(password: str) -> None:
    with pytest.raises(InvalidInput):
        hash_password(password)


def test_a_refused_private_key_is_not_repeated() -> None:
    with pytest.raises(InvalidInput) as raised:
        provisioning(ssh_keys=["-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0"])
    assert "c2VjcmV0" not in str(raised.value)
    assert raised.value.hint is not None
