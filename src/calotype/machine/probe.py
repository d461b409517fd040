"""Which acceleration really works, found by running a guest under it.

That ``/dev/kvm`` opens proves nothing: there are hosts on which guests run under it, but a thousand
times too slowly, for every instruction is emulated. So a firmware of our own walks from real mode
through protected to long mode, counts to thirty million, takes ten timer interrupts, and says so.
"""

import contextlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Literal

from calotype.disk.durable import write_private
from calotype.errors import TimedOut, ToolFailed
from calotype.machine.spec import Acceleration
from calotype.run import Limits, Sandbox, run, which

#: Seconds; the guest ends in 0.3 s under KVM as under TCG, and never where it matters.
_LIMIT = 6.0

#: What the guest prints: the modes Real, Protected and Long, the count Done, the Ticks.
_TOKEN = b"RPLDT"

#: isa-debug-exit makes 2n + 1 of the n that the guest writes.
_STATUS = 2 * 0x10 + 1

_NOBODY = 65534

#: The guest: machine code at offset 0 of the 64 KiB below 1 MiB, where the reset vector jumps to.
_CODE = """
fa fc                       ; 000  cli; cld
ba e9 00                    ; 002  mov dx, 0xe9             the debug console
b0 52 ee                    ; 005  out dx, 'R'
2e 66 0f 01 16 50 01        ; 008  lgdt cs:[0x150]
0f 20 c0 0c 01 0f 22 c0     ; 00f  cr0.PE = 1
66 ea 1f 00 0f 00 08 00     ; 017  jmp 8:0xf001f
66 b8 10 00                 ; 01f  mov ax, 16
8e d8 8e c0 8e d0           ; 023  ds = es = ss = ax
bc 00 80 00 00              ; 029  mov esp, 0x8000
c7 05 f0 00 e0 fe ff 01 00 00 ; 02e  local APIC on: SVR = 0x1ff
c7 05 50 03 e0 fe 00 07 00 00 ; 038  LINT0 = ExtINT, so that the PIC reaches the processor
b0 50 ee                    ; 042  out dx, 'P'
31 c0 bf 00 10 00 00        ; 045  clear three pages at 0x1000
b9 00 0c 00 00 f3 ab        ; 04c
c7 05 00 10 00 00 03 20 00 00 ; 053  PML4[0] = 0x2000
c7 05 00 20 00 00 03 30 00 00 ; 05d  PDPT[0] = 0x3000
c7 05 00 30 00 00 83 00 00 00 ; 067  PD[0] = 2 MiB at 0
b8 00 10 00 00 0f 22 d8     ; 071  cr3 = 0x1000
0f 20 e0 83 c8 20 0f 22 e0  ; 079  cr4.PAE = 1
b9 80 00 00 c0 0f 32        ; 082  rdmsr EFER
0d 00 01 00 00 0f 30        ; 089  EFER.LME = 1
0f 20 c0 0d 00 00 00 80     ; 090  cr0.PG = 1
0f 22 c0                    ; 098
ea a2 00 0f 00 18 00        ; 09b  jmp 24:0xf00a2
66 ba e9 00 b0 4c ee        ; 0a2  out 0xe9, 'L'
48 8d 05 72 00 00 00        ; 0a9  lea rax, [0x122]
bf 00 52 00 00 66 89 07     ; 0b0  IDT[32] at 0x5200: an interrupt gate to it
66 c7 47 02 18 00           ; 0b8
66 c7 47 04 00 8e           ; 0be
48 c1 e8 10 66 89 47 06     ; 0c4
48 c7 47 08 00 00 00 00     ; 0cc
0f 01 1d 7b 00 00 00        ; 0d4  lidt [0x156]
b0 11 e6 20 b0 20 e6 21     ; 0db  PIC: vectors from 32
b0 04 e6 21 b0 01 e6 21     ; 0e3
b0 fe e6 21                 ; 0eb  the timer alone
b0 34 e6 43 b0 9c e6 40     ; 0ef  PIT: 100 ticks a second
b0 2e e6 40                 ; 0f7
b9 80 c3 c9 01              ; 0fb  mov ecx, 30000000
ff c9 75 fc                 ; 100  count down
66 ba e9 00 b0 44 ee        ; 104  out 0xe9, 'D'
31 db fb                    ; 10b  ebx = 0; sti
f4 83 fb 0a 72 fa           ; 10e  halt until ebx = 10
66 ba e9 00 b0 54 ee        ; 114  out 0xe9, 'T'
b0 10 e6 f4                 ; 11b  leave by isa-debug-exit
f4 eb fd                    ; 11f  halt
ff c3 50 b0 20 e6 20 58     ; 122  the tick: count, tell the PIC
48 cf                       ; 12a  iretq
00 00 00 00                 ; 12c
00 00 00 00 00 00 00 00     ; 130  GDT: nothing
ff ff 00 00 00 9b cf 00     ; 138  32-bit code
ff ff 00 00 00 93 cf 00     ; 140  data
ff ff 00 00 00 9b af 00     ; 148  64-bit code
1f 00 30 01 0f 00           ; 150  GDT at 0xf0130
0f 03 00 50 00 00 00 00 00 00 ; 156  IDT at 0x5000
"""


