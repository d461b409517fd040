"""The key that systemd encrypts credentials with."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="credential-secret",
    heading="systemd's credential secret",
    order=280,
    concern=Concern.IDENTITY,
    remove=("/var/lib/systemd/credential.secret",),
)
