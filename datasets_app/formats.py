"""Streaming readers of JSONL, CSV and TXT in constant memory (JSON arrays: json_array.py).

Each yields (line number, row, the row's JSON in UTF-8 without newline) and reports what it can not read.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from io import BufferedReader
from itertools import chain
from pathlib import PurePath
from typing import Any, BinaryIO

from clavier.core.errors import Invalid, quoted
from datasets_app.findings import Findings, StopReading
from datasets_app.strict_json import StrictJson, encode_row, row_faults
from runner.contract.texts import CONTROL

FORMATS = ("json", "jsonl", "csv", "txt", "parquet", "xlsx")
MIB = 2**20
MAX_ROW_BYTES = 16 * MIB
BOM = b"\xef\xbb\xbf"
_DELIMITERS = ",;\t|"
#: First bytes of files that are no text, whatever they are called.
_SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"%PDF-": "PDF",
    b"PK\x03\x04": "ZIP (or XLSX, DOCX)",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "Parquet",
    b"SQLite format 3\x00": "SQLite",
    b"\x7fELF": "ELF",
}

Row = dict[str, Any]
Item = tuple[int, Row, bytes]

# The module's own limit of 128 KiB a cell is process-wide; ours is the row's.
csv.field_size_limit(MAX_ROW_BYTES)


def format_of(file_name: str, *, field: str = "file_name") -> str:
    """The format that a file's ending names. Raises Invalid (``not_a_choice``)."""
    ending = PurePath(file_name).suffix.lower()
    if ending.removeprefix(".") not in FORMATS:
        raise Invalid(
            f"{field} {quoted(file_name)} ends in {quoted(ending)}; data sets are "
            f"{', '.join('.' + name for name in FORMATS)} files.",
            code="not_a_choice",
            field=field,
        )
    return ending.removeprefix(".")


def refuse_other_content(head: bytes, file_format: str, findings: Findings) -> None:
    """Raises StopReading when a file's first bytes are those of a picture, an archive or UTF-16."""
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature) and file_format not in name.lower():
            message = f"the file is named {file_format.upper()} but its content is {name}."
            findings.error(0, message, code="content_mismatch", reason="content_mismatch")
            raise StopReading
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        message = "byte 1: the file is UTF-16. Save it as UTF-8."
        findings.error(1, message, code="bad_encoding", reason="bad_encoding")
        raise StopReading


class JsonLines:
    """One JSON object a line. ``is_canonical``: so far the file is what the platform itself would write."""

    def __init__(self, stream: BufferedReader[Any], findings: Findings) -> None:
        self.is_canonical = True
        self._stream = stream
        self._findings = findings
        self._strict = StrictJson()

    def __iter__(self) -> Iterator[Item]:
        return self.read(self._stream, 0)

    def read(self, stream: BinaryIO, before: int) -> Iterator[Item]:
        """The rows of a stream that goes on after so many lines."""
        for line, raw in raw_lines(stream, self._findings, before):
            text = raw.strip(b" \t\r\n")
            if line == 1 and text.startswith(BOM):
                text = text[3:]
            if len(raw) - len(text) > 1 or not text:
                self.is_canonical = False
            if not text:
                continue
            row = self._parsed(line, text)
            if row is not None:
                yield line, row, text

    def _parsed(self, line: int, text: bytes) -> Row | None:
        column = 0
        try:
            value = self._strict.decoder.decode(text.decode())
        except UnicodeDecodeError as fault:
            raise not_utf8(self._findings, line, text, fault.start) from fault
        except RecursionError:
            problem = ("too_deep", "the row is nested too deep.")
        except json.JSONDecodeError as fault:
            problem, column = ("malformed_json", f"malformed JSON: {fault.msg}."), fault.colno
        except ValueError as fault:
            problem = ("bad_number", f"a number can not be read: {fault}.")
        else:
            faults = self._strict.faults()
            if isinstance(value, dict):
                found = faults[0] if faults else row_faults(value, text)
                if found is None:
                    return value
                problem = found
            else:
                problem = ("not_an_object", f"each line must be a JSON object {{...}}, this is {json_type(value)}.")
        self._strict.faults()
        self._findings.error(line, problem[1], reason=problem[0], column=column, sample=text)
        return None


