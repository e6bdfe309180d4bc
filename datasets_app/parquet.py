"""Parquet files, batch by batch in constant memory; values become what JSON can say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from datasets_app.findings import Findings, StopReading
from datasets_app.formats import MAX_ROW_BYTES, Item, Row, too_large
from datasets_app.strict_json import encode_row, row_faults

_BATCH_ROWS = 256
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
            # Memory-mapped or buffered whole, a file's largest row group would decide how much memory we need.
            with pyarrow.parquet.ParquetFile(self._path, pre_buffer=False, buffer_size=2**20) as file:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                    for values in batch.to_pylist():
                        number += 1
                        item = self._item(number, values)
                        if item is not None:
                            yield item
        except (pyarrow.ArrowException, OSError) as fault:
            where = f"after row {number}" if number else "in its footer"
            message = f"the Parquet file is damaged {where}: {str(fault).splitlines()[0][:200]}."
            self._findings.error(number, message, code="corrupt_file", reason="corrupt_file")
            raise StopReading from fault

    def _item(self, number: int, values: Row) -> Item | None:
        column = ""
        try:
            row = {}
            for column, value in values.items():
                row[column] = plain(value)
            text = encode_row(row).encode()
        except NoJson as fault:
            message = f"the column {column!r} holds {fault}; store it as text or leave it out."
            self._findings.error(number, message, reason="no_json_value")
            return None
        except UnicodeEncodeError:
            self._findings.error(number, "a text has a lone surrogate.", reason="lone_surrogate")
            return None
        if len(text) > MAX_ROW_BYTES:
            too_large(self._findings, number, text)
            return None
        if (problem := row_faults(row, text)) is not None:
            self._findings.error(number, problem[1], reason=problem[0], sample=text)
            return None
        return number, row, text


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
