"""Evidence reports: what is in them, that they survive, and that nothing else passes for them."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.proofs import CLEAN, DONE, MIXED, NASTY, RULES, booted, own, png, upload

from calotype import cli, wire
from calotype.catalog import Act
from calotype.config import Home
from calotype.disk.durable import write_private
from calotype.engine import images
from calotype.engine.context import Context
from calotype.engine.export import export_image
from calotype.engine.proof import evidence as module
from calotype.engine.proof.evidence import find_evidence, read_evidence, write_evidence
from calotype.engine.proof.page import render
from calotype.engine.proof.statement import (
    PAYLOAD,
    PREDICATE,
    STATEMENT,
    Statement,
    decode,
    encode,
)
from calotype.engine.proof.verify_report import Outcome, verify_report
from calotype.errors import Conflict, InvalidInput, NotFound, ReportRefused
from calotype.guest.steps import STEPS
from calotype.model import MIB, Image, Verdict

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory):
    """A home with one image of an OS disk and a data disk (and a copy of both files)."""
    room = tmp_path_factory.mktemp("uploaded")
    upload(room)
    return room


@pytest.fixture
def room(uploaded, tmp_path):
    shutil.copytree(uploaded, tmp_path / "room")
    return tmp_path / "room"


@pytest.fixture
def context(room, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(room / "home"))
    context = wire.build(home=Home(room / "home"))
    yield context
    context.close()


@pytest.fixture
def image(context):
    return context.catalog.image("web")


def said(context: Context, image: Image) -> Any:
    """What the image's report says."""
    return read_evidence(context, image).evidence


# -- what is in a report


def test_a_report_says_all_that_was_seen(context, image, room):
    context.catalog.audit.append(Act("image.force", "image web"))
    head = context.catalog.audit.head()
    path = write_evidence(
        context,
        image,
        MIXED,
        generalized=DONE,
        boot=booted(room, image),
        certification=RULES,
        forced="declared Generalized",
    )
    envelope = json.loads(path.read_bytes())
    assert envelope["payloadType"] == PAYLOAD
    report = read_evidence(context, image)
    assert report.path == path
    assert report.key_id == own(context)[0].id
    evidence = said(context, image)
    assert evidence.proof.verdict.state == "Mixed"
    assert [check.passed for check in evidence.proof.checks] == [False, True, True, True, True]
    worst = evidence.proof.checks[0]
    assert (len(worst.left), worst.count, worst.heading) == (200, 1000, STEPS[0].heading)
    assert evidence.generalized.steps[0].edits == 3
    assert evidence.generalized.wiped_bytes == 5 * MIB
    assert evidence.certification == RULES
    assert evidence.overrides[0].reason == "declared Generalized"
    assert evidence.audit.number, evidence.audit.digest == head
    assert [file.kind for file in evidence.files] == ["screenshot", "serial-log"] * 2
    assert {f.name for f in evidence.files} | {"report.json"} == set(os.listdir(path.parent))


def test_the_statement_is_in_totos_and_its_digests_are_those_of_the_raw_disks(context, image, room):
    write_evidence(context, image, CLEAN)
    report = read_evidence(context, image)
    value: Any = module.as_json(report.statement)
    assert value["_type"] == STATEMENT
    assert value["predicateType"] == PREDICATE
    for subject, name, lun in zip(value["subject"], ("os", "data"), (None, 3), strict=True):
        raw = (room / f"{name}.raw").read_bytes()
        assert subject["digest"]["sha256"] == hashlib.sha256(raw).hexdigest()
        assert subject["annotations"]["size"] == len(raw)
        assert subject["annotations"]["lun"] == lun
    assert value["predicate"]["image"]["declaredState"] == "Generalized"
    assert value["predicate"]["image"]["provenance"]["sha256"] == image.provenance.sha256


def test_secrets_are_paths_and_hostile_names_are_one_harmless_line(context, image):
    write_evidence(context, image, MIXED)
    evidence = said(context, image)
    assert [s.path for s in evidence.proof.secrets] == ["/etc/ssl/private/x.key"]
    line = evidence.proof.checks[0].left[0]
    assert "\\u001b[31m\\u202e \\udcff\\u000aVerdict" in line
    assert line.isprintable()


