"""A guest behind a shell: in the running guest by its agent, or in a throw-away appliance that mounted it.

A call to a shell is dear, so directories are listed many at a time, small files are fetched with their
neighbours, and changes are queued and carried out together. Symbolic links are followed here and never
by the other side: each path that is sent leads through real directories below the guest's root.
"""

import base64
import io
import os
import re
import shlex
import stat
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from calotype.errors import GuestError, TimedOut
from calotype.guest import listing
from calotype.guest.guest import READ_LIMIT, Action, Edit, Stat
from calotype.guest.listing import Node

_MAX_LINKS = 40  # symbolic links on one path, as in the kernel
_SMALL = 64 << 10  # bytes: a file up to here is fetched with its neighbours
_BATCH, _FILES = 4 << 20, 2000  # bytes and files of one fetch
_PIECE = 8 << 20  # bytes of a large file in one call
_QUEUE = 4 << 20  # bytes of changes that are carried out together
_CACHE = 64 << 20  # bytes of content that are remembered
_OFTEN = 3  # directories of one tree that are listed by themselves before all of it is
_PATIENCE = 600.0  # seconds for one call: a slow guest's whole tree
#: Trees of which all is looked at: listed whole at first sight, those that may be large at last.
_WHOLE: tuple[str, ...] = (
    "etc",
    "root",
    "boot",
    "usr/bin",
    "usr/sbin",
    "usr/local/etc",
    "var/mail",
    "var/spool",
)
_WHOLE += ("var/log", "var/cache", "tmp", "var/tmp", "opt", "srv", "home")

_HEAD = b"""PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL
unset TAR_OPTIONS POSIXLY_CORRECT
umask 077
cd %s || exit 1
"""
#: A new file gets the SELinux type of its directory, as the guest's own kernel would give it.
_LABEL = b"""label() {
	old=$(getfattr -h --only-values -n security.selinux "$1" 2> /dev/null) && [ -n "$old" ] || return 0
	setfattr -h -n security.selinux -v "$old" "$2"
}
"""
_NO_LABEL = b"label() { :; }\n"
#: Its mounts, processes and host name end with the program.
_CHROOT = b"""exec unshare -m -u -i -p -f /bin/sh -c '
for place in proc sys dev run; do
	[ -d "./$place" ] && [ ! -h "./$place" ] || exit 126
done
mount -t proc proc ./proc && mount -t sysfs -o ro sys ./sys && mount --bind /dev ./dev &&
	mount -t tmpfs run ./run && exec chroot . "$@"' sh """


class Outcome(Protocol):
    """How a script ended."""

    @property
    def status(self) -> int:
        """Its exit status."""
        ...

    @property
    def stdout(self) -> bytes:
        """What it printed."""
        ...

    @property
    def stderr(self) -> bytes:
        """What it complained about (perhaps only the end of it)."""
        ...


class Shell(Protocol):
    """Somewhere to run scripts as root."""

    def run(self, script: bytes, stdin: bytes = b"", *, timeout: float = 60.0) -> Outcome:
        """Run a script for ``/bin/sh`` to its end; at most 12 MiB of its output are of use.

        Raises:
            GuestError: nobody is there to run it.
            TimedOut: it ran longer than ``timeout`` seconds.
        """
        ...


class _Place(NamedTuple):
    """Where a path leads, without symbolic links; ``node`` is None where nothing is."""

    path: bytes
    node: Node | None


_TOP = Node(Stat(stat.S_IFDIR | 0o755, 0, 0, 0, 2), b"")


