"""People and passwords that stand in no ``passwd``: records of systemd's, credentials, other databases."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="user-records",
    heading="User records and passwords of systemd (userdb, credentials) and of extrausers",
    order=130,
    concern=Concern.CREDENTIAL,
    remove=(
        "/etc/userdb/*",
        "/etc/credstore/passwd.*",
        "/etc/credstore/ssh.authorized_keys*",
        "/etc/credstore/home.create.*",
        "/etc/credstore.encrypted/*",
    ),
    empty=("/var/lib/extrausers/*",),
)
