"""The key that systemd encrypts credentials with."""

from calotype.guest.steps.step import clearing

STEP = clearing(
    name="credential-secret",
    heading="systemd's credential secret",
    order=280,
    remove=("/var/lib/systemd/credential.secret",),
)
