"""The shape of rows that one program wrote: the bytes between their texts, learned from a file's first rows.

A row of the shape has exactly these bytes around its texts, so names, their order, types and roles are proved without
decoding it. Places are those of bytes in a block; ``quotes`` are the places of the quotes that begin and end a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from datasets_app.formats import Row
from datasets_app.validation import FOLLOWERS, ROLES

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_WORD = 8
#: Of a column: two quotes around its name, two around its text.
_COLUMN_QUOTES, _TURN_QUOTES = 4, 8

Places = Any  # numpy.ndarray of int64
Flags = Any  # numpy.ndarray of bool


class Words:
    """A block as 8-byte numbers, one from each place on."""

    def __init__(self, data: memoryview) -> None:
        self._words = numpy.ndarray((len(data) - _WORD + 1,), dtype="<u8", buffer=data, strides=(1,))

    def end_with(self, literal: bytes, ends: Places) -> Flags:
        """Whether the literal's last byte is at each place. No place may be less than 7 or less than the literal."""
        size = len(literal)
        if size < _WORD:
            number = int.from_bytes(literal, "little") << 8 * (_WORD - size)
            mask = (2**64 - 1) >> 8 * (_WORD - size) << 8 * (_WORD - size)
            same: Flags = (self._words[ends - (_WORD - 1)] & numpy.uint64(mask)) == numpy.uint64(number)
            return same
        same = numpy.ones(len(ends), dtype=bool)
        for offset in sorted({*range(0, size - _WORD + 1, _WORD), size - _WORD}):
            number = int.from_bytes(literal[offset : offset + _WORD], "little")
            same &= self._words[ends - (size - 1 - offset)] == numpy.uint64(number)
        return same


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a block. ``quotes``: of the whole block; ``first``: the number of each row's first one; ``counts``: how
    many each has; ``starts``, ``ends``: the places of each row's first byte and of its newline."""

    words: Words
    quotes: Places
    first: Places
    counts: Places
    starts: Places
    ends: Places


@dataclass(frozen=True, slots=True)
class Found:
    """Which rows have the shape, and where each of their columns' texts lies: name -> (begins, ends), by row.

    ``last``: the same of the last turn's content where there are turns. Both mean nothing in other rows.
    """

    is_of_shape: Flags
    texts: dict[str, tuple[Places, Places]]
    last: tuple[Places, Places] | None


