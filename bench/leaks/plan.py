"""What is planted in the Debian guest, kind by kind."""

import base64

from bench.leaks.canaries import HOST, MAC, Canary, Deed, File, Group, Taken, pem, word

_M, _P, _S = Group.MACHINE, Group.PEOPLE, Group.SITE

USER_DATA = f"""#cloud-config
write_files:
  - path: /etc/acme/agent.conf
    permissions: '0600'
    content: |
      api_key = {word("/etc/acme/agent.conf")}
runcmd:
  - test -n "{word("user-data")}"
  - echo "enrolled with {word("cloud-init output")}"
"""

#: Provisioning gave these, or used them.
NAMES: tuple[Canary, ...] = (
    Canary(kind="host name", group=_M, name=HOST, path="/etc/hostname", needles=(HOST.encode(),)),
    Canary(
        kind="cloud-init: instance data",
        group=_M,
        name="instance-id",
        path="/var/lib/cloud/data/instance-id",
        needles=(word("instance-id").encode(),),
    ),
    Canary(
        kind="cloud-init: user-data",
        group=_M,
        name="user-data",
        path="/var/lib/cloud/instance/user-data.txt",
        needles=(word("user-data").encode(),),
    ),
    Canary(
        kind="cloud-init: logs",
        group=_M,
        name="cloud-init output",
        path="/var/log/cloud-init-output.log",
        needles=(word("cloud-init output").encode(),),
    ),
    Canary(
        kind="site: agent configuration",
        group=_S,
        name="/etc/acme/agent.conf",
        path="/etc/acme/agent.conf",
        needles=(word("/etc/acme/agent.conf").encode(),),
    ),
    Canary(
        kind="network card's address",
        group=_M,
        name="MAC address",
        path="/etc/udev/rules.d",
        needles=(MAC.encode(), MAC.replace(":", "").encode()),
    ),
    Canary(
        kind="accounts: rows",
        group=_P,
        name="alice's account",
        path="/etc/passwd",
        needles=(b"alice:x:1000:", b"/home/alice"),
    ),
    Canary(
        kind="accounts: rows",
        group=_P,
        name="bob's account",
        path="/etc/passwd",
        needles=(b"bob:x:1001:", b"/home/bob"),
    ),
    Canary(
        kind="host name",
        group=_M,
        name="the names in /etc/hosts",
        path="/etc/hosts",
        needles=(word("/etc/hosts").encode(),),
    ),
    Canary(
        kind="waagent: state",
        group=_M,
        name="the custom data in ovf-env.xml",
        path="/var/lib/waagent/ovf-env.xml",
        needles=(word("ovf-env.xml").encode(),),
    ),
)

