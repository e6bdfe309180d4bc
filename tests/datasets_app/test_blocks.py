"""The gate's fast way: whatever a file holds, findings, statistics, rows and index are those of the slow way."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets_app import blocks, gate
from datasets_app.blocks import FastLines
from datasets_app.gate import examine
from datasets_app.storage import INDEX, ROWS

CHAT = {"messages": [{"role": "user", "content": "how much? 多少"}, {"role": "assistant", "content": '12: "x"\nend'}]}
SHAPES: dict[str, dict[str, Any]] = {
    "messages": CHAT,
    "pairs": {"question": "why?", "answer": "because"},
    "instruction": {"instruction": "do", "input": "", "output": "done", "source": "web"},
    "text": {"text": "lines\\nof text"},
    "label": {"text": "good", "label": "yes"},
    "preference": {"prompt": "why?", "chosen": "because", "rejected": "do not ask"},
    "table": {"a": "", "why": "because"},
    "around": {"id": "how", "source": "web", **CHAT, "answer": "because", "note": ""},
    "turned": {"messages": [{name: turn[name] for name in ("content", "role")} for turn in CHAT["messages"]]},
}
#: What makes a line odd. Each takes the row's JSON.
ODD: dict[str, Callable[[str], str]] = {
    "cut": lambda line: line[:-1],
    "blank": lambda line: "",
    "spaces": lambda line: f"  {line} ",
    "return": lambda line: f"{line}\r",
    "doubled": lambda line: line[:-1] + ', "answer": "again", "text": "again", "messages": []}',
    "doubled inside": lambda line: line.replace('"role": "user"', '"role": "user", "role": "user"'),
    "doubled after a blank": lambda line: line.replace('"answer":', '"answer" : "x", "answer":'),
    "doubled by an escape": lambda line: line.replace('"answer":', '"\\u0061nswer": "x", "answer":'),
    "more": lambda line: line[:-1] + ', "more": "column"}',
    "less": lambda line: "{}",
    "number": lambda line: line.replace('"because"', "1").replace('"done"', "2.5"),
    "huge number": lambda line: line[:-1] + ', "n": 1e999}',
    "null": lambda line: line.replace('"because"', "null"),
    "role": lambda line: line.replace('"user"', '"robot"'),
    "order": lambda line: line.replace('"user"', '"assistant"'),
    "empty answer": lambda line: line.replace("because", " ").replace('12: \\"x\\"\\nend', "\\t"),
    "control": lambda line: line.replace("why", "\\u0007").replace("how", "\\b"),
    "surrogate": lambda line: line.replace("why", "\\ud800").replace("how", "\\udc00x"),
    "pair": lambda line: line.replace("why", "\\ud83d\\ude00"),
    "mail": lambda line: line.replace("why", "a@b.example").replace("how", "a@b.example"),
    "telephone": lambda line: line.replace("why", "13812345678").replace("how", "x13812345678"),
    "key": lambda line: line.replace("why", "sk-" + "a" * 24).replace("how", "ghp_" + "b" * 36),
    "aws": lambda line: line.replace("why", "AKIA" + "A" * 16).replace("how", "hf_" + "c" * 30),
    "slack": lambda line: line.replace("why", "xoxb-" + "1a" * 8).replace("how", "clv_" + "d" * 30),
    "private": lambda line: line.replace("why", "-----BEGIN PRIVATE KEY-----"),
    "no utf-8": lambda line: line.replace("because", "be\udcffcause"),
    "array": lambda line: f"[{line}]",
    "mails": lambda line: line.replace("e", "a@b.example"),
    "delete": lambda line: line.replace("why", "\x7f").replace("how", "\x7f"),
    "pair and delete": lambda line: line.replace("why", "\\ud83d\\ude00\x7f").replace("how", "\\ud83d\\ude00\x7f"),
    "turned pair": lambda line: line.replace("why", "\\ude00\\ud83d").replace("how", "\\ude00\\ud83d"),
    "no hexadecimal": lambda line: line.replace("why", "\\u12g4").replace("how", "\\u12"),
    "no escape": lambda line: line.replace("why", "\\x").replace("how", "\\'"),
    "backslashes": lambda line: line.replace("why", '\\\\\\"\\\\').replace("how", '\\\\\\"\\\\'),
    "open end": lambda line: line.replace("because", "because\\").replace("多少", "多少\\"),
    "raw control": lambda line: line.replace("why", "\x01").replace("how", "\x1f"),
    "tab": lambda line: line.replace(": ", ":\t"),
    "far number": lambda line: line.replace("why", "1234567890").replace("how", "12345678901"),
    "same": lambda line: line.replace("do not ask", "because"),
    "same length": lambda line: line.replace("do not ask", "b\\u0065cause").replace("because", "becauserr"),
    "same with an escape": lambda line: line.replace("do not ask", "b\\u0065cause"),
    "ideographic blank": lambda line: line.replace("because", "\u3000").replace("12", "\\u3000"),
    "two objects": lambda line: f"{line} {line}",
    "adapter": lambda line: line[:-1] + ', "target_modules": "q", "rank": 0}',
    "rank alone": lambda line: line[:-1] + ', "rank": "first"}',
}


def line_of(shape: str, number: int, style: Any) -> str:
    """A row that differs from the others."""
    row = json.loads(json.dumps(SHAPES[shape]))
    turns = row.get("messages")
    if turns:
        turns[-1]["content"] += f" {number}"
    else:
        row[next(iter(row))] += f" {number}"
    return json.dumps(row, **style)


def report_of(folder: Path, content: bytes) -> tuple[Any, ...]:
    """All that the gate says and writes."""
    folder.mkdir()
    (folder / "original.jsonl").write_bytes(content)
    found = examine(folder / "original.jsonl", folder, file_format="jsonl")
    written = [(folder / name).read_bytes() if (folder / name).exists() else None for name in (ROWS, INDEX)]
    told = (found.num_samples, found.sha256, found.kind, found.fields, found.statistics, found.findings.as_json())
    return (*told, *written) if found.is_usable else told


@pytest.mark.parametrize("shape", list(SHAPES))
def test_both_ways_find_the_same(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_TRIES", 10**6)
    for seed, (name, odd) in enumerate([("nothing", str), *ODD.items(), ("repeated", str)]):
        chance = random.Random(seed)
        style = chance.choice([{}, {"ensure_ascii": False}, {"separators": (",", ":"), "ensure_ascii": False}])
        lines = [line_of(shape, number, style) for number in range(400)]
        for number in chance.sample(range(60, 400), 2):
            lines[number] = odd(lines[number]) if name != "repeated" else lines[number - 55]
        content = "\n".join(lines).encode("utf-8", "surrogateescape") + chance.choice([b"", b"\n", b"\n\n"])
        monkeypatch.setattr(gate, "BLOCK_BYTES", 2048)
        fast = report_of(tmp_path / f"{seed}-fast", content)
        monkeypatch.setattr(FastLines, "is_worth_trying", False)
        slow = report_of(tmp_path / f"{seed}-slow", content)
        monkeypatch.undo()
        monkeypatch.setattr(blocks, "_TRIES", 10**6)
        assert fast == slow, name


PIECES = [
    '"', "\\", '\\"', "\\\\", "\\n", "\\u00e9", "\\ud83d\\ude00", "\\ud83d", "\\u0007", "\\b", "\x7f", "\x01", "\t",
    "\r", " ", ":", ",", "{", "}", "[", "]", "role", "user", "assistant", "content", "messages", "a", "é", "多",
    "\udcff", "\udce4\udcb8", "@", "a@b.cd", "12345678901", "13812345678", "AKIA", "sk-", "\u2028", "\u3000", "\ufeff",
    "", "null", "1", '"user"', '", "role": "user',
]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_both_ways_find_the_same_in_rows_that_are_torn_at_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    shape = data.draw(st.sampled_from(sorted(SHAPES)))
    style = data.draw(st.sampled_from([{}, {"ensure_ascii": False}, {"separators": (",", ":")}]))
    lines = [line_of(shape, number, style) for number in range(120)]
    changed = st.tuples(
        st.integers(50, 119), st.integers(0, 200), st.integers(0, 12), st.lists(st.sampled_from(PIECES), max_size=4)
    )
    for number, place, gone, pieces in data.draw(st.lists(changed, max_size=8)):
        line = lines[number]
        lines[number] = line[:place] + "".join(pieces) + line[place + gone :]
    content = data.draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(lines).encode("utf-8", "surrogateescape")
    content += data.draw(st.sampled_from([b"", b"\n"]))
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder, monkeypatch.context() as patch:
        patch.setattr(gate, "BLOCK_BYTES", data.draw(st.sampled_from([300, 1024, 1 << 20])))
        patch.setattr(blocks, "ODD_SHARE", 1)
        fast = report_of(Path(folder) / "fast", content)
        patch.setattr(FastLines, "is_worth_trying", False)
        assert fast == report_of(Path(folder) / "slow", content)


def test_a_blank_line_at_the_end_of_a_block_is_left_out_of_the_rows(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(gate, "BLOCK_BYTES", 1)  # a line a block
    lines = [
        json.dumps({"text": f"a longer row of text than a shape has to have around it, number {n}"}) for n in range(99)
    ]
    content = "\n".join([*lines[:60], "", *lines[60:]]).encode() + b"\n"
    report_of(tmp_path / "x", content)
    assert (tmp_path / "x" / ROWS).read_text() == "\n".join(lines) + "\n"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of rows that each block passes."""
    passed: list[int] = []
    look = FastLines.look

    def count(self: FastLines, data: memoryview) -> Any:
        block = look(self, data)
        passed.append(int((~block.is_odd).sum()) if block else 0)
        return block

    monkeypatch.setattr(FastLines, "look", count)
    return passed


