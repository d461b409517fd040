"""QEMU's machine protocol, spoken synchronously."""

import json
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from calotype.errors import ToolFailed
from calotype.machine.channel import Channel, connect

Event = dict[str, Any]


class Qmp(Channel):
    """A monitor of a running QEMU; events that come meanwhile are kept in ``events``."""

    def __init__(self, client: socket.socket, timeout: float) -> None:
        super().__init__(client, "QEMU")
        self.events: deque[Event] = deque(maxlen=10_000)
        self._serial = 0
        deadline = time.monotonic() + timeout
        if "QMP" not in self.receive(deadline):
            raise ToolFailed("QEMU does not greet by QMP")
        self.execute("qmp_capabilities", timeout=timeout)

    @classmethod
    def open(cls, path: Path, timeout: float = 10.0) -> Self:
        """Connect to the monitor at ``path``; only one client at a time is served.

        Raises:
            OSError: nobody listens there.
            TimedOut: another client is being served, or QEMU hangs.
        """
        client = connect(path, timeout)
        try:
            return cls(client, timeout)
        except BaseException:
            client.close()
            raise

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout: float = 30.0
    ) -> Any:
        """Run ``command`` and return its result.

        Raises:
            ToolFailed: QEMU refused it, or has gone away.
            TimedOut: no answer within ``timeout`` seconds.
        """
        self._serial += 1
        request: dict[str, Any] = {"execute": command, "id": self._serial}
        if arguments:
            request["arguments"] = arguments
        deadline = time.monotonic() + timeout
        self.send(json.dumps(request).encode() + b"\n", deadline)
        while True:
            answer = self.receive(deadline)
            if "event" in answer:
                self.events.append(answer)
            elif answer.get("id") == self._serial:
                if "return" in answer:
                    return answer["return"]
                reason = answer.get("error", {}).get("desc", "no reason given")
                raise ToolFailed(f"QEMU refused {command}: {reason}")

    def wait(
        self, *names: str, timeout: float, match: Callable[[dict[str, Any]], bool] | None = None
    ) -> Event:
        """The first event of one of these names, whose data ``match``; also one that came before.

        Raises:
            TimedOut: none came within ``timeout`` seconds.
            ToolFailed: QEMU has gone away.
        """
        deadline = time.monotonic() + timeout
        while True:
            for event in self.events:
                if event["event"] in names and (match is None or match(event.get("data", {}))):
                    self.events.remove(event)
                    return event
            message = self.receive(deadline)
            if "event" in message:
                self.events.append(message)
