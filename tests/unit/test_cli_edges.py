"""The edges of the command line: exit statuses, output forms, completion, help."""

import errno
import inspect
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from calotype import cli, errors
from calotype.cli import exits
from calotype.cli.common import Common
from calotype.cli.output import emit, plain, size
from calotype.engine import names
from calotype.errors import InvalidInput
from calotype.model import OsState

ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.CalotypeError)
]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_an_exit_status_and_a_code(kind):
    assert 1 <= exits.status(kind("x")) < 126
    assert kind.code


def test_the_error_tree_is_documented():
    for kind in ALL:
        assert kind.__name__ in (errors.__doc__ or "")


def test_an_error_is_said_with_its_cure(capsys):
    def fail():
        raise errors.NotFound("there is no image 'x'", hint="calotype image list")

    assert exits.guard(fail) == 3
    assert capsys.readouterr().err == (
        "ERROR (ResourceNotFound): there is no image 'x'\n  calotype image list\n"
    )


def test_ctrl_c_has_its_own_status():
    def interrupt():
        raise KeyboardInterrupt

    assert exits.guard(interrupt) == 130


@dataclass(frozen=True)
class Thing:
    os_state: OsState
    created_at: datetime
    tags: dict[str, str]


THING = Thing(OsState.GENERALIZED, datetime(2026, 1, 2, tzinfo=UTC), {"a_b": "c"})


def test_keys_are_azures():
    assert plain(THING) == {
        "osState": "Generalized",
        "createdAt": "2026-01-02T00:00:00+00:00",
        "tags": {"a_b": "c"},
    }


def test_what_a_guest_printed_is_text():
    assert plain(b"ok \xff") == "ok \ufffd"


def test_json(capsys):
    emit(Common(output="json"), [THING])
    assert json.loads(capsys.readouterr().out) == [plain(THING)]


def test_query(capsys):
    emit(Common(output="tsv", query="[].osState"), [THING, THING])
    assert capsys.readouterr().out == "Generalized\nGeneralized\n"
    with pytest.raises(InvalidInput, match="query"):
        emit(Common(query="[["), [])


def test_table_and_tsv(capsys):
    emit(Common(), [THING], {"State": lambda record: record["osState"]})
    assert capsys.readouterr().out.split() == ["State", "Generalized"]
    emit(Common(output="tsv"), THING)
    assert capsys.readouterr().out.startswith("Generalized\t2026")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 30, "3.0 GiB"), (200 << 20, "200 MiB")],
)
def test_sizes_for_people(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [("10G", 10 << 30), ("512MiB", 512 << 20), ("1.5g", 3 << 29), ("2t", 2 << 40), ("4096", 4096)],
)
def test_sizes_of_people(text, count):
    assert names.size(text) == count


@pytest.mark.parametrize("text", ["", "G", "10X", "-1G", "1e3", "10 G G"])
def test_what_is_no_size(text):
    with pytest.raises(InvalidInput):
        names.size(text)


@pytest.mark.parametrize(
    "name", ["", "-x", "../etc", "a/b", "a b", "x" * 65, "a\n", ".hidden", "ü"]
)
def test_what_cannot_be_a_name(name):
    with pytest.raises(InvalidInput):
        names.resource(name, "an image")


@pytest.mark.parametrize("name", ["root", "admin", "0x", "Alice", "a:b", "", "x" * 33])
def test_who_cannot_be_the_admin(name):
    with pytest.raises(InvalidInput):
        names.admin_user(name)


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "calotype", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment},
    )


def test_help_is_light():
    """`calotype --help` loads none of the heavy libraries."""
    code = (
        "import sys; from calotype import cli; cli.app(['--help'], result_action='return_value');"
        "heavy = {'sqlalchemy', 'alembic', 'numpy', 'qemu', 'urllib3', 'oslo_utils', 'pycdlib'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for group in (*cli.GROUPS, *cli.SINGLES):
        assert group in done.stdout


@pytest.mark.parametrize("group", cli.GROUPS)
def test_every_command_has_help(group):
    done = run(group, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    done = run("completion", shell)
    assert done.returncode == 0, done.stderr
    assert "deallocate" in done.stdout


def test_a_mistake_is_no_traceback(tmp_path):
    done = run("image", "show", "nothing", CALOTYPE_HOME=str(tmp_path))
    assert done.returncode == 3
    assert done.stderr.startswith("ERROR (ResourceNotFound)")
    done = run("image", "destroy", CALOTYPE_HOME=str(tmp_path))
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr


def test_what_the_system_refuses_is_no_traceback(capsys):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device", "/x/pack")

    assert exits.guard(fail) == 1
    err = capsys.readouterr().err
    assert "/x/pack: No space left on device" in err
    assert "CALOTYPE_HOME" in err


def test_a_home_that_cannot_be_written_is_said():
    done = run("image", "list", CALOTYPE_HOME="/proc/nothing")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
