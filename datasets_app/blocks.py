"""The gate's fast way through JSON lines: a block of whole lines at once, of which few rows need a closer look.

A row passes when it is proved that the row-by-row checks would find nothing in it: around its texts it has the bytes
of the file's first rows (``shapes``), so that its columns, their types and its roles are known; quotes and escapes
pair; no escape spells a control character or half a character; nothing could be personal data. Every other row goes
the slow way, in the file's order, so that findings are the same either way.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy
import pyarrow

from datasets_app.escapes import Escapes, begin_with_text
from datasets_app.formats import MIB, Row
from datasets_app.personal import places_of_personal_data
from datasets_app.shapes import Found, Rows, Shape, Words
from datasets_app.validation import LONG_ROW_BYTES, TEXTS, Signature, row_hash

#: Kinds whose rows may be all texts, and which of these must not be empty.
CHECKED = {
    **TEXTS,
    "messages": (),
    "preference": ("prompt", "chosen", "rejected"),
    "prompt": ("prompt",),
    "label": ("text",),
    "table": (),
}
BLOCK_BYTES = 4 * MIB
#: So many bytes are compared with every sign before the next ones: they stay in the cache.
_CACHED_BYTES = MIB // 8
#: Where more than one row in so many needs a closer look, all of the block get it.
ODD_SHARE = 8
#: A smaller block is not worth it, and its bytes can not be compared by eight.
_LEAST_BYTES = 32
#: So many blocks are tried before a file counts as one that needs a closer look everywhere.
_TRIES = 16
_NEWLINE, _QUOTE, _BACKSLASH, _DELETE, _AT = b'\n"\\\x7f@'
#: Bytes that mean something, beside control characters and quotes. Minus, underscore and A are in the marks of secrets.
_MARKS = tuple(bytes([sign]) for sign in (_BACKSLASH, _DELETE, _AT, *b"-_A"))

Bytes = Any  # numpy.ndarray of uint8
Places = Any  # numpy.ndarray of int64


@dataclass(slots=True)
class Block:
    """Whole lines. ``starts``: where each begins; ``sizes``: their bytes without the newline; ``is_odd``: which need a
    closer look; ``labels``: where each row's label begins and ends, for rows that have labels."""

    data: memoryview
    starts: Places
    sizes: Places
    is_odd: Any
    labels: tuple[Places, Places] | None = None

    def hashes(self) -> Any:
        """The hash of each line, equal to ``row_hash`` of its bytes: numpy array of uint64."""
        ends = self.starts + self.sizes
        data, hash_of = self.data, row_hash
        lines = zip(self.starts.tolist(), ends.tolist(), strict=True)
        return numpy.array([hash_of(data[start:end]) for start, end in lines], dtype=numpy.uint64)

    def bytes_of(self, first: int, behind: int) -> memoryview:
        """Some of the lines, from one to before another."""
        return self.data[self.starts[first] : self.starts[behind - 1] + self.sizes[behind - 1] + 1]

    def labels_of(self, first: int, behind: int) -> list[str]:
        """The labels of some of the rows; none where rows have no label."""
        if self.labels is None:
            return []
        begins, ends = (places[first:behind].tolist() for places in self.labels)
        return [json.loads(bytes(self.data[begin - 1 : end + 1])) for begin, end in zip(begins, ends, strict=True)]

    def parts(self, first: int = 0, behind: int | None = None) -> list[tuple[int, int, bool]]:
        """(first, behind, whether they need a closer look) of runs of lines among some or all of them, in order."""
        is_odd = self.is_odd[first:behind]
        borders = numpy.flatnonzero(is_odd[1:] != is_odd[:-1]) + first + 1
        edges = [first, *borders.tolist(), first + len(is_odd)]
        return [(edge, following, bool(self.is_odd[edge])) for edge, following in itertools.pairwise(edges)]


