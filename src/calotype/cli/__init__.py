"""The command ``calotype``: nouns, then verbs, as in ``az``.

Each group of commands is one module, loaded when it is called: ``calotype --help`` stays quick.
"""

import signal
import sys
from types import FrameType

from cyclopts import App

from calotype import __version__

GROUPS = ("image", "vm", "disk", "store", "recipe")
SINGLES = ("doctor", "completion")

app = App(
    name="calotype",
    help="Virtual-machine images on your own hardware: upload, launch, capture, generalize, export.",
    version=__version__,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
for _group in GROUPS:
    app.command(f"calotype.cli.{_group}:app", name=_group)
for _single in SINGLES:
    app.command(f"calotype.cli.{_single}:{_single}", name=_single)


def main() -> None:
    """Run the command line and end with its exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; the exit status."""
    from calotype.cli import exits  # noqa: PLC0415 (not needed for --help)

    return exits.guard(lambda: app(arguments))


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C, so that nothing is left behind."""
    raise SystemExit(128 + signal.SIGTERM)
