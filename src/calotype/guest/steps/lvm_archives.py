"""LVM's copies of its metadata: they name the machine, and LVM makes new ones."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="lvm-archives",
    heading="LVM's archives of its metadata",
    order=525,
    concern=Concern.TRACE,
    remove=(
        "/etc/lvm/archive/*",
        "/etc/lvm/backup/*",
        "/etc/lvm/cache/*",
        "/etc/lvm/devices/backup/*",
    ),
)
