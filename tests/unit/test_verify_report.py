"""verify-report: whether disks and files are what a signed report says of them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.proofs import CLEAN, booted, own, upload

from calotype import cli, wire
from calotype.config import Home
from calotype.engine.context import Context
from calotype.engine.export import export_image
from calotype.engine.proof.evidence import read_evidence, write_evidence
from calotype.engine.proof.signing import Keys
from calotype.engine.proof.statement import PAYLOAD, encode
from calotype.engine.proof.verify_report import Outcome, verify_report
from calotype.model import MIB


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


def resigned(context, image, **changes):
    """The image's report with other words, rightly signed."""
    statement = read_evidence(context, image).statement
    payload = encode(msgspec.structs.replace(statement, **changes))
    return Keys(context.home).sign(payload, PAYLOAD)


def exported(context: Context, path: Path) -> Any:
    """What exporting the OS disk gave."""
    return export_image(context, "web", path)


def outcomes(verified):
    return [answer.outcome for answer in verified.answers]


def test_disks_in_every_format_are_what_the_report_says(context, image, room):
    write_evidence(context, image, CLEAN)
    for name in ("web.raw", "web.vhd", "web.qcow2", "web.vhdx", "web-stream.vmdk"):
        done = exported(context, room / name)
        verified = verify_report(done.report, keys=own(context), disks=[done.path])
        assert verified.holds
        assert outcomes(verified) == [Outcome.HOLDS, Outcome.NOT_ASKED]  # nothing of LUN 3
    assert (room / "web.vhd").stat().st_size > image.os_disk.size + 512  # it was padded
    both = [room / "data.raw", room / "web.qcow2"]
    assert verify_report(done.report, keys=own(context), disks=both).holds
    verified = verify_report(done.report, keys=own(context), disks=[both[0], both[0]])
    assert outcomes(verified)[:2] == [Outcome.HOLDS, Outcome.FAILS]


@pytest.mark.parametrize("where", [0, MIB, 2 * MIB - 1, 4 * MIB])
def test_one_byte_of_a_disk_is_enough(context, image, room, where):
    path = write_evidence(context, image, CLEAN)
    with (room / "os.raw").open("r+b") as file:
        file.seek(where)
        byte = file.read(1)
        file.seek(where)
        file.write(bytes([byte[0] ^ 1]))
    verified = verify_report(path, keys=own(context), disks=[room / "os.raw"])
    assert not verified.holds
    assert "something else" in verified.answers[0].detail


def test_disks_of_other_sizes_and_what_is_no_disk(context, image, room):
    path = write_evidence(context, image, CLEAN)
    os.truncate(room / "os.raw", 2 * MIB)
    (room / "empty").touch()
    (room / "padded").write_bytes((room / "data.raw").read_bytes() + bytes(MIB))
    files = [room / "os.raw", room / "empty", room / "absent", room / "padded"]
    verified = verify_report(path, keys=own(context), disks=files)
    assert outcomes(verified)[:4] == [Outcome.FAILS] * 4
    assert "its size is" in verified.answers[0].detail


def test_what_pads_a_disk_must_be_zero(context, image, room):
    write_evidence(context, image, CLEAN)
    done = exported(context, room / "web.vhd")
    with done.path.open("r+b") as file:
        file.seek(image.os_disk.size)
        file.write(b"x")
    assert not verify_report(done.report, keys=own(context), disks=[done.path]).holds


def test_files_beside_the_report(context, image, room):
    path = write_evidence(context, image, CLEAN, boot=booted(room, image))
    verified = verify_report(path, keys=own(context))
    assert outcomes(verified) == [Outcome.NOT_ASKED] * 2 + [Outcome.HOLDS] * 4
    first, second, *_ = (path.parent / file.name for file in verified.statement.predicate.files)
    first.write_bytes(first.read_bytes() + b"x")
    second.unlink()
    verified = verify_report(path, keys=own(context))
    assert outcomes(verified)[2:4] == [Outcome.FAILS, Outcome.NOT_ASKED]
    assert not verified.holds


def test_a_report_that_knows_only_digests_that_we_do_not(context, image, room):
    write_evidence(context, image, CLEAN)
    statement = read_evidence(context, image).statement
    for digest in ({}, {"md5": "0" * 64}):
        subject = tuple(msgspec.structs.replace(s, digest=digest) for s in statement.subject)
        (room / "r").write_bytes(resigned(context, image, subject=subject))
        assert not verify_report(room / "r", keys=own(context), disks=[room / "os.raw"]).holds


def test_no_digest_is_no_agreement(context, image, room):
    write_evidence(context, image, CLEAN)
    disk = read_evidence(context, image).statement.subject[0]
    empty = msgspec.structs.replace(disk, name="empty", digest={})
    (room / "r").write_bytes(resigned(context, image, subject=(empty, disk)))
    verified = verify_report(room / "r", keys=own(context), disks=[room / "os.raw"])
    assert "it is os-disk" in verified.answers[0].detail


def test_every_digest_must_agree(context, image, room):
    write_evidence(context, image, CLEAN)
    statement = read_evidence(context, image).statement
    for kind in ("sha256", "blake3"):
        subject = tuple(
            msgspec.structs.replace(s, digest={**s.digest, kind: "0" * 64})
            for s in statement.subject
        )
        (room / "r").write_bytes(resigned(context, image, subject=subject))
        assert not verify_report(room / "r", keys=own(context), disks=[room / "os.raw"]).holds


# -- the command


def run(capsys, *arguments):
    status = cli.run([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_verify_report_without_a_home(context, image, room, capsys, monkeypatch, tmp_path):
    path = write_evidence(context, image, CLEAN, boot=booted(room, image))
    run(capsys, "keys", "show")
    _, pem, _ = run(capsys, "keys", "show", "--query", "pem")
    (room / "signer.pem").write_text(pem)
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "nowhere"))
    disks = ["--disk", room / "os.raw", "--disk", room / "data.raw"]
    status, out, _ = run(capsys, "verify-report", path, "--key", room / "signer.pem", *disks)
    assert status == 0
    assert "every byte of it" in out
    assert "which you named" in out
    status, _, err = run(capsys, "verify-report", path)
    assert (status, "--key" in err) == (2, True)
    (room / "os.raw").write_bytes(b"x" * 512)
    status, out, _ = run(capsys, "verify-report", path, "--key", room / "signer.pem", *disks)
    assert (status, "It does not hold" in out) == (10, True)
    status, out, _ = run(
        capsys, "verify-report", path, "--key", room / "signer.pem", *disks, "-o", "json"
    )
    assert (status, json.loads(out)["holds"]) == (10, False)
    assert not (tmp_path / "nowhere").exists()


def test_verify_report_with_the_keys_of_this_installation(
    context, image, room, capsys, monkeypatch
):
    path = write_evidence(context, image, CLEAN)
    status, out, _ = run(capsys, "verify-report", path)
    assert (status, "which this installation trusts" in out) == (0, True)
    (room / "signer.pem").write_text(own(context)[0].pem)
    monkeypatch.setenv("CALOTYPE_HOME", str(room / "second"))
    run(capsys, "keys", "show")
    status, _, err = run(capsys, "verify-report", path)
    assert (status, "which you have not named" in err) == (10, True)
    assert run(capsys, "keys", "trust", room / "signer.pem")[0] == 0
    assert run(capsys, "verify-report", path)[0] == 0
    assert run(capsys, "keys", "forget", own(context)[0].id)[0] == 0
    assert run(capsys, "verify-report", path)[0] == 10
    assert "2 entries" in run(capsys, "audit", "verify")[1]
