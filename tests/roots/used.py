"""What provisioning, people and a year of use leave on any Linux; the families add their own."""

from tests.roots.layout import KEY, Root

MACHINE_ID = "5d41402abc4b2a76b9719d911017c592"
HOST = "acme-web01"
VM_ID = "3b1f7c62-9c4e-4d0a-8a55-0c7e8c1d9f42"
MAC = "52:54:00:c0:ff:ee"
INSTANCE = f"i-{VM_ID}"

#: Strings of applications and of the site: they are reported, and stay.
KEPT = (
    "KEEP-agent",
    "KEEP-cron-token",
    "KEEP-tls",
    "KEEP-wireguard",
    "KEEP-keytab",
    "KEEP-environment",
    "KEEP-records",
    "KEEP-unit-token",
)


def people(root: Root, *groups: str) -> None:
    """Alice, whom provisioning made, and bob, whom she made; one who left; root's password."""
    c = root.canary
    hashes = {n: f"$6$rounds=5000${c(f'hash-{n}')}" for n in ("alice", "bob", "root", "left")}
    _add(root, "/etc/passwd", f"alice:x:1000:1000:{c('gecos')},,,:/home/alice:/bin/bash")
    _add(root, "/etc/passwd", "bob:x:1001:1001::/home/bob:/bin/bash")
    _add(root, "/etc/shadow", f"alice:{hashes['alice']}:19700:0:99999:7:::")
    _add(root, "/etc/shadow", f"bob:{hashes['bob']}:19700:0:99999:7:::")
    _add(root, "/etc/shadow", f"left:{hashes['left']}:19700:0:99999:7:::")
    _change(root, "/etc/shadow", "root:", f"root:{hashes['root']}:19700:0:99999:7:::")
    for name, gid in (("alice", 1000), ("bob", 1001)):
        _add(root, "/etc/group", f"{name}:x:{gid}:")
        _add(root, "/etc/gshadow", f"{name}:!::")
        _add(root, "/etc/subuid", f"{name}:{gid * 100}:65536")
        _add(root, "/etc/subgid", f"{name}:{gid * 100}:65536")
    for group in groups:
        for path in ("/etc/group", "/etc/gshadow"):
            _change(root, path, f"{group}:", None, "alice,bob")
    for name in ("passwd", "shadow", "group", "gshadow", "subuid", "subgid"):
        old = root.entries[f"/etc/{name}"]
        more = f"old-{name}:x:1002:1002:{c(f'old-{name}')}::\n".encode()
        root.file(f"/etc/{name}-", (old.content or b"") + more, old.mode, old.uid, old.gid)
    root.file("/etc/security/opasswd", f"alice:1000:1:$6${c('opasswd')}\n", 0o600)
    root.file("/etc/sudoers", f"root ALL=(ALL) ALL\nalice ALL=(ALL) NOPASSWD: {c('sudo')}\n", 0o440)
    _home(root, "alice", 1000)
    _home(root, "bob", 1001)
    _add(root, "/etc/passwd", "deploy:x:995:995::/srv/deploy:/bin/bash")
    _add(root, "/etc/shadow", "deploy:!:19700::::::")
    root.file("/srv/deploy/.ssh/authorized_keys", f"ssh-rsa {c('deploy-key')}\n", 0o600, 995, 995)
    root.file("/srv/deploy/.bash_history", c("deploy-history"), 0o600, 995, 995)
    root.file("/etc/userdb/carol.user", f'{{"realName": "{c("userdb")}"}}')
    root.file("/home/left/.profile", c("left-profile"), uid=1005, gid=1005)


def _home(root: Root, name: str, uid: int) -> None:
    c = root.canary
    home = f"/home/{name}"
    root.directory(home, 0o700, uid, uid)
    contents = {
        ".ssh/authorized_keys": f"ssh-ed25519 {c(f'{name}-authorized')} {name}@laptop\n",
        ".ssh/id_ed25519": KEY.format(c(f"{name}-key")),
        ".ssh/known_hosts": c(f"{name}-known-hosts"),
        ".bash_history": f"mysql -p{c(f'{name}-history')}\n",
        ".aws/credentials": f"aws_secret_access_key = {c(f'{name}-aws')}\n",
        ".docker/config.json": c(f"{name}-docker"),
        ".kube/config": c(f"{name}-kube"),
        ".netrc": c(f"{name}-netrc"),
        "notes/deep/er/file": c(f"{name}-notes"),
    }
    for path, content in contents.items():
        root.file(f"{home}/{path}", content, 0o600, uid, uid)
    root.file(f"/var/spool/mail/{name}", c(f"{name}-mail"), 0o660, uid, 8)


