"""The data gate: one streaming pass from an uploaded file to checked rows with an index."""

from __future__ import annotations

import hashlib
import io
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from datasets_app.blocks import BLOCK_BYTES, Block, FastLines
from datasets_app.ceiling import Ceiling
from datasets_app.findings import Findings, StopReading
from datasets_app.formats import MIB, Csv, Item, JsonLines, PlainText, refuse_other_content
from datasets_app.json_array import JsonArray
from datasets_app.mapping import Mapped, Reader, guess_mapping
from datasets_app.parquet import Parquet
from datasets_app.storage import INDEX, ROWS, little_endian
from datasets_app.validation import KIND_COLUMNS, PURPOSES, RowChecks, choose_kind
from datasets_app.xlsx import Xlsx

TEXT_READERS: dict[str, type[JsonLines] | type[JsonArray] | type[Csv] | type[PlainText]] = {
    "jsonl": JsonLines,
    "json": JsonArray,
    "csv": Csv,
    "txt": PlainText,
}
#: Rows, and bytes of rows, that are looked at to choose the kind.
HEAD_ROWS = 50
HEAD_BYTES = MIB
_OFFSETS_AT_ONCE = 65536
_NEWLINE = 10


@dataclass(frozen=True, slots=True)
class Report:
    """What the gate says about a file. ``sha256`` is that of the whole file when it was read to its end."""

    num_samples: int
    sha256: str
    kind: str
    fields: list[dict[str, Any]]
    statistics: dict[str, Any]
    findings: Findings
    mapping: dict[str, str]

    @property
    def is_usable(self) -> bool:
        """No errors."""
        return self.findings.errors == 0


def examine(
    original: Path,
    folder: Path,
    *,
    file_format: str,
    purpose: str = "",
    mapping: Mapping[str, str] | None = None,
    ask_for_room: Callable[[int], None] | None = None,
) -> Report:
    """Read a file once, check every row, and write ``rows.jsonl`` and ``rows.idx`` into the folder.

    ``mapping``: the platform's column names -> the file's. None: guessed where the file's own names fit no kind.
    ``ask_for_room``: raises a DomainError when so many bytes of rows beside the file have no place.
    Constant memory at any size of file. Nothing usable is in the folder when the report says so.
    """
    findings = Findings()
    ceiling = Ceiling.of_file(original.stat().st_size, findings, ask_for_room)
    digest = hashlib.sha256()
    with (
        io.BufferedReader(_HashedFile(original, digest), MIB) as stream,
        RowWriter(original, folder, ceiling) as writer,
    ):
        reader, used = _reader(file_format, original, stream, findings), dict(mapping or {})
        if used:
            reader = Mapped(reader, used, findings)
        checks = RowChecks("table", findings)
        try:
            refuse_other_content(stream.peek()[:64], file_format, findings)
            rows = iter(reader)
            head = _head(rows)
            kind = choose_kind([row for _, row, _ in head], purpose)
            if mapping is None and head and kind in (None, "table") and (used := guess_mapping(head[0][1], purpose)):
                reader = Mapped(_Chained(head, rows), used, findings)
                rows = iter(reader)
                head = _head(rows)
                kind = choose_kind([row for _, row, _ in head], purpose)
                findings.warn(0, f"columns were renamed: {_arrows(used)}.", reason="columns_renamed")
            if head and kind is None:
                _report_kind(findings, head[0], purpose, reader)
                raise StopReading
            checks = RowChecks(kind or "table", findings)
            _take(head, checks, writer, reader, findings)
            fast = None
            if type(reader) is JsonLines:
                fast = FastLines.for_rows(checks.kind, [(row, text) for _, row, text in head])
            if fast is not None and isinstance(reader, JsonLines):
                rows = _Blocks(fast, checks, writer, reader, findings).rest(stream, head[-1][0])
            _take(rows, checks, writer, reader, findings)
            checks.finish()
            while stream.read(MIB):  # what a reader of its own file left unread still counts for the digest
                pass
        except StopReading:
            pass
        if not findings.errors and not checks.count:
            findings.error(0, "the file has 0 rows.", code="empty_dataset", reason="empty_dataset")
        if not findings.errors:
            writer.finish(reader.is_canonical)
    return Report(checks.count, digest.hexdigest(), checks.kind, checks.fields(), checks.statistics(), findings, used)


