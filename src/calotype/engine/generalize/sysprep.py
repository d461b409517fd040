"""Sysprep in a running Windows: a pre-flight, the run itself, and the line of its log when it fails.

It changes the VM for good: whoever calls it takes a restore point first, and holds the VM. Sysprep itself
powers the VM off; what it left is then proved offline (:mod:`calotype.guest.windows`), by nobody's word.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from calotype.engine.context import Context
from calotype.engine.generalize.sysprep_preflight import Obstacle, Preflight, preflight
from calotype.engine.machines import power, running
from calotype.errors import GuestError, InvalidInput, NotAllowed, TimedOut
from calotype.guest.windows_log import explain, offending
from calotype.machine import Agent
from calotype.model import OsType, PowerState, Role

ARGUMENTS = ("/generalize", "/oobe", "/shutdown", "/mode:vm", "/quiet")
_PAUSE = 3.0  # seconds between two looks; the agent has no event for any of this
_GRACE = 180.0  # seconds from Sysprep's end to the VM's
_LOOK = 20.0  # seconds to read the log


@dataclass(frozen=True, kw_only=True, slots=True)
class SysprepReport:
    """A run of Sysprep that ended with the VM's shutdown.

    ``obstacles`` were overruled, or no more than warnings; ``log_line`` is an error that Sysprep wrote
    and went on after.
    """

    product: str
    obstacles: tuple[Obstacle, ...]
    seconds: float
    log_line: str = ""


def sysprep_vm(
    context: Context, vm_name: str, *, timeout: float = 3600.0, force: bool = False
) -> SysprepReport:
    """Generalize the Windows of a running VM for good; the VM is stopped afterwards.

    Args:
        context: the installation.
        vm_name: the VM; the caller has a restore point of it and holds it.
        timeout: seconds until it must have stopped.
        force: run Sysprep even if the pre-flight says that it would fail.

    Raises:
        InvalidInput: the VM does not run Windows.
        NotAllowed: it is not running; or the pre-flight found what would make Sysprep fail.
        GuestError: Sysprep failed, with the line of its log, or did not end in time; or no agent answers.
        TimedOut: the pre-flight did not end.
    """
    vm = context.catalog.vm(vm_name, Role.CONTRIBUTOR)
    if vm.os_type is not OsType.WINDOWS:
        raise InvalidInput(f"VM '{vm.name}' does not run Windows")
    agent = Agent(running(context, vm_name))
    with context.progress.phase(f"{vm.name}: sysprep", None, unit="looks") as advance:

        def stopped() -> bool:
            advance(1)
            return power(context, vm) not in (PowerState.RUNNING, PowerState.PAUSED)

        return run(agent, stopped, timeout=timeout, force=force)


def run(
    agent: Agent,
    stopped: Callable[[], bool],
    *,
    timeout: float,
    force: bool = False,
    pause: float = _PAUSE,
    grace: float = _GRACE,
) -> SysprepReport:
    """As :func:`sysprep_vm`, with any agent; ``stopped`` says whether its VM is off."""
    began = time.monotonic()
    found = preflight(agent)
    if found.fatal and not force:
        raise refusal(found)
    watch = _Watch(agent, found.root)
    watch.start()
    line = watch.until(stopped, began + timeout, pause=pause, grace=grace)
    return SysprepReport(
        product=found.product,
        obstacles=found.obstacles,
        seconds=time.monotonic() - began,
        log_line=line,
    )


def refusal(found: Preflight) -> NotAllowed:
    """What is said when the pre-flight finds what would make Sysprep fail."""
    reasons = "; ".join(obstacle.what for obstacle in found.fatal)
    cures = "; ".join(dict.fromkeys(obstacle.cure for obstacle in found.fatal))
    return NotAllowed(
        f"Sysprep would fail: {reasons}", hint=f"{cures}; or try it all the same (--force)"
    )


class _Watch:
    """One run of Sysprep in a guest that may do anything meanwhile."""

    def __init__(self, agent: Agent, root: str) -> None:
        self._agent = agent
        self._directory = rf"{root}\System32\Sysprep"
        self._before = self._log()
        self._line = ""
        self._pid = -1

    def start(self) -> None:
        """Start Sysprep and do not wait for it."""
        arguments = {"path": rf"{self._directory}\sysprep.exe", "arg": list(ARGUMENTS)}
        with self._agent.conversation() as talk:
            answer = talk.execute("guest-exec", arguments, timeout=60.0)
        pid = answer.get("pid") if isinstance(answer, dict) else None
        if not isinstance(pid, int):
            raise GuestError("the guest agent does not say that it started Sysprep")
        self._pid = pid

    def until(
        self, stopped: Callable[[], bool], deadline: float, *, pause: float, grace: float
    ) -> str:
        """Wait until the VM is off; the last line of an error that was written meanwhile.

        Raises:
            GuestError: Sysprep ended and the VM did not, or nothing ended in time.
        """
        ended: int | None = None
        for _ in itertools.count():
            if stopped():
                return self._line
            self._look()
            if ended is None:
                ended = self._status()
                if ended is not None:
                    deadline = min(deadline, time.monotonic() + (0 if ended else grace))
            if time.monotonic() >= deadline:
                break
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        if stopped():
            return self._line
        if ended is None:
            raise self._failure("did not end in time, and may go on", "give it more (--timeout)")
        if ended:
            raise self._failure(f"failed (status {ended})", "see its log in the guest")
        raise self._failure("ended, but the VM was not shut down", "see its log in the guest")

    def _status(self) -> int | None:
        """Sysprep's exit status; None while it runs, or nobody answers."""
        try:
            with self._agent.conversation() as talk:
                answer = talk.execute("guest-exec-status", {"pid": self._pid})
        except GuestError:  # a guest that shuts down has no agent
            return None
        if not isinstance(answer, dict) or answer.get("exited") is not True:
            return None
        code = answer.get("exitcode", 1)
        return code if isinstance(code, int) else 1

    def _look(self) -> None:
        """Read what was added to the log of errors; what was read once is kept when the agent dies."""
        now = self._log()
        added = now.removeprefix(self._before)
        self._line = offending(added) or self._line

    def _log(self) -> bytes:
        # Not by the agent's own reading of files, which keeps others from writing meanwhile.
        path = rf"{self._directory}\Panther\setuperr.log"
        try:
            done = self._agent.run(["cmd.exe", "/d", "/c", "type", path], timeout=_LOOK)
        except (GuestError, TimedOut):  # nobody answers
            return b""
        return done.stdout if done.status == 0 else b""  # there is none yet

    def _failure(self, what: str, cure: str) -> GuestError:
        cause = explain(self._line) if self._line else None
        meaning = f": {cause.meaning}" if cause else ""
        quoted = f" (setuperr.log: {self._line})" if self._line else ""
        return GuestError(
            f"Sysprep {what}{meaning}{quoted}",
            hint=f"{cause.cure if cause else cure}; the VM is half generalized: restore it",
        )
