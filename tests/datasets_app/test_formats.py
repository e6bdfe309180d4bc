"""Readers and row checks over hostile and odd files: what is refused, with which word, at which line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datasets_app.gate import Report, examine
from datasets_app.storage import INDEX, ROWS


def gate(tmp_path: Path, data: bytes | str, file_format: str = "jsonl", purpose: str = "") -> Report:
    original = tmp_path / f"original.{file_format}"
    original.write_bytes(data.encode() if isinstance(data, str) else data)
    return examine(original, tmp_path, file_format=file_format, purpose=purpose)


def turns(*roles: str) -> str:
    return json.dumps({"messages": [{"role": role, "content": "x"} for role in roles]})


#: An answer that is a call of a tool has no content.
CALLS = json.dumps({"tools": [{"type": "function", "function": {"name": "add"}}], "messages": [
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]},
]})  # fmt: skip
REFUSED: list[tuple[str, bytes | str, str, str, str, list[str]]] = [
    ("jsonl", b"", "", "empty_dataset", "", ["0 rows"]),
    ("jsonl", b"\n \n", "", "empty_dataset", "", ["0 rows"]),
    ("jsonl", '[{"a":1},{"a":2}]', "", "bad_row", "not_an_object", ["line 1", "object"]),
    ("jsonl", '{"text":"a"}\n{"text": oops}\n', "", "bad_row", "malformed_json", ["line 2", "column 10"]),
    ("jsonl", '{"text":"a"}\n{"text":"cut', "", "bad_row", "malformed_json", ["line 2"]),
    ("jsonl", '{"text":"' + "a" * (17 * 2**20) + '"}', "", "row_too_large", "row_too_large", ["line 1", "16 MiB"]),
    ("jsonl", '{"text":"a"}\n{"text":"问题是什么"}'.encode("gbk"), "", "bad_encoding", "bad_encoding",
     ["line 2", "UTF-8", "byte 10", "GBK"]),
    ("jsonl", '{"text":"a"}'.encode("utf-16"), "", "bad_encoding", "bad_encoding", ["UTF-16", "UTF-8"]),
    ("jsonl", '{"text":"\\ud800"}', "", "bad_row", "lone_surrogate", ["line 1", "surrogate"]),
    ("jsonl", '{"text":1,"text":2}', "", "bad_row", "duplicate_key", ["line 1", "text"]),
    ("jsonl", '{"a":{"b":1,"b":2}}', "", "bad_row", "duplicate_key", ["line 1", "'b'"]),
    ("jsonl", "[" * 5000, "", "bad_row", "too_deep", ["line 1", "deep"]),
    ("jsonl", '{"a":' + "[" * 80 + "]" * 80 + "}", "", "bad_row", "too_deep", ["line 1", "deep"]),
    ("jsonl", '{"a":NaN}', "", "bad_row", "not_finite", ["NaN"]),
    ("jsonl", '{"a":1e999}', "", "bad_row", "not_finite", ["1e999"]),
    ("jsonl", '{"a":' + "1" * 5000 + "}", "", "bad_row", "bad_number", ["line 1"]),
    ("jsonl", '{"conversation_id":"1"}', "sft", "bad_row", "missing_key", ["line 1", "messages"]),
    ("jsonl", '{"doc_id":1}', "pretrain", "bad_row", "missing_key", ["line 1", "text"]),
    ("jsonl", turns("user"), "", "bad_row", "no_answer", ["line 1", "assistant"]),
    ("jsonl", turns("user", "user", "assistant"), "", "bad_row", "wrong_order", ["line 1", "order"]),
    ("jsonl", turns("assistant", "user", "assistant"), "", "bad_row", "wrong_order", ["line 1", "order"]),
    ("jsonl", turns("user", "robot"), "", "bad_row", "unknown_role", ["line 1", "robot", "assistant"]),
    ("jsonl", '{"messages":[{"role":["user"],"content":"x"}]}', "", "bad_row", "unknown_role", ["line 1"]),
    ("jsonl", '{"messages":[]}', "", "bad_row", "missing_key", ["messages", "empty"]),
    ("jsonl", '{"messages":[{"role":"user","content":null}]}', "", "bad_row", "wrong_type", ["content", "null"]),
    ("jsonl", '{"messages":[{"role":"user","content":5}]}', "", "bad_row", "wrong_type", ["content", "number"]),
    ("jsonl", '{"messages":["hello"]}', "", "bad_row", "wrong_type", ["messages[1]"]),
    ("jsonl", turns("user", "assistant") + '\n{"text":"x"}\n', "", "bad_row", "missing_key", ["line 2", "messages"]),
    ("jsonl", '{"instruction":"a","output":1}', "", "bad_row", "wrong_type", ["output"]),
    ("jsonl", '{"instruction":"a","input":1,"output":"b"}', "", "bad_row", "wrong_type", ["input"]),
    ("jsonl", '{"prompt":"a","chosen":"b"}', "", "bad_row", "missing_key", ["rejected"]),
    ("jsonl", '{"prompt":"a","chosen":"b","rejected":"b"}', "", "bad_row", "no_preference", ["chosen", "rejected"]),
    ("jsonl", '{"prompt":"a","responses":[]}', "", "bad_row", "missing_key", ["responses"]),
    ("jsonl", '{"prompt":"a","responses":[{"content":"x","score":1},{"content":"y","score":1}]}', "", "bad_row",
     "no_preference", ["responses", "score"]),
    ("jsonl", '{"prompt":"a","responses":[{"content":"x","score":true},{"content":"y","score":1}]}', "", "bad_row",
     "wrong_type", ["score"]),
    ("jsonl", '{"text":"a","label":null}', "", "bad_row", "missing_key", ["label"]),
    ("jsonl", '{"prompt":"a","completion":"b","label":"maybe"}', "", "bad_row", "wrong_type", ["true or false"]),
    ("jsonl", '{"source":"a","target":3}', "", "bad_row", "wrong_type", ["target"]),
    ("jsonl", '{"prompt":7}', "rl", "bad_row", "wrong_type", ["list of turns"]),
    ("jsonl", b"\x89PNG\r\n\x1a\n\0\0", "", "content_mismatch", "content_mismatch", ["JSONL", "PNG"]),
    ("csv", b"PK\x03\x04rest", "", "content_mismatch", "content_mismatch", ["CSV", "ZIP"]),
    ("json", b"", "", "empty_dataset", "", ["0 rows"]),
    ("json", "[]", "", "empty_dataset", "", ["0 rows"]),
    ("json", "{}", "", "wrong_type", "", ["array"]),
    ("json", '"x"', "", "wrong_type", "", ["array"]),
    ("json", "[{},]", "", "malformed_json", "", ["line 1", "comma"]),
    ("json", '[{"a":1}\n{"a":2}]', "", "malformed_json", "", ["line 2, column 1", "','"]),
    ("json", '[\n{"a":1},\n{"a" 2}\n]', "", "malformed_json", "", ["line 3, column 6"]),
    ("json", '[{"a":1}', "", "malformed_json", "", ["line 1"]),
    ("json", '[{"a":"cut', "", "malformed_json", "", ["Unterminated"]),
    ("json", '[{"a":1}] more', "", "malformed_json", "", ["after the end"]),
    ("json", '{"data":[{"a":1}]', "", "malformed_json", "", ["'}'"]),
    ("json", "[1,\n2]", "", "bad_row", "not_an_object", ["line 1, column 2", "line 2, column 1"]),
    ("json", '[{"a":1,"a":2}]', "", "bad_row", "duplicate_key", ["'a'"]),
    ("json", '[{"a":"\\udc00"}]', "", "bad_row", "lone_surrogate", ["surrogate"]),
    ("json", "[" * 5000, "", "bad_row", "too_deep", ["deep"]),
    ("json", '[{"a":' + "[" * 80 + "]" * 80 + "}]", "", "bad_row", "too_deep", ["deep"]),
    ("json", '[{"a":"' + "x" * (17 * 2**20) + '"}]', "", "row_too_large", "", ["line 1", "16 MiB"]),
    ("json", '[\n{"a":"问题"}]'.encode("gbk"), "", "bad_encoding", "", ["line 2", "byte 7", "GBK"]),
    ("csv", "question,answer\n", "", "empty_dataset", "", ["0 rows"]),
    ("csv", "q;a\nx;y\n", "sft", "missing_column", "", ["q, a", "delimiter ';'"]),
    ("csv", 'question,answer\n"a\nb",c\nonly one\n', "", "bad_row", "wrong_number_of_cells", ["line 4"]),
    ("csv", 'question,answer\n"a,b\n', "", "bad_row", "malformed_csv", ["line 2"]),
    ("csv", 'a,b\n1,"' + ("x" * 1023 + "\n") * (27 * 2**10) + '"\n', "", "row_too_large", "", ["line 2", "16 MiB"]),
    ("csv", f"{'a' * (9 * 2**20)},b\n{'c' * (9 * 2**20)},d\n", "", "row_too_large", "", ["line 2", "16 MiB"]),
    ("csv", "a,a\n1,2\n", "", "bad_header", "", ["'a' twice"]),
    ("csv", "a,\n1,2\n", "", "bad_header", "", ["empty name"]),
    ("csv", "question,answer\nx,\x01\n", "", "bad_row", "control_character", ["line 2", "U+0001"]),
    ("csv", "问题,答案\nx,y\n".encode("gbk"), "", "bad_encoding", "", ["line 1", "GBK"]),
    ("txt", b"\x01\x02", "", "bad_row", "control_character", ["line 1", "control"]),
    ("txt", b"", "", "empty_dataset", "", ["0 rows"]),
]  # fmt: skip


@pytest.mark.parametrize(("file_format", "data", "purpose", "code", "reason", "parts"), REFUSED)
def test_a_broken_file_is_refused_in_words(
    file_format: str, data: bytes | str, purpose: str, code: str, reason: str, parts: list[str], tmp_path: Path
) -> None:
    report = gate(tmp_path, data, file_format, purpose)
    assert not report.is_usable
    first = report.findings.listed_errors()[0]
    assert first.code == code
    assert first.reason == (reason or code)
    said = " ".join(item.message for item in report.findings.listed_errors())
    assert [part for part in parts if part not in said] == []
    assert len(first.sample) <= 121
    assert not (tmp_path / ROWS).exists()


def test_a_malformed_row_of_csv_is_shown_by_its_first_line(tmp_path: Path) -> None:
    report = gate(tmp_path, 'question,answer\n"a" b,c\nx,y\n', "csv")
    assert [(item.line, item.sample) for item in report.findings.listed_errors()] == [(2, '"a" b,c\\n')]


TAKEN: list[tuple[str, bytes | str, str, list[dict[str, Any]]]] = [
    ("jsonl", b'\xef\xbb\xbf{"text":"a"}\r\n\r\n{"text":"b"}\r\n', "text", [{"text": "a"}, {"text": "b"}]),
    ("jsonl", '{"text":"a"}\n{"text":"b"}', "text", [{"text": "a"}, {"text": "b"}]),
    ("jsonl", '{"text":"😀\\ud83d\\ude00"}\n', "text", [{"text": "😀😀"}]),
    ("json", '[\n {"a": 1},\n {"a": 2.5}\n]\n', "table", [{"a": 1}, {"a": 2.5}]),
    ("json", b'\xef\xbb\xbf{ "data" : [{"text":"a"}] }', "text", [{"text": "a"}]),
    ("csv", 'question;answer\n"a\nb";"say ""hi"""\n', "question_answer", [{"question": "a\nb", "answer": 'say "hi"'}]),
    ("csv", "\ufefftext,label\n=HYPERLINK(1),x\n\n2,y\n", "label",
     [{"text": "=HYPERLINK(1)", "label": "x"}, {"text": "2", "label": "y"}]),
    ("csv", "text\nonly one column\n", "text", [{"text": "only one column"}]),
    ("csv", "a\tb\n1\t2\n", "table", [{"a": "1", "b": "2"}]),
    ("txt", "one\r\n\ttwo\r\n\r\n", "text", [{"text": "one"}, {"text": "\ttwo"}]),
    ("txt", "\n\na\nb\n\n\nc\n", "text", [{"text": "a\nb"}, {"text": "c"}]),
    ("jsonl", '{"prompt":"a","responses":[{"content":"x","score":1},{"content":"y","score":0.5}]}\n', "preference",
     [{"prompt": "a", "responses": [{"content": "x", "score": 1}, {"content": "y", "score": 0.5}]}]),
    ("jsonl", CALLS + "\n", "messages", [json.loads(CALLS)]),
    ("jsonl", turns("system", "user", "assistant", "tool", "assistant") + "\n", "messages",
     [json.loads(turns("system", "user", "assistant", "tool", "assistant"))]),
]  # fmt: skip