def _take(rows: Iterable[Item], checks: RowChecks, writer: RowWriter, reader: Reader, findings: Findings) -> None:
    """Check rows one by one and write them."""
    for line, row, text in rows:
        checks.add(line, row, text)
        writer.ceiling.take(line, len(text), is_written=not (findings.errors or reader.is_canonical))
        if not findings.errors:
            writer.add(text, reader.is_canonical)


class _Blocks:
    """The rows of JSON lines after the first ones: most of them block by block."""

    def __init__(
        self, fast: FastLines, checks: RowChecks, writer: RowWriter, reader: JsonLines, findings: Findings
    ) -> None:
        self._fast, self._checks, self._writer = fast, checks, writer
        self._reader, self._findings = reader, findings

    def rest(self, stream: io.BufferedReader[Any], line: int) -> Iterator[Item]:
        """The rows after so many lines that need a closer look; the others are added on the way."""
        buffer = memoryview(bytearray(2 * BLOCK_BYTES))
        while self._fast.is_worth_trying and (size := stream.readinto(buffer[:BLOCK_BYTES])):
            last = stream.readline(BLOCK_BYTES)
            buffer[size : size + len(last)] = last
            data = buffer[: size + len(last)]
            if data[-1] != _NEWLINE:  # the last line, or a very long one
                yield from self._reader.read(io.BufferedReader(_Joined(bytes(data), stream)), line)
                return
            block = self._fast.look(data)
            if block is None:
                yield from self._reader.read(io.BytesIO(data), line)
                line += bytes(data).count(b"\n")
            else:
                yield from self._of(block, line)
                line += len(block.sizes)
        yield from self._reader.read(stream, line)

    def _of(self, block: Block, line: int) -> Iterator[Item]:
        """The same of one block."""
        waiting = block.parts()[::-1]
        hashes = block.hashes()
        while waiting:
            first, behind, is_odd = waiting.pop()
            if is_odd:
                yield from self._reader.read(io.BytesIO(block.bytes_of(first, behind)), line + first)
                continue
            few, sizes, labels = hashes[first:behind], block.sizes[first:behind], block.labels_of(first, behind)
            if self._checks.add_block(line + first + 1, sizes, few, labels, self._fast.signature):
                if not self._findings.errors:
                    self._writer.add_block(block, first, behind, self._reader.is_canonical)
            else:
                block.is_odd[[first + number for number in self._checks.first_lines.repeated(few)]] = True
                waiting += block.parts(first, behind)[::-1]


class _Joined(io.RawIOBase):
    """Bytes that were read already, then the rest of a stream."""

    def __init__(self, data: bytes, stream: BinaryIO) -> None:
        self._data = data
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._data[: len(buffer)] or self._stream.read(len(buffer))
        self._data = self._data[len(part) :]
        buffer[: len(part)] = part
        return len(part)


class _Chained:
    """Rows that were looked at, then the others."""

    is_canonical = False

    def __init__(self, head: list[Item], rest: Iterator[Item]) -> None:
        self._rows = chain(head, rest)

    def __iter__(self) -> Iterator[Item]:
        return self._rows


