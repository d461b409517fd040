"""Secrets of applications: reported by every proof, removed only for who asks for this step."""

from calotype.guest.guest import Guest, Tree
from calotype.guest.secrets import secrets
from calotype.guest.steps.step import Concern, SysprepStep

_ROUNDS = 64  # a report names a bounded number of them at once


def perform(guest: Guest) -> None:
    """Remove all that is reported."""
    for _ in range(_ROUNDS):
        found = secrets(guest)
        if not found:
            return
        for secret in found:
            guest.remove(guest.real(secret.path) or secret.path)


def check(guest: Tree) -> list[str]:
    """What is reported."""
    return [f"{secret.path} is there" for secret in secrets(guest)]


STEP = SysprepStep(
    name="application-secrets",
    heading="Secrets of applications: private keys, tokens, .env, kubeconfigs (all that a proof reports)",
    order=900,
    concern=Concern.CREDENTIAL,
    perform=perform,
    check=check,
    default=False,
)
