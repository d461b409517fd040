"""``qemu-img convert`` of a raw file that is ours, in a sandbox that sees two open files."""

import os
import re
import subprocess
from collections import deque
from collections.abc import Callable
from typing import Final

from calotype.disk.opinion import owner
from calotype.errors import ToolFailed
from calotype.progress import SILENT, Progress
from calotype.run import Limits, Sandbox, kill_group, spawn

_LIMITS: Final = Limits(wall=None, memory=4 << 30, open_files=64)
_PERCENT: Final = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")


def convert(
    source: int, target: int, arguments: list[str], *, label: str, progress: Progress = SILENT
) -> None:
    """Convert the raw file ``source`` into ``target`` (descriptors, which it reopens by number).

    Args:
        source: the raw file.
        target: a fresh file; the sandbox sees it and ``source``, and no directory.
        arguments: what stands before the file names: ``-O``, ``-o``, ``-c``.
        label: what the progress is called.
        progress: told of source bytes.

    Raises:
        ToolFailed: qemu-img ended with an error.
        ToolMissing: there is no qemu-img or no sandbox on this machine.
    """
    uid = owner(source)
    if uid is not None:
        os.fchmod(target, 0o666)  # for the user that may read the source; nobody else has it open
    argv = ["qemu-img", "convert", "-p", "-f", "raw", *arguments]
    argv += [f"/proc/self/fd/{source}", f"/proc/self/fd/{target}"]
    size = os.fstat(source).st_size
    with (
        progress.phase(label, size) as advance,
        spawn(
            argv,
            sandbox=Sandbox(uid=uid),
            limits=_LIMITS,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(source, target),
        ) as process,
    ):
        try:
            said = _follow(process, size, advance)
        except BaseException:
            kill_group(process)
            raise
    if process.returncode != 0:
        raise ToolFailed(f"qemu-img convert failed: {said}")


def _follow(process: "subprocess.Popen[bytes]", size: int, advance: Callable[[int], None]) -> str:
    """Report progress until the program ends; return the last that it said besides."""
    assert process.stdout is not None  # noqa: S101 - it was opened as a pipe
    done, tail = 0, deque[bytes](maxlen=16)
    while chunk := os.read(process.stdout.fileno(), 4096):
        tail.append(chunk)
        if found := _PERCENT.findall(chunk):
            now = int(size * float(found[-1]) / 100)
            advance(max(0, now - done))
            done = max(done, now)
    text = _PERCENT.sub(b"", b"".join(tail)).decode("utf-8", "replace")
    return " / ".join(text.replace("\r", "\n").split("\n")[-4:]).strip()
