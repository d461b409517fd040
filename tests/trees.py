"""Trees of files for tests: one in memory, and names that are hard on whoever handles them."""

import stat
from collections.abc import Mapping

from calotype.guest.guest import READ_LIMIT, Stat

#: Names that shells, listings and terminals trip over.
HOSTILE_NAMES = [
    b"sp ace",
    b'qu"ote',
    b"ap'ostrophe",
    b"new\nline",
    b"carriage\rreturn",
    b"tab\there",
    b"\xff\xfe\xfd",
    b"back\\slash",
    b"-rf",
    b"; touch gone",
    b"$(id)`id`",
    b" lead",
    b"trail ",
    b"*",
    b"[a]?",
    b"\x01\x1b[2J",
    b"a -> b",
    b"'x' -> 'y'",
    b"\nEOF\n",
    b"x" * 255,
    b'""',
    b"<12>",
    b"<2>",
    b"#hash",
    b"-R",
    b"; rm -rf",
    b"$(id)",
    b"[a]",
]


class Files:
    """A tree of nothing but regular files, by path, and the directories that they lie in."""

    def __init__(self, files: Mapping[str, str] | Mapping[str, bytes] | None = None) -> None:
        self.files: dict[str, bytes] = {}
        for path, content in (files or {}).items():
            self.put(path, content)

    def put(self, path: str, content: str | bytes) -> "Files":
        """Have a file."""
        self.files[path] = content.encode() if isinstance(content, str) else content
        return self

    def stat(self, path: str) -> Stat | None:
        """What stands at a path."""
        if path in self.files:
            return Stat(stat.S_IFREG | 0o644, 0, 0, len(self.files[path]), 1)
        return Stat(stat.S_IFDIR | 0o755, 0, 0, 0, 2) if self.list(path) else None

    def list(self, path: str) -> list[str]:
        """The names in a directory."""
        head = path.rstrip("/") + "/"
        return sorted({p[len(head) :].split("/")[0] for p in self.files if p.startswith(head)})

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes | None:
        """The beginning of a file."""
        content = self.files.get(path)
        return None if content is None else content[:limit]

    def real(self, path: str) -> str | None:
        """The path itself: there are no links."""
        return path if self.stat(path) else None

    def is_blank(self, path: str, keep: int) -> bool:
        """Whether a file's content is zero from byte ``keep`` on."""
        return not any(self.files.get(path, b"")[keep:])
