"""The edges of the command line: exit statuses, output forms, completion, help."""

import errno
import inspect
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from calotype import cli, errors, units
from calotype.cli import exits, output
from calotype.cli.common import Common, Lines
from calotype.cli.generalize import explain, explain_rehearsal
from calotype.cli.output import emit, plain
from calotype.cli.text import size
from calotype.cli.verify import show_proof
from calotype.cli.vm import _public_keys
from calotype.config import Home
from calotype.engine import names
from calotype.errors import InvalidInput
from calotype.guest import Concern, Finding, GeneralizeReport, Inspection, Proof
from calotype.guest.generalize import StepReport
from calotype.guest.guest import Action, Edit
from calotype.guest.secrets import Secret
from calotype.machine.seed import check_key
from calotype.model import OsState, Verdict

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


def test_progress_where_no_terminal_is_says_a_line_now_and_then(monkeypatch, capsys):
    now = iter([0.0, 20.0, 31.0, 40.0, 50.0, 125.0])
    monkeypatch.setattr("calotype.cli.common.time.monotonic", lambda: next(now))
    with Lines().phase("storing", 200) as advance:
        advance(50)  # at 20 s
        advance(50)
        advance(50)
    with Lines().phase("web: ssh", None, unit="tries") as advance:
        advance(1)
    assert capsys.readouterr().err == "storing: 50 %, 31 s\nweb: ssh: 75 s\n"


def test_ctrl_c_while_modules_load_says_nothing(tmp_path):
    slow = "import sys; print('loading', flush=True); sys.stdin.read()"
    (tmp_path / "cyclopts.py").write_text(slow)
    command = [str(Path(sys.executable).with_name("calotype")), "--help"]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"loading\n"
        running.send_signal(signal.SIGINT)
        _out, said = running.communicate()
    assert said == b""
    assert running.returncode == -signal.SIGINT


@dataclass(frozen=True)
class Thing:
    os_state: OsState
    created_at: datetime
    tags: dict[str, str]


THING = Thing(OsState.GENERALIZED, datetime(2026, 1, 2, tzinfo=UTC), {"a_b": "c"})


def on_a_terminal(monkeypatch, capsys, width, records):
    """The lines of a table on a terminal of that many columns."""
    monkeypatch.setattr(output, "Console", partial(Console, force_terminal=True, color_system=None))
    monkeypatch.setenv("COLUMNS", str(width))
    emit(None, records)
    return capsys.readouterr().out.splitlines()


LONG = f"community/Contoso-{'0' * 36}/web/1.0.0"
RECORDS = [
    {
        "image": LONG,
        "publisher": "contoso",
        "state": "Deprecated",
        "published": "2026-11-23",
        "from": "this installation",
    }
]


@pytest.mark.parametrize("width", [72, 80, 100])
def test_a_narrow_table_breaks_no_words_but_long_ones(monkeypatch, capsys, width):
    lines = on_a_terminal(monkeypatch, capsys, width, RECORDS)
    assert all(len(line) <= width for line in lines)
    assert lines[0].split() == list(RECORDS[0])
    assert lines[1].split()[1:5] == ["contoso", "Deprecated", "2026-11-23", "this"]
    assert "".join(line.split()[0] for line in lines[1:]) == LONG


def test_where_a_table_has_no_room_each_record_is_one(monkeypatch, capsys):
    lines = on_a_terminal(monkeypatch, capsys, 40, RECORDS * 2)
    assert all(len(line) <= 40 for line in lines)
    assert [line.split() for line in lines if "Deprecated" in line] == [["state", "Deprecated"]] * 2
    assert lines.count("") == 1  # between them


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
    assert units.size(text) == count


@pytest.mark.parametrize("text", ["", "G", "10X", "-1G", "1e3", "10 G G"])
def test_what_is_no_size(text):
    with pytest.raises(InvalidInput):
        units.size(text)


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


def unsaid(app, path=()):
    """Commands, and options of commands, of which --help says nothing."""
    if app.default_command is not None:
        for argument in app.assemble_argument_collection(parse_docstring=True):
            if argument.show and not argument.parameter.help:
                yield " ".join((*path, argument.name))
    for name in app:
        if not name.startswith("-"):
            if not app[name].help:
                yield " ".join((*path, name))
            yield from unsaid(app[name], (*path, name))


def test_every_option_has_a_sentence():
    assert list(unsaid(cli.app)) == []


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


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.EROFS])
def test_what_the_system_refuses_has_a_cure(code):
    assert exits.of_the_system(OSError(code, "no", "/x")).hint


def test_a_home_that_cannot_be_written_is_said():
    done = run("image", "list", CALOTYPE_HOME="/proc/nothing")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["9" * 400, "9999999999T", f"{1 << 61}"])
def test_what_is_too_large_is_said(text):
    with pytest.raises(InvalidInput, match="more than"):
        units.size(text)


@pytest.mark.parametrize(("vcpus", "memory"), [(0, None), (-1, None), (256, None), (None, 1)])
def test_what_no_vm_can_have(vcpus, memory):
    with pytest.raises(InvalidInput, match="a VM cannot have"):
        names.vm_size(vcpus, memory)


HOSTILE = "a\x1b[31m\x07\r\x9b2J\x7f\u202eb\udcff"


def test_no_text_of_others_steers_the_terminal(capsys):
    def fail():
        raise errors.DiskRefused(HOSTILE, hint=HOSTILE)

    exits.guard(fail)
    emit(Common(), {"a": HOSTILE, "b": [HOSTILE]})
    emit(Common(), [{"a": HOSTILE, "b": {"c": HOSTILE}}])
    emit(Common(output="tsv"), [[HOSTILE]])
    emit(Common(query="[0]"), [HOSTILE])
    emit(Common(output="json"), [HOSTILE])
    printed = "".join(capsys.readouterr())
    assert printed.count("[31m") == 9
    assert not set(printed) & set("\x1b\x07\r\x9b\x7f\u202e\udcff")


