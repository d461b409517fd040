"""The machine's registration with its distributor."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="subscriptions",
    heading="Subscription identities (Ubuntu Pro, RHSM, SCC)",
    order=500,
    concern=Concern.IDENTITY,
    remove=(
        "/var/lib/ubuntu-advantage/machine-token.json",
        "/var/lib/ubuntu-advantage/private",
        "/var/lib/ubuntu-advantage/machine-access-*.json",
        "/etc/apt/auth.conf.d/90ubuntu-advantage",
        "/var/lib/ubuntu-pro/private",
        "/etc/pki/consumer/*",
        "/etc/pki/entitlement/*",
        "/var/lib/rhsm/*",
        "/etc/sysconfig/rhn/systemid",
        "/etc/zypp/credentials.d/SCCcredentials",
        "/etc/zypp/services.d/*_SCC_*",
        "/etc/insights-client/machine-id",
        "/etc/insights-client/.registered",
    ),
)