def test_plain_files_pass_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BLOCK_BYTES", 2048)
    passed = counted(monkeypatch)
    for style in ({}, {"ensure_ascii": False}, {"separators": (",", ":")}):
        for shape in SHAPES:
            passed.clear()
            content = "\n".join(line_of(shape, number, style) for number in range(400)) + "\n"
            report_of(tmp_path / f"{shape}-{len(list(tmp_path.iterdir()))}", content.encode())
            first_rows = len(passed) if shape in ("table", "around") else 0  # too short to be compared by eight bytes
            assert sum(passed) >= 350 - 2 * first_rows, shape


def test_one_odd_row_sends_no_other_the_slow_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = counted(monkeypatch)
    lines = [line_of("messages", number, {}) for number in range(400)]
    for number, name in ((100, "mail"), (200, "telephone"), (201, "role"), (300, "delete")):
        lines[number] = ODD[name](lines[number])
    lines[350] = lines[349]
    told = report_of(tmp_path / "x", "\n".join(lines).encode() + b"\n")
    assert passed == [346]
    assert [(item["line"], item["reason"]) for item in told[5]["items"]] == [
        (101, "personal_email"), (201, "personal_phone"), (202, "unknown_role"), (301, "control_character"),
        (351, "duplicate_row"),
    ]  # fmt: skip


def test_a_file_that_always_needs_a_closer_look_is_soon_read_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "BLOCK_BYTES", 256)
    tried = counted(monkeypatch)
    lines = [json.dumps({"text": f"a@b.example {number}"}) for number in range(2000)]
    report_of(tmp_path / "x", "\n".join(lines).encode())
    assert tried == [0] * blocks._TRIES


@pytest.mark.parametrize(
    "data",
    [b"ok \xe4\xb8\xad \xf0\x9f\x98\x80", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe4\xb8"],
)
def test_utf8_is_what_python_decodes(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError:
        assert not blocks.is_utf8(data)
    else:
        assert blocks.is_utf8(data)
