"""Rows to conversations and files to documents, and the line number in every complaint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.programs.lib import data, wishes
from runner.programs.lib.events import ProgramError
from runner.programs.lib.wishes import adapter_wishes


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


ASKED = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": ASKED}, ASKED),
        ({"question": "q", "answer": "a"}, ASKED),
        ({"prompt": "q", "completion": "a"}, ASKED),
        ({"instruction": "q", "input": "", "output": "a"}, ASKED),
        ({"instruction": "q", "output": "a", "more": 1}, ASKED),
        ({"instruction": "q", "input": "x", "output": "a"}, [{"role": "user", "content": "q\nx"}, ASKED[1]]),
        ({"system_prompt": "s", "question": "q", "answer": "a"}, [{"role": "system", "content": "s"}, *ASKED]),
        ({"system_prompt": "s", "messages": ASKED}, [{"role": "system", "content": "s"}, *ASKED]),
        (
            {"input_template": "Asked: {input}", "messages": ASKED},
            [{"role": "user", "content": "Asked: q"}, ASKED[1]],
        ),
    ],
)
def test_every_row_shape_becomes_the_same_conversation(tmp_path: Path, row: object, messages: object) -> None:
    assert list(data.read_messages(write(tmp_path / "d.jsonl", row))) == [(1, messages)]


def test_tools_and_their_calls_stay_with_the_conversation(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "assistant", "content": "a", "name": "left out"},
    ]
    path = write(
        tmp_path / "d.jsonl",
        {"messages": turns, "tools": json.dumps([tool])},
        {"messages": ASKED, "tools": None},
        {"question": "q", "answer": "a", "tools": "hammer"},
    )
    (_, found), (_, plain), (_, pair) = data.read_messages(path)
    assert plain == pair == ASKED
    assert found[0] == {**turns[0], "tools": [tool]}
    assert found[1]["content"] == ""
    assert found[1]["tool_calls"] == [{**call, "function": {"name": "add", "arguments": {"a": 1}}}]
    assert found[2:] == [turns[2], ASKED[1]]


def test_a_text_alone_is_learned_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"text": "t", "doc_id": 1}, {"messages": ASKED, "text": "t"})
    assert list(data.read_learnable(path)) == [(1, "t"), (2, ASKED)]
    for row in ({"text": 3}, {"text": "t", "label": "l"}):
        with pytest.raises(ProgramError, match=r"e\.jsonl line 1"):
            list(data.read_learnable(write(tmp_path / "e.jsonl", row)))


def test_empty_lines_are_skipped_and_line_numbers_stay_those_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"messages": ASKED}, "", {"messages": ASKED})
    assert [number for number, _ in data.read_messages(path)] == [1, 3]


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ("{", "not JSON"),
        ("[1]", "must be a JSON object, got list"),
        ({"text": "x"}, "one of these shapes"),
        ({"question": 3, "answer": "a"}, "needs a text under 'question'"),
        ({"messages": []}, "non-empty list"),
        ({"messages": [{"role": "user"}]}, "message 1"),
        ({"messages": ASKED, "input_template": "no mark"}, "{input} in 'input_template'"),
        ({"messages": ASKED, "tools": "hammer"}, "'tools' that are no JSON"),
        ({"messages": ASKED, "tools": [3]}, "list of JSON schemas"),
        ({"messages": [{**ASKED[0], "tool_calls": [{}]}]}, "message 1: 'tool_calls' is a list in a turn of"),
        ({"messages": [{**ASKED[1], "tool_calls": [{"function": {}}]}]}, "message 1: each of 'tool_calls' needs"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'robot'; allowed: system, user"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: object, word: str) -> None:
    path = write(tmp_path / "d.jsonl", {"messages": ASKED}, row)
    with pytest.raises(ProgramError, match=r"d\.jsonl line 2") as caught:
        list(data.read_messages(path))
    assert word in caught.value.message
    assert caught.value.field == "d.jsonl line 2"


def test_bytes_that_are_not_utf8_are_named_and_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"messages": ASKED}).encode() + b'\n{"question": "\xc4\xe3"}')
    with pytest.raises(ProgramError, match="line 2 is not UTF-8 at byte 14"):
        list(data.read_messages(path))


def test_a_missing_file_is_a_program_error(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="does not exist"):
        list(data.read_messages(tmp_path / "none.jsonl"))


def test_a_text_file_is_one_document_in_pieces_that_join_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "PIECE_CHARACTERS", 4)
    path = tmp_path / "d.txt"
    path.write_text("one\ntwo\nthree\n\nfour", encoding="utf-8")
    pieces = list(data.read_texts([path]))
    assert "".join(piece.text for piece in pieces) == "one\ntwo\nthree\n\nfour"
    assert [piece.ends_document for piece in pieces].index(True) == len(pieces) - 1 > 0


def test_each_jsonl_row_is_a_document_and_needs_text(tmp_path: Path) -> None:
    good = write(tmp_path / "d.jsonl", {"text": "a"}, {"text": "b"})
    assert [(piece.text, piece.ends_document) for piece in data.read_texts([good])] == [("a", True), ("b", True)]
    with pytest.raises(ProgramError, match="needs 'text'"):
        list(data.read_texts([write(tmp_path / "e.jsonl", {"txt": "a"})]))


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\n", encoding="utf-8")
    with pytest.raises(ProgramError, match="has no"):
        list(data.read_texts([tmp_path / name]))


def test_preferences_come_in_the_shapes_of_document_003(tmp_path: Path) -> None:
    scored = [{"content": "x", "score": 0.7}, {"content": "y", "score": 0.9}, {"content": "z", "score": 0}]
    path = write(
        tmp_path / "d.jsonl",
        {"prompt": "q", "chosen": "y", "rejected": "z", "metadata": {"source": "beta"}},
        {"prompt": "q", "responses": scored},
        {"prompt": ASKED[:1], "chosen": [*ASKED[:1], {"role": "assistant", "content": "y"}], "rejected": "z"},
    )
    found = [pair for _, pair in data.read_preferences(path)]
    assert [pair.prompt for pair in found] == [ASKED[:1]] * 3
    assert {(pair.chosen["content"], pair.rejected["content"]) for pair in found} == {("y", "z")}


def test_verdicts_come_alone_or_as_two_of_a_preference(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.jsonl",
        {"prompt": "q", "completion": "a", "label": "False"},
        {"prompt": "q", "chosen": "y", "rejected": "z"},
    )
    found = [(verdict.completion["content"], verdict.is_good) for _, verdict in data.read_verdicts(path)]
    assert found == [("a", False), ("y", True), ("z", False)]


CONFIGURED = {"lora_r": 16, "target_modules": ["all-linear"]}
PLAIN = {"messages": ASKED}
WISH = {**PLAIN, "rank": 8, "target_modules": ["q_proj", "v_proj"]}


def test_rows_of_a_lora_data_set_that_agree_win_over_the_configured_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = {**WISH, "target_modules": ["v_proj", "q_proj"]}
    agreed = {"lora_r": 8, "target_modules": ["q_proj", "v_proj"]}
    assert adapter_wishes(write(tmp_path / "a.jsonl", WISH, turned, WISH), CONFIGURED, alone=True) == agreed
    assert adapter_wishes(write(tmp_path / "b.jsonl", WISH, PLAIN), agreed, alone=True) == agreed
    assert adapter_wishes(write(tmp_path / "c.jsonl", PLAIN, {**PLAIN, "rank": 16}), CONFIGURED, alone=True) == {
        "lora_r": 16
    }
    assert adapter_wishes(write(tmp_path / "d.jsonl", PLAIN, PLAIN), CONFIGURED, alone=True) == {}
    for size in range(2, 60):  # the key lies across two pieces that are read
        monkeypatch.setattr(wishes, "PIECE_BYTES", size)
        assert adapter_wishes(tmp_path / "b.jsonl", agreed, alone=True) == agreed
    with pytest.raises(ProgramError, match=r"none\.jsonl"):
        adapter_wishes(tmp_path / "none.jsonl", CONFIGURED, alone=True)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ((WISH, {**WISH, "rank": 4}), "d.jsonl line 2 asks for rank 4, but d.jsonl line 1 asks for rank 8"),
        ((WISH, PLAIN), "d.jsonl line 2 names no rank, which means 16, but d.jsonl line 1 asks for rank 8"),
        ((PLAIN, WISH), "d.jsonl line 2 asks for rank 8, but d.jsonl line 1 names no rank, which means 16"),
        ((WISH, {**WISH, "target_modules": ["q_proj"]}), "line 2 asks for target_modules q_proj, but d.jsonl line 1"),
        ((PLAIN, {**PLAIN, "rank": -1}), "d.jsonl line 2: rank -1 is outside 1 to 1024"),
        ((PLAIN, {**PLAIN, "rank": True}), "d.jsonl line 2: rank needs a whole number"),
        ((PLAIN, {**PLAIN, "target_modules": [3]}), "d.jsonl line 2: target_modules needs a list of names"),
    ],
)
def test_a_row_that_asks_for_another_adapter_is_named(tmp_path: Path, rows: tuple[object, ...], problem: str) -> None:
    with pytest.raises(ProgramError) as caught:
        adapter_wishes(write(tmp_path / "d.jsonl", *rows), CONFIGURED, alone=True)
    assert problem in caught.value.message
    assert caught.value.field == "d.jsonl line 2"


def test_a_rank_alone_is_a_column_like_any_other_beside_preferences(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {**PLAIN, "rank": 1}, {**PLAIN, "rank": "second"})
    assert adapter_wishes(path, CONFIGURED, alone=False) == {}
    assert adapter_wishes(write(tmp_path / "e.jsonl", WISH), CONFIGURED, alone=False)["lora_r"] == 8


def test_prompts_bring_their_references(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.jsonl",
        {"prompt": "q"},
        {"prompt": "q", "reference": "a"},
        {"question": "q", "answer": "a"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    )
    found = list(data.read_prompts(path))
    assert [messages for _, messages, _ in found] == [ASKED[:1]] * 4
    assert [reference for _, _, reference in found] == [None, "a", "a", "a"]


def test_control_characters_are_never_learned(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"text": "a\x07b\tc\x1b[0m\nd\x7f"})
    (tmp_path / "plain.txt").write_text("e\x00f\r\ng", newline="")
    assert [piece.text for piece in data.read_texts([rows, tmp_path / "plain.txt"])] == ["ab\tc[0m\nd", "ef\r\ng"]


def test_texts_are_chosen_by_their_metadata(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.jsonl",
        {"text": "a", "metadata": {"domain": "finance"}},
        {"text": "b", "metadata": {"domain": "finance", "retention": "drop"}},
        {"text": "c", "metadata": {"domain": "law", "checked": True, "level": 2}},
        {"text": "d"},
    )

    def found(text: str) -> str:
        return "".join(piece.text for piece in data.read_texts([path], data.metadata_conditions(text)))

    assert found("") == "abcd"
    assert found("domain=finance") == "ab"
    assert found("domain=finance, retention!=drop") == "a"
    assert found("checked=true") == "c"
    assert found("level!=2") == "abd"
    with pytest.raises(ProgramError, match="no rows that metadata_filter asks for"):
        found("domain=sport")
    with pytest.raises(ProgramError, match="neither name=value"):
        found("finance")
    plain = tmp_path / "t.txt"
    plain.write_text("x")
    with pytest.raises(ProgramError, match="has no metadata"):
        list(data.read_texts([plain], data.metadata_conditions("a=b")))
