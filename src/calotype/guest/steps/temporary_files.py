"""Temporary files."""

from calotype.guest.steps.step import clearing

STEP = clearing(
    name="temporary-files",
    heading="Everything in /tmp and /var/tmp",
    order=420,
    empty=(
        "/tmp",
        "/var/tmp",
    ),
)
