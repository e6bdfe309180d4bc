"""Training and evaluation data: canonical JSONL rows to messages, text files to documents. Streams; constant memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.contract.texts import without_controls
from runner.programs.lib.events import ProgramError
from runner.programs.lib.tools import CALLS, TOOLS, BadTools, called, offered, without

Message = dict[str, Any]
#: (key of ``metadata``, value, it must be this one) of the rows that count.
Conditions = tuple[tuple[str, str, bool], ...]

ROLES = ("system", "user", "assistant", "tool")
#: Which keys make a row, tried in this order: (name of the question, name of the answer).
PAIRS = (
    ("instruction", "output"),
    ("question", "answer"),
    ("question", "reference"),
    ("prompt", "completion"),
    ("source", "target"),
)
#: Stands for the user's text in an ``input_template``.
INPUT_MARK = "{input}"
#: How a verdict is written, in lower case.
VERDICT_WORDS = {"true": True, "1": True, "false": False, "0": False}
#: A text file is handed on in pieces of about this many characters, cut at line ends.
PIECE_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True)
class Preference:
    """A better and a worse reply of the assistant to the same turns."""

    prompt: list[Message]
    chosen: Message
    rejected: Message


@dataclass(frozen=True, slots=True)
class Verdict:
    """One reply and whether it was liked."""

    prompt: list[Message]
    completion: Message
    is_good: bool


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of one document. ``source``: file name and line of its start; ``ends_document``: the last piece."""

    source: str
    text: str
    ends_document: bool


def read_messages(path: Path | str) -> Iterator[tuple[int, list[Message]]]:
    """Yield (line number, messages) for each row of a JSONL file, of any of the shapes in the table of formats.

    ``messages``; ``instruction``/``input``/``output``; ``question``/``answer``; ``question``/``reference``;
    ``prompt``/``completion``; ``source``/``target``; each with an optional ``system_prompt`` and ``input_template``.
    Raises ProgramError with the line of the first bad row.
    """
    for line_number, row in read_rows(path):
        yield line_number, row_messages(row, f"{Path(path).name} line {line_number}")


def read_learnable(path: Path | str) -> Iterator[tuple[int, list[Message] | str]]:
    """``read_messages``, and the text of each row that has ``text`` alone, of which everything is learned."""
    for line_number, row in read_rows(path):
        where = f"{Path(path).name} line {line_number}"
        yield line_number, _text(row, "text", where) if is_text(row) else row_messages(row, where)


def is_text(row: Mapping[str, Any]) -> bool:
    """A row of plain text, no conversation and without a label."""
    others = {"messages", "label", *(key for pair in PAIRS for key in pair)}
    return "text" in row and not others & row.keys()


