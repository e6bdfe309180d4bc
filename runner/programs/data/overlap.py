"""Looks for rows that two sets of data share, and for near duplicates in one: ``python -m ... RUN_FOLDER``.

Parameters: ``rows`` (JSONL), ``against`` (``[{id, label, rows}]``), ``threshold`` (0.5 to 1).
Writes ``output/result.json``: ``{rows, threshold, sets: [{id, label, rows, exact, near, samples, compared}], within:
{near, samples, compared}, notes}``. Counted are rows of ``rows``. A sample has both lines, the similarity and both
texts; ``compared`` says what was: ``{different, comparisons, crowded}``, the rows that were remembered, the pairs of
sketches, and how many of the rows were so much like others that some bands of their sketches lead to those alone.

Compared is what a model is asked (the user's turns, question, prompt), or the whole text where nothing is asked: a
question that is known from training is leaked, however its answer is worded. Exact: equal without case, punctuation
and white space. Near: the estimated Jaccard similarity of the sets of 5-character shingles. All rows of all sets are
compared; memory does not grow with them (``lib/near.py``), and on disk they take about 920 bytes a row meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.contract.folder import MANIFEST, write_json_durably
from runner.programs.lib.data import PAIRS, read_rows
from runner.programs.lib.events import ProgramContext, Stopped, require, run_program
from runner.programs.lib.near import REPRESENTATIVES, Match, NearTexts, Remember, Text, in_blocks

LISTED = 20
SAMPLE_CHARACTERS = 200
_PROGRESS_EVERY_ROWS = 2_000


def main(context: ProgramContext) -> None:
    """Each other set is remembered and the rows looked up in it; at last the rows are looked up in themselves."""
    rows, threshold = Path(require(context.parameters, "rows")), float(context.parameters.get("threshold") or 0.8)
    against = context.parameters.get("against") or []
    total = count_rows(rows)
    progress = Progress(context, sum(total + count_rows(Path(other["rows"])) for other in against) + total)
    sets = [compare(context, rows, other, threshold, progress) for other in against]
    context.report.phase("within", f"looking for near duplicates among {total:,} rows")
    within = near_within(context, rows, threshold, progress)
    notes = [note for item in sets for note in said(item)]
    result = {"rows": total, "threshold": threshold, "sets": sets, "within": within, "notes": notes}
    target = context.output / "result.json"
    write_json_durably(target, result)
    files = [{"path": target.name, "size": target.stat().st_size}]
    write_json_durably(context.output / MANIFEST, {"files": files, "kind": "data", "facts": {}, "metrics": {}})
    shared = sum(item["exact"] + item["near"] for item in sets)
    context.report.summary({"rows": total, "shared": shared, "near_duplicates": within["near"]})


class Progress:
    """Rows read so far, told now and then."""

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
    context: ProgramContext, rows: Path, other: Mapping[str, Any], threshold: float, progress: Progress
) -> dict[str, Any]:
    """How many of the rows another set has too, with samples."""
    place, found = Path(other["rows"]), {"exact": 0, "near": 0}
    samples: list[dict[str, Any]] = []
    with NearTexts(threshold, context.work / "near") as near:
        context.report.phase("index", f"reading {other['label']}")
        size = sum(1 for _ in looked_up(near, place, "new", progress))
        context.report.phase(
            "compare", f"comparing with {other['label']}: {size:,} rows, {near.remembered:,} different"
        )
        for text, match in looked_up(near, rows, "none", progress):
            if match is not None:
                kind = "exact" if match.is_equal else "near"
                found[kind] += 1
                if len(samples) < LISTED:
                    samples.append(sample_of(kind, text, match))
    wanted = {sample["other_line"]: "" for sample in samples}
    for line, asked in texts_of(place) if wanted else ():
        if line in wanted:
            wanted[line] = asked[:SAMPLE_CHARACTERS]
    for sample in samples:
        sample["other_text"] = wanted[sample["other_line"]]
    facts = {"id": other["id"], "label": other["label"], "rows": size}
    return facts | found | {"samples": samples, "compared": compared(near)}


def near_within(context: ProgramContext, rows: Path, threshold: float, progress: Progress) -> dict[str, Any]:
    """Rows that are almost an earlier one of the same set (equal ones are the gate's), with samples."""
    count, samples = 0, list[dict[str, Any]]()
    with NearTexts(threshold, context.work / "near") as near:
        for text, match in looked_up(near, rows, "different", progress):
            if match is not None and not match.is_equal:
                count += 1
                if len(samples) < LISTED:
                    samples.append(sample_of("near", text, match))
    return {"near": count, "samples": samples, "compared": compared(near)}


def looked_up(
    near: NearTexts, rows: Path, remember: Remember, progress: Progress
) -> Iterator[tuple[Text, Match | None]]:
    """Each row with what is most like it among the remembered ones."""
    for block in in_blocks(_keyed(rows, progress), lambda text: len(text.text)):
        yield from zip(block, near.look_up(block, remember=remember), strict=True)


def compared(near: NearTexts) -> dict[str, int]:
    """What was compared, for the report."""
    return {"different": near.remembered, "comparisons": near.comparisons, "crowded": near.crowded}


def said(part: Mapping[str, Any]) -> Iterator[str]:
    """What a reader should know about the comparison with another set, in words."""
    crowded, different = part["compared"]["crowded"], part["compared"]["different"]
    if crowded:
        yield (
            f"{part['label']}: {crowded:,} of its {different:,} different rows share parts with many others, as rows "
            f"of a template do. By those parts rows were compared with the first {REPRESENTATIVES} of them only."
        )


def count_rows(rows: Path) -> int:
    """Rows of a file, without a look at what they say; 0 where there is none, which whoever reads it says in words."""
    if not rows.is_file():
        return 0
    with open(rows, "rb") as stream:
        return sum(1 for line in stream if line.strip())


def _keyed(rows: Path, progress: Progress) -> Iterator[Text]:
    for line, text in texts_of(rows):
        progress.step()
        yield Text(line, key_of(text), text)


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


def sample_of(kind: str, text: Text, match: Match) -> dict[str, Any]:
    """One finding as the report shows it."""
    return {
        "kind": kind,
        "line": text.label,
        "other_line": match.label,
        "similarity": round(match.similarity, 3),
        "text": text.text[:SAMPLE_CHARACTERS],
    }


if __name__ == "__main__":
    run_program(main)