def test_a_quick_report_leaves_sha256_to_the_next_one(context, image, room):
    write_evidence(context, image, CLEAN, quick=True)
    first = read_evidence(context, image).statement.subject[0].digest
    assert first.keys() == {"blake3"}
    write_evidence(context, image, CLEAN)
    second = read_evidence(context, image).statement.subject[0].digest
    assert second.keys() == {"blake3", "sha256"}
    assert second["blake3"] == first["blake3"]


def test_later_parts_are_added_and_digests_are_not_computed_again(
    context, image, room, monkeypatch
):
    write_evidence(context, image, CLEAN, generalized=DONE, forced="once")
    monkeypatch.setattr(module, "content_digests", None)
    write_evidence(context, image, boot=booted(room, image))
    evidence = said(context, image)
    assert evidence.generalized
    assert evidence.boot.passed
    assert evidence.proof.verdict.state == "Generalized"
    write_evidence(context, image, MIXED, forced="twice")
    write_evidence(context, image, MIXED, forced="twice")  # said again, it is no other override
    evidence = said(context, image)
    assert evidence.boot
    assert [override.reason for override in evidence.overrides] == ["once", "twice"]


def test_without_a_proof_there_is_no_report(context, image, room):
    with pytest.raises(InvalidInput, match="nobody has looked"):
        write_evidence(context, image, boot=booted(room, image))
    with pytest.raises(NotFound, match="no evidence"):
        read_evidence(context, image)


def test_files_of_the_boot_test_must_be_what_it_says(context, image, room):
    boot = booted(room, image)
    Path(boot.clones[1].artifacts[0].path).write_bytes(b"another")
    with pytest.raises(InvalidInput, match="not the file"):
        write_evidence(context, image, CLEAN, boot=boot)
    assert find_evidence(context, image) is None


# -- it survives


def test_a_new_report_replaces_the_last_one_and_its_files(context, image, room):
    path = write_evidence(context, image, CLEAN, boot=booted(room, image, (1, 1, 1)))
    before = {file.name for file in said(context, image).files}
    write_evidence(context, image, boot=booted(room, image, (2, 2, 2)))
    after = {file.name for file in said(context, image).files}
    assert before != after
    assert set(os.listdir(path.parent)) == {"report.json", *after}