def root_account(root: Root) -> None:
    """What root leaves in its home."""
    c = root.canary
    root.file("/root/.ssh/authorized_keys", c("root-authorized"), 0o600)
    root.file("/root/.ssh/id_rsa", KEY.format(c("root-key")), 0o600)
    root.file("/root/.ssh/known_hosts", c("root-known-hosts"), 0o600)
    root.file("/root/.bash_history", c("root-history"), 0o600)
    root.file("/root/.viminfo", c("root-viminfo"), 0o600)
    root.file("/root/.lesshst", c("root-lesshst"), 0o600)
    root.file("/root/.cache/motd.legal-displayed", c("root-cache"))
    root.file("/root/.local/share/nano/search_history", c("root-nano"))
    root.file("/root/.azure/accessTokens.json", c("root-azure"), 0o600)
    root.file("/root/.config/gcloud/credentials.db", c("root-gcloud"), 0o600)


def machine(root: Root, *, systemd: bool = True) -> None:
    """What makes it this machine: keys, names, seeds, and what agents know it by."""
    c = root.canary
    for kind in ("rsa", "ecdsa", "ed25519"):
        root.file(f"/etc/ssh/ssh_host_{kind}_key", KEY.format(c(f"host-{kind}")), 0o600)
        root.file(
            f"/etc/ssh/ssh_host_{kind}_key.pub", f"ssh-{kind} {c(f'public-{kind}')} root@{HOST}"
        )
    root.gone += [HOST, MACHINE_ID, VM_ID, VM_ID.upper(), MAC]
    root.file("/etc/hostname", f"{HOST}\n")
    root.file(
        "/etc/hosts",
        f"127.0.0.1 localhost\n127.0.1.1 {HOST}.corp.example {HOST}\n"
        f"::1 localhost ip6-localhost ip6-loopback\n10.0.0.4 {HOST}.corp.example {HOST}\n"
        "10.0.0.9 db01.corp.example db\n",
    )
    root.file("/etc/machine-id", f"{MACHINE_ID}\n", 0o444)
    root.file("/var/lib/dbus/machine-id", f"{MACHINE_ID}\n", 0o444)
    root.file("/etc/resolv.conf", f"search {c('search-domain')}\nnameserver 10.0.0.2\n")
    root.file(
        "/etc/iscsi/initiatorname.iscsi", f"InitiatorName=iqn.2005-03.org.{c('iqn')}\n", 0o600
    )
    root.file("/etc/nvme/hostnqn", f"nqn.2014-08.org.nvmexpress:uuid:{c('hostnqn')}\n")
    root.file("/etc/nvme/hostid", c("hostid"))
    root.file("/etc/salt/minion_id", HOST)
    root.file("/etc/salt/pki/minion/minion.pem", c("salt"), 0o400)
    root.file("/etc/puppetlabs/puppet/ssl/private_keys/x.pem", c("puppet"), 0o600)
    root.file("/etc/chef/client.pem", c("chef"), 0o600)
    root.file("/var/lib/kubelet/pki/kubelet-client-current.pem", c("kubelet"), 0o600)
    root.file("/etc/lvm/archive/vg_00000-1.vg", f'creation_host = "{HOST}"\n{c("lvm")}\n', 0o600)
    if systemd:
        root.file("/var/lib/systemd/random-seed", c("random-seed"), 0o600)
        root.file("/var/lib/systemd/credential.secret", c("credential-secret"), 0o400)
        root.file("/var/lib/systemd/timers/stamp-fstrim.timer", c("timer"))
        root.file(f"/var/log/journal/{MACHINE_ID}/system.journal", c("journal"), 0o640)
        root.file("/var/lib/systemd/coredump/core.app.0.zst", c("coredump"), 0o640)