def read_rows(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for each non-empty line of a JSONL file. Raises ProgramError with the line."""
    source = Path(path)
    if not source.is_file():
        raise ProgramError("data_missing", f"the data file {source} does not exist")
    for line_number, line in _lines(source):
        if not line.strip():
            continue
        where = f"{source.name} line {line_number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise _bad(where, f"is not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(row, dict):
            raise _bad(where, f"must be a JSON object, got {type(row).__name__}")
        yield line_number, row


def row_messages(row: Mapping[str, Any], where: str) -> list[Message]:
    """The conversation of one row; ``where`` names the row in errors. Raises ProgramError."""
    if "messages" in row:
        return with_tools(_dressed(_checked_messages(row["messages"], where), row, where), row, where)
    for question_key, answer_key in PAIRS:
        if question_key in row and answer_key in row:
            return _dressed(_pair_messages(row, question_key, answer_key, where), row, where)
    shapes = ", ".join(["messages", *("/".join(pair) for pair in PAIRS)])
    raise _bad(where, f"has the keys {sorted(row)}; one of these shapes is needed: {shapes}")


def read_labelled(path: Path | str) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, text, label) for each row of a JSONL file; true and 7 are the labels "true" and "7".

    Raises ProgramError with the line of the first bad row.
    """
    for line_number, row in read_rows(path):
        where = f"{Path(path).name} line {line_number}"
        label = row.get("label")
        if "text" not in row or not isinstance(label, str | int):
            raise _bad(where, f"needs a text under 'text' and a class under 'label', it has the keys {sorted(row)}")
        yield line_number, _text(row, "text", where), _word(label)


def read_preferences(path: Path | str) -> Iterator[tuple[int, Preference]]:
    """Yield (line number, preference) for each row of a JSONL file.

    ``prompt``/``chosen``/``rejected``, or ``prompt`` with ``responses`` ``[{content, score}]``, of which the highest
    score is chosen and the lowest rejected; texts or lists of turns, with an optional ``system_prompt``.
    Raises ProgramError with the line of the first bad row.
    """
    for line_number, row in read_rows(path):
        yield line_number, row_preference(row, f"{Path(path).name} line {line_number}")


def read_verdicts(path: Path | str) -> Iterator[tuple[int, Verdict]]:
    """Yield (line number, verdict) for each row of ``prompt``/``completion``/``label`` (true or false, 1 or 0).

    A row with a preference gives two verdicts. Raises ProgramError with the line of the first bad row.
    """
    for line_number, row in read_rows(path):
        where = f"{Path(path).name} line {line_number}"
        if not {"completion", "label"} <= row.keys():
            pair = row_preference(row, where)
            yield line_number, Verdict(pair.prompt, pair.chosen, True)
            yield line_number, Verdict(pair.prompt, pair.rejected, False)
            continue
        word = str(row["label"]).lower()  # CSV has texts only
        if word not in VERDICT_WORDS:
            raise _bad(where, f"needs true or false under 'label', got {row['label']!r}")
        prompt = row_prompt(row, where)
        yield line_number, Verdict(prompt, _reply(row["completion"], prompt, where), VERDICT_WORDS[word])


def read_prompts(path: Path | str) -> Iterator[tuple[int, list[Message], str | None]]:
    """Yield (line number, turns before the answer, reference or None) for each row of a JSONL file.

    ``prompt`` (with an optional ``reference``), ``question``/``answer`` or ``question``/``reference``, conversations,
    or preferences, whose chosen reply is the reference. Raises ProgramError with the line of the first bad row.
    """
    for line_number, row in read_rows(path):
        where = f"{Path(path).name} line {line_number}"
        if "chosen" in row or "responses" in row:
            pair = row_preference(row, where)
            yield line_number, pair.prompt, pair.chosen["content"]
        elif "prompt" in row and "completion" not in row:
            reference = _text(row, "reference", where) if row.get("reference") is not None else None
            yield line_number, row_prompt(row, where), reference
        else:
            messages = row_messages(row, where)
            if messages[-1]["role"] != "assistant" or len(messages) < 2:
                raise _bad(where, "needs turns that end with the assistant's")
            yield line_number, messages[:-1], messages[-1]["content"]


def row_preference(row: Mapping[str, Any], where: str) -> Preference:
    """The preference of one row; ``where`` names the row in errors. Raises ProgramError."""
    if "responses" in row:
        chosen, rejected = _best_and_worst(row["responses"], where)
    elif "chosen" in row and "rejected" in row:
        chosen, rejected = row["chosen"], row["rejected"]
    else:
        shapes = "prompt/chosen/rejected, prompt/responses"
        raise _bad(where, f"has the keys {sorted(row)}; one of these shapes is needed: {shapes}")
    prompt = row_prompt(row, where)
    return Preference(prompt, _reply(chosen, prompt, where), _reply(rejected, prompt, where))


def row_prompt(row: Mapping[str, Any], where: str) -> list[Message]:
    """The turns before the reply: ``prompt`` as a text or a list of turns, after ``system_prompt`` if there is one."""
    prompt = row.get("prompt")
    messages = _checked_messages(prompt, where) if isinstance(prompt, list) else []
    if not messages:
        if not isinstance(prompt, str):
            raise _bad(where, f"needs a text or a list of turns under 'prompt', got {type(prompt).__name__}")
        messages = [{"role": "user", "content": prompt}]
    dressed = _dressed(messages, row, where)
    return with_tools(dressed, row, where) if isinstance(prompt, list) else dressed


def with_tools(messages: list[Message], row: Mapping[str, Any], where: str) -> list[Message]:
    """The turns, with the row's ``tools`` in the first of them, where the renderer looks for them."""
    try:
        tools = offered(row)
    except BadTools as problem:
        raise _bad(where, str(problem)) from None
    return [{**messages[0], TOOLS: tools}, *messages[1:]] if tools else messages


def metadata_conditions(text: str) -> Conditions:
    """What ``domain=finance, retention!=drop`` asks of a row's ``metadata``. Raises ProgramError."""
    conditions = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.rstrip("!").strip():
            message = f"metadata_filter {part!r} is neither name=value nor name!=value"
            raise ProgramError("hyperparameters_invalid", message, "metadata_filter")
        conditions.append((key.removesuffix("!").strip(), value.strip(), not key.endswith("!")))
    return tuple(conditions)


def read_texts(paths: Iterable[Path | str], wanted: Conditions = ()) -> Iterator[TextPiece]:
    """Yield the documents of pretraining files: a ``.txt`` file is one document, each JSONL row's ``text`` is one.

    Control characters are left out. ``wanted``: rows whose ``metadata`` is otherwise are passed over. Raises
    ProgramError for a missing, empty or malformed file, and for a ``.txt`` file, which has no metadata, where some is
    wanted.
    """
    for path in map(Path, paths):
        if not path.is_file():
            raise ProgramError("data_missing", f"the data file {path} does not exist")
        is_plain = path.suffix.lower() == ".txt"
        if is_plain and wanted:
            message = f"{path.name} has no metadata, which metadata_filter asks about; leave one of them out"
            raise ProgramError("data_invalid", message, "metadata_filter")
        for piece in _text_file(path) if is_plain else _text_rows(path, wanted):
            yield TextPiece(piece.source, without_controls(piece.text), piece.ends_document)


def _checked_messages(messages: Any, where: str) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise _bad(where, "needs a non-empty list under 'messages'")
    checked = []
    for number, message in enumerate(messages, start=1):
        try:
            more = called(message, number) if isinstance(message, dict) else {}
        except BadTools as problem:
            raise _bad(where, str(problem)) from None
        content = "" if CALLS in more and message.get("content") is None else _content(message)
        if content is None:
            raise _bad(where, f"message {number} needs 'role' and a text under 'content'")
        if message.get("role") not in ROLES:
            raise _bad(where, f"message {number} has the role {message.get('role')!r}; allowed: {', '.join(ROLES)}")
        checked.append({"role": str(message["role"]), "content": content, **more})
    return checked


def _content(message: Any) -> str | None:
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else None


def _reply(reply: Any, prompt: list[Message], where: str) -> Message:
    """The one turn of a reply; a list that repeats the prompt's turns first (as some data sets do) loses them."""
    if isinstance(reply, str):
        return {"role": "assistant", "content": reply}
    messages = _checked_messages(reply, where)
    asked = [message for message in without(prompt, TOOLS) if message["role"] != "system"]
    if messages[: len(asked)] == asked:
        messages = messages[len(asked) :]
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise _bad(where, "a reply must be a text or one turn of the assistant (after the prompt's own turns)")
    return messages[0]


def _best_and_worst(responses: Any, where: str) -> tuple[str, str]:
    """The texts with the highest and the lowest score."""
    if not isinstance(responses, list):
        raise _bad(where, "needs a list of {content, score} under 'responses'")
    scored: list[tuple[float, str]] = []
    for response in responses:
        score = response.get("score") if isinstance(response, dict) else None
        if (
            not isinstance(score, int | float)
            or isinstance(score, bool)
            or not isinstance(response.get("content"), str)
        ):
            raise _bad(where, "needs {content, score} in each of 'responses'")
        scored.append((float(score), response["content"]))
    scored.sort(key=lambda pair: pair[0])
    if len(scored) < 2 or scored[0][0] == scored[-1][0]:
        raise _bad(where, "needs two 'responses' with different scores")
    return scored[-1][1], scored[0][1]


def _pair_messages(row: Mapping[str, Any], question_key: str, answer_key: str, where: str) -> list[Message]:
    question = _text(row, question_key, where)
    extra = _text(row, "input", where) if question_key == "instruction" and row.get("input") else ""
    messages = [{"role": "user", "content": f"{question}\n{extra}" if extra else question}]
    return [*messages, {"role": "assistant", "content": _text(row, answer_key, where)}]


def _dressed(messages: list[Message], row: Mapping[str, Any], where: str) -> list[Message]:
    """The turns after the row's ``system_prompt``, each user's turn in the row's ``input_template``."""
    if row.get("input_template"):
        template = _text(row, "input_template", where)
        if INPUT_MARK not in template:
            raise _bad(where, f"needs {INPUT_MARK} in 'input_template', which stands for the user's text")
        messages = [
            {**message, "content": template.replace(INPUT_MARK, message["content"])}
            if message["role"] == "user"
            else message
            for message in messages
        ]
    if row.get("system_prompt") and messages[0]["role"] != "system":
        return [{"role": "system", "content": _text(row, "system_prompt", where)}, *messages]
    return messages


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(row[key], str):
        raise _bad(where, f"needs a text under {key!r}, got {type(row[key]).__name__}")
    return str(row[key])


def _text_file(path: Path) -> Iterator[TextPiece]:
    piece: list[str] = []
    size, start = 0, 1
    for line_number, line in _lines(path):
        if size >= PIECE_CHARACTERS:
            yield TextPiece(f"{path.name} line {start}", "".join(piece), ends_document=False)
            piece, size, start = [], 0, line_number
        piece.append(line)
        size += len(line)
    if start == 1 and not "".join(piece).strip():
        raise ProgramError("data_empty", f"the data file {path.name} has no text")
    yield TextPiece(f"{path.name} line {start}", "".join(piece), ends_document=True)


def _word(value: Any) -> str:
    """A value as JSON writes it, a text as it is."""
    return value if isinstance(value, str) else json.dumps(value)


def _text_rows(path: Path, wanted: Conditions) -> Iterator[TextPiece]:
    is_empty = True
    for line_number, row in read_rows(path):
        where = f"{path.name} line {line_number}"
        if "text" not in row:
            raise _bad(where, f"has the keys {sorted(row)}; pretraining needs 'text'")
        metadata = row.get("metadata")
        known = metadata if isinstance(metadata, dict) else {}
        if any((key in known and _word(known[key]) == value) is not must_be for key, value, must_be in wanted):
            continue
        is_empty = False
        yield TextPiece(where, _text(row, "text", where), ends_document=True)
    if is_empty:
        what = "no rows that metadata_filter asks for" if wanted else "no rows"
        raise ProgramError("data_empty", f"the data file {path.name} has {what}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines by number; a byte order mark is dropped. Raises ProgramError where the bytes are not UTF-8."""
    line_number = 0
    with open(path, "rb") as stream:
        for line_number, raw in enumerate(stream, start=1):
            try:
                yield line_number, raw.decode("utf-8-sig" if line_number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _bad(f"{path.name} line {line_number}", f"is not UTF-8 at byte {error.start}") from None


def _bad(where: str, problem: str) -> ProgramError:
    return ProgramError("data_invalid", f"{where} {problem}", field=where)
