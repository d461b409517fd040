"""``python -m calotype.machine.thaw DIRECTORY``: thaw a guest when the command that froze it dies.

Standard input is a pipe from that command, which kills this process when all is well: the pipe's end
says that the command itself was killed while the guest was frozen.
"""

import sys
from pathlib import Path

from calotype.machine.agent import Agent


def main(directory: str) -> None:
    """Wait for the command's death, then thaw the guest."""
    sys.stdin.buffer.read()
    Agent(Path(directory), patience=30.0).thaw()


if __name__ == "__main__":
    main(sys.argv[1])
