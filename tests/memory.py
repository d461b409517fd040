"""How much memory a test's own process took."""

from pathlib import Path


def peak() -> int:
    """The most memory that this process had, in KiB; ``ru_maxrss`` counts its parent's, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def forget_peak() -> None:
    """Let :func:`peak` begin anew: what the process took before, perhaps for another test, is not counted."""
    Path("/proc/self/clear_refs").write_text("5")
