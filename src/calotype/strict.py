"""JSON from strangers: one meaning, bounded size and depth; and JSON for digests: one spelling."""

import json
import re
from typing import Any, NoReturn

from calotype.errors import InvalidInput

_DEPTH = 24
_DIGITS = 20  # of a whole number

# Texts of TOML, where brackets mean nothing; one without an end reaches to the end of the data (of the line).
_TOML_TEXT = re.compile(
    rb'"""(?:[^"\\]|\\.|"(?!""))*+(?:"{3,5}+)?'
    rb"|'''(?:[^']|'(?!''))*+(?:'{3,5}+)?"
    rb'|"(?:[^"\\\n]|\\.)*+"?'
    rb"|'[^'\n]*+'?"
    rb"|#[^\n]*+",
    re.DOTALL,
)
_BRACKETS = b"[]{}"
_OTHER = bytes(set(range(256)) - set(_BRACKETS))
_OTHER_IN_JSON = bytes(set(_OTHER) - set(b'"'))


def canonical(value: Any) -> bytes:
    """The one spelling of a value: keys in order, no spaces, UTF-8."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def read_json(data: bytes, *, limit: int, what: str) -> Any:
    """Parse JSON that readers cannot disagree about.

    Refused are keys that come twice, numbers that are not whole or longer than 64 bits need, halves of
    UTF-16 pairs, nesting deeper than 24, a byte-order mark, and more than ``limit`` bytes.

    Raises:
        InvalidInput: it is not such JSON; ``what`` names it in the message.
    """
    if len(data) > limit:
        raise InvalidInput(f"{what} is larger than {limit} bytes")
    require_shallow(data, what)
    try:
        text = data.decode()
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
        _require_shape(value)
    except UnicodeDecodeError:
        raise InvalidInput(f"{what} is not UTF-8") from None
    except ValueError as error:
        raise InvalidInput(f"{what} is not JSON that can be trusted: {error}") from None
    return value


def require_shallow(data: bytes, what: str, *, toml: bool = False) -> None:
    """Refuse JSON (or TOML) whose arrays and objects are deeper than 48, before a parser sees it.

    Parsers go down with the data. One that ends in a RecursionError is too late: what Python happens to
    tidy up at that depth fails too, silently.

    Raises:
        InvalidInput: it is so deep, or its brackets have no partners; ``what`` names it.
    """
    if toml:
        brackets = _TOML_TEXT.sub(b"", data).translate(None, _OTHER)
    else:  # by far the most data, and partly of those who have no keys: without an object for each text
        data = data.replace(rb"\\", b"").replace(rb"\"", b"")
        data = data.translate(None, _OTHER_IN_JSON).replace(b'""', b"")
        brackets = b"".join(data.split(b'"')[::2])
    for _ in range(_DEPTH):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets:
        raise InvalidInput(f"{what} is nested too deeply, or a bracket has no partner")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError("a number is too long")
    return int(digits)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:_DIGITS]} is no whole number")


def _require_shape(value: Any) -> None:
    """Bound the nesting, and refuse text that is no text."""
    level, todo = 0, [value]
    while todo:
        level += 1
        if level > _DEPTH:
            raise ValueError("it is nested too deeply")
        below: list[Any] = []
        for item in todo:
            if isinstance(item, str):
                item.encode()  # UnicodeEncodeError is a ValueError
            elif isinstance(item, dict):
                "".join(item).encode()
                below += item.values()
            elif isinstance(item, list):
                below += item
        todo = below
