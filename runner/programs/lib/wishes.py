"""Rows of a data set that say which LoRA adapter they train (document 003): ``rank`` and ``target_modules``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runner.contract.knob_values import BadValue, read_value
from runner.contract.knobs import KNOBS
from runner.programs.lib.data import read_rows
from runner.programs.lib.events import ProgramError

#: Key of a row -> the hyperparameter that it stands for.
LABELS = {"rank": "lora_r", "target_modules": "target_modules"}
#: Read at once; and more bytes than any key with its quotes has.
PIECE_BYTES, MOST_BYTES = 1 << 20, 32
ASKED = {label: knob for label, name in LABELS.items() for knob in KNOBS if knob.name == name}


def adapter_wishes(path: Path | str, knobs: Mapping[str, Any], *, alone: bool) -> dict[str, Any]:
    """The hyperparameters that rows ask for; {} where no row does.

    A row without a label stands for the value of ``knobs``. One run makes one adapter, so all rows must stand for the
    same. ``alone``: a ``rank`` counts without ``target_modules`` beside it, too; else it is a column of the data's own.
    Raises ProgramError with the line of the first row whose value is none, or that differs from the rows before it.
    """
    if not _names(path, LABELS if alone else ("target_modules",)):
        return {}
    wishes: dict[str, Any] = {}
    first: dict[str, tuple[Any, str, bool]] = {}
    for line_number, row in read_rows(path):
        where = f"{Path(path).name} line {line_number}"
        is_label = alone or row.get("target_modules") is not None
        for label, name in LABELS.items():
            is_asked = is_label and row.get(label) is not None
            value = _value(label, row[label], where) if is_asked else knobs[name]
            before, there, was_asked = first.setdefault(label, (value, where, is_asked))
            if _key(before) != _key(value):
                now, then = _words(label, value, is_asked), _words(label, before, was_asked)
                problem = f"{where} {now}, but {there} {then}; train them as two data sets"
                raise ProgramError("data_invalid", problem, where)
            if is_asked:
                wishes.setdefault(name, value)
    return wishes


def _names(path: Path | str, labels: Iterable[str]) -> bool:
    """Whether a file may hold one of the keys: a search for bytes, so that most data is decoded once only.

    A key that is spelled with escapes, which no program does, counts as there.
    """
    if not Path(path).is_file():
        return True  # which the reader says in words
    signs = [b"\\u00", *(f'"{label}"'.encode() for label in labels)]
    with open(path, "rb") as stream:
        before = b""
        while piece := stream.read(PIECE_BYTES):
            seen = before + piece
            if any(sign in seen for sign in signs):
                return True
            before = seen[-MOST_BYTES:]
    return False


def _value(label: str, given: Any, where: str) -> Any:
    try:
        return read_value(ASKED[label], given)
    except BadValue as problem:
        raise ProgramError("data_invalid", f"{where}: {label} {problem}", where) from None


def _words(label: str, value: Any, is_asked: bool) -> str:
    shown = ", ".join(value) if isinstance(value, list) else value
    return f"asks for {label} {shown}" if is_asked else f"names no {label}, which means {shown}"


def _key(value: Any) -> Any:
    """Layers have no order."""
    return frozenset(value) if isinstance(value, list) else value
