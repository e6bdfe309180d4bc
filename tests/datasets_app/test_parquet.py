"""Parquet files at the gate: what comes out as rows, what is refused and with which word."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from datasets_app.gate import Report, examine
from datasets_app.storage import ROWS


def gate(folder: Path, data: bytes, **options: str) -> Report:
    original = folder / "original.parquet"
    original.write_bytes(data)
    return examine(original, folder, file_format="parquet", **options)


def parquet(columns: dict[str, list[object]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return bytes(sink.getvalue())


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / ROWS).read_text("utf-8").splitlines()]


def test_rows_of_a_parquet_file_become_json_in_its_order(tmp_path: Path) -> None:
    questions = [f"问题 {number}?" for number in range(1000)]
    report = gate(tmp_path, parquet({"question": questions, "answer": ["yes"] * 1000}), purpose="sft")
    assert report.is_usable, report.findings.items
    assert (report.num_samples, report.kind, len(report.sha256)) == (1000, "question_answer", 64)
    assert rows(tmp_path)[999] == {"question": "问题 999?", "answer": "yes"}


def test_times_and_decimals_become_texts_and_lists_stay_lists(tmp_path: Path) -> None:
    table = {
        "at": [datetime.datetime(2026, 1, 2, 3, 4)],
        "price": [decimal.Decimal("1.50")],
        "tags": [["a", "b"]],
        "none": [None],
        "text": ["x"],
    }
    assert gate(tmp_path, parquet(table)).is_usable
    assert rows(tmp_path) == [
        {"at": "2026-01-02T03:04:00", "price": "1.50", "tags": ["a", "b"], "none": None, "text": "x"}
    ]


def test_the_messages_of_a_parquet_file_are_checked_like_any_others(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": "hi"}, {"role": "user", "content": "again"}]]
    report = gate(tmp_path, parquet({"messages": turns}), purpose="sft")
    assert [(item.line, item.reason) for item in report.findings.items] == [(1, "wrong_order")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PAR1PAR1", ["Parquet", "footer"]),
        (b"PAR1" + b"\0" * 20, ["cut off"]),
        (b"", ["PAR1"]),
        (b'{"text": "x"}', ["PAR1"]),
    ],
)
def test_a_file_that_is_no_parquet_is_refused_before_a_row_is_read(
    tmp_path: Path, data: bytes, words: list[str]
) -> None:
    report = gate(tmp_path, data)
    assert [item.code for item in report.findings.items] == ["corrupt_file"]
    assert all(word in report.findings.items[0].message for word in words)


def test_a_footer_longer_than_the_file_is_named(tmp_path: Path) -> None:
    data = bytearray(parquet({"text": ["x"]}))
    data[-8:-4] = (10**6).to_bytes(4, "little")
    report = gate(tmp_path, bytes(data))
    assert report.findings.items[0].code == "corrupt_file"
    assert "1,000,000" in report.findings.items[0].message


def test_damage_in_the_middle_is_reported_and_nothing_is_usable(tmp_path: Path) -> None:
    data = bytearray(parquet({"text": [f"row {number} {number * 7919}" for number in range(5000)]}))
    data[100:400] = b"\xff" * 300
    report = gate(tmp_path, bytes(data))
    assert not report.is_usable
    assert report.findings.items[0].code == "corrupt_file"


@pytest.mark.parametrize(
    ("values", "word"), [([b"\x00\x01"], "binary"), ([float("nan")], "no JSON number"), ([float("inf")], "inf")]
)
def test_what_json_can_not_say_names_its_column(tmp_path: Path, values: list[object], word: str) -> None:
    report = gate(tmp_path, parquet({"text": ["x"], "odd": values}))
    assert report.findings.items[0].reason == "no_json_value"
    assert "'odd'" in report.findings.items[0].message
    assert word in report.findings.items[0].message
    assert report.findings.items[0].sample == f"odd: {values[0]!r}"


def test_a_header_that_claims_values_without_end_is_refused_at_once(tmp_path: Path) -> None:
    data = bytearray(parquet({"question": ["what is it?"] * 9, "answer": ["this"] * 9}))
    column = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(bytes(data))).metadata.row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    claim = bytes([0x19, 0xF7, *[0xFF] * 8, 0x0F])  # a list of 2^60 doubles, none of which takes a byte to pass over
    data[start : start + len(claim)] = claim
    report = gate(tmp_path, bytes(data))
    assert not report.is_usable
    assert "more than 10,000 values" in report.findings.items[0].message


def test_pages_that_unpack_to_more_than_memory_has_are_refused_by_their_headers(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a" * 2**20] * 300})
    path = tmp_path / "pages.parquet"
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    report = gate(tmp_path, path.read_bytes())
    assert [item.reason for item in report.findings.items] == ["too_large"]
    assert "300 MiB at once; up to 256 MiB" in report.findings.items[0].message
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False, write_batch_size=2)
    (tmp_path / "small").mkdir()
    assert gate(tmp_path / "small", path.read_bytes()).num_samples == 300


@pytest.mark.parametrize("has_lists", [False, True])
def test_a_row_whose_texts_are_over_the_limit_is_not_even_unpacked(tmp_path: Path, has_lists: bool) -> None:
    text = "a" * 2**20
    columns: dict[str, list[object]] = {f"c{number}": [text, "b"] for number in range(20)}
    if has_lists:
        columns = {"c": [[{"x": text}] * 20, [{"x": "b"}]], "m": [[("k", text)], None]}
    types = {"m": pyarrow.map_(pyarrow.string(), pyarrow.string())}
    table = pyarrow.table({name: pyarrow.array(column, types.get(name)) for name, column in columns.items()})
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    report = gate(tmp_path, bytes(sink.getvalue()))
    assert [(item.line, item.code) for item in report.findings.listed_errors()] == [(1, "row_too_large")]
    assert report.num_samples == 1
