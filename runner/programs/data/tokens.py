"""Counts the tokens of a data set as a model would see it: ``python -m runner.programs.data.tokens RUN_FOLDER``.

Parameters: ``rows`` (JSONL), ``model`` (a folder with a tokenizer), ``max_lengths`` (lengths to judge besides the usual
ones). Writes ``output/result.json``: ``{samples, tokens, learned, mean, longest, quantiles: {"50": ...}, histogram:
[{from, to, samples}], at: [{max_length, longer, lost_truncate, lost_drop}], render_hash, path, why_slow,
tokens_per_cpu_second}``, where ``lost_...`` are shares of the learned tokens; and ``output/lengths.json``, from which
``lost_at`` says the same for any length.

Samples are rendered as training renders them. where fastokens has the same ids (``lib.fast_tokens``) it counts; the
first rows and one in ``CHECK_EVERY`` of the others are counted both ways, and the first difference makes a new, slow
start.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from runner.contract.folder import write_json_durably
from runner.programs.lib.artifacts import write_manifest
from runner.programs.lib.data import read_rows
from runner.programs.lib.events import ProgramContext, ProgramError, Stopped, require, run_program
from runner.programs.lib.render import Renderer
from runner.programs.lib.token_counts import Counted, TokenCounter

CHECKED_FIRST = 200
CHECK_EVERY = 100
USUAL_LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
QUANTILES = (50, 90, 95, 99)
#: Longer than any sample that is counted position by position.
MAX_POSITIONS = 4_000_000
_PROGRESS_EVERY_ROWS = 1_000


class Differs(Exception):
    """The fast twin counted a row otherwise."""


class Tally:
    """Lengths of samples and positions of learned tokens. Memory: by the longest sample, not by their number."""

    def __init__(self) -> None:
        self.lengths: Counter[int] = Counter()
        self.learned_of_length: Counter[int] = Counter()
        self._steps = array("q", bytes(8))

    def add(self, counted: Counted) -> None:
        """One sample. Raises ProgramError for one that is too long to be meant."""
        size = counted.num_tokens
        if size > MAX_POSITIONS:
            raise ProgramError("row_too_large", f"a sample has {size:,} tokens; {MAX_POSITIONS:,} are counted.")
        self.lengths[size] += 1
        self.learned_of_length[size] += sum(end - start for start, end in counted.spans)
        if size >= len(self._steps):
            self._steps.extend([0] * (size + 1 - len(self._steps)))
        for start, end in counted.spans:
            self._steps[start] += 1
            self._steps[end] -= 1

    def learned_at(self) -> Iterator[int]:
        """How many learned tokens are at position 0, 1, ..."""
        height = 0
        for step in self._steps:
            height += step
            yield height


def main(context: ProgramContext) -> None:
    """Count, describe."""
    rows, model = Path(require(context.parameters, "rows")), Path(require(context.parameters, "model"))
    context.report.phase("model", f"reading the tokenizer of {model.name}")
    renderer = Renderer.from_folder(model)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    counter = TokenCounter(renderer, tokenizer)
    slow = TokenCounter(renderer, tokenizer, is_fast=False)
    began = time.process_time()
    try:
        tally = count(context, rows, counter, slow)
    except Differs as difference:
        context.report.warning(str(difference), code="slow_path")
        counter.go_slow(str(difference))
        began = time.process_time()
        tally = count(context, rows, counter, slow)
    seconds = max(1e-6, time.process_time() - began)
    result = described(tally, [int(size) for size in context.parameters.get("max_lengths") or ()])
    result |= {
        "render_hash": renderer.render_hash,
        "path": "fast" if counter.is_fast else "slow",
        "why_slow": counter.why_slow,
        "tokens_per_cpu_second": round(result["tokens"] / seconds),
    }
    write_json_durably(context.output / "result.json", result)
    lengths = {
        "learned_at": list(tally.learned_at()),
        "lengths": sorted(tally.lengths.items()),
        "learned_of_length": sorted(tally.learned_of_length.items()),
    }
    write_json_durably(context.output / "lengths.json", lengths)
    write_manifest(context.output, "data", {}, {})
    context.report.summary({name: result[name] for name in ("samples", "tokens", "learned", "longest")})


def count(context: ProgramContext, rows: Path, counter: TokenCounter, slow: TokenCounter) -> Tally:
    """Every sample. Raises Differs, ProgramError, Stopped."""
    tally, size = Tally(), rows.stat().st_size
    context.report.phase("data", f"counting the tokens of {size / 2**20:,.1f} MiB")
    done = 0
    for line, row in read_rows(rows):
        where = f"row {line}"
        samples = counter.samples(row, where)
        if (
            counter.is_fast
            and (line <= CHECKED_FIRST or line % CHECK_EVERY == 0)
            and samples != slow.samples(row, where)
        ):
            raise Differs(f"{where}: fastokens counts it otherwise than the tokenizer, so the tokenizer itself counts")
        for counted in samples:
            tally.add(counted)
        done = line
        if line % _PROGRESS_EVERY_ROWS == 0:
            if context.should_stop:
                raise Stopped(f"stopped after {line:,} rows")
            context.report.progress(line, int(context.parameters.get("num_rows") or line))
    context.report.progress(done, done)
    return tally


def described(tally: Tally, more_lengths: list[int]) -> dict[str, Any]:
    """The report. Raises ProgramError where there is nothing."""
    lengths = sorted(tally.lengths.items())
    samples = sum(number for _, number in lengths)
    if not samples:
        raise ProgramError("data_empty", "there is no row to count the tokens of")
    tokens = sum(size * number for size, number in lengths)
    learned_at = list(tally.learned_at())
    wanted = sorted({size for size in USUAL_LENGTHS if size < 2 * lengths[-1][0]} | set(more_lengths))
    return {
        "samples": samples,
        "tokens": tokens,
        "learned": sum(learned_at),
        "mean": round(tokens / samples, 1),
        "longest": lengths[-1][0],
        "quantiles": {str(percent): quantile(lengths, samples, percent) for percent in QUANTILES},
        "histogram": histogram(lengths),
        "at": [lost_at(size, learned_at, lengths, sorted(tally.learned_of_length.items())) for size in wanted],
    }


def lost_at(
    max_length: int, learned_at: list[int], lengths: list[tuple[int, int]], learned_of_length: list[tuple[int, int]]
) -> dict[str, Any]:
    """What a largest length costs: samples that are longer, and the shares of learned tokens that are lost."""
    learned = max(1, sum(learned_at))
    return {
        "max_length": max_length,
        "longer": sum(number for size, number in lengths if size > max_length),
        "lost_truncate": round(sum(learned_at[max_length:]) / learned, 6),
        "lost_drop": round(sum(number for size, number in learned_of_length if size > max_length) / learned, 6),
    }


def quantile(lengths: list[tuple[int, int]], samples: int, percent: int) -> int:
    """The length that so many percent of the samples do not exceed."""
    left = samples * percent / 100
    for size, number in lengths:
        left -= number
        if left <= 0:
            return size
    return lengths[-1][0]


def histogram(lengths: list[tuple[int, int]]) -> list[dict[str, int]]:
    """Four classes to each doubling, ``from`` included and ``to`` not."""
    bounds = [0]
    while bounds[-1] <= lengths[-1][0]:
        bounds.append(max(bounds[-1] + 1, round(2 ** (len(bounds) / 4 + 2))))
    counts = [0] * (len(bounds) - 1)
    place = 0
    for size, number in lengths:
        while size >= bounds[place + 1]:
            place += 1
        counts[place] += number
    classes = zip(bounds, bounds[1:], counts, strict=False)
    return [{"from": low, "to": high, "samples": number} for low, high, number in classes if number]


if __name__ == "__main__":
    run_program(main)
