"""Which files are reported as holding a secret of an application."""

import subprocess
import time
from pathlib import Path

import pytest

from calotype.guest.offline import offline
from calotype.guest.secrets import secrets

TOLD = (
    "api_key = s3cr3t-of-ours",
    "db.password: hunter2hunter2",
    'export DJANGO_SECRET="abcdefgh-ijkl"',
    '  "access_token": "ey0123456789",',
    "bind_passwd=0123456789",
)
QUIET = (
    "# password = an-example-of-one",
    "password = $DATABASE_PASSWORD",
    "password = /etc/acme/password",
    "token = short",
    "secretary = somebody-else",
    "PASS_MAX_DAYS 99999",
    "password required pam_unix.so",
    "spf = pass:softfail:neutral",
)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A file system with a configuration for each line, and one that is long and hostile."""
    tree, path = tmp_path / "tree", tmp_path / "fs"
    (tree / "etc").mkdir(parents=True)
    for number, line in enumerate((*TOLD, *QUIET)):
        (tree / "etc" / f"{number:02}.conf").write_text(f"[main]\n{line}\n")
    (tree / "etc" / "long").write_text("password" * 8000)
    (tree / "etc" / "blank").write_text(" \t" * 32000)
    path.touch()
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, path, "16M"], check=True)
    return path


def test_settings_whose_names_tell_are_reported_by_path(disk: Path) -> None:
    started = time.monotonic()
    with offline(disk) as guest:
        found = secrets(guest)
    assert [secret.path for secret in found] == [f"/etc/{n:02}.conf" for n in range(len(TOLD))]
    assert {secret.kind for secret in found} == {"password or token in a configuration"}
    assert time.monotonic() - started < 5
