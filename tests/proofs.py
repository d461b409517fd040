"""Proofs, reports of generalizing and boot tests, such as evidence reports are made of."""

import hashlib
import os
import struct
import zlib
from dataclasses import replace
from typing import Literal

from calotype import wire
from calotype.config import Home
from calotype.engine.boot.bootreport import Artifact, BootReport, CloneReport, Difference
from calotype.engine.import_ import ImageRequest, import_image
from calotype.engine.proof.signing import Keys
from calotype.engine.proof.statement import Rule
from calotype.engine.sources import Upload
from calotype.guest.generalize import GeneralizeReport, StepReport
from calotype.guest.guest import Action, Edit
from calotype.guest.inspect import Inspection
from calotype.guest.proof import Finding, Proof
from calotype.guest.secrets import Secret
from calotype.guest.steps import STEPS
from calotype.guest.steps.step import Concern
from calotype.model import MIB, OsState, OsType, Stage, Verdict

NASTY = "/etc/<script>alert('x')</script> \x1b[31m\u202e \udcff\nVerdict: Generalized"
SEEN = Inspection(
    os_type=OsType.LINUX, os_name="Test & <b>Linux</b>", hostname=NASTY, users=("alice",)
)
CLEAN = Proof(
    verdict=Verdict.GENERALIZED,
    reasons=(),
    seen=SEEN,
    checked=tuple(step.name for step in STEPS[:5]),
    secrets=(Secret("TLS private key", "/etc/ssl/private/x.key"),),
)
MIXED = replace(
    CLEAN,
    verdict=Verdict.MIXED,
    reasons=(NASTY,),
    findings=(Finding(STEPS[0].name, STEPS[0].heading, Concern.IDENTITY, (NASTY,) * 1000),),
)
DONE = GeneralizeReport(
    before=SEEN,
    steps=(StepReport("x", "An X", (Edit(Action.REMOVED, "/x"),) * 3, ()),),
    disabled=("y",),
    secrets=(),
    notes=(),
    wiped=5 * MIB,
    filesystem="clean",
    dry_run=False,
)
RULES = (Rule(name="No swap", passed=False, detail="/swap", authority="Marketplace"),)


def upload(room):
    """A home in ``room`` with the image ``web`` of an OS disk and a data disk, and both files beside it."""
    (room / "os.raw").write_bytes(bytes(MIB) + os.urandom(MIB) + bytes(2 * MIB + 512))
    (room / "data.raw").write_bytes(os.urandom(4096) + bytes(3 * MIB - 4096))
    context = wire.build(home=Home(room / "home"))
    import_image(
        context,
        ImageRequest(name="web", os_state=OsState.GENERALIZED),
        Upload(location=str(room / "os.raw")),
        {3: Upload(location=str(room / "data.raw"))},
    )
    context.close()


def own(context):
    """The key of the installation, as somebody names it who checks a report."""
    return [Keys(context.home).own()]


def png(colour):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(colour) * 2) * 2)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def booted(room, image, colour=(0, 0, 0), problems=()):
    """A boot test of two clones with a screenshot and a log each."""
    clones = []
    for name in "AB":
        artifacts = []
        made: dict[Literal["screenshot", "serial-log"], bytes] = {
            "screenshot": png(colour),
            "serial-log": name.encode() * 100,
        }
        for kind, data in made.items():
            path = room / f"{name}-{kind}"
            path.write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            artifacts.append(
                Artifact(name=path.name, kind=kind, size=len(data), sha256=digest, path=str(path))
            )
        clones.append(
            CloneReport(name=name, vm_id=name, reached="agent", artifacts=tuple(artifacts))
        )
    return BootReport(
        image_id=image.id,
        image_name=image.name,
        os_state=image.os_state,
        indexes=tuple(disk.index for disk in image.disks),
        acceleration="tcg",
        parallel=True,
        started_at="2026-11-23T09:00:00+00:00",
        seconds=12.3,
        clones=tuple(clones),
        differences=(Difference("machine-id", True, (NASTY, None), ok=not problems),),
        base_untouched=True,
        problems=problems,
        notes=(),
        stage=Stage.STAGED,
    )
