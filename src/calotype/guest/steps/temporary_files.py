"""Temporary files."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="temporary-files",
    heading="Everything in /tmp and /var/tmp",
    order=420,
    concern=Concern.TRACE,
    empty=(
        "/tmp",
        "/var/tmp",
    ),
)
