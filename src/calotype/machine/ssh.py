"""SSH to a guest through its forwarded port."""

import secrets
import socket
from collections.abc import Collection, Sequence
from pathlib import Path

from calotype.errors import Conflict, InvalidInput
from calotype.run import which


def command(
    directory: Path,
    port: int,
    *,
    user: str,
    identity: Path | None = None,
    command: Sequence[str] = (),
    options: Sequence[str] = (),
) -> list[str]:
    """The argument list of ``ssh`` to the VM in ``directory``, whose port 22 is forwarded to ``port``.

    The guest's host key is learnt at the first connection and kept with the VM; the user's own
    configuration and known hosts are left out.
    """
    if user.startswith("-") or not user.isprintable() or "@" in user or " " in user:
        raise InvalidInput(f"{user!r} cannot be used as a user name")
    settings = {
        "UserKnownHostsFile": _quoted(directory / "known_hosts"),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "accept-new",
        "HostKeyAlias": directory.name,
        "LogLevel": "ERROR",
        "ConnectTimeout": "30",
    }
    argv = [which("ssh"), "-F", "none", "-p", str(port), "-l", user]
    for name, value in settings.items():
        argv += ["-o", f"{name}={value}"]
    if identity is not None:
        argv += ["-o", f"IdentityFile={_quoted(identity)}", "-o", "IdentitiesOnly=yes"]
    return [*argv, *options, "127.0.0.1", *(["--", *command] if command else [])]


def _quoted(path: Path) -> str:
    """A path as a value of an option of ssh, which takes quotes, backslashes and percent signs apart."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'


def answers(port: int, *, timeout: float = 5.0) -> bool:
    """Whether an SSH server greets on 127.0.0.1:``port`` within ``timeout`` seconds.

    QEMU accepts connections for a guest that does not listen yet, so only the greeting counts.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as client:
            client.settimeout(timeout)
            return client.recv(4) == b"SSH-"
    except OSError:
        return False


def free_port(first: int = 22000, last: int = 32000, *, taken: Collection[int] = ()) -> int:
    """A port of 127.0.0.1 from ``first`` to ``last`` that is free and not in ``taken``.

    Any of them: two installations that look at the same moment are to find different ones.

    Raises:
        Conflict: there is none.
    """
    ports = sorted(set(range(first, last + 1)).difference(taken))
    for port in secrets.SystemRandom().sample(ports, len(ports)):
        if is_free(port):
            return port
    raise Conflict(
        f"no port from {first} to {last} is free on 127.0.0.1", hint="stop VMs that nobody needs"
    )


def is_free(port: int) -> bool:
    """Whether a server can be started on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as QEMU does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
