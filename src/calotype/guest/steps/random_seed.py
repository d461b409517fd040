"""Saved randomness: the same seed in two clones is no randomness."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="random-seed",
    heading="Seeds of the random number generator",
    order=260,
    concern=Concern.IDENTITY,
    remove=(
        "/var/lib/systemd/random-seed",
        "/var/lib/urandom/random-seed",
        "/var/lib/random-seed",
        "/var/lib/seedrng/seed.*",
        "/var/lib/misc/random-seed",
        "/var/lib/private/systemd/random-seed",
        "/boot/loader/random-seed",
        "/boot/efi/loader/random-seed",
        "/efi/loader/random-seed",
        "/entropy",
        "/boot/entropy",
        "/var/db/entropy/*",
    ),
)
