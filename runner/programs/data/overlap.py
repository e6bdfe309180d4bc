"""Looks for rows that two sets of data share, and for near duplicates in one: ``python -m ... RUN_FOLDER``.

Parameters: ``rows`` (JSONL), ``against`` (``[{id, label, rows}]``), ``threshold`` (0.5 to 1).
Writes ``output/result.json``: ``{rows, threshold, sets: [{id, label, rows, exact, near, samples}], within: {near,
samples}, notes}``. Counted are rows of ``rows``. A sample has both lines, the similarity and both texts.

Compared is what a model is asked (the user's turns, question, prompt), or the whole text where nothing is asked: a
question that is known from training is leaked, however its answer is worded. Exact: equal without case, punctuation
and white space. Near: the estimated Jaccard similarity of the sets of 5-character shingles. Memory is bounded: 8 bytes
a row for the exact ones, about 1 KiB for each of the first rows for the near ones.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.contract.folder import MANIFEST, write_json_durably
from runner.programs.lib.data import PAIRS, read_rows
from runner.programs.lib.events import ProgramContext, Stopped, require, run_program
from runner.programs.lib.near import NearTexts, sketch_of

#: Rows of one set that are remembered for finding near ones: about 250 MiB.
MAX_NEAR_ROWS = 250_000
LISTED = 20
SAMPLE_CHARACTERS = 200
_PROGRESS_EVERY_ROWS = 2_000


def main(context: ProgramContext) -> None:
    """One pass over the rows for each set, and one within them."""
    rows, threshold = Path(require(context.parameters, "rows")), float(context.parameters.get("threshold") or 0.8)
    against = context.parameters.get("against") or []
    notes: list[str] = []
    total = sum(1 for _ in texts_of(rows))
    progress = Progress(context, total * (len(against) + 1))
    sets = [compare(rows, other, threshold, progress, notes) for other in against]
    within = near_within(rows, threshold, progress, notes)
    result = {"rows": total, "threshold": threshold, "sets": sets, "within": within, "notes": notes}
    target = context.output / "result.json"
    write_json_durably(target, result)
    files = [{"path": target.name, "size": target.stat().st_size}]
    write_json_durably(context.output / MANIFEST, {"files": files, "kind": "data", "facts": {}, "metrics": {}})
    shared = sum(item["exact"] + item["near"] for item in sets)
    context.report.summary({"rows": total, "shared": shared, "near_duplicates": within["near"]})


class Progress:
    """Rows compared so far, told now and then."""

    def __init__(self, context: ProgramContext, total: int) -> None:
        self._context = context
        self._total = total
        self._done = 0

    def step(self) -> None:
        """One more row. Raises Stopped."""
        self._done += 1
        if self._done % _PROGRESS_EVERY_ROWS == 0 or self._done == self._total:
            if self._context.should_stop:
                raise Stopped(f"stopped after {self._done:,} of {self._total:,} rows")
            self._context.report.progress(self._done, self._total)


def compare(
    rows: Path, other: Mapping[str, Any], threshold: float, progress: Progress, notes: list[str]
) -> dict[str, Any]:
    """How many of the rows another set has too, with samples."""
    lines, near = index_of(Path(other["rows"]), threshold)
    known = sorted_keys(lines)
    if len(lines) > len(near):
        notes.append(f"{other['label']}: near rows were looked for among its first {len(near):,} of {len(lines):,}.")
    found: dict[str, Any] = {"id": other["id"], "label": other["label"], "rows": len(lines), "exact": 0, "near": 0}
    samples: list[dict[str, Any]] = []
    wanted: dict[int, str] = {}
    for line, text in texts_of(rows):
        progress.step()
        number = find(known, key_of(text))
        match: tuple[int, float] | None = (number, 1.0) if number is not None else None
        kind = "exact" if match else "near"
        match = match or near.most_like(sketch_of(text))
        if match is None:
            continue
        found[kind] += 1
        if len(samples) < LISTED:
            samples.append(sample_of(kind, line, match[0] + 1, match[1], text))
            wanted[match[0] + 1] = ""
    for line, text in texts_of(Path(other["rows"])) if wanted else ():
        if line in wanted:
            wanted[line] = text[:SAMPLE_CHARACTERS]
    for sample in samples:
        sample["other_text"] = wanted[sample["other_line"]]
    return found | {"samples": samples}


def near_within(rows: Path, threshold: float, progress: Progress, notes: list[str]) -> dict[str, Any]:
    """Rows that are almost an earlier one of the same set (equal ones are the gate's), with samples."""
    near, count, keys, lines = NearTexts(threshold), 0, set[int](), array("Q")
    samples: list[dict[str, Any]] = []
    for line, text in texts_of(rows):
        progress.step()
        key = key_of(text)
        if key in keys:
            continue
        sketch = sketch_of(text)
        match = near.most_like(sketch)
        if match is not None:
            count += 1
            if len(samples) < LISTED:
                samples.append(sample_of("near", line, lines[match[0]], match[1], text))
        elif len(near) < MAX_NEAR_ROWS:
            near.add(sketch)
            lines.append(line)
            keys.add(key)
    if len(near) == MAX_NEAR_ROWS:
        notes.append(f"near duplicates were looked for among the first {MAX_NEAR_ROWS:,} different rows.")
    return {"near": count, "samples": samples}


def index_of(rows: Path, threshold: float) -> tuple[array[int], NearTexts]:
    """The keys of all rows in order, and the first rows for finding near ones."""
    keys, near = array("Q"), NearTexts(threshold)
    for _, text in texts_of(rows):
        keys.append(key_of(text))
        if len(near) < MAX_NEAR_ROWS:
            near.add(sketch_of(text))
    return keys, near


def texts_of(rows: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and compared text of each row."""
    for number, (_, row) in enumerate(read_rows(rows), start=1):
        yield number, compared_text(row)


def compared_text(row: Mapping[str, Any]) -> str:
    """What two rows are compared by."""
    turns = row.get("messages", row.get("prompt"))
    if isinstance(turns, list):
        asked = [
            str(turn.get("content", "")) for turn in turns if isinstance(turn, dict) and turn.get("role") == "user"
        ]
        return "\n".join(asked)
    for question, answer in PAIRS:
        if question in row and (answer in row or question == "prompt"):
            extra = row.get("input") if question == "instruction" else None
            return f"{row[question]}\n{extra}" if extra else str(row[question])
    if "prompt" in row or "text" in row:
        return str(row.get("prompt", row.get("text")))
    return json.dumps(row, ensure_ascii=False)


def key_of(text: str) -> int:
    """Equal for texts that differ only in case, width, punctuation and white space."""
    plain = "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
    digest = hashlib.blake2b((plain or text.strip()).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def sorted_keys(keys: array[int]) -> tuple[Any, Any]:
    """The keys in ascending order, and the row of each: 16 bytes a row, and every one found in a few steps."""
    import numpy  # late: it comes with the libraries that read models, and takes its time

    values = numpy.frombuffer(keys, dtype=numpy.uint64) if keys else numpy.empty(0, dtype=numpy.uint64)
    order = numpy.argsort(values, kind="stable")
    return values[order], order


def find(known: tuple[Any, Any], key: int) -> int | None:
    """The first row with the key, from 0."""
    values, order = known
    place = int(values.searchsorted(values.dtype.type(key)))
    return int(order[place]) if place < len(values) and int(values[place]) == key else None


def sample_of(kind: str, line: int, other_line: int, similarity: float, text: str) -> dict[str, Any]:
    """One finding as the report shows it."""
    return {
        "kind": kind,
        "line": line,
        "other_line": other_line,
        "similarity": round(similarity, 3),
        "text": text[:SAMPLE_CHARACTERS],
    }


if __name__ == "__main__":
    run_program(main)
