"""Parquet files, batch by batch in bounded memory; values become what JSON can say.

A few bytes can stand for a lot: a text that a million rows share is stored once, and pages are compressed. So pages are
measured first, and so many rows are unpacked at once as fit into memory if each had the largest text there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from datasets_app.findings import Findings, StopReading
from datasets_app.formats import MAX_ROW_BYTES, MIB, Item, Row, too_large
from datasets_app.parquet_pages import BadHeader, Chunk, chunks_of
from datasets_app.strict_json import encode_row, row_faults

#: Pages that are in memory at once: of each column of a row group its dictionary and one page more.
MAX_PAGES_BYTES = 256 * MIB
#: Rows, bytes, and values of lists, that are unpacked at once; one row may have more.
_BATCH_ROWS, _BATCH_BYTES, _BATCH_VALUES = 256, 64 * MIB, 2**18
#: Texts in lists stay in their dictionary where all that a column holds is no larger than this.
_SMALL_CHUNK_BYTES = 16 * MIB
_MAGIC = b"PAR1"
#: The shortest file: magic, an empty footer, its length, magic.
_LEAST_BYTES = 12


class NoJson(ValueError):
    """A value that JSON can not say."""


class Parquet:
    """Rows of a Parquet file; the line number of a row is its number, from 1."""

    is_canonical = False

    def __init__(self, path: Path, findings: Findings) -> None:
        self._path = path
        self._findings = findings

    def __iter__(self) -> Iterator[Item]:
        check_frame(self._path, self._findings)
        number = 0
        try:
            with pyarrow.parquet.ParquetFile(self._path) as file:
                chunks = chunks_of(self._path, file.metadata)
            self._refuse_large_pages(chunks)
            with _opened(self._path, chunks) as file:
                for values, size in _rows_of(file, chunks):
                    number += 1
                    item = self._item(number, values, size)
                    if item is not None:
                        yield item
        except (pyarrow.ArrowException, OSError, BadHeader) as fault:
            where = f"after row {number}" if number else "at its start"
            message = f"the Parquet file is damaged {where}: {str(fault).splitlines()[0][:200]}."
            self._findings.error(number, message, code="corrupt_file", reason="corrupt_file")
            raise StopReading from fault

    def _refuse_large_pages(self, chunks: list[list[Chunk]]) -> None:
        size = max((sum(chunk.dictionary + chunk.page for chunk in group) for group in chunks), default=0)
        if size > MAX_PAGES_BYTES:
            message = (
                f"pages of the Parquet file unpack to {size / MIB:,.0f} MiB at once; "
                f"up to {MAX_PAGES_BYTES // MIB} MiB are read. "
                "Write it with smaller pages (data_page_size, write_batch_size), or as JSONL."
            )
            self._findings.error(0, message, code="too_large", reason="too_large")
            raise StopReading

    def _item(self, number: int, values: Mapping[str, Any], size: int) -> Item | None:
        """``values``: column -> Arrow's scalar; ``size``: bytes that the row's texts have at least."""
        if size > MAX_ROW_BYTES:
            too_large(self._findings, number, ", ".join(values))
            return None
        column, row = "", Row()
        try:
            for column, value in values.items():
                row[column] = plain(value.as_py())
            text = encode_row(row).encode()
        except NoJson as fault:
            message = f"the column {column!r} holds {fault}; store it as text or leave it out."
            sample = repr(values[column].as_py())
            self._findings.error(number, message, reason="no_json_value", sample=f"{column}: {sample}")
            return None
        except UnicodeEncodeError:
            self._findings.error(number, "a text has a lone surrogate.", reason="lone_surrogate", sample=row)
            return None
        if len(text) > MAX_ROW_BYTES:
            too_large(self._findings, number, text)
            return None
        if (problem := row_faults(row, text)) is not None:
            self._findings.error(number, problem[1], reason=problem[0], sample=text)
            return None
        return number, row, text


def text_bytes(values: Any) -> Any:
    """For each value of an Arrow array the bytes that it has at least in JSON: numpy array of int64."""
    kind, types = values.type, pyarrow.types
    if _is_text(kind):
        return _numbers(pyarrow.compute.binary_length(values))
    if types.is_dictionary(kind) and _is_text(kind.value_type):
        known = pyarrow.compute.binary_length(values.dictionary).fill_null(0)
        return _numbers(known.take(values.indices)) if len(known) else numpy.zeros(len(values), dtype=numpy.int64)
    if types.is_struct(kind):
        return sum((text_bytes(part) for part in values.flatten()), numpy.zeros(len(values), dtype=numpy.int64))
    if types.is_map(kind):
        return _sums(text_bytes(values.keys) + text_bytes(values.items), values.offsets)
    if types.is_list(kind) or types.is_large_list(kind):
        return _sums(text_bytes(values.values), values.offsets)
    return numpy.ones(len(values), dtype=numpy.int64)


def check_frame(path: Path, findings: Findings) -> None:
    """Raises StopReading, with the reason found, when magic or footer length can not be those of a Parquet file."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(len(_MAGIC))
        tail = b""
        if size >= _LEAST_BYTES:
            stream.seek(-8, 2)
            tail = stream.read(8)
    problem = ""
    if head != _MAGIC:
        problem = "the file is named .parquet but does not begin as a Parquet file does (PAR1)"
    elif tail[4:] != _MAGIC:
        problem = "the Parquet file is cut off: its footer is missing"
    elif (footer := int.from_bytes(tail[:4], "little")) > size - _LEAST_BYTES or footer == 0:
        problem = f"the Parquet file's footer says it has {footer:,} bytes, the file has {size:,}"
    if problem:
        findings.error(0, f"{problem}. Write the file again.", code="corrupt_file", reason="corrupt_file")
        raise StopReading


