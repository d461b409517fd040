"""Identities that management agents hold for this one machine."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="agent-identities",
    heading="Identities of Puppet, Salt, Chef and kubelet",
    order=540,
    concern=Concern.IDENTITY,
    remove=(
        "/etc/puppetlabs/puppet/ssl",
        "/etc/puppet/ssl",
        "/var/lib/puppet/ssl",
        "/etc/salt/minion_id",
        "/etc/salt/pki/minion/minion.pem",
        "/etc/salt/pki/minion/minion.pub",
        "/etc/chef/client.pem",
        "/var/lib/kubelet/pki/*",
        "/etc/kubernetes/kubelet.conf",
        "/var/lib/landscape/client",
        "/etc/ansible/facts.d/*instance*",
        "/var/lib/amazon/ssm/registration",
        "/var/lib/amazon/ssm/Vault",
        "/var/lib/GuestConfig",
        "/opt/azcmagent/.identity",
        "/var/opt/azcmagent/certs",
        "/var/lib/tailscale/*",
        "/etc/machine-id.bak",
    ),
)
