"""What can be done to the rows of a version to make the next one: pure functions over streams of rows.

A recipe of steps is a list such as ``[{"step": "deduplicate", "near": true}, {"step": "deidentify"}]``.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from clavier.core.errors import Invalid, quoted
from datasets_app.formats import Row
from datasets_app.mapping import checked_mapping, rename
from datasets_app.personal import KINDS, deidentified, in_every_text
from datasets_app.repeats import FirstLines
from datasets_app.strict_json import encode_row
from runner.contract.texts import without_controls
from runner.programs.lib.near import NearTexts, Text, in_blocks

MAX_STEPS = 20
#: Rows whose keys are held in memory: to split them, to compare them, to find equal ones.
MAX_ROWS_IN_MEMORY = 2_000_000
SPLITS = ("train", "validation", "test")


@dataclass
class Tally:
    """What the steps did, by step."""

    removed: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    personal: Counter[str] = field(default_factory=Counter)
    #: Rows that are so much like many others that near duplicates of them were looked for through a part of them only.
    crowded: int = 0

    def as_json(self) -> dict[str, Any]:
        """``{removed: {step: rows}, changed: {step: rows}, personal_data: {kind: finds}, crowded: rows}``."""
        return {
            "removed": dict(+self.removed),
            "changed": dict(+self.changed),
            "personal_data": dict(+self.personal),
        } | ({"crowded": self.crowded} if self.crowded else {})


#: Rows, what was done, and a folder for what does not fit into memory, which need not exist.
Step = Callable[[Iterable[Row], Tally, Path], Iterator[Row]]


def checked_steps(given: Sequence[Mapping[str, Any]]) -> list[Step]:
    """The steps as functions, in order. Raises Invalid naming the step and option at fault."""
    if not given or len(given) > MAX_STEPS:
        raise Invalid(f"steps must be a list of 1 to {MAX_STEPS} steps.", code="out_of_range", field="steps")
    return [_checked_step(number, step) for number, step in enumerate(given)]


def apply(steps: Sequence[Step], rows: Iterable[Row], tally: Tally, scratch: Path) -> Iterator[Row]:
    """The rows after all steps, as a stream; what a step puts aside below ``scratch`` is gone after the last row."""
    for number, step in enumerate(steps):
        rows = step(rows, tally, scratch / str(number))
    return iter(rows)


def row_key(row: Row) -> bytes:
    """What two rows that say the same have in common: their texts without case and white space."""
    text = re.sub(r"\s+", " ", encode_row(row)).casefold()
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def split_of_rows(keys: Sequence[int], shares: Mapping[str, float], seed: int) -> Any:
    """For each row's key the number of the split it belongs to: numpy array of uint8. About 60 bytes a row meanwhile.

    Equal rows always land in the same split, and a row stays where it is when others are added far from it in hash
    order. The sizes are exact but for groups of equal rows that would be torn apart.
    """
    groups, group_of, sizes = numpy.unique(
        numpy.asarray(keys, dtype=numpy.uint64), return_inverse=True, return_counts=True
    )
    digests = (hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest() for key in groups)
    order = numpy.argsort(numpy.fromiter((int.from_bytes(digest) for digest in digests), dtype=numpy.uint64))
    bounds, sum_of_shares = [], 0.0
    for share in list(shares.values())[:-1]:
        sum_of_shares += share
        bounds.append(round(sum_of_shares * len(keys)))
    before = numpy.cumsum(sizes[order]) - sizes[order]
    places = numpy.empty(len(groups), dtype=numpy.uint8)
    places[order] = numpy.searchsorted(numpy.array(bounds, dtype=numpy.int64), before, side="right")
    return places[group_of]


def checked_shares(given: Mapping[str, Any]) -> dict[str, float]:
    """Shares of the splits, which sum to 1. Raises Invalid."""
    unknown = sorted(set(given) - set(SPLITS))
    if unknown or "train" not in given:
        raise Invalid(
            f"splits {quoted(dict(given))}: train, and if wanted validation and test, are allowed.",
            code="unknown_field" if unknown else "required",
            field="splits",
        )
    for name, share in given.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise Invalid(f"splits.{name} must be a share above 0, up to 1.", code="out_of_range", field="splits")
    if abs(sum(given.values()) - 1) > 1e-6:
        raise Invalid(f"splits sum to {sum(given.values()):g}; they must sum to 1.", code="bad_value", field="splits")
    return {name: float(given[name]) for name in SPLITS if name in given}


def keys_of(rows: Iterable[Row]) -> array[int]:
    """The key of every row as a number."""
    return array("Q", (int.from_bytes(row_key(row), "little") for row in rows))


def _checked_step(number: int, given: Mapping[str, Any]) -> Step:
    options = dict(given)
    name = options.pop("step", None)
    if name not in _STEPS:
        raise Invalid(
            f"steps[{number}].step {quoted(name)} is none of {', '.join(_STEPS)}.", code="not_a_choice", field="steps"
        )
    make, allowed = _STEPS[name]
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise Invalid(
            f"steps[{number}].{unknown[0]} is no option of {name}; {', '.join(allowed) or 'it has none'}.",
            code="unknown_field",
            field="steps",
        )
    return make(f"steps[{number}]", options)


def _clean(where: str, options: dict[str, Any]) -> Step:
    def step(rows: Iterable[Row], tally: Tally, _scratch: Path) -> Iterator[Row]:
        for row in rows:
            cleaned = in_every_text(row, without_controls)
            tally.changed["clean"] += cleaned != row
            yield cleaned

    return step


def _deduplicate(where: str, options: dict[str, Any]) -> Step:
    near = options.get("near", False)
    threshold = _number(where, "threshold", options.get("threshold", 0.8), 0.5, 1.0)

    def exact(rows: Iterable[Row], tally: Tally, _scratch: Path) -> Iterator[Row]:
        seen = FirstLines(MAX_ROWS_IN_MEMORY)
        for row in rows:
            if seen.of(int.from_bytes(row_key(row), "little"), 1) is not None:
                tally.removed["deduplicate"] += 1
            else:
                yield row

    def lookalikes(rows: Iterable[Row], tally: Tally, scratch: Path) -> Iterator[Row]:
        with NearTexts(threshold, scratch) as known:
            for block in in_blocks(((row, encode_row(row)) for row in rows), lambda pair: len(pair[1])):
                texts = [Text(0, int.from_bytes(row_key(row), "little"), text) for row, text in block]
                matches = known.look_up(texts, remember="different")
                for (row, _), match in zip(block, matches, strict=True):
                    if match is None:
                        yield row
                    else:
                        tally.removed["deduplicate" if match.is_equal else "deduplicate_near"] += 1
            tally.crowded += known.crowded

    return lookalikes if near else exact


def _deidentify(where: str, options: dict[str, Any]) -> Step:
    kinds = options.get("kinds", list(KINDS))
    bad = [kind for kind in kinds if kind not in KINDS] if isinstance(kinds, list) else [kinds]
    if bad or not kinds:
        raise Invalid(
            f"{where}.kinds {quoted(kinds)} must be a list of {', '.join(KINDS)}.", code="not_a_choice", field="steps"
        )

    def step(rows: Iterable[Row], tally: Tally, _scratch: Path) -> Iterator[Row]:
        for row in rows:
            before = tally.personal.total()
            row = deidentified(row, kinds, tally.personal)
            tally.changed["deidentify"] += tally.personal.total() > before
            yield row

    return step


def _select(where: str, options: dict[str, Any]) -> Step:
    first = int(_number(where, "first", options.get("first", 0), 0, 2**62))
    count = int(_number(where, "count", options.get("count", 2**62), 1, 2**62))
    every = int(_number(where, "every", options.get("every", 1), 1, 10**9))

    def step(rows: Iterable[Row], tally: Tally, _scratch: Path) -> Iterator[Row]:
        kept = 0
        for number, row in enumerate(rows):
            if number < first or kept >= count or (number - first) % every:
                tally.removed["select"] += 1
                continue
            kept += 1
            yield row

    return step


def _drop_long(where: str, options: dict[str, Any]) -> Step:
    most = int(_number(where, "max_characters", options.get("max_characters", 0), 1, 10**8))

    def step(rows: Iterable[Row], tally: Tally, _scratch: Path) -> Iterator[Row]:
        for row in rows:
            if len(encode_row(row)) > most:
                tally.removed["drop_long"] += 1
            else:
                yield row

    return step


def _rename(where: str, options: dict[str, Any]) -> Step:
    mapping = options.get("mapping")
    if not isinstance(mapping, dict) or not mapping:
        raise Invalid(f'{where}.mapping must be an object such as {{"question": "q"}}.', code="required", field="steps")
    checked = checked_mapping(mapping)

    def step(rows: Iterable[Row], tally: Tally, _scratch: Path) -> Iterator[Row]:
        for row in rows:
            renamed = rename(row, checked)
            tally.changed["rename"] += list(renamed) != list(row)
            yield renamed

    return step


def _number(where: str, name: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise Invalid(
            f"{where}.{name} {quoted(value)} must be a number from {least:g} to {most:g}.",
            code="out_of_range",
            field="steps",
        )
    return value


_STEPS: dict[str, tuple[Callable[[str, dict[str, Any]], Step], tuple[str, ...]]] = {
    "clean": (_clean, ()),
    "deduplicate": (_deduplicate, ("near", "threshold")),
    "deidentify": (_deidentify, ("kinds",)),
    "drop_long": (_drop_long, ("max_characters",)),
    "rename": (_rename, ("mapping",)),
    "select": (_select, ("first", "count", "every")),
}
STEP_NAMES = tuple(_STEPS)
