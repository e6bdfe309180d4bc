"""Metrics out of what evaluation programs leave behind: JSON, CSV, and the summaries of OpenCompass. Pure functions."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from clavier.core.errors import Invalid

MAX_METRICS = 500
MAX_NAME_CHARACTERS = 200
MAX_DEPTH = 6
#: Files with these names are meant as metrics, so a broken one fails the evaluation.
METRIC_FILES = ("metrics.json", "results.json", "scores.json")
#: The first columns of an OpenCompass summary; then comes one column for each model.
_OPENCOMPASS = ["dataset", "version", "metric", "mode"]
_CSV_PART = re.compile(r"^csv format\s*\n\^+\s*\n(?P<rows>(?:[^\n]*,[^\n]*\n?)+)", re.MULTILINE)


def metrics_of(path: str, content: bytes) -> dict[str, float]:
    """name -> value of one file; empty when it holds none. Raises Invalid (``bad_output``) for a broken METRIC_FILE."""
    name = path.rsplit("/", 1)[-1].lower()
    text = content.decode("utf-8-sig", errors="replace")
    if name.endswith(".json"):
        found = of_json(text, path, is_meant=name in METRIC_FILES)
    elif name.endswith(".csv"):
        found = of_csv(text)
    elif name.endswith(".txt") and (part := _CSV_PART.search(text)) is not None:
        found = of_csv(part["rows"])
    else:
        found = []
    return dict(found[:MAX_METRICS])


def of_json(text: str, path: str, *, is_meant: bool) -> list[tuple[str, float]]:
    """The numbers of an object, by the path of their keys; lists (per-sample details) are passed over."""
    try:
        value = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        if is_meant:
            raise Invalid(f"{path} of the output folder is no JSON: {error}.", code="bad_output") from error
        return []
    if not isinstance(value, dict):
        return []
    # lm-evaluation-harness puts its configuration beside "results"; only the results are metrics.
    chosen = value["results"] if isinstance(value.get("results"), dict) else value
    return list(numbers_in(chosen, "", 0))


def numbers_in(value: dict[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, float]]:
    """(path of keys, number) of each number in an object."""
    for key, found in value.items():
        name = f"{prefix}{key}"[:MAX_NAME_CHARACTERS]
        if isinstance(found, dict) and depth < MAX_DEPTH:
            yield from numbers_in(found, f"{name}/", depth + 1)
        elif (number := number_of(found)) is not None and not isinstance(found, str):
            yield name, number


def of_csv(text: str) -> list[tuple[str, float]]:
    """An OpenCompass summary, or a table whose first column names the rows and whose others are numbers."""
    rows = list(csv.reader(io.StringIO(text)))
    if len(rows) < 2:
        return []
    header = [cell.strip() for cell in rows[0]]
    if [cell.lower() for cell in header[:4]] == _OPENCOMPASS:
        return of_opencompass(header[4:], rows[1:])
    if len(rows) > MAX_METRICS:  # a list of samples, not of metrics
        return []
    has_names = any(number_of(row[0]) is None for row in rows[1:] if row)
    found = []
    for place, row in enumerate(rows[1:]):
        label = row[0].strip() if has_names and row else ("" if len(rows) == 2 else f"row {place + 1}")
        for column, cell in list(zip(header, row, strict=False))[1 if has_names else 0 :]:
            if (number := number_of(cell)) is not None:
                plain = label if has_names and len(header) == 2 else "/".join(part for part in (label, column) if part)
                found.append((plain[:MAX_NAME_CHARACTERS], number))
    return found


def of_opencompass(models: list[str], rows: list[list[str]]) -> list[tuple[str, float]]:
    """``dataset/metric`` (with several models ``dataset/metric/model``) of each cell that holds a number."""
    found = []
    for row in rows:
        for model, cell in zip(models, row[4:], strict=False):
            if (number := number_of(cell)) is not None:
                parts = [row[0].strip(), row[2].strip(), *([model] if len(models) > 1 else [])]
                found.append(("/".join(part for part in parts if part and part != "-")[:MAX_NAME_CHARACTERS], number))
    return found


def number_of(value: Any) -> float | None:
    """A finite number, also as text; no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def refuse_constant(word: str) -> None:
    """Raises ValueError for NaN and Infinity."""
    raise ValueError(f"{word} is no JSON number")