@pytest.mark.parametrize(("file_format", "data", "kind", "rows"), TAKEN)
def test_an_odd_but_lawful_file_is_taken(
    file_format: str, data: bytes | str, kind: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    report = gate(tmp_path, data, file_format)
    assert report.findings.listed_errors() == []
    assert (report.kind, report.num_samples) == (kind, len(rows))
    text = (tmp_path / ROWS).read_bytes()
    assert [json.loads(line) for line in text.splitlines()] == rows
    offsets = (tmp_path / INDEX).read_bytes()
    starts = [int.from_bytes(offsets[i : i + 8], "little") for i in range(0, len(offsets), 8)]
    ends = [*starts[1:], len(text)]
    assert [json.loads(text[start:end]) for start, end in zip(starts, ends, strict=True)] == rows


def test_clean_jsonl_is_linked_and_unclean_is_rewritten(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    gate(tmp_path / "a", '{"text":"a"}\n{"text":"b"}\n')
    assert (tmp_path / "a" / ROWS).samefile(tmp_path / "a" / "original.jsonl")
    original = '{"text":"a"}\n{"text":"b"}\n\n \n{"text":"c"}\n\n'
    gate(tmp_path / "b", original)
    assert (tmp_path / "b" / ROWS).read_text() == '{"text":"a"}\n{"text":"b"}\n{"text":"c"}\n'
    assert (tmp_path / "b" / "original.jsonl").read_text() == original


def test_every_bad_row_is_counted_and_the_first_twenty_listed(tmp_path: Path) -> None:
    rows = [turns("user", "assistant") if number % 2 else turns("user") for number in range(1000)]
    findings = gate(tmp_path, "\n".join(rows)).findings
    assert findings.errors == 500
    assert findings.counts["no_answer"] == 500
    assert [item.line for item in findings.listed_errors()] == list(range(1, 41, 2))


def test_doubtful_rows_are_warned_about_and_taken(tmp_path: Path) -> None:
    rows = ['{"text":"a","label":"x"}'] * 98 + ['{"text":"","label":"y"}', '{"text":"\\u0001","label":"x"}']
    report = gate(tmp_path, "\n".join(rows))
    assert report.is_usable
    assert dict(report.findings.counts) == {
        "duplicate_row": 97, "empty_text": 1, "control_character": 1, "label_imbalance": 1,
    }  # fmt: skip
    assert report.findings.items[0].message == "line 2: the row repeats line 1."
    assert report.statistics["labels"] == {"x": 99, "y": 1}


PERSONAL = {
    "手机号13812345678": "phone",
    "邮箱bob@example.com吗": "email",
    "密钥sk-" + "a1B2" * 8: "api_key",
    "证件号11010519491231002X。": "identity_number",
    "卡4111111111111111": "bank_card",
    "call\x0713812345678": "phone",
}


@pytest.mark.parametrize(("text", "kind"), PERSONAL.items())
@pytest.mark.parametrize("is_ascii", [False, True])
@pytest.mark.parametrize("first", [0, 500])
def test_personal_data_is_found_however_the_text_around_it_is_written(
    tmp_path: Path, text: str, kind: str, is_ascii: bool, first: int
) -> None:
    rows = [{"text": f"第{number}行"} for number in range(first)] + [{"text": text}]
    report = gate(tmp_path, "".join(json.dumps(row, ensure_ascii=is_ascii) + "\n" for row in rows))
    assert report.statistics["personal_data"] == {kind: 1}
    assert report.findings.counts[f"personal_{kind}"] == 1


@pytest.mark.parametrize("first", [0, 500])
def test_personal_data_that_escapes_spell_is_found(tmp_path: Path, first: int) -> None:
    texts = ["1381234\\u0035678", "bob\\u0040example.com", "A\\u004bIA" + "X" * 16]
    hidden = "".join(f'{{"text": "{text}"}}\n' for text in texts)
    report = gate(tmp_path, "".join(json.dumps({"text": f"第{n}行"}) + "\n" for n in range(first)) + hidden)
    assert report.statistics["personal_data"] == {"phone": 1, "email": 1, "api_key": 1}


def test_columns_are_described_with_type_and_count(tmp_path: Path) -> None:
    report = gate(tmp_path, '{"a":1,"b":null,"c":[]}\n{"a":2.5,"b":null,"c":{}}\n{"a":null,"d":true,"c":"x"}\n')
    assert report.fields == [
        {"name": "a", "type": "number", "non_null": 2},
        {"name": "b", "type": "null", "non_null": 0},
        {"name": "c", "type": "mixed", "non_null": 3},
        {"name": "d", "type": "boolean", "non_null": 1},
    ]


def test_a_row_with_ever_new_keys_stays_bounded(tmp_path: Path) -> None:
    report = gate(tmp_path, "\n".join(f'{{"key{number}": 1}}' for number in range(5000)))
    assert len(report.fields) == 1000
    assert report.findings.counts["many_columns"] == 1


@pytest.mark.parametrize("cut", range(1, 60))
def test_json_is_read_the_same_wherever_the_window_ends(
    cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets_app.json_array.MIB", cut)
    rows = [{"text": '问😀\n"[{,'}, {"n": -12.5e3, "b": True, "x": None}, {"s": "\\u00e9é"}]
    report = gate(tmp_path, json.dumps(rows, ensure_ascii=cut % 2 == 0, indent=1), "json")
    assert report.findings.listed_errors() == []
    assert [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()] == rows
    (tmp_path / ROWS).unlink()
    report = gate(tmp_path, '[\n{"a": 1},\n\n  {"a": tru }\n]', "json")
    assert [(item.line, item.column) for item in report.findings.listed_errors()] == [(4, 9)]
