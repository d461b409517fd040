"""``python -m calotype.machine.thaw DIRECTORY``: thaw a guest when the command that froze it dies.

Standard input is a pipe from that command. A line on it says that all is well; its end without one,
that the command was killed while the guest was frozen.
"""

import sys
from pathlib import Path

from calotype.machine.agent import Agent


def main(directory: str) -> None:
    """Wait for the command's word or death; thaw the guest after the latter."""
    if not sys.stdin.buffer.readline():
        Agent(Path(directory), patience=30.0).thaw()


if __name__ == "__main__":
    main(sys.argv[1])