FILES = (
    # the machine
    File("host name", _M, "/etc/machine-info", "PRETTY_HOSTNAME=web01 %\nDEPLOYMENT=production\n"),
    File("host name", _M, "/etc/mailname", f"{HOST}.%.example\n"),
    File("waagent: state", _M, "/var/lib/waagent/Certificates.pem", pem("PRIVATE KEY")),
    File("waagent: state", _M, "/var/lib/waagent/ExtensionsConfig.1.xml", "<Settings>%</Settings>"),
    File("waagent: logs", _M, "/var/log/waagent.log", "2026-11-20 INFO goal state %\n"),
    File("waagent: logs", _M, "/var/log/azure/custom-script/handler.log", "ran with --token %\n"),
    File("DHCP leases", _M, "/var/lib/NetworkManager/internal-1-eth0.lease", "HOSTNAME=%\n"),
    File(
        "stored connections",
        _M,
        "/etc/NetworkManager/system-connections/office.nmconnection",
        "[connection]\nid=office\ntype=wifi\n[wifi-security]\npsk=%\n",
    ),
    File(
        "network card's address",
        _M,
        "/etc/udev/rules.d/70-persistent-net.rules",
        '# net device %\nSUBSYSTEM=="net", ATTR{address}=="52:54:00:ac:3e:01", NAME="enp0s4"\n',
    ),
    File("storage identity", _M, "/etc/iscsi/initiatorname.iscsi", "InitiatorName=iqn.1993-08:%\n"),
    File("storage identity", _M, "/etc/nvme/hostnqn", "nqn.2014-08.org.nvmexpress:uuid:%\n"),
    File("agents' identities", _M, "/etc/salt/pki/minion/minion.pem", pem("RSA PRIVATE KEY")),
    File("agents' identities", _M, "/etc/salt/minion_id", "%\n"),
    File(
        "agents' identities",
        _M,
        "/etc/puppetlabs/puppet/ssl/private_keys/web01.pem",
        pem("RSA PRIVATE KEY"),
    ),
    File("agents' identities", _M, "/etc/chef/client.pem", pem("RSA PRIVATE KEY")),
    File(
        "agents' identities",
        _M,
        "/var/lib/kubelet/pki/kubelet-client-current.pem",
        pem("EC PRIVATE KEY"),
    ),
    File(
        "subscriptions",
        _M,
        "/var/lib/ubuntu-advantage/private/machine-token.json",
        '{"machineToken": "%"}\n',
    ),
    File(
        "subscriptions",
        _M,
        "/etc/apt/auth.conf.d/90ubuntu-advantage",
        "machine esm.ubuntu.com/ login bearer password %\n",
    ),
    File("subscriptions", _M, "/etc/pki/consumer/key.pem", pem("PRIVATE KEY")),
    File(
        "subscriptions", _M, "/etc/zypp/credentials.d/SCCcredentials", "username=SCC\npassword=%\n"
    ),
    File("logs: applications", _M, "/var/log/acme/app.log", "GET /?session=%\n"),
    File("logs: applications", _M, "/var/log/apt/history.log", "Commandline: apt install %\n"),
    File("crash dumps", _M, "/var/crash/kernel.1", "vmcore: pass=%\n"),
    File("temporary files", _M, "/tmp/upload.tmp", "% in /tmp\n"),
    File("temporary files", _M, "/var/tmp/vi.recover/web01", "% in /var/tmp\n"),
    File("temporary files", _M, "/tmp/.X11-private/socket.txt", "% hidden\n"),
    File("editors' copies", _M, "/etc/acme/agent.conf~", "api_key = old %\n"),
    File("editors' copies", _M, "/etc/acme/.agent.conf.swp", "b0VIM 9.0 %\n"),
    File("editors' copies", _M, "/etc/acme/#agent.conf#", "api_key = %\n"),
    File("mail queue", _M, "/var/spool/exim4/input/1abcde-000001-AB-D", "1abcde\nTo: %\n"),
    File("SSSD's cache", _M, "/var/lib/sss/db/cache_acme.ldb", "cachedPassword: %\n"),
    File("old passwords", _M, "/etc/security/opasswd", "alice:1000:1:$6$%\n"),
    # people: alice was made by provisioning, bob by an administrator; eve left before
    *(
        File("applications' credentials in homes", _P, f"/home/{user}/{path}", text, user)
        for user in ("alice", "bob")
        for path, text in (
            (".aws/credentials", "[default]\naws_secret_access_key = %\n"),
            (".docker/config.json", '{"auths": {"registry": {"auth": "%"}}}\n'),
            (".kube/config", "users: [{user: {token: %}}]\n"),
            (".netrc", "machine example.com login u password %\n"),
            (".git-credentials", "https://u:%@example.com\n"),
        )
    ),
    File("SSH: known hosts", _P, "/home/alice/.ssh/known_hosts", "% ssh-ed25519 AAAA\n", "alice"),
    File(
        "SSH: authorized keys", _P, "/home/bob/.ssh/authorized_keys", "ssh-ed25519 % bob@x\n", "bob"
    ),
    File("SSH: private keys of people", _P, "/home/bob/.ssh/id_rsa", pem("RSA PRIVATE KEY"), "bob"),
    File("SSH: root's keys", _P, "/root/.ssh/authorized_keys", "ssh-ed25519 % root@x\n"),
    File("SSH: root's keys", _P, "/root/.ssh/id_ed25519", pem("OPENSSH PRIVATE KEY")),
    File("histories", _P, "/home/bob/.bash_history", "mysql -p%\n", "bob"),
    File("histories", _P, "/root/.bash_history", "export TOKEN=%\n"),
    File("histories", _P, "/root/.viminfo", "# viminfo\n?/%\n"),
    File("histories", _P, "/home/alice/.python_history", "login('%')\n", "alice"),
    File("histories", _P, "/root/.lesshst", '.less-history-file:\n.search\n"%\n'),
    File("root's cloud credentials", _P, "/root/.aws/credentials", "aws_secret_access_key = %\n"),
    File("sudo rules of people", _P, "/etc/sudoers.d/bob", "bob ALL=(ALL) /usr/local/bin/%\n"),
    File("mail of people", _P, "/var/mail/bob", "From x\nSubject: % for bob\n\nhello\n", "bob"),
    # the site: kept, and reported
    File("site: TLS keys", _S, "/etc/ssl/private/web01.key", pem("PRIVATE KEY")),
    File("site: VPN keys", _S, "/etc/wireguard/wg0.conf", "[Interface]\nPrivateKey = %\n"),
    File("site: VPN keys", _S, "/etc/openvpn/client.key", pem("PRIVATE KEY")),
    File("site: keytabs", _S, "/etc/krb5.keytab", "\\005\\002 host/web01 %\n"),
    File("site: environment", _S, "/etc/environment", "DATABASE_URL=postgres://u:%@db\n"),
    File("site: environment", _S, "/opt/app/.env", "SECRET_KEY=%\n"),
    File("site: registries and clusters", _S, "/root/.docker/config.json", '{"auth": "%"}\n'),
    File("site: registries and clusters", _S, "/root/.kube/config", "token: %\n"),
    File("site: repositories", _S, "/etc/apt/auth.conf.d/acme.conf", "machine a password %\n"),
    File("site: deploy keys", _S, "/opt/deploy/id_ed25519", pem("OPENSSH PRIVATE KEY")),
    File("site: mounts", _S, "/etc/cifs-credentials", "username=u\npassword=%\n"),
    File(
        "site: agent configuration", _S, "/etc/cron.d/acme-backup", "0 1 * * * root backup -p %\n"
    ),
)

