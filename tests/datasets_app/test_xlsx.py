"""Excel workbooks through the gate: what is read, and the bombs that are refused."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pytest

from datasets_app.storage import ROWS
from tests.cases.datasets import workbook
from tests.datasets_app.test_formats import gate

FIRST = "xl/worksheets/sheet1.xml"
SHEET = (
    '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>{}</sheetData></worksheet>'
)


def test_a_sheet_becomes_rows_of_texts_as_csv_would(tmp_path: Path) -> None:
    day = datetime.datetime(2026, 1, 2)
    content = workbook(
        [None], ["问题", "answer", "score", "when"], ["q1", "答", 1.5, day], [], ["q2", 42, True, None], ["q3"]
    )
    report = gate(tmp_path, content, "xlsx")
    assert report.is_usable, report.findings.items
    assert (report.kind, report.mapping) == ("question_answer", {"question": "问题"})
    assert [json.loads(line) for line in (tmp_path / ROWS).read_bytes().splitlines()] == [
        {"question": "q1", "answer": "答", "score": "1.5", "when": "2026-01-02"},
        {"question": "q2", "answer": "42", "score": "true", "when": ""},
        {"question": "q3", "answer": "", "score": "", "when": ""},
    ]
    assert [(item.line, item.reason) for item in report.findings.items if item.line] == [(6, "empty_text")]


@pytest.mark.parametrize(
    ("content", "reason", "part"),
    [
        (lambda: b"PK\x03\x04 and no more", "corrupt_file", "damaged"),
        (lambda: workbook(["a", "a"]), "bad_header", "twice"),
        (lambda: workbook(["a"], ["x", "y"]), "wrong_number_of_cells", "line 2: 2 cells"),
        (lambda: workbook(["a"]), "empty_dataset", "0 rows"),
        (lambda: workbook(["a"], parts={f"x{n}.txt": b"" for n in range(1000)}), "corrupt_file", "parts"),
        (lambda: workbook(["a"], parts={FIRST: SHEET.format('<row r="99999999"/>')}), "corrupt_file",
         "99999999"),
        (lambda: workbook(["a"], parts={FIRST: SHEET.format('<row r="1"><c r="ZZZZZZ1"/></row>')}),
         "corrupt_file", "ZZZZZZ1"),
        (lambda: workbook(["a"], parts={"xl/sharedStrings.xml": b" " * (49 << 20)}), "corrupt_file", "48 MiB"),
        (lambda: workbook(["a"], parts={"x.xml": b"<a>" + b"x" * (17 << 20) + b"</a>"}), "corrupt_file", "16 MiB"),
        (lambda: workbook(["a"], parts={"x.xml": b'<a b="' + b"x" * (17 << 20) + b'"/>'}), "corrupt_file", "16 MiB"),
    ],
)  # fmt: skip
def test_a_broken_or_hostile_workbook_is_refused_in_words(
    content: Callable[[], bytes], reason: str, part: str, tmp_path: Path
) -> None:
    report = gate(tmp_path, content(), "xlsx")
    assert not report.is_usable
    first = report.findings.listed_errors()[0]
    assert first.reason == reason
    assert part in first.message


def test_only_the_first_sheet_is_read(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["text"])
    book.active.append(["one"])
    book.create_sheet("notes").append(["other"])
    book.save(tmp_path / "book.xlsx")
    assert gate(tmp_path, (tmp_path / "book.xlsx").read_bytes(), "xlsx").num_samples == 1
