"""Talking to a VM's guest: SSH, commands through its agent, its serial log."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calotype.engine.context import Context
from calotype.engine.machines import power, running
from calotype.engine.proof import keys
from calotype.errors import InvalidInput, NotAllowed, TimedOut
from calotype.machine import Agent, ssh
from calotype.model import PowerState, Role


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command in a guest did."""

    exit_code: int
    stdout: bytes
    stderr: bytes


def run_command(
    context: Context,
    name: str,
    command: Sequence[str],
    *,
    script: bytes | None = None,
    timeout: float = 300.0,
) -> CommandResult:
    """Run a command, or a shell script, as root through the guest agent.

    Raises:
        GuestError: the guest has no agent that answers, or cannot start the command.
        TimedOut: the command did not end in time.
    """
    if (script is None) == (not command):
        raise InvalidInput("name either a command (after '--') or --script")
    argv = ["/bin/sh", "-s"] if script is not None else list(command)
    result = Agent(running(context, name)).run(argv, stdin=script, timeout=timeout)
    status = result.status if result.status >= 0 else 128 - result.status
    return CommandResult(status, result.stdout, result.stderr)


def ssh_command(
    context: Context,
    name: str,
    command: Sequence[str],
    *,
    user: str | None = None,
    identity: Path | None = None,
) -> list[str]:
    """The ``ssh`` command line that reaches a VM.

    Raises:
        NotAllowed: the VM does not run.
        InvalidInput: nobody knows which user to log in as.
    """
    directory = running(context, name)
    vm = context.catalog.vm(name)
    user = user or vm.admin_user
    if user is None:
        raise InvalidInput(
            f"VM '{vm.name}' is specialized: its users are its own", hint="name one with --user"
        )
    own = keys.private_key(context.home)
    identity = identity or (own if own.exists() else None)
    return ssh.command(directory, vm.ssh_port, user=user, identity=identity, command=command)


def wait(
    context: Context,
    name: str,
    *,
    what: Literal["ssh", "agent", "stopped"] = "ssh",
    timeout: float = 600.0,
) -> None:
    """Wait until a VM's SSH server or agent answers, or until it has stopped.

    Raises:
        TimedOut: it did not within ``timeout`` seconds.
        NotAllowed: it stopped while something else was awaited.
    """
    vm = context.catalog.vm(name)
    directory = context.vm_path(vm.id)
    deadline = time.monotonic() + timeout
    with context.progress.phase(f"{vm.name}: {what}", None, unit="tries") as advance:
        while time.monotonic() < deadline:
            if power(context, vm) not in (PowerState.RUNNING, PowerState.PAUSED):
                if what == "stopped":
                    return
                raise NotAllowed(
                    f"VM '{vm.name}' stopped while {what} was awaited",
                    hint=f"calotype vm log {vm.name} --tail 50",
                )
            if what == "ssh" and ssh.answers(vm.ssh_port, timeout=5.0):
                return
            if what == "agent" and Agent(directory).ping():
                return
            advance(1)
            time.sleep(0.5)
    raise TimedOut(f"VM '{vm.name}': no {what} within {timeout:g} s")


def log(
    context: Context, name: str, *, tail: int | None = None, follow: bool = False
) -> Iterator[bytes]:
    """The serial log in blocks; with ``follow`` until the VM stops.

    It is the guest's own, and may hold its secrets: a Reader does not see it.
    """
    vm = context.catalog.vm(name, Role.CONTRIBUTOR)
    directory = context.vm_path(vm.id)
    text = context.driver.serial_log(directory)
    shown = len(text)
    if tail is not None:
        text = b"".join(text.splitlines(keepends=True)[-tail:]) if tail > 0 else b""
    yield text
    while follow and power(context, vm) is PowerState.RUNNING:
        time.sleep(0.2)
        text = context.driver.serial_log(directory)
        yield text[shown:]
        shown = len(text)
    if follow:
        yield context.driver.serial_log(directory)[shown:]
