"""Errors at the edge: what is printed, and the exit status of each class."""

import errno
import os
import select
import sys
from collections.abc import Callable, Mapping

from calotype import errors
from calotype.cli.text import visible

#: The nearest class in an error's line of ancestors decides.
STATUS: Mapping[type[errors.CalotypeError], int] = {
    errors.CalotypeError: 1,
    errors.InvalidInput: 2,
    errors.NotFound: 3,
    errors.Conflict: 4,
    errors.ToolMissing: 5,
    errors.ToolFailed: 1,
    errors.TimedOut: 6,
    errors.StoreDamaged: 7,
    errors.GuestError: 8,
    errors.StoreUnavailable: 9,
    errors.ReportRefused: 10,
    errors.Forbidden: 11,
    errors.Untrusted: 12,
}
INTERRUPTED = 130


def status(error: errors.CalotypeError) -> int:
    """The exit status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def guard(command: Callable[[], object]) -> int:
    """Run a command; turn what it raises into words on standard error and an exit status."""
    try:
        result = command()
        sys.stdout.flush()
    except errors.CalotypeError as error:
        print(describe(error), file=sys.stderr)
        return status(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(describe(of_the_system(error)), file=sys.stderr)
        return 1
    return result if isinstance(result, int) else 0


def _nobody_reads() -> bool:
    """Whether the other end of standard output is gone (and not that of some socket of ours)."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def of_the_system(error: OSError) -> errors.CalotypeError:
    """What the operating system refused, in our words."""
    what = f"{error.filename}: " if error.filename else ""
    hints = {
        errno.ENOSPC: "make room, or set CALOTYPE_HOME to a directory with more; nothing half-made is left",
        errno.EACCES: "check whose file it is; CALOTYPE_HOME names Calotype's own directory",
        errno.ENOENT: "check the name: there is no such file or directory",
        errno.ENOTDIR: "check the name: a part of it is a file",
        errno.EROFS: "set CALOTYPE_HOME to a directory that can be written to",
    }
    return errors.CalotypeError(
        f"{what}{error.strerror or error}", hint=hints.get(error.errno or 0)
    )


def describe(error: errors.CalotypeError) -> str:
    """An error for people: its code, what is wrong, and the cure."""
    # A name on a disk may hold an end of line: no line of it looks like one of ours.
    text = f"ERROR ({error.code}): {error.message}".replace("\n", "\n    ")
    return visible(f"{text}\n  {error.hint}" if error.hint else text)
