"""Names and password hashes that SSSD cached."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="sssd-cache",
    heading="SSSD's cache of people and their credentials",
    order=560,
    concern=Concern.CREDENTIAL,
    remove=(
        "/var/lib/sss/db/*",
        "/var/lib/sss/mc/*",
        "/var/lib/sss/secrets/*",
        "/var/lib/sss/keytabs/*",
        "/var/cache/krb5rcache/*",
        "/var/lib/samba/winbindd_cache.tdb",
        "/var/cache/samba/*",
    ),
)
