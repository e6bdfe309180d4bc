"""Columns under other names: a mapping from the names that the platform knows to those in the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from clavier.core.errors import Invalid, quoted
from datasets_app.findings import Findings, StopReading
from datasets_app.formats import Item, Row
from datasets_app.strict_json import encode_row
from datasets_app.validation import KIND_COLUMNS, PURPOSES

MAX_COLUMN_CHARACTERS = 200
#: Names that people give to the columns of each kind, in lower case; the platform's own name comes first.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog", "对话", "消息"),
    "instruction": ("instruction", "instructions", "指令", "任务"),
    "input": ("input", "context", "输入", "上下文"),
    "output": ("output", "response", "target", "输出", "回复"),
    "question": ("question", "query", "问题", "提问", "问"),
    "answer": ("answer", "reply", "答案", "回答", "答"),
    "reference": ("reference", "expected", "gold", "ground_truth", "参考答案", "标准答案"),
    "prompt": ("prompt", "提示", "提示词"),
    "completion": ("completion", "补全"),
    "chosen": ("chosen", "preferred", "accepted", "win", "优选"),
    "rejected": ("rejected", "dispreferred", "lose", "拒绝"),
    "text": ("text", "content", "document", "sentence", "review", "文本", "内容", "正文"),
    "label": ("label", "class", "category", "标签", "类别", "分类"),
}
KNOWN_COLUMNS = frozenset(name for columns in KIND_COLUMNS.values() for name in columns) | {"input", "responses"}


class Reader(Protocol):
    """What every format's reader is."""

    is_canonical: bool

    def __iter__(self) -> Iterator[Item]:
        """Rows with their line number and JSON."""


class Mapped:
    """A reader's rows with columns renamed; all other columns stay as they are."""

    is_canonical = False

    def __init__(self, reader: Reader, mapping: Mapping[str, str], findings: Findings) -> None:
        self._reader = reader
        self._mapping = mapping
        self._findings = findings

    def __iter__(self) -> Iterator[Item]:
        has_looked = False
        for line, row, _ in self._reader:
            if not has_looked:
                self._require_columns(row)
                has_looked = True
            renamed = rename(row, self._mapping)
            yield line, renamed, encode_row(renamed).encode()

    def _require_columns(self, row: Row) -> None:
        missing = [name for name in self._mapping.values() if name not in row]
        if missing:
            found = ", ".join(list(row)[:20]) or "nothing"
            message = f"the mapping names the column {', '.join(missing)}; the file has {found}."
            self._findings.error(1, message, code="missing_column", reason="missing_column", sample=encode_row(row))
            raise StopReading


def rename(row: Row, mapping: Mapping[str, str]) -> Row:
    """The row with the mapped columns first, under the platform's names; a column that a name pushes out is lost."""
    taken = set(mapping.values())
    renamed = {ours: row.get(theirs) for ours, theirs in mapping.items() if theirs in row}
    return renamed | {name: value for name, value in row.items() if name not in taken and name not in renamed}


def checked_mapping(given: Mapping[str, str]) -> dict[str, str]:
    """A mapping as a user wrote it: ours -> theirs. Raises Invalid."""
    for ours, theirs in given.items():
        if ours not in KNOWN_COLUMNS:
            raise Invalid(
                f"mapping: {quoted(ours)} is no column that the platform knows: {', '.join(sorted(KNOWN_COLUMNS))}.",
                code="not_a_choice",
                field="mapping",
            )
        if not isinstance(theirs, str) or not 0 < len(theirs) <= MAX_COLUMN_CHARACTERS:
            raise Invalid(
                f"mapping.{ours} must be the name of a column of the file, at most {MAX_COLUMN_CHARACTERS} characters.",
                code="wrong_type",
                field="mapping",
            )
    if len(set(given.values())) < len(given):
        raise Invalid("mapping names one column of the file twice.", code="bad_value", field="mapping")
    return {ours: theirs for ours, theirs in given.items() if ours != theirs}


def read_mapping(text: str) -> dict[str, str]:
    """The mapping of a form's field, JSON such as ``{"question": "q"}``. Raises Invalid."""
    try:
        value = json.loads(text)
    except ValueError as fault:
        raise Invalid(f"mapping is no JSON: {fault}.", code="malformed_json", field="mapping") from fault
    if not isinstance(value, dict):
        raise Invalid('mapping must be an object such as {"question": "q"}.', code="wrong_type", field="mapping")
    return checked_mapping(value)


def guess_mapping(columns: Iterable[str], purpose: str = "") -> dict[str, str]:
    """Ours -> theirs for the first kind (of the purpose) that all the columns can be found for; else nothing.

    Case and surrounding white space do not count. A kind that needs no renaming wins, so nothing is guessed then.
    """
    by_name = {name.strip().lower(): name for name in reversed(list(columns))}
    for kind, wanted in KIND_COLUMNS.items():
        if purpose and kind not in PURPOSES[purpose]:
            continue
        if purpose == "sft" and kind == "text":  # a question whose answer has another name would become one
            continue
        found = {ours: _found(ours, by_name) for ours in wanted}
        if kind == "instruction" and (extra := _found("input", by_name)):
            found["input"] = extra
        mapping = {ours: theirs for ours, theirs in found.items() if theirs is not None}
        if all(name in mapping for name in wanted) and len(set(mapping.values())) == len(mapping):
            return {ours: theirs for ours, theirs in mapping.items() if ours != theirs}
    return {}


def _found(ours: str, by_name: Mapping[str, str]) -> str | None:
    return next((by_name[name] for name in SYNONYMS.get(ours, (ours,)) if name in by_name), None)