@pytest.mark.parametrize("nth", [2, 4, 5, 7, 8])
def test_a_kill_at_any_write_leaves_the_last_good_report(context, image, room, nth):
    write_evidence(context, image, CLEAN, boot=booted(room, image, (1, 1, 1)))
    good = read_evidence(context, image)
    kill = room / "kill.py"
    kill.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from calotype import wire; from calotype.config import Home\n"
        "from calotype.engine.proof.evidence import write_evidence\n"
        "from tests.proofs import MIXED, booted\n"
        "room, nth = Path(sys.argv[1]), int(sys.argv[2])\n"
        "context = wire.build(home=Home(room / 'home')); image = context.catalog.image('web')\n"
        "boot, count, fsync = booted(room, image, (9, 9, 9)), [0], os.fsync\n"
        "def counted(fd):\n"
        "    count[0] += 1\n"
        "    if count[0] == nth: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    fsync(fd)\n"
        "os.fsync = counted\n"
        "write_evidence(context, image, MIXED, boot=boot)\n"
    )
    done = subprocess.run(
        [sys.executable, kill, room, str(nth)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    again = read_evidence(context, image)
    assert again.evidence.proof.verdict.state in ("Generalized", "Mixed")
    if again.evidence.proof.verdict.state == "Generalized":
        assert again == good
    verified = verify_report(again.path, keys=own(context))
    assert sum(a.outcome is Outcome.HOLDS for a in verified.answers) == 4  # all its files
    write_evidence(context, image, MIXED)
    files = {file.name for file in said(context, image).files}
    assert set(os.listdir(again.path.parent)) == {"report.json", *files}


def test_two_commands_write_one_after_the_other(context, image, room):
    write_evidence(context, image, CLEAN)

    def work(number):
        mine = wire.build(home=context.home)
        try:
            write_evidence(mine, image, CLEAN, forced=f"number {number}")
        finally:
            mine.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    reasons = {override.reason for override in said(context, image).overrides}
    assert reasons == {f"number {number}" for number in range(4)}


def test_it_goes_with_the_image(context, image):
    path = write_evidence(context, image, CLEAN)
    images.delete(context, "web")
    assert not path.parent.exists()


def test_what_a_killed_delete_left_goes_with_the_next_command(context, image):
    path = write_evidence(context, image, CLEAN)
    context.catalog.delete_image(image.id)
    assert path.exists()
    context.drop_unused()
    assert not path.parent.exists()


def test_no_report_goes_while_an_operation_may_be_about_to_make_its_image(context, image):
    with context.operation():
        path = write_evidence(context, replace(image, id="another"), CLEAN)
        context.drop_unused()
        assert path.exists()
    context.drop_unused()
    assert not path.exists()


def test_it_is_exported_beside_the_disk(context, image, room):
    assert export_image(context, "web", room / "none.raw").report is None
    path = write_evidence(context, image, CLEAN)
    done: Any = export_image(context, "web", room / "web.raw")
    assert done.report == room / "web.raw.report.json"
    assert done.report.read_bytes() == path.read_bytes()
    assert export_image(context, "web", room / "web.vhd", report=False).report is None
    assert not (room / "web.vhd.report.json").exists()
    (room / "web.qcow2.report.json").write_text("something else")
    with pytest.raises(Conflict, match=r"report\.json"):
        export_image(context, "web", room / "web.qcow2")
    assert not (room / "web.qcow2").exists()
    assert export_image(context, "web", room / "web.qcow2", overwrite=True).report


# -- a report is of its image


def test_a_report_that_somebody_changed_is_refused(context, image):
    path = write_evidence(context, image, CLEAN)
    path.write_bytes(path.read_bytes().replace(b"e", b"f", 1))
    with pytest.raises(InvalidInput):
        read_evidence(context, image)


def test_a_new_proof_replaces_a_changed_report_takes_nothing_from_it_and_says_so(
    context, image, room
):
    path = write_evidence(context, image, CLEAN, generalized=DONE)
    write_private(path, path.read_bytes().replace(b"e", b"f", 1))
    with pytest.raises(InvalidInput):
        write_evidence(context, image, boot=booted(room, image))
    write_evidence(context, image, MIXED)
    assert said(context, image).generalized is None
    newest = context.catalog.audit.list(1)[0]
    assert (newest.action, newest.resource) == ("report.discard", "image web")


def test_a_report_of_another_image_is_refused(context, image):
    path = write_evidence(context, image, CLEAN)
    with pytest.raises(ReportRefused, match="another image"):
        find_evidence(context, replace(image, data_disks=()))
    twin = replace(image, id="twin", os_disk=replace(image.os_disk, index="0" * 64))
    (context.home.evidence / "twin").mkdir()
    shutil.copy(path, context.home.evidence / "twin")
    with pytest.raises(ReportRefused, match="another image"):
        find_evidence(context, twin)
    with pytest.raises(ReportRefused, match="another image"):  # the same disks, declared otherwise
        find_evidence(context, replace(image, id="twin"))


# -- the form


def test_names_of_files_cannot_leave_the_directory(context, image, room):
    write_evidence(context, image, CLEAN, boot=booted(room, image))
    payload = json.loads(encode(read_evidence(context, image).statement))
    file = payload["predicate"]["boot"]["clones"][0]["files"][0]
    for name in ("../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b", "a\n", "x" * 200):
        file["name"] = name
        with pytest.raises(InvalidInput, match="form of a report"):
            decode(json.dumps(payload).encode())


def test_another_kind_of_statement(context, image):
    write_evidence(context, image, CLEAN)
    payload = json.loads(encode(read_evidence(context, image).statement))
    for change, why in (
        ({"predicateType": "https://slsa.dev/provenance/v1"}, "another kind"),
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "no in-toto statement"),
        ({"subject": []}, "form of a report"),
        ({"predicate": None}, "form of a report"),
    ):
        with pytest.raises(InvalidInput, match=why):
            decode(json.dumps({**payload, **change}).encode())
    payload["predicate"]["later"] = {"more": [1]}
    assert decode(json.dumps(payload).encode())  # a newer version may say more


_STATEMENT: dict[
    str, Any
] = {}  # of the last test run, for Hypothesis: a report costs more than an example may


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_statements_of_wrong_types_are_refused_in_our_words(context, image, data):
    if not _STATEMENT:
        write_evidence(context, image, MIXED, generalized=DONE, certification=RULES)
        _STATEMENT.update(json.loads(encode(read_evidence(context, image).statement)))
    value = json.loads(json.dumps(_STATEMENT))
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        break
    junk: st.SearchStrategy[Any] = st.sampled_from(
        [None, -1, 1 << 64, "", "\0", [], {}, [[]], True, {"a": 1}, "x" * 5000]
    )
    place[key] = data.draw(junk)
    with suppress(InvalidInput):  # and no other exception
        decode(json.dumps(value).encode())


# -- the page


def test_the_page_is_one_harmless_file(context, image, room):
    write_evidence(
        context, image, MIXED, boot=booted(room, image), certification=RULES, forced=NASTY
    )
    page = render(read_evidence(context, image))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "Test &amp; &lt;b&gt;Linux" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\ud800-\udfff]", page)
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert addresses
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert page.encode()
    assert "default-src 'none'" in page