class Csv:
    """Comma-separated values (also ; tab |) with a header; quoted cells may hold newlines."""

    is_canonical = False

    def __init__(self, stream: BufferedReader[Any], findings: Findings) -> None:
        self._stream = stream
        self._findings = findings
        self.delimiter = ","
        self.header: list[str] = []
        self._line = 1
        self._first, self._size = "", 0

    def __iter__(self) -> Iterator[Item]:
        lines = text_lines(self._stream, self._findings)
        number, first = next(((line, text) for line, text in lines if text.strip()), (1, ""))
        self.delimiter = delimiter_of(first)
        self._line = number
        reader = csv.reader(self._of_one_row(chain([first], (text for _, text in lines))), delimiter=self.delimiter,
                            strict=True)  # fmt: skip
        while True:
            self._first, self._size = "", 0
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as fault:
                message = f"malformed CSV: {fault}."
                self._findings.error(self._line, message, reason="malformed_csv", sample=self._first)
                cells = []
            if not self.header:
                self._take_header(self._line, cells)
            elif cells and self._fits(self._line, cells):
                row = dict(zip(self.header, cells, strict=True))
                text = encode_row(row).encode()
                if len(text) > MAX_ROW_BYTES:
                    too_large(self._findings, self._line, text)
                else:
                    yield self._line, row, text
            self._line = number + reader.line_num

    def _of_one_row(self, texts: Iterable[str]) -> Iterator[str]:
        """The lines, of which a row has as many as quotes demand. Raises StopReading for a row without end."""
        for text in texts:
            self._first = self._first or text
            self._size += len(text)
            if self._size > MAX_ROW_BYTES:
                too_large(self._findings, self._line, self._first)
                raise StopReading
            yield text

    def _take_header(self, line: int, names: list[str]) -> None:
        bad = next((name for name in names if not name.strip() or names.count(name) > 1), None)
        if bad is not None:
            message = f"the header has the column {bad!r} twice." if bad.strip() else "the header has an empty name."
            self._findings.error(line, message, code="bad_header", reason="bad_header", sample=names)
        if bad is not None or not names:
            raise StopReading
        self.header = names

    def _fits(self, line: int, cells: list[str]) -> bool:
        if len(cells) == len(self.header):
            return True
        message = f"{len(cells)} cells, the header has {len(self.header)} (delimiter {self.delimiter!r})."
        self._findings.error(line, message, reason="wrong_number_of_cells", sample=cells)
        return False


class PlainText:
    """Texts: paragraphs when blank lines part them, otherwise one a line."""

    is_canonical = False

    def __init__(self, stream: BufferedReader[Any], findings: Findings) -> None:
        self._stream = stream
        self._findings = findings

    def __iter__(self) -> Iterator[Item]:
        # What peek() shows decides; a file whose first paragraph is longer than the buffer is read by lines.
        has_paragraphs = re.search(rb"\S[^\S\n]*\n[^\S\n]*\n\s*\S", self._stream.peek()) is not None
        paragraph: list[str] = []
        start = size = 0
        for line, text in text_lines(self._stream, self._findings):
            stripped = text.strip()
            if paragraph and (not stripped or not has_paragraphs):
                yield self._item(start, paragraph)
                paragraph, size = [], 0
            if not stripped:
                continue
            start = start if paragraph else line
            size += len(text)
            paragraph.append(text.rstrip())
            if size > MAX_ROW_BYTES:
                too_large(self._findings, start, paragraph[0])
                raise StopReading
        if paragraph:
            yield self._item(start, paragraph)

    @staticmethod
    def _item(line: int, paragraph: list[str]) -> Item:
        row = {"text": "\n".join(paragraph)}
        return line, row, encode_row(row).encode()


def raw_lines(stream: BinaryIO, findings: Findings, line: int = 0) -> Iterator[tuple[int, bytes]]:
    """(line number, bytes with the newline); a line over 16 MiB is reported and skipped. ``line``: those before."""
    readline, most = stream.readline, MAX_ROW_BYTES + 1
    while raw := readline(most):
        line += 1
        if len(raw) == most and raw[-1:] != b"\n":
            too_large(findings, line, raw)
            while raw and raw[-1:] != b"\n":
                raw = readline(MIB)
            continue
        yield line, raw


def text_lines(stream: BufferedReader[Any], findings: Findings) -> Iterator[tuple[int, str]]:
    """(line number, text with the newline); the byte order mark is dropped, control characters are reported."""
    for line, raw in raw_lines(stream, findings):
        try:
            text = (raw.removeprefix(BOM) if line == 1 else raw).decode()
        except UnicodeDecodeError as fault:
            raise not_utf8(findings, line, raw, fault.start) from fault
        control = CONTROL.search(text)
        if control:
            message = f"the control character U+{ord(control[0]):04X}. Remove control characters from the file."
            findings.error(line, message, reason="control_character", column=control.start() + 1, sample=text)
        yield line, text


def too_large(findings: Findings, line: int, sample: object, column: int = 0) -> None:
    """Report a row over the limit."""
    message = f"the row is larger than {MAX_ROW_BYTES // MIB} MiB."
    findings.error(line, message, code="row_too_large", reason="row_too_large", column=column, sample=sample)


def not_utf8(findings: Findings, line: int, raw: bytes, position: int) -> StopReading:
    """Report bytes that are not UTF-8, naming GBK where they read as Chinese in it."""
    advice = "Save the file as UTF-8."
    try:
        chinese = raw.decode("gb18030")
    except UnicodeDecodeError:
        chinese = ""
    if any("\u4e00" <= c <= "\u9fff" for c in chinese):
        advice = "It reads as GBK; convert it: iconv -f GB18030 -t UTF-8 OLD > NEW."
    message = f"byte {position + 1} is not UTF-8. {advice}"
    findings.error(line, message, code="bad_encoding", reason="bad_encoding", sample=chinese or raw)
    return StopReading()


def delimiter_of(header: str) -> str:
    """The delimiter that parts a header line into the most columns; the comma when none does."""
    return max(_DELIMITERS, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


def json_type(value: object) -> str:
    """What JSON calls a value: "a list", "a number" ..."""
    names = {list: "a list", dict: "an object", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
