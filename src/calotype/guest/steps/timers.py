"""When timers last ran."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="timers",
    heading="Time stamps of timers and periodic jobs, and the drift of the clock",
    order=480,
    concern=Concern.TRACE,
    remove=(
        "/var/lib/systemd/timers/stamp-*",
        "/var/lib/apt/periodic/*",
        "/var/spool/anacron/*",
        "/var/lib/logrotate/status",
        "/var/lib/logrotate.status",
        "/var/lib/misc/logrotate.status",
        "/var/lib/logrotate/*.status",
        "/var/lib/systemd/timesync/clock",
        "/var/lib/private/systemd/timesync/clock",
        "/var/lib/chrony/*",
        "/var/lib/ntp/ntp.drift",
        "/var/lib/ntp/drift/*",
        "/var/lib/dnf/repos/*/countme",
        "/var/db/ntpd.drift",
    ),
)
