"""The command ``calotype``: nouns, then verbs, as in ``az``.

Each group of commands is one module, loaded when it is called: ``calotype --help`` stays quick.
"""

import os
import signal
import sys
from types import FrameType

from cyclopts import App

from calotype import __version__

#: Groups of commands, and single commands: name -> what ``--help`` says without loading them.
GROUPS = {
    "image": "Images: upload, capture, verify, test, report, compare, export, tag, delete.",
    "vm": "Virtual machines: create from an image, look after, capture, generalize, restore.",
    "disk": "Managed disks: create, list, show, delete.",
    "snapshot": "Snapshots of managed disks: create, list, show, delete.",
    "gallery": "Galleries: image definitions and their versions; sharing.",
    "store": "The store: how much it holds, whether it is whole; prune, repair, copy.",
    "marketplace": "Publishers' images: find, pull; catalogues, terms.",
    "community": "Community galleries: publish, list, search, show, report; follow other installations'.",
    "keys": "The key that signs evidence reports, and the keys that are believed.",
    "audit": "What somebody must answer for: overrides, keys; whether the record is whole.",
    "subscription": "Subscriptions: whom resources belong to, and how much there may be of them.",
    "role": "Roles: who may see, change, share what, in a subscription, a group, or for a resource.",
    "recipe": "Recipes: build an image from a distribution's own packages.",
}
SINGLES = {
    "generalize": "Make a generalized copy of a specialized image, which stays; show the steps.\n\n"
    "VMs are generalized on the way into an image (calotype vm capture --generalize), or in place "
    "(calotype vm generalize).",
    "config": "What can be set, and what is.",
    "doctor": "What this machine can do, and how to get what is missing.",
    "completion": "Print a completion script for a shell.",
}

app = App(
    name="calotype",
    help="Virtual-machine images on your own hardware: upload, launch, capture, generalize, prove, export.",
    version=__version__,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
for _name, _help in GROUPS.items():
    app.command(f"calotype.cli.{_name}:app", name=_name, help=_help)
for _name, _help in SINGLES.items():
    app.command(f"calotype.cli.{_name}:{_name}", name=_name, help=_help)
app.command(
    "calotype.cli.report:verify_report",
    name="verify-report",
    help="Check a signed evidence report, and the disks that it is about, anywhere.\n\n"
    "Ends with status 0 only if everything that was asked holds, else with 10.",
)


def main() -> None:
    """Run the command line and end with its exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    # Threads that mostly hash and compress hand the interpreter over sooner: 6 to 10 % of a repeated upload.
    sys.setswitchinterval(0.0005)
    # What numpy does here is no linear algebra: its library need not start a thread for each processor.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; the exit status."""
    from calotype.cli import exits  # noqa: PLC0415 (not needed for --help)

    return exits.guard(lambda: app(arguments))


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C, so that nothing is left behind."""
    raise SystemExit(128 + signal.SIGTERM)
