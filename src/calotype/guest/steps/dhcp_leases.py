"""Leases and client identifiers of DHCP."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="dhcp-leases",
    heading="DHCP leases and identifiers",
    order=340,
    concern=Concern.IDENTITY,
    remove=(
        "/var/lib/dhcp/*",
        "/var/lib/dhcp3/*",
        "/var/lib/dhclient/*",
        "/var/lib/dhcpcd/*",
        "/var/lib/dhcpcd5/*",
        "/var/lib/dhcpv6/*",
        "/var/lib/NetworkManager/*.lease",
        "/var/lib/NetworkManager/timestamps",
        "/var/lib/NetworkManager/seen-bssids",
        "/var/lib/NetworkManager/secret_key",
        "/var/lib/systemd/network/*",
        "/var/lib/wicked/*",
        "/var/lib/connman/*",
        "/var/lib/udhcpd/*",
        "/etc/dhcpcd.duid",
        "/etc/dhcpcd.secret",
        "/var/db/dhclient.leases.*",
        "/var/db/dhcpcd/*",
        "/var/lib/misc/dnsmasq.leases",
    ),
)