class RemoteGuest:
    """A guest that can be looked at and changed; changes are complete after :meth:`flush`.

    Args:
        shell: where scripts run.
        root: the directory there that is the guest's root.
        apart: paths of the guest where something is mounted that is no part of it (such as ``/proc``):
            they look empty, and nothing that holds them is removed.
        timeout: seconds that one program of the guest's own may run.
    """

    def __init__(
        self, shell: Shell, root: str = "/", *, apart: Collection[str] = (), timeout: float = 300.0
    ) -> None:
        self._shell = shell
        self._root = root
        self._apart = {os.fsencode(path) for path in apart}
        self._timeout = timeout
        self._head = _HEAD % quoted(os.fsencode(root))
        self._queue: list[tuple[Edit, bytes]] = []
        self._queued = 0
        self._listed: dict[bytes, dict[bytes, Node]] = {}
        self._content: dict[bytes, bytes] = {}
        self._missed: Counter[bytes] = Counter()
        self._whole: set[bytes] = set()
        self._held = 0  # bytes of content
        self._has_tar = True
        self.edits: list[Edit] = []

    # Looking

    def stat(self, path: str) -> Stat | None:
        """What stands at a path; a symbolic link there is not followed."""
        place = self._resolve(path, follow=False)
        return None if place is None or place.node is None else place.node.stat

    def list(self, path: str) -> list[str]:
        """The names in a directory, sorted; links to directories are followed."""
        place = self._resolve(path, follow=True)
        if place is None or place.node is None or not place.node.stat.is_dir:
            return []
        return sorted(os.fsdecode(name) for name in self._entries(place.path))

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes | None:
        """The first ``limit`` bytes of a regular file; links are followed."""
        place = self._resolve(path, follow=True)
        if place is None or place.node is None or not place.node.stat.is_file:
            return None
        if place.path not in self._content and place.node.stat.size <= _SMALL and self._has_tar:
            self._fetch(place.path)
        if place.path in self._content:
            return self._content[place.path][:limit]
        return self._large(place.path, limit)

    def real(self, path: str) -> str | None:
        """The path without symbolic links, where something is there."""
        place = self._resolve(path, follow=True)
        return None if place is None or place.node is None else os.fsdecode(place.path)

    def is_blank(self, path: str, keep: int) -> bool:
        """Whether a file's content is zero from byte ``keep`` on."""
        place = self._resolve(path, follow=True)
        if place is None or place.node is None or not place.node.stat.is_file:
            return True
        script = b"tail -c +%d %s | tr -d '\\000' | head -c 1 | wc -c" % (
            keep + 1,
            _dot(place.path),
        )
        return self._ask(script).strip() == b"0"

    # Changing

    def remove(self, path: str) -> None:
        """Remove a file, a link (not its target) or a whole directory."""
        place = self._resolve(path, follow=False)
        if place is None or place.node is None:
            return
        if place.path == b"/":
            raise GuestError("the root directory cannot be removed")
        self._refuse_mounts(path, place.path, place.path)
        self._do(Action.REMOVED, path, b"rm -rf -- " + _dot(place.path))
        self._drop(place.path)
        self._parent(place.path).pop(_name(place.path), None)

    def truncate(self, path: str) -> None:
        """Empty a regular file, or a directory, which stays as it is otherwise."""
        place = self._resolve(path, follow=True)
        if place is None or place.node is None:
            return
        if place.node.stat.is_dir:
            if not self._entries(place.path):
                return
            self._refuse_mounts(path, place.path, _join(place.path, b""))
            below = b"find %s -mindepth 1 -maxdepth 1 -exec rm -rf -- {} +" % _dot(place.path)
            self._do(Action.EMPTIED, path, below)
            self._drop(place.path)
            self._listed[place.path] = {}
        elif place.node.stat.is_file and place.node.stat.size:
            self._do(Action.EMPTIED, path, b": > " + _dot(place.path))
            self._put(place, place.node.stat, b"")

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a regular file in place: one that is there keeps its mode, owner, labels and names."""
        place = self._resolve(path, follow=True)
        if place is None or place.path == b"/":
            raise GuestError(f"{path} cannot be written: its directory is missing")
        target = _dot(place.path)
        if place.node is not None:
            if not place.node.stat.is_file:
                raise GuestError(f"{path} is no regular file")
            if self.read(path, len(data) + 1) == data:
                return
            found = place.node.stat
        else:
            found = Stat(stat.S_IFREG | mode, 0, 0, 0, 1)
        pieces = [data[at : at + _QUEUE // 2] for at in range(0, len(data), _QUEUE // 2)] or [b""]
        for number, piece in enumerate(pieces):
            how = b">>" if number else b">"
            text = base64.encodebytes(piece)
            line = b"base64 -d %s %s <<'EOF'\n%sEOF" % (how, target, text)
            self._do(Action.WRITTEN, path, line, log=not number)
        if place.node is None:
            above = _dot(place.path.rpartition(b"/")[0] or b"/")
            line = b"chown 0:0 %s && chmod %04o %s && label %s %s"
            self._do(Action.WRITTEN, path, line % (target, mode, target, above, target), log=False)
        self._put(place, found, data)

    def blank(self, path: str, keep: int) -> None:
        """Overwrite a file's content, but for the first ``keep`` bytes, with zeros in place."""
        place = self._resolve(path, follow=True)
        if place is None or place.node is None or not place.node.stat.is_file:
            return
        length = place.node.stat.size - keep
        if length > 0:
            skip = b"dd bs=%d count=1 of=/dev/null 2> /dev/null;" % keep if keep else b""
            swap = quoted(place.path + b" ")
            busy = b"! grep -qF %s /proc/swaps 2> /dev/null" % swap
            zero = b"{ %s head -c %d /dev/zero >&0; } 0<> %s" % (skip, length, _dot(place.path))
            self._do(Action.BLANKED, path, b"%s && %s" % (busy, zero))
            self._content.pop(place.path, None)

    def execute(self, argv: Sequence[str]) -> bool:
        """Run a program of the guest's own; false when there is none of that name.

        In an appliance it runs there, below the guest's root. All that was seen before is forgotten.
        """
        program = self._program(argv[0])
        if program is None:
            return False
        self.flush()
        command = shlex.join([program, *argv[1:]]).encode("utf-8", "surrogateescape")
        script = b"exec " + command if self._root == "/" else _CHROOT + command
        try:
            done = self._shell.run(self._head + script + b" < /dev/null\n", timeout=self._timeout)
        except TimedOut as error:
            raise GuestError(f"{argv[0]} did not end: {error.message}") from error
        if done.status != 0:
            raise GuestError(f"{argv[0]} failed in the guest: {complaint(done)}")
        return True

    def flush(self) -> None:
        """Carry out what is queued, and forget all that was seen: what is asked next is looked up anew.

        Raises:
            GuestError: a change could not be made.
        """
        self._carry_out()
        self._missed.clear()
        self._whole.clear()
        self._listed.clear()
        self._content.clear()
        self._held = 0

    # Paths

    def _resolve(self, path: str, *, follow: bool) -> _Place | None:
        """Walk a path from the root; None where a directory on the way is missing."""
        parts = os.fsencode(path).split(b"/")[::-1]
        trail = [_Place(b"/", _TOP)]
        links = 0
        while parts:
            part = parts.pop()
            here = trail[-1]
            if part in (b"", b"."):
                continue
            if part == b"..":
                del trail[max(1, len(trail) - 1) :]
                continue
            if here.node is None or not here.node.stat.is_dir:
                return None
            node = None if b"\0" in part else self._entries(here.path).get(part)
            place = _Place(_join(here.path, part), node)
            further = follow or any(p not in (b"", b".") for p in parts)
            if node is not None and node.stat.is_link and further:
                links += 1
                if links > _MAX_LINKS:
                    return None
                parts += node.target.split(b"/")[::-1]
                if node.target.startswith(b"/"):
                    del trail[1:]
                continue
            trail.append(place)
        return trail[-1]

    def _entries(self, path: bytes) -> dict[bytes, Node]:
        if path not in self._listed:
            if path in self._apart:
                return {}
            if not self._listed:
                self._survey()
            if path not in self._listed:
                self._look_up(path)
        return self._listed[path]

    def _look_up(self, path: bytes) -> None:
        """List a directory: with what is near it, and when that happens again, with all around it."""
        top = b"/".join(path.split(b"/")[:3])
        first = b"/".join(path.split(b"/")[:2])
        self._missed[first] += 1
        often = self._missed[first] > _OFTEN
        tries = [(path, 64), (path, 2), (path, 1)] if often else [(path, 2), (path, 1)]
        if often and top not in self._whole:
            self._whole.add(top)
            tries.insert(0, (top, 64))
        cut = False
        for start, depth in tries:
            if path not in self._listed:
                cut = self._load([(start, depth)])
        if cut and path not in self._listed:
            raise GuestError(f"{os.fsdecode(path)} has more names than can be listed")
        self._listed.setdefault(path, {})  # gone meanwhile

    def _parent(self, path: bytes) -> dict[bytes, Node]:
        return self._entries(path.rpartition(b"/")[0] or b"/")

    def _program(self, name: str) -> str | None:
        places = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
        paths = [name] if name.startswith("/") else [f"{place}/{name}" for place in places]
        for path in paths:
            place = self._resolve(path, follow=True)
            if place is not None and place.node is not None:
                found = place.node.stat
                if found.is_file and found.mode & 0o111:
                    return path
        return None

    # What is known of the tree

    def _survey(self) -> None:
        """List what is nearly always asked for, in two calls."""
        self._load([(b"/", 2)])
        if b"/" not in self._listed:
            return
        known = [b"/" + name.encode() for name in _WHOLE]
        # Only where no link is on the way: the other side would follow it.
        whole = [(path, 64) for path in known if self._is_real(path)]
        wide = [
            (b"/" + n.encode(), 2) for n in ("var", "var/lib") if self._is_real(b"/" + n.encode())
        ]
        self._load([*wide, *whole])

    def _is_real(self, path: bytes) -> bool:
        """Whether a directory stands at a path of at most three names that has no links."""
        here = b"/"
        for part in path.strip(b"/").split(b"/"):
            entries = self._listed.get(here)
            if entries is None:
                return True  # below a real directory that is not listed yet: find -P looks itself
            node = entries.get(part)
            if node is None or not node.stat.is_dir:
                return False
            here = _join(here, part)
        return here not in self._apart

    def _load(self, wanted: Sequence[tuple[bytes, int]]) -> bool:
        """List directories, each down to a depth; true when one answer did not hold them all."""
        prune = [b"." + path for path in sorted(self._apart)]
        script = listing.script([(_dot(path), depth) for path, depth in wanted], prune)
        done = self._run(script)
        said = [line for line in done.stderr.splitlines() if not _GONE.search(line)]
        if said:
            text = said[0].decode("utf-8", "replace")
            raise GuestError(f"the guest's files cannot be listed: {text}")
        if not done.stdout and done.status != 0:
            raise GuestError(f"the guest's files cannot be listed: {complaint(done)}")
        found = listing.parse(done.stdout)
        for path, depth in wanted:
            self._listed.update(listing.directories(found, path, depth))
        return found.cut

    def _drop(self, path: bytes) -> None:
        """Forget a path, with all below it."""
        below = _join(path, b"")
        for path_ in [p for p in self._listed if p == path or p.startswith(below)]:
            del self._listed[path_]
        for path_ in [p for p in self._content if p == path or p.startswith(below)]:
            del self._content[path_]

    def _put(self, place: _Place, found: Stat, data: bytes) -> None:
        """Remember what was written."""
        if found.links > 1:  # other names show it too
            self._carry_out()
            self._content.clear()
            self._held = 0
        node = Node(replace(found, size=len(data)), b"")
        self._parent(place.path)[_name(place.path)] = node
        self._keep(place.path, data)

    # Content

    def _fetch(self, path: bytes) -> None:
        """Read a small file together with those near it."""
        wanted, total = [], 0
        for near, node in self._near(path):
            if near not in self._content and node.stat.is_file and node.stat.size <= _SMALL:
                wanted.append(near)
                total += node.stat.size
                if total > _BATCH or len(wanted) >= _FILES:
                    break
        names = b"".join(b"." + name + b"\0" for name in wanted)
        archive = self._ask(b"xargs -0 tar cf -\nexit 0", names)
        self._has_tar = bool(archive)
        for name, content in _members(archive):
            self._keep(name, content)

    def _near(self, path: bytes) -> Iterator[tuple[bytes, Node]]:
        directory = path.rpartition(b"/")[0] or b"/"
        entries = self._entries(directory)
        yield path, entries[_name(path)]
        for name, node in sorted(entries.items()):
            yield _join(directory, name), node
        if path.startswith(b"/etc/"):  # of which nearly everything is read
            for other in sorted(
                d for d in self._listed if d.startswith(b"/etc/") and d != directory
            ):
                for name, node in sorted(self._listed[other].items()):
                    yield _join(other, name), node

    def _large(self, path: bytes, limit: int) -> bytes | None:
        content = bytearray()
        while len(content) < limit:
            at, block = len(content) // _PIECE, 1 << 16
            count = _PIECE // block
            source = b"dd if=%s bs=%d skip=%d count=%d" % (_dot(path), block, at * count, count)
            done = self._run(source)
            if done.status != 0:
                if _GONE.search(done.stderr):
                    return None
                name = os.fsdecode(path)
                raise GuestError(f"{name} cannot be read: {complaint(done)}")
            content += done.stdout
            if len(done.stdout) < _PIECE:
                break
        if len(content) <= _BATCH and len(content) < limit:
            self._keep(path, bytes(content))
        return bytes(content[:limit])

    def _keep(self, path: bytes, content: bytes) -> None:
        if self._held + len(content) > _CACHE:
            self._carry_out()  # what is remembered may be all that is known of what is queued
            self._content.clear()
            self._held = 0
        self._held += len(content)
        self._content[path] = content

    # The shell

    def _ask(self, script: bytes, stdin: bytes = b"") -> bytes:
        done = self._run(script, stdin)
        if done.status != 0:
            raise GuestError(f"the guest cannot be looked at: {complaint(done)}")
        return done.stdout

    def _run(self, script: bytes, stdin: bytes = b"") -> Outcome:
        self._carry_out()
        try:
            return self._shell.run(self._head + script + b"\n", stdin, timeout=_PATIENCE)
        except TimedOut as error:
            raise GuestError(error.message, hint=error.hint) from error

    def _do(self, action: Action, path: str, command: bytes, *, log: bool = True) -> None:
        edit = Edit(action, path)
        if log:
            self.edits.append(edit)
        self._queue.append((edit, command))
        self._queued += len(command)
        if self._queued > _QUEUE:
            self._carry_out()

    def _carry_out(self) -> None:
        if not self._queue:
            return
        queue, self._queue, self._queued = self._queue, [], 0
        label = _NO_LABEL if self._root == "/" else _LABEL
        lines = [self._head, label, b'fail() { echo "$1"; exit 1; }\n']
        for number, (_edit, command) in enumerate(queue):
            lines.append(b"{ %s\n} || fail %d\n" % (command, number))
        try:
            done = self._shell.run(b"exec /bin/sh", b"".join(lines), timeout=_PATIENCE)
        except TimedOut as error:
            raise GuestError(error.message, hint=error.hint) from error
        if done.status != 0:
            said = done.stdout.strip()
            which = queue[int(said)][0] if said.isdigit() and int(said) < len(queue) else None
            what = (
                f"{which.path} could not be {which.action}" if which else "the guest did not change"
            )
            raise GuestError(f"{what}: {complaint(done)}")

    def _refuse_mounts(self, path: str, real: bytes, prefix: bytes) -> None:
        if any(m == real or _join(m, b"").startswith(_join(prefix, b"")) for m in self._apart):
            raise GuestError(f"{path} cannot be removed: something is mounted in it")


_GONE = re.compile(rb"No such file or directory$", re.MULTILINE)


def quoted(word: bytes) -> bytes:
    """A word for the shell, whatever bytes it has."""
    return b"'" + word.replace(b"'", b"'\\''") + b"'"


def complaint(done: Outcome) -> str:
    """The last lines that a script complained with, or else its status."""
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()[-3:]
    return " / ".join(lines) or f"status {done.status}"


def _dot(path: bytes) -> bytes:
    return quoted(b"." + path)


def _join(directory: bytes, name: bytes) -> bytes:
    return directory.rstrip(b"/") + b"/" + name


def _name(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _members(archive: bytes) -> Iterable[tuple[bytes, bytes]]:
    """The regular files of a tar archive, or of several in a row, as far as it makes sense."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(
            fileobj=io.BytesIO(archive), mode="r:", ignore_zeros=True, errors="surrogateescape"
        ) as tar:
            for member in tar:
                if member.isreg():
                    file = tar.extractfile(member)
                    found[member.name] = file.read() if file is not None else b""
                elif member.islnk() and member.linkname in found:
                    found[member.name] = found[member.linkname]
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError):
        pass  # what is missing is read by itself
    return [(os.fsencode(name).removeprefix(b"."), data) for name, data in found.items()]
