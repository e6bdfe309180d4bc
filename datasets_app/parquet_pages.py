"""What the pages of a Parquet file unpack to, read from their headers before any page is (in Thrift's protocol)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_MAX_DEPTH = 16
#: Values in a page's header; real ones have some thirty. A list may claim any number of values that take no bytes.
_MAX_VALUES = 10_000
_DICTIONARY_PAGE = 2
#: Fields of a page's header.
_TYPE, _UNPACKED, _PACKED = 1, 2, 3
#: Thrift's types.
_BYTE, _NUMBERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = 3, (4, 5, 6), 7, 8, (9, 10), 12
_TRUTHS = (1, 2)


class BadHeader(ValueError):
    """Bytes where a page's header should be are none."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One column of one row group: bytes that its dictionary, its largest page and all of them unpack to."""

    dictionary: int
    page: int
    total: int


def chunks_of(path: Path, metadata: Any) -> list[list[Chunk]]:
    """For each row group its column chunks. ``metadata``: pyarrow's FileMetaData. Raises BadHeader."""
    with open(path, "rb") as stream:
        return [
            [_chunk(stream, group.column(number)) for number in range(group.num_columns)]
            for group in map(metadata.row_group, range(metadata.num_row_groups))
        ]


def _chunk(stream: BinaryIO, column: Any) -> Chunk:
    at = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < at:
        at = column.dictionary_page_offset
    end = at + column.total_compressed_size
    dictionary = page = total = 0
    while 0 < at < end:
        stream.seek(at)
        header = _struct(stream, iter(range(_MAX_VALUES)))
        unpacked, packed = header.get(_UNPACKED, -1), header.get(_PACKED, -1)
        if unpacked < 0 or packed < 0:
            raise BadHeader(f"a page at byte {at:,} has no size")
        if header.get(_TYPE) == _DICTIONARY_PAGE:
            dictionary = max(dictionary, unpacked)
        else:
            page = max(page, unpacked)
        total += unpacked
        at = stream.tell() + packed
    return Chunk(dictionary, page, total)


def _struct(stream: BinaryIO, budget: Iterator[int], depth: int = 0) -> dict[int, int]:
    """The fields of a struct that are whole numbers; all others are passed over. ``budget``: an item for each value."""
    if depth > _MAX_DEPTH:
        raise BadHeader("a page's header is nested too deep")
    found: dict[int, int] = {}
    field = 0
    while (head := _byte(stream)) != 0:
        field = field + (head >> 4) if head >> 4 else _number(stream)
        value = 0 if head & 15 in _TRUTHS else _value(stream, head & 15, budget, depth)
        found[field] = value
    return found


def _value(stream: BinaryIO, kind: int, budget: Iterator[int], depth: int) -> int:
    """A value that is a whole number; 0 for any other, which is passed over."""
    if next(budget, None) is None:
        raise BadHeader(f"a page's header has more than {_MAX_VALUES:,} values")
    if kind in _NUMBERS:
        return _number(stream)
    if kind in (_BYTE, *_TRUTHS):
        return _byte(stream)
    if kind == _DOUBLE:
        stream.seek(8, 1)
    elif kind == _BINARY:
        stream.seek(_unsigned(stream), 1)
    elif kind in _LISTS:
        head = _byte(stream)
        for _ in range(_unsigned(stream) if head >> 4 == 15 else head >> 4):
            _value(stream, head & 15, budget, depth + 1)
    elif kind == _STRUCT:
        _struct(stream, budget, depth + 1)
    else:
        raise BadHeader(f"a page's header has a field of the type {kind}")
    return 0


def _number(stream: BinaryIO) -> int:
    value = _unsigned(stream)
    return (value >> 1) ^ -(value & 1)


def _unsigned(stream: BinaryIO) -> int:
    value = shift = 0
    while (byte := _byte(stream)) & 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 63:
            raise BadHeader("a page's header has a number of more than 64 bits")
    return value | byte << shift


def _byte(stream: BinaryIO) -> int:
    byte = stream.read(1)
    if not byte:
        raise BadHeader("the file ends within a page's header")
    return byte[0]
