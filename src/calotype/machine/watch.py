"""What happens to a running VM, as its process tells: the guest restarts, powers off, opens its agent."""

import contextlib
import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from calotype.errors import NotAllowed, NotFound, TimedOut, ToolFailed
from calotype.machine.layout import Layout, read_guarded
from calotype.machine.qmp import Qmp

#: Where a VGA card in text mode has what it shows: 25 lines of 80 characters, each with its colours.
_TEXT, _COLUMNS, _LINES = 0xB8000, 80, 25

#: The share of its characters that a screen in text mode shows at least as printable ASCII or blank.
_LEGIBLE = 0.9


class Happening(Enum):
    """What may happen."""

    AGENT = "its guest agent opened its port"
    RESET = "it restarted"
    OFF = "it powered off"
    PANIC = "it reported a panic"


_EVENTS = {
    "VSERPORT_CHANGE": Happening.AGENT,
    "RESET": Happening.RESET,
    "SHUTDOWN": Happening.OFF,
    "GUEST_PANICKED": Happening.PANIC,
}


class Watch:
    """A monitor that is listened to. Nobody else can put short questions to the VM meanwhile."""

    def __init__(self, qmp: Qmp, layout: Layout) -> None:
        self._qmp = qmp
        self._layout = layout

    def next(self, timeout: float) -> Happening | None:
        """What happens next; ``None``: nothing within ``timeout`` seconds."""
        try:
            event = self._qmp.wait(*_EVENTS, timeout=timeout, match=_tells)
        except TimedOut:
            return None
        except ToolFailed:
            return Happening.OFF  # its process has ended
        return _EVENTS[event["event"]]

    def has_agent(self) -> bool:
        """Whether a process in the guest has opened the agent's port; false when the VM is off."""
        try:
            entries = self._qmp.execute("query-chardev")
        except ToolFailed:
            return False
        return any(entry["label"] == "agent" and entry["frontend-open"] for entry in entries)

    def screen(self) -> list[str]:
        """The lines on the guest's screen; none when it is not in text mode, blank, or the VM is off."""
        picture = self._layout.run / f"text-{os.urandom(8).hex()}"
        wanted = {"val": _TEXT, "size": 2 * _COLUMNS * _LINES, "filename": picture.name}
        try:
            self._qmp.execute("pmemsave", wanted)
            return legible(read_guarded(picture, 2 * _COLUMNS * _LINES))
        except (ToolFailed, NotFound):
            return []
        finally:
            picture.unlink(missing_ok=True)


@contextlib.contextmanager
def watch(directory: Path) -> Iterator[Watch]:
    """Listen to the VM in ``directory``.

    Raises:
        NotAllowed: it does not run.
    """
    layout = Layout(directory)
    try:
        qmp = Qmp.open(layout.query)
    except OSError:
        raise NotAllowed("the VM does not run", hint="start it first") from None
    with qmp:
        yield Watch(qmp, layout)


def legible(memory: bytes) -> list[str]:
    """The lines that a VGA card shows in text mode with this memory; none when it is no text."""
    cells = memory[::2]
    shown = sum(32 <= cell < 127 or cell == 0 for cell in cells)
    if not cells or shown < _LEGIBLE * len(cells):
        return []
    text = "".join(chr(cell) if 32 <= cell < 127 else " " for cell in cells)
    lines = [text[start : start + _COLUMNS].rstrip() for start in range(0, len(text), _COLUMNS)]
    return [line for line in lines if line]


def _tells(data: dict[str, object]) -> bool:
    """Whether an event is one of those: the agent's port is also closed."""
    return data.get("open", True) is not False