def acceleration(cache: Path) -> Acceleration:
    """What really works here; found once for each boot of the host, and remembered in ``cache``.

    Raises:
        ToolMissing: QEMU or the sandbox is not installed.
        ToolFailed: QEMU cannot even emulate.
    """
    path = cache / "acceleration.json"
    inputs = _inputs()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_bytes())
        if known["inputs"] == inputs and known["name"] in ("kvm", "tcg"):
            return Acceleration(known["name"], str(known["reason"]))
    result = _find()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, json.dumps({"inputs": inputs, **result._asdict()}, indent=1).encode())
    return result


def _find() -> Acceleration:
    if not os.path.exists("/dev/kvm"):
        reason = "there is no /dev/kvm"
    else:
        try:
            boot("kvm")
        except ToolFailed as error:
            reason = error.message
        else:
            return Acceleration("kvm", "")
    boot("tcg")
    return Acceleration("tcg", reason)


def boot(accel: Literal["kvm", "tcg"]) -> None:
    """Run the guest once.

    Raises:
        ToolFailed: it did not come to its end.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "firmware")
        path.write_bytes(firmware())
        path.chmod(0o444)
        argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
        argv += ["-machine", f"q35,accel={accel}", "-m", "16M", "-bios", "/firmware"]
        argv += ["-debugcon", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        sandbox = Sandbox(
            read_only={"/firmware": str(path)},
            devices=["/dev/kvm"] if accel == "kvm" else [],
            uid=_NOBODY,
            groups=kvm_groups() if accel == "kvm" else (),
        )
        try:
            done = run(argv, sandbox=sandbox, limits=Limits(wall=_LIMIT), check=False)
        except TimedOut:
            raise ToolFailed(
                f"under {accel} a guest starts, but does not get anywhere in {_LIMIT:g} s"
            ) from None
    if done.returncode != _STATUS or done.stdout != _TOKEN:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise ToolFailed(f"no guest runs under {accel}: {' '.join(words) or 'it ended early'}")


def firmware() -> bytes:
    """The guest as a 64 KiB firmware image."""
    code = bytes.fromhex("".join(line.partition(";")[0] for line in _CODE.splitlines()))
    image = code.ljust(1 << 16, b"\xf4")
    # At the reset vector, a jump back to the start of the image.
    return image[:0xFFF0] + b"\xe9" + (0x10000 - 0xFFF3).to_bytes(2, "little") + image[0xFFF3:]


def kvm_groups() -> tuple[int, ...]:
    """The group that a VM needs to open ``/dev/kvm``."""
    try:
        status = os.stat("/dev/kvm")
    except OSError:
        return ()
    return (status.st_gid,) if status.st_mode & stat.S_IRGRP and status.st_gid else ()


def _inputs() -> dict[str, object]:
    """What the answer depends on."""
    qemu = os.stat(which("qemu-system-x86_64"))
    device: object = None
    with contextlib.suppress(OSError):
        status = os.stat("/dev/kvm")
        device = [status.st_mode, status.st_uid, status.st_gid]
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot_id = ""
    return {
        "qemu": [qemu.st_size, qemu.st_mtime_ns],
        "kernel": os.uname().release,
        "boot": boot_id,
        "kvm": device,
        "user": os.geteuid(),
        "firmware": len(_CODE),
    }
