"""When timers last ran."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="timers",
    heading="Time stamps of timers and periodic jobs",
    order=480,
    concern=Concern.TRACE,
    remove=(
        "/var/lib/systemd/timers/stamp-*",
        "/var/lib/apt/periodic/*",
        "/var/spool/anacron/*",
        "/var/lib/logrotate/status",
        "/var/lib/logrotate.status",
        "/var/lib/misc/logrotate.status",
        "/var/lib/systemd/timesync/clock",
    ),
)
