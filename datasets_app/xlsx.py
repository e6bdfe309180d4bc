"""Excel workbooks (.xlsx): the first sheet, row by row; every part is looked through for bombs before it is read."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from xml.parsers import expat

import openpyxl

from datasets_app.findings import Findings, StopReading
from datasets_app.formats import MAX_ROW_BYTES, MIB, Item, too_large
from datasets_app.strict_json import encode_row

#: Of one workbook. Texts that cells share are held in memory, the sheet is not.
MAX_PARTS = 1000
MAX_UNPACKED_BYTES = 4 * 1024 * MIB
MAX_SHARED_TEXT_BYTES = 48 * MIB
#: What Excel itself allows.
MAX_ROWS, MAX_COLUMNS = 1_048_576, 16_384
_CELL = re.compile(r"[A-Z]{1,3}[1-9][0-9]{0,6}")
_PIECE_BYTES = 64 * 1024
_SHARED_TEXTS = "xl/sharedStrings.xml"


class Xlsx:
    """Rows under the header that the first filled row is. Cells are texts, as in CSV; an empty cell is an empty text.

    Formulas count as the value that Excel last saved; times are ISO 8601.
    """

    is_canonical = False

    def __init__(self, path: Path, findings: Findings) -> None:
        self._path = path
        self._findings = findings

    def __iter__(self) -> Iterator[Item]:
        check_workbook(self._path, self._findings)
        number = 0
        try:
            with warnings.catch_warnings(action="ignore"):  # of styles and extensions that nobody asked for
                workbook = openpyxl.load_workbook(self._path, read_only=True, data_only=True, keep_links=False)
                try:
                    for item in self._rows(workbook.worksheets[0]):
                        number = item[0]
                        yield item
                finally:
                    workbook.close()
        except StopReading:
            raise
        except Exception as fault:  # openpyxl raises whatever a damaged part provokes
            where = f"after row {number}" if number else "at its start"
            message = f"the XLSX file is damaged {where}: {str(fault)[:200]}. Save it again in Excel, or as CSV."
            raise self._corrupt(message) from fault

    def _rows(self, sheet: Any) -> Iterator[Item]:
        sheet.reset_dimensions()  # what a file says of its own size is not to be believed
        header: list[str] = []
        for number, values in enumerate(sheet.iter_rows(values_only=True), start=1):
            cells = [text_of(value) for value in values]
            while cells and not cells[-1]:
                cells.pop()
            if not header:
                header = self._header(number, cells)
            elif len(cells) > len(header):
                message = f"{len(cells)} cells, the header has {len(header)}."
                self._findings.error(number, message, reason="wrong_number_of_cells", sample=cells)
            elif cells:
                row = dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=True))
                # Cells share texts: a row can be far larger than what it is made of.
                is_large = sum(map(len, cells)) > MAX_ROW_BYTES
                text = b"" if is_large else encode_row(row).encode()
                if is_large or len(text) > MAX_ROW_BYTES:
                    too_large(self._findings, number, cells[0] or text)
                else:
                    yield number, row, text

    def _header(self, number: int, names: list[str]) -> list[str]:
        bad = next((name for name in names if not name.strip() or names.count(name) > 1), None)
        if bad is None:
            return names
        message = f"the header has the column {bad!r} twice." if bad.strip() else "the header has an empty name."
        self._findings.error(number, message, code="bad_header", reason="bad_header", sample=names)
        raise StopReading

    def _corrupt(self, message: str) -> StopReading:
        self._findings.error(0, message, code="corrupt_file", reason="corrupt_file")
        return StopReading()


def check_workbook(path: Path, findings: Findings) -> None:
    """Raises StopReading, with the reason found, for what is no workbook, or one that unpacks without bounds.

    Every XML part is parsed once with nothing kept: entities, endless texts and cells outside of any sheet are refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            problem = _directory_problem(parts)
            for part in parts if not problem else ():
                if part.filename.endswith((".xml", ".rels", ".vml")):
                    with archive.open(part) as stream:
                        problem = problem or _scan(stream, part.filename)
    except (zipfile.BadZipFile, expat.ExpatError, OSError, ValueError, NotImplementedError, RuntimeError) as fault:
        problem = f"the XLSX file is damaged: {str(fault)[:200]}"
    if problem:
        findings.error(0, f"{problem}. Save it again in Excel, or as CSV.", code="corrupt_file", reason="corrupt_file")
        raise StopReading


def text_of(value: Any) -> str:
    """A cell as a text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        is_day = value.time() == time()
        return value.date().isoformat() if is_day else value.isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def _directory_problem(parts: list[zipfile.ZipInfo]) -> str:
    """What is wrong with the archive's directory, which the reading of each part then holds to its word."""
    if len(parts) > MAX_PARTS:
        return f"the XLSX file has {len(parts):,} parts; up to {MAX_PARTS:,} are read"
    if "xl/workbook.xml" not in {part.filename for part in parts}:
        return "the file is named .xlsx but has no workbook in it"
    total = sum(part.file_size for part in parts)
    if total > MAX_UNPACKED_BYTES:
        return f"the XLSX file unpacks to {total / MIB:,.0f} MiB; up to {MAX_UNPACKED_BYTES // MIB:,} MiB are read"
    shared = sum(part.file_size for part in parts if part.filename == _SHARED_TEXTS)
    if shared > MAX_SHARED_TEXT_BYTES:
        return (
            f"the XLSX file's shared texts unpack to {shared / MIB:,.0f} MiB; up to {MAX_SHARED_TEXT_BYTES // MIB} MiB "
            "are read from a workbook"
        )
    return ""


def _scan(stream: Any, name: str) -> str:
    """What is wrong with an XML part, or nothing. Raises ExpatError."""
    problems: list[str] = []
    parser = expat.ParserCreate()
    size = 0

    def entity(name: str, *_: Any) -> None:
        problems.append(f"the XLSX file declares the XML entity {name[:40]!r}, which no workbook does")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal size
        size = 0
        if tag == "row" and not _is_row(attributes.get("r", "1")):
            problems.append(f"the XLSX file has a row {attributes['r'][:20]!r}; Excel's last is {MAX_ROWS:,}")
        elif tag == "c" and "r" in attributes and not _CELL.fullmatch(attributes["r"]):
            problems.append(f"the XLSX file has a cell {attributes['r'][:20]!r}")

    def text(piece: str) -> None:
        nonlocal size
        size += len(piece)

    parser.EntityDeclHandler = entity
    parser.StartElementHandler = start
    parser.CharacterDataHandler = text
    parser.buffer_text = True
    fed = 0
    while piece := stream.read(_PIECE_BYTES):
        parser.Parse(piece, False)
        fed += len(piece)
        if size > MAX_ROW_BYTES or fed - parser.CurrentByteIndex > MAX_ROW_BYTES:
            return f"{name} has a text larger than {MAX_ROW_BYTES // MIB} MiB"
        if problems:
            return problems[0]
    parser.Parse(b"", True)
    return problems[0] if problems else ""


def _is_row(number: str) -> bool:
    return number.isdecimal() and len(number) <= 7 and 1 <= int(number) <= MAX_ROWS
