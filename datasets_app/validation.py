"""What rows of each kind must look like."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from xxhash import xxh3_64_intdigest

from datasets_app.findings import Findings
from datasets_app.formats import MIB, Row, json_type
from datasets_app.personal import kinds_in
from datasets_app.repeats import FirstLines
from datasets_app.strict_json import encode_row, has_control

#: Columns by which a kind is known, in the order in which they are tried.
KIND_COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "instruction": ("instruction", "output"),
    "question_answer": ("question", "answer"),
    "question_reference": ("question", "reference"),
    "binary_preference": ("prompt", "completion", "label"),
    "prompt_completion": ("prompt", "completion"),
    "source_target": ("source", "target"),
    "label": ("text", "label"),
    "text": ("text",),
    "prompt": ("prompt",),
}
KINDS = (*KIND_COLUMNS, "table")
#: What the uploader says the rows are for -> the kinds that serve it.
PURPOSES: dict[str, tuple[str, ...]] = {
    "sft": ("messages", "instruction", "question_answer", "prompt_completion", "text"),
    "preference": ("preference", "binary_preference"),
    "pretrain": ("text",),
    "classification": ("label",),
    "seq2seq": ("source_target", "instruction", "question_answer", "prompt_completion"),
    "rl": ("prompt", "question_answer", "question_reference", "preference"),
}
ROLES = ("system", "user", "assistant", "tool")
#: Which role may follow which; "" is the start.
FOLLOWERS = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
LONG_ROW_BYTES = MIB
#: Rows remembered for finding repeated ones: 64 MiB.
REMEMBERED_ROWS = 2_000_000
MAX_COLUMNS = 1000
MAX_LABELS = 1000
LABEL_SHARE = 0.95
_CONTROL_ESCAPE = re.compile(r"\\u00[01][0-9a-f]")
_MAX_SIGNATURES = 1000
_MAX_ROLE_ORDERS = 1000
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "list", dict: "object"}

Signature = tuple[tuple[str, type], ...]


class Problem(NamedTuple):
    """Why a row is bad (``is_error``) or doubtful."""

    reason: str
    message: str
    is_error: bool = True


#: Of a row's bytes, to find repeated ones. Who forges a collision gets a wrong warning about data of his own.
row_hash = xxh3_64_intdigest


def kind_of(row: Row) -> str:
    """The kind whose columns a row has, else ``table``."""
    if "responses" in row or "chosen" in row or "rejected" in row:
        return "preference"
    return next((kind for kind, columns in KIND_COLUMNS.items() if all(name in row for name in columns)), "table")


def choose_kind(rows: Sequence[Row], purpose: str) -> str | None:
    """The most frequent kind among a file's first rows that serves the purpose; None when no row has one."""
    counts = Counter(kind_of(row) for row in rows)
    fitting = {kind: count for kind, count in counts.items() if not purpose or kind in PURPOSES[purpose]}
    return max(fitting, key=lambda kind: (fitting[kind], kind != "table"), default=None)


