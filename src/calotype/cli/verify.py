"""``calotype image verify``: what an image's disks show."""

from calotype.cli.common import Common, session
from calotype.cli.output import emit, for_people
from calotype.cli.text import one_line
from calotype.engine.generalize.inguest import prove_vm
from calotype.engine.proof.verify import DataDisk, Verified, verify_image
from calotype.guest import Finding, Proof
from calotype.guest.gate import Answer

#: As many lines of one step as are shown.
_SHOWN = 8


def verify(name: str, *, common: Common | None = None) -> int:
    """Look into an image's disks, and judge; status 1 when they contradict what it was declared to be.

    Parameters
    ----------
    name
        The image.
    """
    with session(common) as context:
        verified = verify_image(context, name)
        if for_people(common):
            _show(verified)
        else:
            emit(common, verified)
        return 1 if verified.contradiction else 0


def verify_vm(name: str, *, common: Common | None = None) -> None:
    """Look into a VM, and judge: a running one by its agent, a stopped one by its disk. Nothing is changed.

    Parameters
    ----------
    name
        The VM.
    """
    with session(common) as context:
        proof = prove_vm(context, name)
    if not for_people(common):
        emit(common, proof)
        return
    print(
        f"{name}: {one_line(proof.seen.os_name) or 'no operating system that could be looked into'}"
    )
    print(f"verdict   {proof.verdict}")
    show_proof(proof)
    for note in proof.notes:
        print(f"note      {one_line(note)}")


def _show(verified: Verified) -> None:
    image, proof = verified.image, verified.proof
    system = one_line(proof.seen.os_name) or "no operating system that could be looked into"
    print(f"{image.name}: {system}")
    print(f"verdict   {proof.verdict}")
    holds = "CONTRADICTED by its disks" if verified.contradiction else "not contradicted"
    print(f"declared  {image.os_state}: {holds}")
    show_proof(proof)
    for disk in verified.data_disks:
        _show_data(disk)
    for note in proof.notes:
        print(f"note      {one_line(note)}")
    bad = [ruling for ruling in verified.certification if ruling.answer is not Answer.OK]
    print(f"Azure     {len(verified.certification) - len(bad)} of its rules hold")
    for ruling in bad:
        said = "no" if ruling.answer is Answer.BAD else "cannot be told"
        print(f"  {ruling.rule}: {said}: {one_line(ruling.evidence)}")
    print(f"report    calotype image report {image.name}")


def _show_data(disk: DataDisk) -> None:
    kinds = ", ".join(kind for _, kind in disk.proof.filesystems) or "no file system"
    print(
        f"LUN {disk.lun:<5} {kinds}: {'; '.join(map(one_line, disk.proof.notes)) or 'looked into'}"
    )
    for secret in (*disk.proof.people, *disk.proof.secrets):
        print(f"  {one_line(secret.path)} ({secret.kind})")


def show_proof(proof: Proof) -> None:
    """What was checked and found, in words."""
    clean = len(proof.checked) - len(proof.findings)
    if proof.checked:
        print(f"checks    {clean} of {len(proof.checked)} found nothing")
    else:
        print(f"          {one_line('; '.join(proof.reasons))}")
    for finding in proof.findings:
        _show_finding(finding)
    for secret in proof.secrets:
        print(f"  kept, and yours to judge: {one_line(secret.path)} ({secret.kind})")


def _show_finding(finding: Finding) -> None:
    print(f"  {finding.step} ({finding.concern}): {finding.heading}")
    for line in finding.left[:_SHOWN]:
        print(f"    {one_line(line)}")
    if len(finding.left) > _SHOWN:
        print(f"    and {len(finding.left) - _SHOWN} more (-o json shows all)")