class FastLines:
    """Judges blocks of one file, whose first rows say what its rows look like."""

    def __init__(self, kind: str, signature: Mapping[str, type], shape: Shape) -> None:
        self.signature: Signature = tuple(signature.items())
        self._shape = shape
        self._kind = kind
        self._texts = CHECKED[kind]
        self._mask = numpy.empty(0, dtype=bool)
        self._mark = numpy.empty(_CACHED_BYTES, dtype=bool)
        self._tried = self._passed = 0

    @classmethod
    def for_rows(cls, kind: str, rows: Sequence[tuple[Row, bytes]]) -> FastLines | None:
        """None where rows of this kind, or with such columns, are always looked at one by one."""
        texts = CHECKED.get(kind)
        if not rows or texts is None:
            return None
        first = {name: type(value) for name, value in rows[0][0].items()}
        wanted = {name: list if name == "messages" else str for name in first}
        is_even = all({name: type(value) for name, value in row.items()} == wanted for row, _ in rows)
        if not is_even or (("messages" in first) != (kind == "messages")) or not set(texts) <= set(first):
            return None
        if {"target_modules", "rank", "responses"} & set(first) or (kind == "label" and "label" not in first):
            return None
        shapes = (Shape.learned(row, text) for row, text in rows)
        shape = next((shape for shape in shapes if shape is not None), None)
        return None if shape is None else cls(kind, wanted, shape)

    @property
    def is_worth_trying(self) -> bool:
        """Most blocks so far have passed."""
        return self._tried < _TRIES or 2 * self._passed >= self._tried

    def look(self, data: memoryview) -> Block | None:
        """Which of these lines the row-by-row checks would find nothing in but that they repeat earlier ones.

        ``data`` begins where the bytes that it is a view of begin, and ends with a newline. None: all the lines should
        be looked at one by one.
        """
        self._tried += 1
        if len(data) < _LEAST_BYTES:
            return None
        bytes_of = numpy.frombuffer(data, dtype=numpy.uint8)
        places = numpy.flatnonzero(self._marked(data, bytes_of))
        signs = bytes_of[places]
        ends = places[signs == _NEWLINE]
        starts = numpy.empty_like(ends)
        starts[0] = 0
        starts[1:] = ends[:-1] + 1
        sizes = ends - starts
        if not is_utf8(data):
            return None
        escapes = Escapes.of(bytes_of, places[signs == _BACKSLASH])
        doubtful = [places[((signs < 0x20) & (signs != _NEWLINE)) | (signs == _DELETE) | (signs == _AT)]]
        doubtful += [escapes.doubtful, places_of_personal_data(data, bytes_of, places[_is_mark(signs)])]
        if self._kind == "preference":
            doubtful.append(escapes.ambiguous)
        is_odd = sizes > LONG_ROW_BYTES
        is_odd[numpy.searchsorted(ends, numpy.concatenate(doubtful))] = True
        quotes = escapes.without_escaped(places[signs == _QUOTE])
        behind = numpy.searchsorted(quotes, ends)
        counts = numpy.diff(behind, prepend=0)
        is_odd |= ~self._shape.count_fits(counts)
        is_odd[0] |= not self._shape.can_be_first
        chosen = numpy.flatnonzero(~is_odd)
        if (len(ends) - len(chosen)) * ODD_SHARE > len(ends):
            return None
        rows = Rows(Words(data), quotes, (behind - counts)[chosen], counts[chosen], starts[chosen], ends[chosen])
        found = self._shape.find(rows)
        is_odd[chosen] = ~(found.is_of_shape & self._have_text(bytes_of, found))
        if numpy.count_nonzero(is_odd) * ODD_SHARE > len(ends):
            return None
        self._passed += 1
        return Block(data, starts, sizes, is_odd, self._labels(found, chosen, len(ends)))

    def _marked(self, data: memoryview, bytes_of: Bytes) -> Any:
        """Which bytes mean something. The same memory each time: new pages cost more than the comparisons."""
        size, whole = len(bytes_of), cast("bytes | bytearray", data.obj)
        signs = [mark[0] for mark in _MARKS if whole.find(mark, 0, size) >= 0]
        if len(self._mask) < size:
            self._mask = numpy.empty(size + MIB, dtype=bool)
        for begin in range(0, size, _CACHED_BYTES):
            piece = bytes_of[begin : begin + _CACHED_BYTES]
            mask, mark = self._mask[begin : begin + len(piece)], self._mark[: len(piece)]
            # A quote with this bit changed is 0x20, and control characters stay below that.
            numpy.bitwise_xor(piece, 2, out=mark.view(numpy.uint8))
            numpy.less_equal(mark.view(numpy.uint8), 0x20, out=mask)
            for sign in signs:
                numpy.equal(piece, sign, out=mark)
                numpy.bitwise_or(mask, mark, out=mask)
        return self._mask[:size]

    def _have_text(self, bytes_of: Bytes, found: Found) -> Any:
        """Whether what must not be empty begins with a character that is no blank; and a preference prefers."""
        begins = [found.texts[name][0] for name in self._texts]
        begins += [found.last[0]] if found.last is not None else []
        have = numpy.ones(len(found.is_of_shape), dtype=bool)
        for places in begins:
            have &= begin_with_text(bytes_of, places)
        if self._kind == "preference":
            chosen, rejected = (found.texts[name][1] - found.texts[name][0] for name in ("chosen", "rejected"))
            have &= chosen != rejected
        return have

    def _labels(self, found: Found, chosen: Any, num_rows: int) -> tuple[Places, Places] | None:
        if self._kind != "label":
            return None
        begins, ends = numpy.zeros(num_rows, dtype=numpy.int64), numpy.zeros(num_rows, dtype=numpy.int64)
        begins[chosen], ends[chosen] = found.texts["label"]
        return begins, ends


def is_utf8(data: bytes | memoryview) -> bool:
    """Whether bytes are UTF-8; three times as fast as to decode them."""
    bounds = pyarrow.py_buffer(numpy.array([0, len(data)], dtype=numpy.int32))
    text = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, bounds, pyarrow.py_buffer(data)])
    try:
        text.validate(full=True)
    except pyarrow.ArrowInvalid:
        return False
    return True


def _is_mark(signs: Bytes) -> Any:
    return (signs == ord("-")) | (signs == ord("_")) | (signs == ord("A"))
