"""Metrics and progress out of what a user's own script prints: Hugging Face dictionaries and tqdm bars."""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

#: Longer lines are no metrics.
MAX_LINE_CHARACTERS = 8192

_BREAK = re.compile(r"[\r\n]+")
_BAR = re.compile(
    r"^(?P<what>[^|%]*?)\s*\d{1,3}%\|[^|]*\|\s*(?P<step>\d+)/(?P<total>\d+)\s*(?:\[(?P<spent>[\d:]+)<(?P<left>[\d:?]+))?"
)
_TRAINS = re.compile(r"train|epoch|step|iter", re.IGNORECASE)
_DICTIONARY = re.compile(r"\{\s*['\"].+\}")
_NO_NUMBER = re.compile(r"(?<![\w'\"])-?(?:nan|NaN|inf|Infinity)(?![\w'\"])")
#: A dictionary with none of these is something else that the script prints.
_TELLTALE = re.compile(r"^(loss|epoch|step|learning_rate|grad_norm|rewards?|eval_\w+|train_\w+|perplexity|accuracy)$")
_ERROR = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning|Failure)(?:: .*|)$")


def events_of(text: str, *, before: str = "") -> list[dict[str, Any]]:
    """The events of a part of a log, oldest first; ``before``: what stands right before it (for the step).

    ``{"kind": "metric", "step", "total_steps", "epoch", "train/loss", ...}`` for a dictionary that has a step, an epoch
    or a bar to go by (thousandths of an epoch serve as steps where neither counts them), and one
    ``{"kind": "progress", "step", "total_steps", "eta_s"}`` for the newest bar.
    """
    bar = next((found for line in reversed(_BREAK.split(before)) if (found := bar_of(line))), None)
    newest = None
    events = []
    for line in _BREAK.split(text):
        if (found := bar_of(line)) is not None:
            bar = newest = found
        if (values := dictionary_of(line)) is not None and (event := metric_of(values, bar)) is not None:
            events.append(event)
    return events + ([newest] if newest else [])


def bar_of(line: str) -> dict[str, Any] | None:
    """The progress of a tqdm bar that counts training; downloads and tokenization have a name of their own."""
    found = _BAR.search(line[:MAX_LINE_CHARACTERS])
    if found is None or (found["what"].strip() and not _TRAINS.search(found["what"])):
        return None
    return {
        "kind": "progress",
        "step": int(found["step"]),
        "total_steps": int(found["total"]),
        "eta_s": seconds_of(found["left"] or ""),
    }


def dictionary_of(line: str) -> dict[str, Any] | None:
    """The dictionary with metrics in a line, as Python or as JSON writes it."""
    found = _DICTIONARY.search(line) if "{" in line and len(line) <= MAX_LINE_CHARACTERS else None
    if found is None:
        return None
    try:
        value = ast.literal_eval(_NO_NUMBER.sub("None", found.group()))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        try:
            value = json.loads(_NO_NUMBER.sub("null", found.group()))
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, dict) or not any(isinstance(key, str) and _TELLTALE.match(key) for key in value):
        return None
    return value


def metric_of(values: dict[str, Any], bar: dict[str, Any] | None) -> dict[str, Any] | None:
    """A metric event with the platform's names, or None when nothing says where in the training it belongs."""
    numbers = {str(key): number for key, value in values.items() if (number := number_of(value)) is not None}
    epoch = numbers.pop("epoch", None)
    step = numbers.pop("step", None) or numbers.pop("global_step", None)
    if step is None and bar is not None:
        step = bar["step"]
    elif step is None and epoch is not None:
        step = round(epoch * 1000)
    if step is None or not numbers:
        return None
    named = {name_of(key): value for key, value in numbers.items()}
    total = {"total_steps": bar["total_steps"]} if bar else {}
    return {"kind": "metric", "step": int(step), **total, **({} if epoch is None else {"epoch": epoch}), **named}


def name_of(key: str) -> str:
    """``eval_loss`` is ``eval/loss``, ``loss`` and ``train_loss`` are of the training; names with a slash stay."""
    if "/" in key:
        return key
    for prefix in ("eval", "test"):
        if key.startswith(f"{prefix}_"):
            return f"{prefix}/{key.removeprefix(f'{prefix}_')}"
    return f"train/mean_{key.removeprefix('train_')}" if key.startswith("train_") else f"train/{key}"


def number_of(value: Any) -> float | int | None:
    """A finite number, also one that is written as text (newer trainers print ``'2.3'``)."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def seconds_of(clock: str) -> float | None:
    """``1:02:03`` in seconds; None for ``?``."""
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts):
        return None
    return float(sum(int(part) * 60**place for place, part in enumerate(reversed(parts))))


def last_words(text: str) -> str:
    """Why a program failed: the line that ends its last traceback, else its last line; at most 500 characters."""
    lines = [line.strip() for line in _BREAK.split(text) if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    own = [line for line in lines if not line.startswith("[clavier] ") or "command not run" in line]
    found = errors[-1:] or own[-1:]
    return found[0].removeprefix("[clavier] ")[:500] if found else ""