_GONE = "echo 'a secret: %' > {0} && sync && rm {0} && sync"

#: Done in this order: root's, then alice's.
DEEDS = (
    Deed(
        "accounts: rows",
        _P,
        "bob's real name",
        "useradd -m -s /bin/bash -c 'Bob %' bob\n"
        "echo 'bob:correct-horse-1' | chpasswd\nusermod -aG sudo bob",
    ),
    Deed(
        "accounts: of people who left",
        _P,
        "eve's real name",
        "useradd -m -c 'Eve %' eve; echo 'eve:correct-horse-2' | chpasswd; sync; userdel -r eve",
    ),
    Deed("journal", _M, "an entry", "logger -p user.info 'a request with the key %'"),
    Deed(
        "journal",
        _M,
        "an entry that was vacuumed",
        "logger 'old entry %'; journalctl --sync; journalctl --rotate; sleep 1;"
        " journalctl --vacuum-time=1s; sync",
    ),
    Deed(
        "journal",
        _M,
        "a unit's output",
        "systemd-run --wait --unit=acme-report sh -c 'echo the report says %'",
    ),
    Deed(
        "logs: of the system",
        _M,
        "a failed login",
        "logger -p auth.warning -t sshd 'Failed password for invalid user % from 203.0.113.9'",
    ),
    Deed("logs: of the system", _M, "a kernel message", "echo 'acme: % failed' > /dev/kmsg"),
    Deed(
        "logs: rotated",
        _M,
        "a rotated log",
        "mkdir -p /var/log/acme; echo '% rotated' > /var/log/acme/old.log.1;"
        " head -c 300 /dev/urandom | base64 | gzip > /var/log/acme/old.log.2.gz; sync",
    ),
    Deed(
        "logs: applications",
        _M,
        "a request of the web server",
        "systemctl start nginx; curl -s 'http://127.0.0.1/?token=%' > /dev/null",
    ),
    Deed(
        "login records",
        _M,
        "/var/log/btmp",
        "python3 - <<'E'\nimport struct\nu = struct.pack('<hxxi32s4s32s256s', 6, 1, b'ssh:notty', b'',"
        " b'%', b'203.0.113.9')\n"
        "open('/var/log/btmp', 'ab').write(u.ljust(384, b'\\0'))\nE",
    ),
    Deed(
        "login records",
        _M,
        "/var/log/wtmp",
        "python3 - <<'E'\nimport struct\nu = struct.pack('<hxxi32s4s32s256s', 7, 1, b'pts/0', b'ts/0',"
        " b'alice', b'host-of-%')\n"
        "open('/var/log/wtmp', 'ab').write(u.ljust(384, b'\\0'))\nE",
    ),
    Deed(
        "crash dumps",
        _M,
        "the core of a program",
        "mkdir -p /etc/systemd/coredump.conf.d\n"
        "printf '[Coredump]\\nCompress=no\\n' > /etc/systemd/coredump.conf.d/50-plain.conf\n"
        "ulimit -c unlimited; cd /tmp\n"
        "python3 -c 'import os; held = [\"%\" + str(n) for n in range(500)]; os.abort()' || true\n"
        "sleep 3; sync",
    ),
    Deed(
        "swap",
        _M,
        "a page that was swapped out",
        "fallocate -l 64M /swapfile && chmod 600 /swapfile && mkswap -q /swapfile && swapon /swapfile\n"
        "echo '/swapfile none swap sw 0 0' >> /etc/fstab\n"
        "python3 - <<'E' &\nimport ctypes, mmap, time\n"
        "m = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "m.write(b'% swapped out. ' * 100000)\n"
        "a = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "c = ctypes.CDLL(None)\n"
        "c.madvise(ctypes.c_void_p(a), ctypes.c_size_t(8 << 20), 21)\n"
        "time.sleep(5)\nE\nsleep 4; cat /proc/swaps; sync; wait",
    ),
    Deed("deleted files", _M, "a file", _GONE.format("/srv/dump.sql")),
    Deed(
        "deleted files",
        _M,
        "a large file",
        "yes 'row of %' | head -c 8M > /srv/big.sql; sync; rm /srv/big.sql; sync",
    ),
    Deed(
        "deleted files",
        _M,
        "a file in a deleted directory",
        "mkdir -p /srv/old/keys; echo '%' > /srv/old/keys/k; sync; rm -r /srv/old; sync",
    ),
    Deed(
        "deleted files",
        _M,
        "what a file held before",
        "echo 'password=%' > /etc/acme/db.conf; sync; echo 'password=file:/x' > /etc/acme/db.new;"
        " mv /etc/acme/db.new /etc/acme/db.conf; sync",
    ),
    Deed(
        "deleted names and inodes",
        _M,
        "a file's name",
        "touch /srv/customer-%.txt; sync; rm /srv/customer-%.txt; sync",
    ),
    Deed(
        "deleted names and inodes",
        _M,
        "a link's target",
        "ln -s /mnt/% /srv/link; sync; rm /srv/link; sync",
    ),
    Deed(
        "deleted names and inodes",
        _M,
        "an attribute",
        "touch /srv/marked; python3 -c \"import os; os.setxattr('/srv/marked', 'user.key', b'%')\";"
        " sync; rm /srv/marked; sync",
    ),
    Deed(
        "deleted names and inodes",
        _M,
        "names that were many",
        "mkdir /srv/many; for n in $(seq 300); do : > /srv/many/$n-%; done; sync;"
        " rm /srv/many/*-%; sync; touch /srv/many/kept; sync",
    ),
    Deed(
        "mail of people",
        _P,
        "a letter to alice",
        "echo 'Dear alice: %' | mail -s hello alice; sleep 3",
    ),
    Deed(
        "mail queue",
        _M,
        "a letter that came back",
        "echo % | mail -s later x@example.invalid; sleep 3",
    ),
    Deed(
        "crontabs and jobs",
        _P,
        "bob's crontab",
        "echo '5 4 * * * report --key %' | crontab -u bob -",
    ),
    Deed("histories", _P, "what alice typed", "mysql --password=% -e status", "alice, typing"),
    Deed(
        "crontabs and jobs",
        _P,
        "alice's crontab",
        "echo '5 4 * * * sync --key %' | crontab -",
        "alice",
    ),
    Deed("crontabs and jobs", _P, "alice's job", "echo 'echo %' | at now + 3 days", "alice"),
    Deed("files of people", _P, "a note of alice's", "echo '% is the pin' > ~/notes.txt", "alice"),
    Deed(
        "files of people",
        _P,
        "a note that alice deleted",
        "echo '% was the pin' > ~/old.txt; sync; rm ~/old.txt; sync",
        "alice",
    ),
    Deed("logs: of the system", _M, "a command run by sudo", "sudo /bin/echo %", "alice"),
    Deed(
        "SSH: private keys of people",
        _P,
        "alice's key",
        "ssh-keygen -q -t ed25519 -N '' -C % -f ~/.ssh/id_ed25519",
        "alice",
    ),
    Deed(
        "files of people",
        _P,
        "alice's work tree",
        "git -c user.name=% -c user.email=a@b.c init -q ~/w; cd ~/w;"
        " git -c user.name=% -c user.email=a@b.c commit -q --allow-empty -m 'by %'; cp .git/logs/HEAD"
        " ~/w/log; cd",
        "alice",
    ),
)

