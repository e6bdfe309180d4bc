"""The gate's fast way through JSON lines: a block of whole lines at once, where nothing in it needs a closer look.

A block passes when it is proved that the row-by-row checks would find nothing in it: every row has exactly the columns
that the file's first rows have, all texts; roles follow lawfully; no key comes twice; no escape that could spell a
control character; nothing that could be personal data; no row that was seen before. Everything else goes row by row, so
that findings are the same either way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec
import numpy

from datasets_app.formats import MIB, Row
from datasets_app.personal import may_hold_personal_data
from datasets_app.validation import LONG_ROW_BYTES, check_order, checked_texts, row_hash

BLOCK_BYTES = MIB // 2
#: So many blocks are tried before a file counts as one that needs a closer look everywhere.
_TRIES = 16
_PLAIN_KEY = re.compile(r"[^\"\\\x00-\x1f:]{1,100}")
_NEWLINE, _RETURN, _QUOTE, _COLON, _BACKSLASH, _SPACE, _TAB = b'\n\r":\\ \t'
_OPEN, _CLOSE = b"{}"

Bytes = Any  # numpy.ndarray of uint8


class _Message(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    role: str
    content: str


class Block:
    """Whole lines that passed. ``starts``: where each begins; ``sizes``: their bytes without the newline."""

    __slots__ = ("data", "sizes", "starts")

    def __init__(self, data: bytes, starts: Bytes, sizes: Bytes) -> None:
        self.data = data
        self.starts = starts
        self.sizes = sizes

    def hashes(self) -> list[int]:
        """The hash of each line, equal to ``row_hash`` of its bytes."""
        view = memoryview(self.data)
        ends = self.starts + self.sizes
        return [row_hash(view[start:end]) for start, end in zip(self.starts.tolist(), ends.tolist(), strict=True)]


class FastLines:
    """Judges blocks of one file, whose first rows say what its rows look like."""

    def __init__(self, kind: str, signature: Mapping[str, type]) -> None:
        self.signature = tuple(signature.items())
        self._texts = checked_texts(kind)
        self._has_messages = "messages" in signature
        self._num_keys = len(signature)
        fields: list[Any] = []
        self._text_fields: list[str] = []
        for number, name in enumerate(signature):
            kind_of_field: Any = list[_Message] if name == "messages" else str
            fields.append((f"f{number}", kind_of_field, msgspec.field(name=name)))
            if name in self._texts:
                self._text_fields.append(f"f{number}")
        row = msgspec.defstruct("FastRow", fields, gc=False, forbid_unknown_fields=True)
        self._decode: Callable[[bytes], list[Any]] = msgspec.json.Decoder(row).decode_lines
        self._messages = f"f{list(signature).index('messages')}" if self._has_messages else ""
        self._lawful: set[tuple[str, ...]] = set()
        self._tried = self._passed = 0

    @classmethod
    def for_rows(cls, kind: str, rows: Sequence[Row]) -> FastLines | None:
        """None where rows of this kind, or with such columns, are always looked at one by one."""
        if not rows or not (kind == "messages" or checked_texts(kind)):
            return None
        first = {name: type(value) for name, value in rows[0].items()}
        wanted = {name: list if name == "messages" else str for name in first}
        is_even = all({name: type(value) for name, value in row.items()} == wanted for row in rows)
        if not is_even or not all(map(_PLAIN_KEY.fullmatch, first)) or (("messages" in first) != (kind == "messages")):
            return None
        return cls(kind, wanted)

    @property
    def is_worth_trying(self) -> bool:
        """Most blocks so far have passed."""
        return self._tried < _TRIES or 2 * self._passed >= self._tried

    def passed(self, data: bytes) -> Block | None:
        """The block, if the row-by-row checks would find nothing in it but rows that repeat earlier ones."""
        self._tried += 1
        bytes_of = numpy.frombuffer(data, dtype=numpy.uint8)
        ends = numpy.flatnonzero(bytes_of == _NEWLINE)
        starts = numpy.empty_like(ends)
        starts[0] = 0
        starts[1:] = ends[:-1] + 1
        sizes = ends - starts
        if not _is_plain(bytes_of, starts, ends, sizes) or may_hold_personal_data(data, bytes_of):
            return None
        try:
            rows = self._decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        num_keys = self._num_keys * len(rows)
        if self._has_messages:
            turns = list(map(attrgetter(self._messages), rows))
            num_keys += 2 * sum(map(len, turns))
            if not self._are_lawful(turns):
                return None
        if len(rows) != len(ends) or _num_keys(bytes_of) != num_keys:
            return None
        for field in self._text_fields:
            if not _have_text(list(map(attrgetter(field), rows))):
                return None
        self._passed += 1
        return Block(data, starts, sizes)

    def _are_lawful(self, turns: list[list[_Message]]) -> bool:
        for order in {tuple([message.role for message in messages]) for messages in turns} - self._lawful:
            if not order or check_order(order) is not None:
                return False
            if len(self._lawful) < 1000:
                self._lawful.add(order)
        return _have_text([messages[-1].content for messages in turns])


def _is_plain(bytes_of: Bytes, starts: Bytes, ends: Bytes, sizes: Bytes) -> bool:
    """Each line is an object with nothing around it, none is long, and no escape spells a control character."""
    if not (bytes_of[starts] == _OPEN).all() or not (bytes_of[ends - 1] == _CLOSE).all():
        return False
    if int(sizes.max()) > LONG_ROW_BYTES:
        return False
    # The last byte is a newline, so that there is one after each backslash; a cut escape is no JSON anyway.
    slashes = numpy.flatnonzero(bytes_of == _BACKSLASH)
    if not len(slashes):
        return True
    following = bytes_of[slashes + 1]
    if (following == ord("b")).any():
        return False
    escapes = slashes[following == ord("u")]
    return not len(escapes) or not (bytes_of[numpy.minimum(escapes + 2, len(bytes_of) - 1)] == ord("0")).any()


def _num_keys(bytes_of: Bytes) -> int:
    """How many keys a block has at most; -1 where blanks before a colon make that hard to say."""
    colons = numpy.flatnonzero(bytes_of == _COLON)
    before = bytes_of[colons - 1]
    blank = colons[(before == _SPACE) | (before == _TAB) | (before == _RETURN)]
    before_blank = bytes_of[blank - 2]
    if any(sign in (_QUOTE, _SPACE, _TAB, _RETURN) for sign in before_blank.tolist()):
        return -1
    return int(numpy.count_nonzero(before == _QUOTE))


def _have_text(texts: list[str]) -> bool:
    return all(texts) and not any(map(str.isspace, texts))
