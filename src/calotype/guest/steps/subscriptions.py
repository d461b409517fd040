"""The machine's registration with its distributor."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="subscriptions",
    heading="Subscription identities: Ubuntu Pro, Red Hat (RHSM, Insights), SUSE (SCC), Oracle (ULN)",
    order=500,
    concern=Concern.IDENTITY,
    remove=(
        "/var/lib/ubuntu-advantage/machine-token.json",
        "/var/lib/ubuntu-advantage/private",
        "/var/lib/ubuntu-advantage/machine-access-*.json",
        "/etc/apt/auth.conf.d/90ubuntu-advantage",
        "/var/lib/ubuntu-pro/private",
        "/var/lib/ubuntu-pro/machine-token.json",
        "/etc/pki/consumer/*",
        "/etc/pki/entitlement/*",
        "/var/lib/rhsm/*",
        "/var/log/rhsm/*",
        "/etc/sysconfig/rhn/systemid-*",
        "/etc/yum/pluginconf.d/rhnplugin.conf.save",
        "/etc/sysconfig/rhn/systemid",
        "/etc/zypp/credentials.d/*",
        "/etc/zypp/services.d/*_x86_64.service",
        "/etc/zypp/services.d/*_aarch64.service",
        "/etc/zypp/services.d/*_SCC_*",
        "/etc/SUSEConnect",
        "/var/lib/suseconnect/*",
        "/var/lib/cloudregister/*",
        "/var/cache/cloudregister/*",
        "/etc/insights-client/machine-id",
        "/etc/insights-client/.registered",
    ),
)