#: What the Azure agent keeps of provisioning: the password is masked, the custom data is not.
OVF = """
<?xml version="1.0" encoding="utf-8"?>
<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1"
 xmlns:wa="http://schemas.microsoft.com/windowsazure">
<wa:ProvisioningSection><wa:Version>1.0</wa:Version>
<LinuxProvisioningConfigurationSet xmlns="http://schemas.microsoft.com/windowsazure">
<ConfigurationSetType>LinuxProvisioningConfiguration</ConfigurationSetType>
<HostName>{host}</HostName><UserName>alice</UserName><UserPassword>*</UserPassword>
<DisableSshPasswordAuthentication>false</DisableSshPasswordAuthentication>
<CustomData>{custom}</CustomData>
</LinuxProvisioningConfigurationSet></wa:ProvisioningSection>
<wa:PlatformSettingsSection><wa:Version>1.0</wa:Version>
<PlatformSettings xmlns="http://schemas.microsoft.com/windowsazure">
<KmsServerHostname>kms.core.windows.net</KmsServerHostname>
<ProvisionGuestAgent>true</ProvisionGuestAgent>
</PlatformSettings></wa:PlatformSettingsSection></Environment>
""".format(
    host=HOST,
    custom=base64.b64encode(f"#!/bin/sh\nenrol {word('ovf-env.xml')}\n".encode()).decode(),
)