class RowChecks:
    """Checks each row of one kind and gathers columns, sizes, labels and repetitions on the way."""

    def __init__(self, kind: str, findings: Findings) -> None:
        self.count = 0
        self.kind = kind
        self._findings = findings
        self._check = _CHECKS.get(kind)
        self._signatures: Counter[Signature] = Counter()
        self._columns: dict[str, Counter[str]] = {}
        self._labels: Counter[str] = Counter()
        self._personal: Counter[str] = Counter()
        self.first_lines = FirstLines(REMEMBERED_ROWS)
        self._bytes = (0, 0, 0)

    def add(self, line: int, row: Row, text: bytes) -> None:
        """Check one row; ``text`` is its JSON."""
        self.count += 1
        size = len(text)
        least, most, total = self._bytes
        self._bytes = (size if size < least or self.count == 1 else least, max(size, most), total + size)
        self._signatures[tuple(zip(row, map(type, row.values()), strict=True))] += 1
        if len(self._signatures) > _MAX_SIGNATURES:
            self._fold()
        problem = self._check(row) if self._check else None
        if problem is None and ("target_modules" in row or ("rank" in row and self.kind in PURPOSES["sft"])):
            problem = check_adapter_keys(row)
        if problem is not None:
            if problem.is_error:
                self._findings.error(line, problem.message, reason=problem.reason, sample=text)
            else:
                self._findings.warn(line, problem.message, reason=problem.reason, sample=text)
        if self.kind == "label" and len(self._labels) <= MAX_LABELS:
            self._labels[str(row.get("label"))] += 1
        self._look_for_warnings(line, row, text)

    def add_block(self, line: int, sizes: Any, hashes: Any, labels: list[str], signature: Signature) -> bool:
        """Rows that ``FastLines`` passed, the first of them on this line. False: some repeat others; nothing was added.

        ``sizes``, ``hashes``: numpy arrays of the lengths and hashes of the rows' JSON; ``labels``: of rows that have
        one.
        """
        if not self.first_lines.add_all(hashes, line):
            return False
        count = len(hashes)
        least, most, total = self._bytes
        smallest = int(sizes.min())
        self._bytes = (
            min(least, smallest) if self.count else smallest,
            max(most, int(sizes.max())),
            total + int(sizes.sum()),
        )
        self.count += count
        self._signatures[signature] += count
        for label in labels:
            if len(self._labels) <= MAX_LABELS:
                self._labels[label] += 1
        return True

    def fields(self) -> list[dict[str, Any]]:
        """The columns: ``[{name, type, non_null}]``; a column with several types is ``mixed``."""
        self._fold()
        described = []
        for name, types in self._columns.items():
            non_null = {kind: count for kind, count in types.items() if kind != "null"}
            if non_null.keys() == {"integer", "number"}:
                word = "number"
            else:
                word = "null" if not non_null else next(iter(non_null)) if len(non_null) == 1 else "mixed"
            described.append({"name": name, "type": word, "non_null": sum(non_null.values())})
        return described

    def statistics(self) -> dict[str, Any]:
        """``{row_bytes: {min, mean, max}}`` and, for labelled rows, ``labels: {label: rows}``."""
        least, most, total = self._bytes
        facts: dict[str, Any] = {"row_bytes": {"min": least, "mean": round(total / max(1, self.count), 1), "max": most}}
        if self._personal:
            facts["personal_data"] = dict(self._personal.most_common())
        if self._labels:
            facts["labels"] = dict(self._labels.most_common(100))
        return facts

    def finish(self) -> None:
        """Warn about what only the whole file shows: label balance, and rows not compared."""
        if self._labels:
            self._judge_labels()
        if len(self.first_lines) >= REMEMBERED_ROWS < self.count:
            message = f"repeated rows were looked for among the first {REMEMBERED_ROWS:,} different rows."
            self._findings.warn(0, message, reason="duplicates_partly_checked")

    def _look_for_warnings(self, line: int, row: Row, text: bytes) -> None:
        # The digits of an escape, \u53f7, would join those of a number behind it.
        spelled = _CONTROL_ESCAPE.sub(" ", encode_row(row)).encode() if b"\\u" in text else text
        for kind, count in kinds_in(spelled).items():
            self._personal[kind] += count
            if self._personal[kind] == count:  # the first row with this kind; the others are counted
                message = f"the row holds personal data or a secret ({kind}); a cleaned version can replace it."
                self._findings.warn(line, message, reason=f"personal_{kind}")
        if len(text) > LONG_ROW_BYTES:
            self._findings.warn(line, f"the row has {len(text) / MIB:.1f} MiB.", reason="long_row", sample=text)
        if has_control(row, text):
            self._findings.warn(
                line,
                "a text has control characters; the step clean removes them.",
                reason="control_character",
                sample=text,
            )
        first = self.first_lines.of(row_hash(text), line)
        if first is not None:
            self._findings.warn(line, f"the row repeats line {first}.", reason="duplicate_row", sample=text)

    def _fold(self) -> None:
        for signature, count in self._signatures.items():
            for name, kind in signature:
                if name not in self._columns and len(self._columns) >= MAX_COLUMNS:
                    message = f"columns after the first {MAX_COLUMNS:,} are not listed."
                    if not self._findings.counts["many_columns"]:
                        self._findings.warn(0, message, reason="many_columns", sample=name)
                    continue
                self._columns.setdefault(name, Counter())[_TYPES.get(kind, "null")] += count
        self._signatures.clear()

    def _judge_labels(self) -> None:
        if len(self._labels) > MAX_LABELS:
            message = f"more than {MAX_LABELS:,} different labels; is 'label' a class?"
            self._findings.warn(0, message, reason="many_labels")
            return
        label, most = self._labels.most_common(1)[0]
        if most > LABEL_SHARE * self.count:
            message = f"{most:,} of {self.count:,} rows have the label {label[:60]!r}."
            self._findings.warn(0, message, reason="label_imbalance")


