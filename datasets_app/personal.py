"""Personal data and secrets in texts: found, counted, and replaced on request.

What has a check digit is checked (GB 11643 for Chinese identity numbers, Luhn for bank cards), so that order numbers
and timestamps are not mistaken for it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy


@dataclass(frozen=True, slots=True)
class Pattern:
    """One kind of personal data. ``is_valid``: a second look at what the expression matched."""

    kind: str
    expression: re.Pattern[str]
    placeholder: str
    is_valid: Callable[[str], bool] = lambda text: True


def is_identity_number(text: str) -> bool:
    """The check character of an 18-digit identity number is right (GB 11643-1999, ISO 7064 MOD 11-2)."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(weight * int(digit) for weight, digit in zip(weights, text, strict=False))
    return "10X98765432"[total % 11] == text[-1].upper()


def is_card_number(text: str) -> bool:
    """13 to 19 digits whose Luhn sum is right (ISO/IEC 7812-1)."""
    digits = [int(character) for character in text if character.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [digit * 2 - 9 * (digit > 4) if place % 2 else digit for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


#: In the order in which they are replaced: an identity number is no card, a card is no telephone number.
PATTERNS: tuple[Pattern, ...] = (
    Pattern(
        "private_key",
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----)?"),
        "[PRIVATE_KEY]",
    ),
    Pattern(
        "api_key",
        re.compile(
            r"(?<![A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|AKIA[0-9A-Z]{16}"
            r"|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{35}|hf_[A-Za-z0-9]{30,}|clv_[A-Za-z0-9_-]{30,})"
        ),
        "[API_KEY]",
    ),
    Pattern(
        "email",
        re.compile(  # Chinese, which has no spaces, may stand before and behind it
            r"(?<![A-Za-z0-9_.+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9_-])"
        ),
        "[EMAIL]",
    ),
    Pattern(
        "identity_number",
        re.compile(r"(?<![0-9])[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[0-9Xx](?![0-9])"),
        "[IDENTITY_NUMBER]",
        is_identity_number,
    ),
    Pattern("bank_card", re.compile(r"(?<![0-9])[2-6]\d{12,18}(?![0-9])"), "[BANK_CARD]", is_card_number),
    Pattern("phone", re.compile(r"(?<![0-9])(?:\+?86[ -]?)?1[3-9]\d{9}(?![0-9])"), "[PHONE]"),
)
#: Whatever stands before it: that may be the digits of an escape.
_API_KEY = re.compile(PATTERNS[1].expression.pattern.removeprefix("(?<![A-Za-z0-9])").encode())
KINDS = tuple(pattern.kind for pattern in PATTERNS)
_PRIVATE_KEY = re.compile(b"PRIVATE KEY")
_PLACEHOLDER = re.compile(r"\[[A-Z_]+\]")
#: Digits of the shortest number that could be personal.
_LONG_NUMBER = 11
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_KEY_MARKS = (
    *(b"sk-", b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_"),
    *(b"AKIA", b"xox", b"AIza", b"hf_", b"clv_"),
)


def places_of_personal_data(data: memoryview, bytes_of: Any, signs: Any) -> Any:
    """Places of a block, a row of which may only hold a find of ``kinds_in`` where one of them is in it, or an ``@``.

    ``bytes_of``: the block as numpy array; ``signs``: where ``-``, ``_`` and ``A`` are in it. All places: int64.
    """
    inner = signs[(signs >= 3) & (signs < len(bytes_of) - 4)]
    is_capital = bytes_of[inner] == ord("A")
    capitals, ends = inner[is_capital], inner[~is_capital]
    last, middle, first = (bytes_of[ends - before] for before in (1, 2, 3))
    found: list[int] = []
    if ((last == ord("-")) & (middle == ord("-"))).any():
        found += [match.start() for match in _PRIVATE_KEY.finditer(data)]
    # Before the sign: sk, ghp (gho ghu ghs ghr), hf, clv, xox and a letter.
    marked = (last == ord("k")) & (middle == ord("s"))
    marked |= (middle == ord("h")) & (first == ord("g"))
    marked |= (last == ord("f")) & (middle == ord("h"))
    marked |= (last == ord("v")) & (middle == ord("l"))
    marked |= (middle == ord("x")) & (first == ord("o"))
    found += [end for end in ends[marked].tolist() if _API_KEY.search(data, max(0, end - 8), end + 80)]
    following = bytes_of[capitals + 1]
    capitals = capitals[(following == ord("K")) | (following == ord("I"))]
    found += [place for place in capitals.tolist() if bytes(data[place : place + 4]) in (b"AKIA", b"AIza")]
    return numpy.concatenate([numpy.array(found, dtype=numpy.int64), _long_numbers(bytes_of)])


def _long_numbers(bytes_of: Any) -> Any:
    """A place within each run of 11 digits or more that is in a string: it fills two words of four bytes."""
    last = len(bytes_of) - 1
    words = bytes_of[: len(bytes_of) & -4].view(numpy.uint32)
    may_be = (words & 0xF0F0F0F0) == 0x30303030  # digits, and six signs more
    places = numpy.flatnonzero(may_be[:-1] & may_be[1:]) * 4
    places = places[(bytes_of[places] - 48) < 10]
    length = numpy.zeros(len(places), dtype=numpy.int64)
    for direction in (1, -1):
        goes_on = numpy.ones(len(places), dtype=bool)
        for step in range(1, _LONG_NUMBER):
            at = places + direction * step
            goes_on &= (bytes_of[numpy.clip(at, 0, last)] - 48) < 10
            goes_on &= (at >= 0) & (at <= last)
            if not goes_on.any():
                break
            length += goes_on
    return places[length + 1 >= _LONG_NUMBER]


def kinds_in(text: bytes) -> Counter[str]:
    """Kind -> how often it is in a row's JSON, which has no ``\\u``. Most rows are passed over by a few searches."""
    found: Counter[str] = Counter()
    wanted = set()
    if b"@" in text:
        wanted.add("email")
    if b"PRIVATE KEY" in text:
        wanted.add("private_key")
    if any(mark in text for mark in _KEY_MARKS):
        wanted.add("api_key")
    if b"00000000000" in text.translate(_ZEROS):
        wanted |= {"identity_number", "bank_card", "phone"}
    if wanted:
        replaced(text.decode(), wanted, found)
    return found


def replaced(text: str, kinds: Iterable[str], counts: Counter[str] | None = None) -> str:
    """The text with placeholders such as [EMAIL] for each find of these kinds, which ``counts`` then has."""
    wanted = set(kinds)
    for pattern in PATTERNS:
        if pattern.kind not in wanted:
            continue

        def place(match: re.Match[str], pattern: Pattern = pattern) -> str:
            if not pattern.is_valid(match[0]):
                return match[0]
            if counts is not None:
                counts[pattern.kind] += 1
            return pattern.placeholder

        text = pattern.expression.sub(place, text)
    return text


def deidentified(row: dict[str, Any], kinds: Iterable[str], counts: Counter[str]) -> dict[str, Any]:
    """A row with every text, number and name in it replaced, however deep; a number becomes the placeholder's text."""
    wanted = set(kinds)

    def done(value: Any) -> Any:
        if isinstance(value, str):
            return replaced(value, wanted, counts)
        if isinstance(value, list):
            return [done(item) for item in value]
        if isinstance(value, dict):
            return _renamed({name: done(item) for name, item in value.items()}, lambda name: str(done(name)))
        if isinstance(value, int | float) and not isinstance(value, bool):
            found = _PLACEHOLDER.search(replaced(json.dumps(value), wanted, counts))
            return found[0] if found else value
        return value

    cleaned: dict[str, Any] = done(row)
    return cleaned


def _renamed(value: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """An object under changed names; what would have the name of another one gets a number behind it."""
    renamed: dict[str, Any] = {}
    for name, item in value.items():
        new = wanted = change(name)
        number = 1
        while new in renamed or (new != name and new in value):
            number += 1
            new = f"{wanted} {number}"
        renamed[new] = item
    return renamed


def in_every_text(value: Any, change: Callable[[str], str]) -> Any:
    """A value with every text in it changed, however deep; names stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [in_every_text(item, change) for item in value]
    if isinstance(value, dict):
        return {key: in_every_text(item, change) for key, item in value.items()}
    return value