#: Before everything: a disk without discards (few hypervisors pass them on), a journal that is kept.
FIRST = """
mount -o remount,nodiscard /
sed -i 's/,discard//' /etc/fstab
systemctl disable -q --now fstrim.timer || true
mkdir -p /var/log/journal && systemd-tmpfiles --create --prefix /var/log/journal && journalctl --flush
systemd-creds setup > /dev/null 2>&1 || true
hostname > /etc/mailname
echo 'root:correct-horse-3' | chpasswd
printf '127.0.1.1 {host}.{domain}.example {host}\\n10.0.2.15 {host}.{domain}.internal\\n' >> /etc/hosts
dhclient -1 -sf /bin/true enp0s4 || true
# as the Azure agent leaves it, so that its deprovisioning knows whom provisioning made
mkdir -p /var/lib/waagent
cat > /var/lib/waagent/ovf-env.xml <<'X'
{ovf}
X
""".format(host=HOST, domain=word("/etc/hosts"), ovf=OVF.strip())

_KEY_LINE = rb"KEY-----\n[^\n]+\n([A-Za-z0-9+/]{40,})"
_HASH = rb"(?m)^%s:(\$[^:]{20,}):"

TAKEN = (
    Taken("machine-id", _M, "/etc/machine-id", rb"[0-9a-f]{32}", also="hex"),
    Taken("SSH host keys (private)", _M, "/etc/ssh/ssh_host_ed25519_key", _KEY_LINE),
    Taken("SSH host keys (private)", _M, "/etc/ssh/ssh_host_ecdsa_key", _KEY_LINE),
    Taken("SSH host keys (public)", _M, "/etc/ssh/ssh_host_ed25519_key.pub", rb"AAAA\S+"),
    Taken("SSH host keys (public)", _M, "/etc/ssh/ssh_host_ecdsa_key.pub", rb"AAAA\S+"),
    Taken("random seed", _M, "/var/lib/systemd/random-seed"),
    Taken("credential secret", _M, "/var/lib/systemd/credential.secret"),
    Taken("logs: rotated", _M, "/var/log/acme/old.log.2.gz"),
    Taken("DHCP leases", _M, "/var/lib/dhcp/dhclient.leases", rb"lease \{[^}]+?(\n  renew [^;]+;)"),
    Taken("accounts: password hashes", _P, "/etc/shadow alice", _HASH % b"alice"),
    Taken("accounts: password hashes", _P, "/etc/shadow bob", _HASH % b"bob"),
    Taken("accounts: root's password", _P, "/etc/shadow root", _HASH % b"root"),
    Taken("SSH: private keys of people", _P, "/home/alice/.ssh/id_ed25519", _KEY_LINE),
    Taken("SSH: authorized keys", _P, "/home/alice/.ssh/authorized_keys", rb"AAAA\S+"),
)