def check_messages(row: Row) -> Problem | None:
    """A list of {role, content} in a lawful order that ends with the assistant."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        return Problem("missing_key", f"'messages' must be a list of turns, it is {_seen(row, 'messages')}.")
    roles = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            return Problem("wrong_type", f"messages[{number}] must be an object with 'role' and 'content'.")
        is_call = message.get("role") == "assistant" and bool(message.get("tool_calls"))
        if type(message.get("content")) is not str and not (is_call and message.get("content") is None):
            return Problem(
                "wrong_type", f"messages[{number}].content must be a text, it is {_seen(message, 'content')}."
            )
        roles.append(message.get("role"))
    order = tuple(roles)
    try:
        if order in _lawful_orders:
            return _last_answer(messages[-1])
    except TypeError:
        return Problem("unknown_role", f"a role must be one of {', '.join(ROLES)}, it is {_first_odd(roles)!r}.")
    problem = check_order(order)
    if problem is None and len(_lawful_orders) < _MAX_ROLE_ORDERS:
        _lawful_orders.add(order)
    return problem or _last_answer(messages[-1])


def _last_answer(message: Row) -> Problem | None:
    is_there = message.get("tool_calls") or (message.get("content") or "").strip()
    return None if is_there else _empty("messages", "the last answer")


def check_order(roles: tuple[Any, ...]) -> Problem | None:
    """Roles are known, follow one another lawfully, and the assistant has the last word."""
    before = ""
    for number, role in enumerate(roles, start=1):
        if role not in ROLES:
            return Problem("unknown_role", f"messages[{number}].role {role!r} is none of {', '.join(ROLES)}.")
        if role not in FOLLOWERS[before]:
            after = f"after {before!r}" if before else "at the start"
            message = f"the order of turns is wrong: messages[{number}] is {role!r} {after}; allowed there: "
            return Problem("wrong_order", message + f"{', '.join(FOLLOWERS[before])}.")
        before = role
    if before != "assistant":
        return Problem("no_answer", f"messages must end with a turn of the assistant, the last one is {before!r}.")
    return None


def check_preference(row: Row) -> Problem | None:
    """prompt with chosen and rejected, or with responses [{content, score}]."""
    if "responses" in row and "chosen" not in row and "rejected" not in row:
        return _missing(row, ("prompt",)) or check_responses(row["responses"])
    problem = _missing(row, ("prompt", "chosen", "rejected"))
    if problem is None and row["chosen"] == row["rejected"]:
        return Problem("no_preference", "'chosen' and 'rejected' are the same.")
    return problem


def check_binary_preference(row: Row) -> Problem | None:
    """prompt and completion with label: whether the completion was liked."""
    problem = _missing(row, ("prompt", "completion"))
    if problem is None and str(row.get("label")).lower() not in ("true", "false", "1", "0"):
        return Problem("wrong_type", f"'label' must be true or false (or 1 or 0), it is {_seen(row, 'label')}.")
    return problem


def check_responses(responses: Any) -> Problem | None:
    """At least two of {content, score} with different scores."""
    if not isinstance(responses, list) or len(responses) < 2:
        return Problem("missing_key", '\'responses\' must be a list of at least two {"content", "score"}.')
    scores = []
    for number, response in enumerate(responses, start=1):
        if not isinstance(response, dict) or not isinstance(response.get("content"), str):
            return Problem("wrong_type", f"responses[{number}].content must be a text.")
        score = response.get("score")
        if isinstance(score, bool) or not isinstance(score, int | float):
            return Problem(
                "wrong_type", f"responses[{number}].score must be a number, it is {_seen(response, 'score')}."
            )
        scores.append(score)
    return Problem("no_preference", "all 'responses' have the same score.") if len(set(scores)) == 1 else None


def check_adapter_keys(row: Row) -> Problem | None:
    """``target_modules`` and ``rank`` of a row that says which LoRA adapter it trains (document 003).

    A rank alone may be a column with another meaning, which only LoRA would stumble over.
    """
    rank, is_adapter = row.get("rank"), "target_modules" in row
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        what = "" if is_adapter else "for LoRA "
        message = f"{what}'rank' must be a whole number from 1 on, it is {str(rank)[:40]!r}."
        return Problem("wrong_type", message, is_error=is_adapter)
    modules = row.get("target_modules")
    if is_adapter and not (isinstance(modules, list) and modules and all(isinstance(name, str) for name in modules)):
        return Problem(
            "wrong_type", f"'target_modules' must be a list of names of modules, it is {_seen(row, 'target_modules')}."
        )
    return None


def check_label(row: Row) -> Problem | None:
    """text with a label, which may be a text, a whole number or true/false."""
    problem = _texts(row, ("text",))
    if problem is None and not isinstance(row.get("label"), str | int):
        return Problem("missing_key", f"'label' must be a text or a whole number, it is {_seen(row, 'label')}.")
    return problem


def _pair_check(question: str, answer: str) -> Callable[[Row], Problem | None]:
    names = (question, answer)

    def check(row: Row) -> Problem | None:
        extra = row.get("input") if question == "instruction" else None
        if extra is not None and not isinstance(extra, str):
            return Problem("wrong_type", f"'input' must be a text, it is {_seen(row, 'input')}.")
        return _texts(row, names)

    return check


def _texts(row: Row, names: tuple[str, ...]) -> Problem | None:
    for name in names:
        if type(row.get(name)) is not str:
            reason = "wrong_type" if name in row else "missing_key"
            return Problem(reason, f"'{name}' must be a text, it is {_seen(row, name)}.")
    return next((_empty(name, f"'{name}'") for name in names if not row[name].strip()), None)


def _missing(row: Row, names: tuple[str, ...]) -> Problem | None:
    """Each may be a text or a list of turns, as preference data has them."""
    for name in names:
        if not isinstance(row.get(name), str | list) or not row[name]:
            reason = "wrong_type" if name in row else "missing_key"
            return Problem(reason, f"'{name}' must be a text or a list of turns, it is {_seen(row, name)}.")
    return None


def _empty(name: str, what: str) -> Problem:
    return Problem("empty_text", f"{what} is empty ({name}).", is_error=False)


def _seen(row: Row, name: str) -> str:
    if name not in row:
        return f"missing (the row has {', '.join(map(repr, list(row)[:10])) or 'no keys'})"
    return "an empty list" if row[name] == [] else json_type(row[name])


def _first_odd(roles: list[Any]) -> Any:
    return next((role for role in roles if role not in ROLES), None)


#: Kinds whose check looks at texts only, and which must not be empty.
TEXTS: dict[str, tuple[str, ...]] = {
    "instruction": ("instruction", "output"),
    "question_answer": ("question", "answer"),
    "question_reference": ("question", "reference"),
    "prompt_completion": ("prompt", "completion"),
    "source_target": ("source", "target"),
    "text": ("text",),
}
_lawful_orders: set[tuple[Any, ...]] = set()
_CHECKS: dict[str, Callable[[Row], Problem | None]] = {
    "messages": check_messages,
    "preference": check_preference,
    "instruction": _pair_check(*TEXTS["instruction"]),
    "question_answer": _pair_check(*TEXTS["question_answer"]),
    "question_reference": _pair_check(*TEXTS["question_reference"]),
    "prompt_completion": _pair_check(*TEXTS["prompt_completion"]),
    "binary_preference": check_binary_preference,
    "source_target": _pair_check(*TEXTS["source_target"]),
    "prompt": lambda row: _missing(row, ("prompt",)),
    "label": check_label,
    "text": lambda row: _texts(row, TEXTS["text"]),
}