class RowWriter:
    """Writes canonical rows and their offsets; as long as the original is canonical itself, nothing but offsets."""

    def __init__(self, original: Path, folder: Path, ceiling: Ceiling) -> None:
        self.ceiling = ceiling
        self._original = original
        self._rows_path = folder / ROWS
        self._copy: BinaryIO | None = None
        self._index = open(folder / INDEX, "wb")  # noqa: SIM115  (closed by __exit__)
        self._offsets: array[int] = array("Q")
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self._copy, self._index):
            if stream is not None:
                stream.close()

    def add(self, text: bytes, original_is_canonical: bool) -> None:
        """Append one row's JSON."""
        if self._copy is None and not original_is_canonical:
            self._start_copy()
        self._offsets.append(self._position)
        if len(self._offsets) >= _OFFSETS_AT_ONCE:
            self._flush_offsets()
        if self._copy is not None:
            self._copy.write(text)
            self._copy.write(b"\n")
        self._position += len(text) + 1

    def add_block(self, block: Block, first: int, behind: int, original_is_canonical: bool) -> None:
        """Append some of the lines of a block, which are canonical as they stand."""
        if self._copy is None and not original_is_canonical:
            self._start_copy()
        self._flush_offsets()
        starts = block.starts[first:behind]
        self._index.write((starts + (self._position - starts[0])).astype("<u8").tobytes())
        if self._copy is not None:
            self._copy.write(block.bytes_of(first, behind))
        self._position += int(block.sizes[first:behind].sum()) + len(starts)

    def finish(self, original_is_canonical: bool) -> None:
        """Make rows and index durable; for a canonical original the rows are a hard link to it."""
        if self._copy is None and not original_is_canonical:
            self._start_copy()
        if self._copy is None:
            os.link(self._original, self._rows_path)
        else:
            self._copy.flush()
            os.fsync(self._copy.fileno())
        self._flush_offsets()
        self._index.flush()
        os.fsync(self._index.fileno())

    def _start_copy(self) -> None:
        """Copy the rows so far, which are the original's first bytes."""
        self._copy = copy = open(self._rows_path, "wb", buffering=MIB)  # noqa: SIM115  (closed by __exit__)
        left = self._position
        with open(self._original, "rb") as source:
            while left and (chunk := source.read(min(left, MIB))):
                copy.write(chunk)
                left -= len(chunk)

    def _flush_offsets(self) -> None:
        self._index.write(little_endian(self._offsets).tobytes())
        self._offsets = array("Q")


class _HashedFile(io.RawIOBase):
    """A file whose bytes pass through a digest as they are read."""

    def __init__(self, path: Path, digest: hashlib._Hash) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  (closed by close())
        self._digest = digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._digest.update(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _reader(file_format: str, original: Path, stream: BinaryIO, findings: Findings) -> Reader:
    if file_format == "parquet":
        return Parquet(original, findings)
    if file_format == "xlsx":
        return Xlsx(original, findings)
    return TEXT_READERS[file_format](cast("io.BufferedReader[Any]", stream), findings)


def _arrows(mapping: Mapping[str, str]) -> str:
    return ", ".join(f"{theirs} -> {ours}" for ours, theirs in mapping.items())


def _head(rows: Iterator[Item]) -> list[Item]:
    head: list[Item] = []
    size = 0
    for item in rows:
        head.append(item)
        size += len(item[2])
        if len(head) >= HEAD_ROWS or size >= HEAD_BYTES:
            break
    return head


def _report_kind(findings: Findings, first: Item, purpose: str, reader: object) -> None:
    """No row of the file's start has the columns that its purpose needs."""
    line, row, text = first
    shapes = " or ".join(" + ".join(KIND_COLUMNS[kind]) for kind in PURPOSES[purpose])
    found = ", ".join(list(row)[:20]) or "nothing"
    if isinstance(reader, Csv):
        message = f"{purpose} data needs the columns {shapes}; found {found} (delimiter {reader.delimiter!r})."
        findings.error(1, message, code="missing_column", reason="missing_column", sample=text)
    else:
        message = f"{purpose} data needs the keys {shapes}; found {found}."
        findings.error(line, message, reason="missing_key", sample=text)