def test_json_stays_json(capsys):
    emit(Common(output="json"), [HOSTILE])
    assert json.loads(capsys.readouterr().out) == [HOSTILE]


def guarded(code, **options):
    """Run code under the guard in a process of its own."""
    program = f"import os, sys\nfrom calotype.cli import exits\ndef command():\n    {code}\n"
    return subprocess.Popen(
        [sys.executable, "-c", program + "sys.exit(exits.guard(command))"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_nobody_reads_on_is_no_error():
    with guarded("os.read(0, 1); print('x' * 1_000_000)", stdin=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.write(b"x")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_a_broken_pipe_of_our_own_is_an_error():
    with guarded("raise BrokenPipeError(32, 'Broken pipe')") as process:
        assert b"Broken pipe" in process.communicate()[1]
        assert process.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("vm", "create", "a", "--image", "x", "--memory", "9" * 400), "more than"),
        (("vm", "stop", "a", "--timeout", "nan"), "seconds"),
        (("vm", "wait", "a", "--timeout", "inf"), "seconds"),
        (("vm", "stop", "a", "--timeout", "-1"), "seconds"),
        (("image", "list", "--query", "length(@.a)"), "--query"),
        (("image", "show", b"\xff"), "no reference to an image"),
        (("image", "create", "x", "--source", "http://[x", "--checksum", "0" * 64), "no URL"),
    ],
)
def test_mistakes_are_said(tmp_path, arguments, words):
    done = run(*arguments, CALOTYPE_HOME=str(tmp_path))
    assert "Traceback" not in done.stderr
    assert words in done.stderr
    assert done.returncode == 2


def test_a_key_file_that_is_no_text_is_said():
    (key, *_) = _public_keys(sys.executable)
    with pytest.raises(InvalidInput, match="public key"):
        check_key(key)


def test_a_user_without_a_home_is_told(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("CALOTYPE_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    with pytest.raises(InvalidInput, match="no home") as caught:
        Home.from_environment()
    assert "CALOTYPE_HOME" in (caught.value.hint or "")


def test_an_end_of_line_in_a_name_makes_no_line_of_ours(capsys):
    """A file on a stranger's disk may be called "x\\nverdict   Generalized"."""
    name = "/root/.ssh/x\nverdict   Generalized"
    finding = Finding("root-keys", "Keys", Concern.CREDENTIAL, (f"{name} is there",))
    proof = Proof(
        verdict=Verdict.MIXED,
        reasons=(f"root-keys: {name} is there",),
        seen=Inspection(os_name="A\nB"),
        findings=(finding,),
        checked=("root-keys",),
        secrets=(Secret("private key", name),),
    )
    show_proof(proof)
    step = StepReport("x", "y", (Edit(Action.REMOVED, name),), ())
    report = GeneralizeReport(
        before=proof.seen,
        steps=(step,),
        disabled=(),
        secrets=proof.secrets,
        notes=(),
        wiped=0,
        filesystem="",
        dry_run=True,
    )
    explain_rehearsal(report)
    explain(report, name)

    def fail():
        raise errors.GuestError(f"{name} is larger than 16 MiB")

    exits.guard(fail)
    emit(Common(output="tsv"), [{"name": name, "kind": "a\tb"}])
    said = capsys.readouterr()
    assert not [line for line in said.out.splitlines() if line.startswith("verdict")]
    assert not [line for line in said.err.splitlines() if line.startswith("verdict")]
    assert said.out.splitlines()[-1].count("\t") == 1


def test_a_cell_may_have_several_lines_for_people(capsys):
    """The disks of a VM stand below each other."""
    emit(Common(), {"disks": "OS disk: a\nLUN 3: b"})
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["a", "b"]


ODD = [
    ("community", "export", "", "which directory or bucket", "s3://BUCKET/PREFIX"),
    ("community", "export", "t", "--list-days", "99999999999", "--list-days", "3650"),
    ("community", "export", "t", "--list-days", "0", "--list-days", ">= 1"),
    ("community", "export", "t", "--timestamp-hours", "99999999999", "--timestamp-hours", "87600"),
    ("community", "export", "t", "--grace-days", "-1", "--grace-days", ">= 0"),
    ("community", "export", "t", "--root-keys", "0", "--root-keys", ">= 1"),
    ("community", "rotate", "--root-keys", "0", "--root-keys", ">= 1"),
    ("community", "rotate", "--threshold", "17", "--threshold", "<= 16"),
    ("community", "serve", "t", "--port", "65536", "--port", "65535"),
    ("community", "serve", "t", "--bind", "", "which address", "0.0.0.0"),
    ("gallery", "create", "gal", "--tags", "a", "'a' is not KEY=VALUE", "team=web"),
    ("gallery", "list", "--top", "0", "--top 0", "\n  1 to 100000"),
    ("gallery", "share", "gal", "with whom", "\n  --add"),
]


@pytest.mark.parametrize("words", ODD)
def test_odd_arguments_are_refused_with_the_cure(tmp_path, monkeypatch, capsys, words):
    *command, said, cure = words
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    try:
        status: object = cli.run(command)
    except SystemExit as end:  # what the parser itself refuses
        status = end.code
    assert status == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert cure in printed.err
    assert "Traceback" not in printed.err
    assert list(tmp_path.glob("[!h]*")) == []  # nothing in the current directory
