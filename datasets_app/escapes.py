"""Escapes in the JSON strings of a block of bytes: all at once, without decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy

Bytes = Any  # numpy.ndarray of uint8
Places = Any  # numpy.ndarray of int64
Flags = Any  # numpy.ndarray of bool

_BACKSLASH, _QUOTE, _SLASH, _UNICODE = b'\\"/u'
_ESCAPE_BYTES = 6
_IDEOGRAPHIC_SPACE = 0x3000


def _table(members: bytes) -> Flags:
    table = numpy.zeros(256, dtype=bool)
    table[list(members)] = True
    return table


#: What may follow a backslash without a closer look: all of JSON's but ``\b``, which is a control character.
_LAWFUL = _table(b'"\\/fnrtu')
_NO_BLANK_ESCAPE = _table(b'"\\/')
#: First bytes of characters that are surely no blank: printable ASCII, and UTF-8 but for the lead bytes of blanks.
_NO_BLANK = _table(bytes({*range(0x21, 0x7F), *range(0xC3, 0xE0), *range(0xE4, 0xF5)} - {_QUOTE, _BACKSLASH}))
#: ASCII that personal data is made of; no program spells it as ``\\u0031`` but to hide it.
_TELLING = _table(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz@._%+- ")
_HEX = numpy.full(256, -1, dtype=numpy.int32)
for _digit in b"0123456789abcdefABCDEF":
    _HEX[_digit] = int(chr(_digit), 16)


@dataclass(frozen=True, slots=True)
class Escapes:
    """Places in a block. ``quotes``: of quotes that belong to a text; ``doubtful``: of escapes that are none, or that
    spell a control character, half of a surrogate pair or what may hide personal data; ``ambiguous``: of those that
    can be written otherwise."""

    quotes: Places
    doubtful: Places
    ambiguous: Places

    @classmethod
    def of(cls, bytes_of: Bytes, backslashes: Places) -> Self:
        """``backslashes``: their places, ascending. The last byte of the block is a newline."""
        if not len(backslashes):
            return cls(backslashes, backslashes, backslashes)
        order = numpy.arange(len(backslashes))
        begins_run = numpy.ones(len(backslashes), dtype=bool)
        begins_run[1:] = backslashes[1:] != backslashes[:-1] + 1
        first_of_run = numpy.maximum.accumulate(numpy.where(begins_run, order, 0))
        begins = backslashes[(order - first_of_run) % 2 == 0]
        following = bytes_of[begins + 1]
        unicode = begins[following == _UNICODE]
        doubtful = numpy.concatenate([begins[~_LAWFUL[following]], unicode[_are_doubtful(bytes_of, unicode)]])
        ambiguous = begins[(following == _UNICODE) | (following == _SLASH)]
        return cls(begins[following == _QUOTE] + 1, doubtful, ambiguous)

    def without_escaped(self, quotes: Places) -> Places:
        """Of all quotes of the block those that begin or end a string."""
        if not len(self.quotes):
            return quotes
        stays = numpy.ones(len(quotes), dtype=bool)
        stays[numpy.searchsorted(quotes, self.quotes)] = False
        return quotes[stays]


def begin_with_text(bytes_of: Bytes, places: Places) -> Flags:
    """Whether a string, whose first bytes are here, surely begins with a character that is no blank."""
    first = bytes_of[places]
    is_text: Flags = _NO_BLANK[first]
    escaped = numpy.flatnonzero(first == _BACKSLASH)
    if len(escaped):
        at = places[escaped]
        following = bytes_of[at + 1]
        is_far = (following == _UNICODE) & (_code_units(bytes_of, at) > _IDEOGRAPHIC_SPACE)
        is_text[escaped] = _NO_BLANK_ESCAPE[following] | is_far
    return is_text


def _code_units(bytes_of: Bytes, places: Places) -> Any:
    """The UTF-16 code units of the escapes ``\\uXXXX`` at places; -1 where they are none."""
    last = len(bytes_of) - 1
    digits = [_HEX[bytes_of[numpy.minimum(places + number, last)]] for number in range(2, _ESCAPE_BYTES)]
    value = numpy.zeros(len(places), dtype=numpy.int32)
    for digit in digits:
        value = value * 16 + digit
    return numpy.where(numpy.minimum.reduce(digits) < 0, -1, value)


def _are_doubtful(bytes_of: Bytes, unicode: Places) -> Flags:
    """Which ``\\uXXXX`` are no four hexadecimal digits, spell a control or telling character, or half a pair."""
    units = _code_units(bytes_of, unicode)
    is_high, is_low = (units >= 0xD800) & (units < 0xDC00), (units >= 0xDC00) & (units < 0xE000)
    is_pair = is_high[:-1] & is_low[1:] & (unicode[1:] == unicode[:-1] + _ESCAPE_BYTES)
    is_half = is_high | is_low
    is_half[:-1] &= ~is_pair
    is_half[1:] &= ~is_pair
    doubtful: Flags = (units < 0x20) | (units == 0x7F) | is_half
    doubtful |= (units < 0x80) & _TELLING[units & 0x7F]
    return doubtful
