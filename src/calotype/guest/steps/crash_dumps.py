"""Memory of crashed programs and kernels."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="crash-dumps",
    heading="Crash reports and core dumps",
    order=440,
    concern=Concern.TRACE,
    remove=(
        "/var/crash/*",
        "/var/lib/systemd/coredump/*",
        "/var/lib/apport/coredump/*",
        "/var/spool/abrt/*",
        "/var/lib/kdump/*",
        "/var/lib/systemd/pstore/*",
        "/var/lib/abrt/*",
        "/core",
        "/core.[0-9]*",
        "/root/core",
        "/root/core.[0-9]*",
    ),
)
