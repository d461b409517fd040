"""The checks of a Windows disk, as records: what Sysprep should have taken away, or never does."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from calotype.guest.proof import Finding
from calotype.guest.steps.step import Concern
from calotype.guest.windows_facts import Facts
from calotype.guest.windows_state import by_state, contradictions


class Check(NamedTuple):
    """One check; ``left`` says what is left, one line each."""

    name: str
    heading: str
    concern: Concern
    left: Callable[[Facts], Iterator[str]]


def findings(facts: Facts) -> tuple[Finding, ...]:
    """What all checks found; only checks that found something."""
    found = ((check, tuple(check.left(facts))) for check in CHECKS)
    return tuple(Finding(c.name, c.heading, c.concern, left) for c, left in found if left)


def _state(facts: Facts) -> Iterator[str]:
    yield from (reason.removeprefix("image-state: ") for reason in by_state(facts).reasons)


def _answers(facts: Facts) -> Iterator[str]:
    for file in facts.answer_files:
        if file.has_password:
            yield f"{file.path} holds a password, and is used again; cure: remove it before Sysprep"


def _old_answers(facts: Facts) -> Iterator[str]:
    for file in facts.answer_files:
        if not file.has_password:
            yield f"{file.path} is there, and is used before the one that a clone is given"


def _logon(facts: Facts) -> Iterator[str]:
    where = "SOFTWARE: Winlogon"
    if facts.automatic_logon:
        yield f"{where}: {facts.automatic_logon} is logged on at each start (AutoAdminLogon)"
    if facts.logon_password:
        yield f"{where}: a password stands there in clear (DefaultPassword)"


def _roles(facts: Facts) -> Iterator[str]:
    for role in facts.roles:
        if role.identity and not role.is_supported(facts.build):
            yield f"{role.name}: Sysprep does not support it; cure: {role.cure}"
    if facts.domain_controller:
        yield "it is a domain controller; cure: demote it, or use another way to multiply it"


def _host_keys(facts: Facts) -> Iterator[str]:
    for path in facts.host_keys:
        yield f"{path} is there: Sysprep leaves it; cure: remove it, sshd makes another"


def _accounts(facts: Facts) -> Iterator[str]:
    for name in facts.users:
        yield f"/Users: the account {name} and its profile: Sysprep leaves them in every clone"


CHECKS = (
    Check("image-state", "State of Windows Setup", Concern.IDENTITY, _state),
    Check("setup-phase", "What Setup does at the next start", Concern.IDENTITY, contradictions),
    Check("server-roles", "Roles with an identity of their own", Concern.IDENTITY, _roles),
    Check("ssh-host-keys", "Host keys of OpenSSH", Concern.IDENTITY, _host_keys),
    Check("answer-files", "Answer files with passwords", Concern.CREDENTIAL, _answers),
    Check("automatic-logon", "Automatic logon", Concern.CREDENTIAL, _logon),
    Check("old-answer-files", "Answer files of old", Concern.TRACE, _old_answers),
    Check("accounts", "Accounts and profiles of people", Concern.TRACE, _accounts),
)
