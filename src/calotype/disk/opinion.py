"""Second opinions on an image: OpenStack's format inspector, and ``qemu-img info`` in a sandbox.

Neither decides anything. Where one of them sees another disk than our parser, the image is refused.
"""

import contextlib
import io
import json
import logging
import os
import stat
from collections.abc import Mapping
from typing import Any, Final

from calotype.disk.layout import Layout
from calotype.disk.window import Window
from calotype.errors import DiskRefused, TimedOut, ToolFailed
from calotype.run import HOSTILE, Sandbox, run

#: QEMU's names of our formats.
QEMU_DRIVERS: Final[Mapping[str, str]] = {
    "raw": "raw",
    "vhd": "vpc",
    "vhdx": "vhdx",
    "qcow2": "qcow2",
    "vmdk": "vmdk",
}

#: The inspector reads forwards: what it has not decided after so many bytes it does not know.
_INSPECTED: Final = 64 << 20
# It logs an error for each check that fails; what counts of that becomes our refusal.
logging.getLogger("oslo_utils.imageutils").setLevel(logging.CRITICAL)

_DISAGREE: Final = "the file was made to deceive, or is damaged; convert it where it was made"


def owner(fd: int) -> int | None:
    """The user that a sandboxed program must be to read an open file (``None``: as we are)."""
    uid = os.fstat(fd).st_uid
    return uid if os.geteuid() == 0 and uid != 0 else None


def node(layout: Layout, window: Window, rule: str = "current") -> dict[str, Any]:
    """QEMU's ``-blockdev`` options for an image: explicit drivers, the open file, nothing probed."""
    block = stat.S_ISBLK(os.fstat(window.fd).st_mode)
    file: dict[str, Any] = {
        "driver": "host_device" if block else "file",
        "filename": f"/proc/self/fd/{window.fd}",
        "locking": "off",
    }
    if window.start or window.size != os.fstat(window.fd).st_size:
        file = {"driver": "raw", "offset": window.start, "size": window.size, "file": file}
    options = {"driver": QEMU_DRIVERS[layout.format], "file": file}
    if layout.format == "vhd" and rule == "current":
        options["force_size_calc"] = "current_size"
    return options


def ask_qemu(layout: Layout, window: Window, rule: str = "current") -> None:
    """Compare with what ``qemu-img info`` sees in the same open file.

    Raises:
        DiskRefused: it cannot open the image, or sees another disk.
        ToolMissing: there is no qemu-img or no sandbox on this machine.
        ToolFailed: the sandbox could not be built.
    """
    sandbox = Sandbox(uid=owner(window.fd))
    spec = "json:" + json.dumps(node(layout, window, rule))
    argv = ["qemu-img", "info", "--output=json", spec]
    try:
        done = run(argv, sandbox=sandbox, limits=HOSTILE, pass_fds=(window.fd,), check=False)
    except TimedOut:
        raise DiskRefused("qemu-img takes too long to open it", hint=_DISAGREE) from None
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip()
        if said.startswith(("bwrap:", "setpriv:", "prlimit:")):
            raise ToolFailed(
                f"no sandbox can be built here, so the image is not opened ({said[:200]})",
                hint="run 'calotype doctor'; only raw images are read without a sandbox",
            )
        why = said.rpartition(": ")[2] if "json:" in said else said
        raise DiskRefused(f"qemu-img does not open it: {why[:300]}", hint=_DISAGREE)
    _compare(layout, json.loads(done.stdout))


def _compare(layout: Layout, info: dict[str, Any]) -> None:
    specific = info.get("format-specific", {}).get("data", {})
    others: list[str] = [
        key for key in ("backing-filename", "full-backing-filename") if key in info
    ]
    others += ["data-file"] if "data-file" in specific else []
    others += ["encryption"] if info.get("encrypted") or "encrypt" in specific else []
    others += ["extents"] if len(specific.get("extents", [0])) != 1 else []
    if others:
        raise DiskRefused(f"qemu-img sees what ours does not: {', '.join(others)}", hint=_DISAGREE)
    if info["format"] != QEMU_DRIVERS[layout.format]:
        raise DiskRefused(f"qemu-img takes it for {info['format']}", hint=_DISAGREE)
    if info["virtual-size"] != layout.size:
        raise DiskRefused(
            f"qemu-img sees {info['virtual-size']} bytes where its header means {layout.size}",
            hint=_DISAGREE,
        )


def ask_inspector(layout: Layout, window: Window) -> None:
    """Compare with ``oslo_utils.imageutils.format_inspector``.

    Known weakness: it does not look at a file's end, so a fixed VHD is what its first bytes are
    ("gpt" or "raw"); there only a claim of a third format counts.

    Raises:
        DiskRefused: it sees another format or several, or its safety check fails.
    """
    from oslo_utils.imageutils import format_inspector as oslo  # noqa: PLC0415 - 0.1 s to import

    flat = layout.format == "raw" or (layout.format, layout.variant) == ("vhd", "fixed")
    accepted = {"raw", "gpt"} if flat else {layout.format}
    try:
        found = _inspect(oslo.InspectWrapper, window)
        if found is None or str(found) not in accepted:
            raise DiskRefused(f"a second inspector takes it for {found}", hint=_DISAGREE)
        if not flat:  # its checks of partition tables would refuse hybrid boot records
            found.safety_check()
    except oslo.ImageFormatError as error:
        raise DiskRefused(f"a second inspector says: {error}", hint=_DISAGREE) from None
    except oslo.SafetyCheckFailed as error:
        if set(error.failures) == {"unknown_features"}:
            return  # it does not know extended L2 entries; our own list of features is complete
        raise DiskRefused(f"a second inspector says: {error}", hint=_DISAGREE) from None


def _inspect(wrapper: Any, window: Window) -> Any:
    stream = _Stream(window)
    with contextlib.closing(wrapper(stream)) as inspector:
        while stream.position < min(window.size, _INSPECTED):
            inspector.read(4096)
            if inspector.format:
                return inspector.format
    return inspector.format


class _Stream(io.RawIOBase):
    """A window as the forward-only file that the inspector reads."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self._window = window
        self.position = 0

    def read(self, size: int = -1) -> bytes:
        left = self._window.size - self.position
        data = self._window.read(self.position, left if size < 0 else min(size, left))
        self.position += len(data)
        return data
