"""``python -m calotype.daemon``: the processes behind a base that is not whole. Nobody types this.

    keep HOME INDEX LOCK SOCKET    looks after the base (:mod:`calotype.engine.base.keeper`)
    fill HOME INDEX SOCKET         fills and serves it (:mod:`calotype.engine.base.filler`)

LOCK and SOCKET are inherited descriptors.
"""

import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from calotype.config import Home

if TYPE_CHECKING:
    from calotype.engine.context import Context


def main(role: str, root: str, index: str, *descriptors: str) -> None:
    """Be one of them until it is done."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", level=logging.WARNING)
    home = Home(Path(root))
    numbers = [int(number) for number in descriptors]
    if role == "keep":
        from calotype.engine.base.keeper import keep  # noqa: PLC0415 (each role imports its own)

        os.chdir("/")
        held, listener = numbers
        keep(home, index, held, listener, lambda: _build(home))
    elif role == "fill":
        from calotype.engine.base.filler import fill  # noqa: PLC0415 (each role imports its own)

        fill(_build(home), index, socket.socket(fileno=numbers[0]))
        logging.shutdown()
        os._exit(0)  # a thread may wait for a store for long


def _build(home: Home) -> "Context":
    from calotype import wire  # noqa: PLC0415 (a keeper needs it at the end only)

    return wire.build(home=home)


if __name__ == "__main__":
    main(*sys.argv[1:])
