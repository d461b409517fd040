"""Which of two versions is newer, by the rules of each family."""

import re
from functools import cmp_to_key
from itertools import zip_longest
from typing import Any

from calotype.guest.packages.package import Family

_RPM = re.compile(r"[0-9]+|[a-zA-Z]+|~|\^")
_APK = re.compile(
    r"([0-9]+(?:\.[0-9]+)*)([a-z]?)((?:_(?:alpha|beta|pre|rc|cvs|svn|git|hg|p)[0-9]*)*)"
    r"(?:~[0-9a-f]+)?(?:-r([0-9]+))?"
)
_APK_SUFFIX = {"alpha": -4, "beta": -3, "pre": -2, "rc": -1}
_APK_SUFFIX |= {"cvs": 1, "svn": 2, "git": 3, "hg": 4, "p": 5}
_DIGITS = re.compile(r"[0-9]*")
_OTHERS = re.compile(r"[^0-9]*")
_LONGEST = 4096  # characters that are looked at; no version is longer


def compare(family: Family, a: str, b: str) -> int:
    """Below zero when ``a`` is older than ``b``, above when it is newer, else zero."""
    return _COMPARE[family](a[:_LONGEST], b[:_LONGEST])


def deb(a: str, b: str) -> int:
    """As dpkg: epoch, upstream version, revision."""
    (epoch_a, rest_a), (epoch_b, rest_b) = _epoch(a), _epoch(b)
    up_a, _, rev_a = rest_a.rpartition("-") if "-" in rest_a else (rest_a, "", "")
    up_b, _, rev_b = rest_b.rpartition("-") if "-" in rest_b else (rest_b, "", "")
    return _sign(epoch_a, epoch_b) or _deb_part(up_a, up_b) or _deb_part(rev_a, rev_b)


def _deb_part(a: str, b: str) -> int:
    at_a = at_b = 0
    while at_a < len(a) or at_b < len(b):
        text_a, text_b = _OTHERS.match(a, at_a), _OTHERS.match(b, at_b)
        word_a, word_b = (m[0] if m else "" for m in (text_a, text_b))
        for sign_a, sign_b in zip_longest(word_a, word_b, fillvalue=""):
            if order := _sign(_deb_weight(sign_a), _deb_weight(sign_b)):
                return order
        at_a, at_b = at_a + len(word_a), at_b + len(word_b)
        digits_a, digits_b = _DIGITS.match(a, at_a), _DIGITS.match(b, at_b)
        number_a, number_b = (m[0] if m else "" for m in (digits_a, digits_b))
        if order := _numbers(number_a, number_b):
            return order
        at_a, at_b = at_a + len(number_a), at_b + len(number_b)
    return 0


def _deb_weight(sign: str) -> int:
    """A tilde sorts before the end, the end before letters, letters before all else."""
    if sign in ("~", ""):
        return -1 if sign else 0
    return ord(sign) if sign.isascii() and sign.isalpha() else ord(sign) + 256


def rpm(a: str, b: str) -> int:
    """As rpm: epoch, version, release."""
    (epoch_a, rest_a), (epoch_b, rest_b) = _epoch(a), _epoch(b)
    (version_a, _, release_a), (version_b, _, release_b) = (
        rest_a.partition("-"),
        rest_b.partition("-"),
    )
    return (
        _sign(epoch_a, epoch_b)
        or _rpm_part(version_a, version_b)
        or _rpm_part(release_a, release_b)
    )


def _rpm_part(a: str, b: str) -> int:
    for one, two in zip_longest(_RPM.findall(a), _RPM.findall(b), fillvalue=""):
        if one == two:
            continue
        if "~" in (one, two):  # sorts before everything, the end included
            return -1 if one == "~" else 1
        if "^" in (one, two):  # sorts after the end, before everything else
            caret = -1 if (two if one == "^" else one) else 1
            return caret if one == "^" else -caret
        if not one or not two:
            return 1 if one else -1
        if one.isdigit() != two.isdigit():  # numbers are newer than words
            return 1 if one.isdigit() else -1
        if order := _numbers(one, two) if one.isdigit() else _sign(one, two):
            return order
    return 0


def apk(a: str, b: str) -> int:
    """As apk; what is no version of its own is compared as text."""
    key_a, key_b = _apk_key(a), _apk_key(b)
    if key_a is None or key_b is None:
        return _sign(a, b)
    (first_a, *more_a), (first_b, *more_b) = key_a[0], key_b[0]
    order = _numbers(first_a, first_b)
    for one, two in zip_longest(more_a, more_b):
        if one is None or two is None:
            order = order or (-1 if one is None else 1)
        elif "0" in (one[0], two[0]):  # a fraction: 1.05 is older than 1.1
            order = order or _sign(one, two)
        else:
            order = order or _numbers(one, two)
    return order or _sign(key_a[1:], key_b[1:])


def _apk_key(text: str) -> tuple[Any, ...] | None:
    found = _APK.fullmatch(text)
    if found is None:
        return None
    suffixes = [
        (_APK_SUFFIX[name], _number(number))
        for name, number in re.findall(r"_([a-z]+)([0-9]*)", found[3])
    ]
    # The end of the suffixes stands between those that come before a release and those after it.
    return found[1].split("."), found[2], [*suffixes, (0, _number(""))], _number(found[4] or "")


def freebsd(a: str, b: str) -> int:
    """As pkg, near enough: epoch, version, port revision."""
    (rest_a, _, epoch_a), (rest_b, _, epoch_b) = a.partition(","), b.partition(",")
    (version_a, _, rev_a), (version_b, _, rev_b) = rest_a.partition("_"), rest_b.partition("_")
    return (
        _numbers(_only_digits(epoch_a), _only_digits(epoch_b))
        or _rpm_part(version_a, version_b)
        or _numbers(_only_digits(rev_a), _only_digits(rev_b))
    )


def _epoch(text: str) -> tuple[tuple[int, str], str]:
    epoch, colon, rest = text.partition(":")
    if not colon or not epoch.isascii() or not epoch.isdigit():
        return _number(""), text
    return _number(epoch), rest


def _number(digits: str) -> tuple[int, str]:
    """A number as something to compare, without the cost of a very long one."""
    short = digits.lstrip("0")
    return len(short), short


def _numbers(a: str, b: str) -> int:
    return _sign(_number(a), _number(b))


def _only_digits(text: str) -> str:
    return text if text.isascii() and text.isdigit() else ""


def _sign(a: Any, b: Any) -> int:
    return int(a > b) - int(a < b)


_COMPARE = {Family.DEB: deb, Family.RPM: rpm, Family.APK: apk, Family.FREEBSD: freebsd}
sort_key = {family: cmp_to_key(function) for family, function in _COMPARE.items()}
