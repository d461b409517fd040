"""What a Linux says of itself: os-release."""

import re

from calotype.guest.guest import Tree, text

_SETTING = re.compile(r"""^(\w+)=["']?([^"'\n]*)["']?$""", re.MULTILINE)
_LONGEST = 1 << 16  # characters


def os_release(tree: Tree) -> dict[str, str]:
    """The settings of os-release, by name (``ID``, ``VERSION_ID``); none when it is not there."""
    said = text(tree, "/etc/os-release") or text(tree, "/usr/lib/os-release")
    return {found[1]: found[2] for found in _SETTING.finditer(said[:_LONGEST])}