def plain(value: Any) -> Any:
    """A value as JSON has it: times in ISO 8601, decimals as their digits. Raises NoJson."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NoJson(f"{value}, which is no JSON number")
        return value
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple):  # an entry of a map column
        return [plain(item) for item in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        raise NoJson(f"{len(value):,} bytes of binary data")
    raise NoJson(f"a value of the type {type(value).__name__}")


def _opened(path: Path, chunks: list[list[Chunk]]) -> pyarrow.parquet.ParquetFile:
    """The file, its small columns of lists of texts as dictionaries: a list can name a large text a million times."""
    with pyarrow.parquet.ParquetFile(path) as file:
        columns = [file.schema.column(number) for number in range(len(file.schema))]
    texts = [
        column.path
        for number, column in enumerate(columns)
        if column.max_repetition_level
        and column.physical_type == "BYTE_ARRAY"
        and column.logical_type.type != "DECIMAL"
        and all(group[number].total <= _SMALL_CHUNK_BYTES for group in chunks)
    ]
    # Memory-mapped or buffered whole, a file's largest row group would decide how much memory we need.
    return pyarrow.parquet.ParquetFile(path, read_dictionary=texts, pre_buffer=False, buffer_size=MIB)


def _rows_of(file: pyarrow.parquet.ParquetFile, chunks: list[list[Chunk]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Each row as Arrow's scalars, with the bytes that its texts have at least."""
    has_lists = any(file.schema.column(number).max_repetition_level for number in range(len(file.schema)))
    for number, group in enumerate(chunks):
        may_be_large = has_lists or sum(max(chunk.dictionary, chunk.page) for chunk in group) > MAX_ROW_BYTES
        size = _batch_rows(file.metadata.row_group(number), group)
        for batch in file.iter_batches(batch_size=size, row_groups=[number], use_threads=False):
            names = batch.schema.names
            sizes = sum(map(text_bytes, batch.columns)).tolist() if may_be_large else [0] * len(batch)
            for *scalars, least in zip(*batch.columns, sizes, strict=True):
                yield dict(zip(names, scalars, strict=True)), least


def _batch_rows(group: Any, chunks: list[Chunk]) -> int:
    """Rows of a row group that are unpacked at once: no value is larger than what it comes from."""
    largest = sum(max(chunk.dictionary, chunk.page) for chunk in chunks)
    values = max((group.column(number).num_values for number in range(group.num_columns)), default=0)
    by_values = _BATCH_VALUES * group.num_rows // max(1, values)
    rows: int = min(_BATCH_ROWS, _BATCH_BYTES // max(1, largest), by_values)
    return max(1, rows)


def _is_text(kind: Any) -> bool:
    types = pyarrow.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind))


def _sums(sizes: Any, offsets: Any) -> Any:
    """The sum of the sizes of each list's items, and a byte for each."""
    ends = numpy.concatenate([numpy.zeros(1, dtype=numpy.int64), numpy.cumsum(sizes + 1)])
    return numpy.diff(ends[_numbers(offsets)])


def _numbers(values: Any) -> Any:
    return numpy.asarray(values.fill_null(0), dtype=numpy.int64)