def test_the_page_shows_no_picture_that_was_not_signed(context, image, room):
    path = write_evidence(context, image, CLEAN, boot=booted(room, image))
    assert render(read_evidence(context, image)).count("<img") == 2
    for file in path.parent.glob("*.png"):
        file.write_bytes(png((5, 5, 5)))
    assert "<img" not in render(read_evidence(context, image))


def test_the_page_of_every_verdict(context, image):
    for verdict in Verdict:
        write_evidence(context, image, replace(CLEAN, verdict=verdict, checked=()))
        assert f"<strong>{verdict}</strong>" in render(read_evidence(context, image))


# -- the commands


def run(capsys, *arguments):
    status = cli.run([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_image_report(context, image, room, capsys):
    status, _, err = run(capsys, "image", "report", "web")
    assert (status, "image verify web" in err) == (3, True)
    path = write_evidence(
        context, image, MIXED, generalized=DONE, boot=booted(room, image), certification=RULES
    )
    status, out, _ = run(capsys, "image", "report", "web")
    assert status == 0
    assert "web: Mixed" in out
    assert "… 1000 in all" in out
    assert "\x1b" not in out
    assert "\nVerdict" not in out
    assert run(capsys, "image", "report", "web", "--path")[1] == f"{path}\n"
    status, out, _ = run(capsys, "image", "report", "web", "-o", "json", "--query", "keyId")
    assert json.loads(out) == own(context)[0].id
    files = ["--html", room / "r.html", "--json", room / "r.json"]
    assert run(capsys, "image", "report", "web", *files)[0] == 0
    assert (room / "r.json").read_bytes() == path.read_bytes()
    assert (room / "r.html").read_text().startswith("<!doctype html>")
    assert run(capsys, "image", "report", "web", *files)[0] == 4
    assert run(capsys, "image", "report", "web", *files, "--overwrite")[0] == 0
    assert run(capsys, "image", "report", "web", "--html", room / "no" / "r.html")[0] == 3


def test_rotation_and_the_audit_against_a_report(context, image, room, capsys):
    assert run(capsys, "keys", "rotate")[0] == 0
    path = write_evidence(context, image, CLEAN)
    run(capsys, "keys", "rotate")
    assert read_evidence(context, image)
    assert len(run(capsys, "keys", "list")[1].splitlines()) == 4  # a header, two old ones, ours
    assert run(capsys, "audit", "verify", "--against", path)[0] == 0
    assert "keys.rotate" in run(capsys, "audit", "list")[1]
    with context.catalog._write() as db:
        db.exec_driver_sql("DELETE FROM audit")
    assert run(capsys, "audit", "verify")[0] == 0
    status, _, err = run(capsys, "audit", "verify", "--against", path)
    assert (status, "are gone" in err) == (7, True)


def test_no_other_command_loads_what_reports_need():
    program = (
        "import sys; from calotype import cli\n"
        "cli.run(['image', '--help']); import calotype.cli.image\n"
        "slow = {'cryptography', 'securesystemslib', 'msgspec', 'jinja2'} & sys.modules.keys()\n"
        "print(sorted(slow), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


def test_the_documentation_is_of_this_format():
    text = (ROOT / "docs" / "design" / "evidence.md").read_text()
    example = text.split("```json\n")[1].split("```")[0]
    decoded = decode(example.encode())
    assert json.loads(example) == json.loads(encode(decoded))
    schema = json.loads((ROOT / "docs" / "design" / "evidence.schema.json").read_text())
    assert schema == json.loads(json.dumps(msgspec.json.schema(Statement)))
