"""Columns under other names: guessed, given, and wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clavier.core.errors import Invalid
from datasets_app.gate import Report, examine
from datasets_app.mapping import checked_mapping, guess_mapping, read_mapping
from datasets_app.storage import ROWS


def gate(folder: Path, text: str, file_format: str = "jsonl", **options: object) -> Report:
    original = folder / f"original.{file_format}"
    original.write_text(text, "utf-8")
    return examine(original, folder, file_format=file_format, **options)  # type: ignore[arg-type]


def first_row(folder: Path) -> dict[str, object]:
    row: dict[str, object] = json.loads((folder / ROWS).read_text("utf-8").splitlines()[0])
    return row


@pytest.mark.parametrize(
    ("columns", "purpose", "expected"),
    [
        (["问题", "答案"], "sft", {"question": "问题", "answer": "答案"}),
        (["Question", "Answer"], "", {"question": "Question", "answer": "Answer"}),
        (["指令", "输入", "输出"], "", {"instruction": "指令", "input": "输入", "output": "输出"}),
        (["review", "class"], "classification", {"text": "review", "label": "class"}),
        (["question", "answer"], "sft", {}),
        (["foo", "bar"], "sft", {}),
        (["content"], "sft", {}),
    ],
)
def test_a_mapping_is_guessed_for_the_purpose(columns: list[str], purpose: str, expected: dict[str, str]) -> None:
    assert guess_mapping(columns, purpose) == expected


def test_a_guess_renames_all_rows_and_says_so(tmp_path: Path) -> None:
    report = gate(tmp_path, '{"id": 1, "问题": "甲?", "答案": "乙"}\n' * 3, purpose="sft")
    assert report.is_usable
    assert report.mapping == {"question": "问题", "answer": "答案"}
    assert first_row(tmp_path) == {"question": "甲?", "answer": "乙", "id": 1}
    assert report.findings.items[0].reason == "columns_renamed"
    assert "问题 -> question" in report.findings.items[0].message


def test_a_given_mapping_wins_over_the_names_in_the_file(tmp_path: Path) -> None:
    report = gate(tmp_path, "q,a,answer\n1,2,3\n", "csv", purpose="sft", mapping={"question": "q", "answer": "a"})
    assert report.is_usable, report.findings.items
    assert first_row(tmp_path) == {"question": "1", "answer": "2"}


def test_a_mapping_to_a_column_that_is_not_there_names_both(tmp_path: Path) -> None:
    report = gate(tmp_path, "q,a\n1,2\n", "csv", purpose="sft", mapping={"question": "q1", "answer": "a"})
    item = report.findings.items[0]
    assert (item.code, report.is_usable) == ("missing_column", False)
    assert item.sample.startswith("{")
    assert "q1" in item.message
    assert "q, a" in item.message


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"frage": "q"}, "not_a_choice"),
        ({"question": ""}, "wrong_type"),
        ({"question": "q", "answer": "q"}, "bad_value"),
    ],
)
def test_a_wrong_mapping_is_refused(given: dict[str, str], code: str) -> None:
    with pytest.raises(Invalid) as refused:
        checked_mapping(given)
    assert (refused.value.code, refused.value.field) == (code, "mapping")


@pytest.mark.parametrize(("text", "code"), [("{", "malformed_json"), ("[1]", "wrong_type")])
def test_a_mapping_of_a_form_is_json(text: str, code: str) -> None:
    with pytest.raises(Invalid) as refused:
        read_mapping(text)
    assert refused.value.code == code
