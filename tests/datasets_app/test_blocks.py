"""The gate's fast way: whatever a file holds, findings, statistics, rows and index are those of the slow way."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
    "adapter": lambda line: line[:-1] + ', "target_modules": "q", "rank": 0}',
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


def test_plain_files_pass_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BLOCK_BYTES", 2048)
    passed: list[int] = []
    whole = FastLines.passed

    def count(self: FastLines, data: bytes) -> Any:
        block = whole(self, data)
        passed.append(len(block.sizes) if block else 0)
        return block

    monkeypatch.setattr(FastLines, "passed", count)
    for shape in ("messages", "pairs", "instruction", "text"):
        passed.clear()
        content = "\n".join(line_of(shape, number, {"ensure_ascii": False}) for number in range(400)) + "\n"
        report_of(tmp_path / shape, content.encode())
        assert sum(passed) == 350, shape


def test_a_file_that_always_needs_a_closer_look_is_soon_read_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "BLOCK_BYTES", 256)
    tried: list[int] = []
    whole = FastLines.passed

    def count(self: FastLines, data: bytes) -> Any:
        tried.append(len(data))
        return whole(self, data)

    monkeypatch.setattr(FastLines, "passed", count)
    lines = [json.dumps({"text": f"a@b.example {number}"}) for number in range(2000)]
    report_of(tmp_path / "x", "\n".join(lines).encode())
    assert len(tried) == blocks._TRIES
