"""An interactive serial console: the terminal in raw mode, joined to the guest's serial port."""

import os
import select
import socket
import sys
import termios
import tty

from calotype.errors import Conflict, InvalidInput, NotAllowed
from calotype.machine.channel import connect
from calotype.machine.layout import Layout

#: Ctrl-] ends the session, as in telnet.
ESCAPE = b"\x1d"


def attach(layout: Layout) -> None:
    """Join the terminal and the serial port until Ctrl-], end of input, or the VM's end.

    Raises:
        InvalidInput: standard input is not a terminal.
        Conflict: another console is open.
    """
    source, sink = sys.stdin.fileno(), sys.stdout.fileno()
    if not os.isatty(source):
        raise InvalidInput(
            "the console needs a terminal", hint="read the log of the serial port instead"
        )
    try:
        with layout.lock(0.0, "console.lock"):
            _session(layout, source, sink)
    except Conflict:
        raise Conflict("the console of this VM is open elsewhere") from None


def _session(layout: Layout, source: int, sink: int) -> None:
    try:
        port = connect(layout.serial)
    except OSError:
        raise NotAllowed("the VM does not run", hint="start it first") from None
    before = termios.tcgetattr(source)
    try:
        tty.setraw(source)
        with port:
            relay(port, source, sink)
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)


def relay(port: socket.socket, source: int, sink: int) -> None:
    """Copy ``source`` to ``port`` and ``port`` to ``sink`` until Ctrl-] or either one's end."""
    while True:
        ready, _, _ = select.select([port.fileno(), source], [], [])
        if port.fileno() in ready:
            data = port.recv(1 << 16)
            if not data:
                return
            _write(sink, data)
        if source in ready:
            keys = os.read(source, 1 << 12)
            typed, escape, _ = keys.partition(ESCAPE)
            port.sendall(typed)
            if escape or not keys:
                return


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
