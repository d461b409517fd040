"""Proofs, reports of generalizing and boot tests, such as evidence reports are made of."""

import hashlib
import struct
import zlib
from dataclasses import replace
from typing import Literal

from calotype.engine.boot.bootreport import Artifact, BootReport, CloneReport, Difference
from calotype.engine.proof.statement import Rule
from calotype.guest.generalize import GeneralizeReport, StepReport
from calotype.guest.guest import Action, Edit
from calotype.guest.inspect import Inspection
from calotype.guest.proof import Finding, Proof
from calotype.guest.secrets import Secret
from calotype.guest.steps import STEPS
from calotype.guest.steps.step import Concern
from calotype.model import MIB, OsType, Stage, Verdict

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