@dataclass(frozen=True, slots=True)
class Shape:
    """``opening``: the bytes before the first text and between columns; ``within``: between the texts of a turn;
    ``between``: from turn to turn; ``closing``: after the last turn, between columns, and to the row's end.
    Without turns the columns are in ``opening``, and ``closing`` is the end. All with the quotes around the texts."""

    columns: tuple[str, ...]
    opening: tuple[bytes, ...]
    closing: tuple[bytes, ...]
    has_turns: bool = False
    is_role_first: bool = True
    within: bytes = b""
    between: bytes = b""

    @classmethod
    def learned(cls, row: Row, text: bytes) -> Shape | None:
        """That of a row of texts, maybe with ``messages`` of two turns or more; None where it has no plain one."""
        strings = [(found.start(), found.end() - 1) for found in _STRING.finditer(text)]
        values = _numbers_of_values(row)
        if values is None or len(strings) != values[-1] + 1:
            return None
        opens, closes = ([strings[number][side] for number in values] for side in (0, 1))
        begins = [0, *closes]
        pieces = [text[begin : end + 1] for begin, end in zip(begins, [*opens, len(text) - 1], strict=True)]
        columns = tuple(name for name in row if name != "messages")
        if "messages" not in row:
            shape = cls(columns, tuple(pieces[:-1]), tuple(pieces[-1:]))
        else:
            turns = row["messages"]
            before = list(row).index("messages")
            inner = pieces[before + 1 : before + 2 * len(turns)]
            withins, betweens = set(inner[0::2]), set(inner[1::2])
            if len(withins) != 1 or len(betweens) != 1 or len({tuple(turn) for turn in turns}) != 1:
                return None
            closing = tuple(pieces[before + 2 * len(turns) :])
            shape = cls(
                columns, tuple(pieces[: before + 1]), closing, has_turns=True, within=withins.pop(),
                between=betweens.pop(), is_role_first=next(iter(turns[0])) == "role",
            )  # fmt: skip
        return shape

    def count_fits(self, counts: Places) -> Flags:
        """Whether a row may have so many quotes."""
        if not self.has_turns:
            fits: Flags = counts == _COLUMN_QUOTES * len(self.columns)
            return fits
        left = counts - self._quotes_beside_turns
        are_turns: Flags = (left > 0) & (left % _TURN_QUOTES == 0)
        return are_turns

    @property
    def can_be_first(self) -> bool:
        """Whether the first bytes of a block can be compared by eight."""
        return len(self.opening[0]) >= _WORD

    @property
    def _quotes_beside_turns(self) -> int:
        return _COLUMN_QUOTES * len(self.columns) + 2

    def find(self, rows: Rows) -> Found:
        """Look at rows whose counts of quotes fit."""
        before = self.opening[:-1] if self.has_turns else self.opening
        opens, closes, fits = _columns(rows, rows.first, rows.starts, before)
        behind, last = closes[-1] if closes else rows.starts, None
        if self.has_turns:
            opened = rows.quotes[rows.first + _COLUMN_QUOTES * len(before) + 4]
            fits &= opened - behind == len(self.opening[-1]) - 1
            fits &= rows.words.end_with(self.opening[-1], opened)
            last, are_turns = self._turns(rows)
            fits &= are_turns
            behind = rows.quotes[rows.first + rows.counts - _COLUMN_QUOTES * (len(self.closing) - 1) - 1]
        number = rows.first + rows.counts - _COLUMN_QUOTES * (len(self.closing) - 1)
        more_opens, more_closes, are_columns = _columns(rows, number, behind, self.closing[:-1])
        fits &= are_columns
        behind = more_closes[-1] if more_closes else behind
        fits &= rows.ends - behind == len(self.closing[-1])
        fits &= rows.words.end_with(self.closing[-1], rows.ends - 1)
        texts = zip(self.columns, [*opens, *more_opens], [*closes, *more_closes], strict=True)
        return Found(fits, {name: (begin + 1, end) for name, begin, end in texts}, last)

    def _turns(self, rows: Rows) -> tuple[tuple[Places, Places], Flags]:
        """Where each row's last content begins and ends, and which rows' turns are of the shape and lawful."""
        counts = (rows.counts - self._quotes_beside_turns) // _TURN_QUOTES
        behind = numpy.cumsum(counts)
        row_of = numpy.repeat(numpy.arange(len(counts)), counts)
        turn = numpy.arange(len(row_of)) - numpy.repeat(behind - counts, counts)
        base = rows.first[row_of] + _COLUMN_QUOTES * (len(self.opening) - 1) + 2 + _TURN_QUOTES * turn
        opens, closes = (rows.quotes[base + 2], rows.quotes[base + 6]), (rows.quotes[base + 3], rows.quotes[base + 7])
        fits = (opens[1] - closes[0] == len(self.within) - 1) & rows.words.end_with(self.within, opens[1])
        follow = numpy.flatnonzero(turn > 0)
        distance = opens[0][follow] - closes[1][follow - 1]
        fits[follow] &= distance == len(self.between) - 1
        fits[follow] &= rows.words.end_with(self.between, opens[0][follow])
        role, content = (0, 1) if self.is_role_first else (1, 0)
        codes = _role_codes(rows.words, opens[role], closes[role])
        before = numpy.empty_like(codes)
        before[1:] = codes[:-1]
        before[turn == 0] = len(ROLES)
        fits &= _LAWFUL[before, codes]
        last = behind - 1
        is_fit = codes[last] == ROLES.index("assistant")
        numpy.logical_and.at(is_fit, row_of[~fits], False)
        return (opens[content][last] + 1, closes[content][last]), is_fit


def _columns(
    rows: Rows, number: Places, behind: Places, literals: Sequence[bytes]
) -> tuple[list[Places], list[Places], Flags]:
    """The quotes of columns in a row, and whether these bytes are before each: from ``behind`` to the opening quote.

    ``number``: that of each row's first quote of them; ``behind``: where the first of the bytes has to be.
    """
    opens, closes, fits = [], [], numpy.ones(len(number), dtype=bool)
    for place, literal in enumerate(literals):
        at = number + _COLUMN_QUOTES * place + 2
        opening, closing = rows.quotes[at], rows.quotes[numpy.minimum(at + 1, len(rows.quotes) - 1)]
        fits &= (opening - behind == len(literal) - 1) & rows.words.end_with(literal, opening)
        behind = closing
        opens.append(opening)
        closes.append(closing)
    return opens, closes, fits


def _numbers_of_values(row: Mapping[str, Any]) -> list[int] | None:
    """Which of a row's strings, names included, are texts; None where something else is in it."""
    number, values = 0, []
    for name, value in row.items():
        number += 1
        if name == "messages" and isinstance(value, list) and len(value) > 1:
            for turn in value:
                if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
                    return None
                values += [number + 1, number + 3]
                number += 4
        else:
            values.append(number)
            number += 1
    return values or None


def _role_codes(words: Words, opens: Places, closes: Places) -> Any:
    """The number of each role in ``ROLES``; one more than those of all for what is none."""
    codes = numpy.full(len(opens), len(ROLES), dtype=numpy.int8)
    sizes = closes - opens + 1
    for code, role in enumerate(ROLES):
        quoted = f'"{role}"'.encode()
        same = numpy.flatnonzero(sizes == len(quoted))
        codes[same[words.end_with(quoted, closes[same])]] = code
    return codes


def _lawful() -> Flags:
    """[role before, role] -> whether it may follow; the last row is the start, the last column no role."""
    table = numpy.zeros((len(ROLES) + 1, len(ROLES) + 1), dtype=bool)
    for before, followers in FOLLOWERS.items():
        for role in followers:
            table[ROLES.index(before) if before else len(ROLES), ROLES.index(role)] = True
    return table


_LAWFUL = _lawful()