def cloud(root: Root) -> None:
    """cloud-init and the Azure Linux Agent after they provisioned it."""
    c = root.canary
    inside = f"/var/lib/cloud/instances/{INSTANCE}"
    root.file(f"{inside}/user-data.txt", f"#cloud-config\npassword: {c('user-data')}\n", 0o600)
    root.file(f"{inside}/obj.pkl", c("obj-pkl"), 0o400)
    root.file(f"{inside}/sem/config_ssh", c("semaphore"))
    root.link("/var/lib/cloud/instance", inside)
    root.file("/var/lib/cloud/data/previous-hostname", HOST)
    root.file("/var/lib/cloud/data/instance-id", INSTANCE)
    root.file("/var/lib/cloud/sem/config_scripts_per_once.once", c("once"))
    root.file(
        "/etc/sudoers.d/90-cloud-init-users", f"alice ALL=(ALL) NOPASSWD:ALL # {c('rule')}\n", 0o440
    )
    root.file(
        "/etc/ssh/sshd_config.d/50-cloud-init.conf", f"PasswordAuthentication yes # {c('sshd')}\n"
    )
    root.file("/var/log/cloud-init.log", c("cloud-init-log"))
    root.file("/var/log/cloud-init-output.log", c("cloud-init-output"))
    root.file("/etc/waagent.conf", "Provisioning.RegenerateSshHostKeyPair=y\n")
    root.file("/usr/sbin/waagent", "#!/usr/bin/python3\n", 0o755)
    root.file("/var/lib/waagent/ovf-env.xml", f"<UserPassword>{c('ovf-env')}</UserPassword>", 0o600)
    root.file("/var/lib/waagent/provisioned", VM_ID.upper())
    root.file("/var/lib/waagent/TransportPrivate.pem", KEY.format(c("transport")), 0o600)
    root.file("/var/log/waagent.log", c("waagent-log"))
    root.file("/var/lib/hyperv/.kvp_pool_3", c("kvp"))


def traces(root: Root) -> None:
    """What tells of the past: logs, mail, temporary files, dumps, swap, editors' copies."""
    c = root.canary
    for name in ("wtmp", "btmp", "lastlog"):
        root.file(f"/var/log/{name}", c(name), 0o664)
    root.file("/var/log/acme/app.out", c("application-log"))
    root.file("/var/log/acme/app.out.1.gz", c("rotated-log"))
    root.file("/var/spool/mail/root", c("root-mail"), 0o600)
    root.file("/var/spool/postfix/deferred/A/A1B2", c("mail-queue"), 0o600)
    root.file("/tmp/.hidden/secret", c("tmp"))
    root.file("/var/tmp/secret", c("var-tmp"))
    root.file("/var/crash/core.1234", c("crash"))
    root.file("/etc/acme/agent.conf~", c("editor-backup"))
    root.file("/etc/acme/.agent.conf.swp", c("editor-swap"))
    root.file("/var/lib/sss/db/cache_corp.ldb", c("sssd"), 0o600)
    root.file("/swapfile", bytes(4086) + b"SWAPSPACE2" + c("swap").encode() * 500, 0o600)


def site(root: Root) -> None:
    """What the site put there, and what holds its secrets: none of it is ours to remove."""
    root.file("/etc/acme/agent.conf", "server = acme.example\napi_token = KEEP-agent\n", 0o600)
    root.file("/etc/cron.d/acme", "TOKEN=KEEP-cron-token\n0 1 * * * root /opt/acme/run\n")
    root.file("/etc/ssl/private/web.key", KEY.format("KEEP-tls"), 0o600)
    root.file("/etc/wireguard/wg0.conf", "[Interface]\nPrivateKey = KEEP-wireguard\n", 0o600)
    root.file("/etc/krb5.keytab", "\5\2KEEP-keytab", 0o600)
    root.file("/etc/environment", "API_TOKEN=KEEP-environment\n")
    root.file("/srv/data/records", "KEEP-records")
    root.file(
        "/etc/systemd/system/acme.service",
        "[Service]\nEnvironment=ACME_PASSWORD=KEEP-unit-token\nExecStart=/opt/acme/run\n",
    )


def everything(root: Root, *groups: str, systemd: bool = True) -> None:
    """All of the above."""
    people(root, *groups)
    root_account(root)
    machine(root, systemd=systemd)
    cloud(root)
    traces(root)
    site(root)


def _add(root: Root, path: str, line: str) -> None:
    entry = root.entries[path]
    root.file(path, (entry.content or b"") + f"{line}\n".encode(), entry.mode, entry.uid, entry.gid)


def _change(root: Root, path: str, start: str, line: str | None, append: str = "") -> None:
    """Replace the line that begins so, or append to it."""
    entry = root.entries[path]
    lines = (entry.content or b"").decode().splitlines()
    changed = [(line or f"{old}{append}") if old.startswith(start) else old for old in lines]
    root.file(path, "\n".join(changed) + "\n", entry.mode, entry.uid, entry.gid)
