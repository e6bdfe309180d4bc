"""Near duplicates: the same answers from memory and from disk, and no more work a row for rows of a template."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.programs.data import overlap
from runner.programs.lib import key_runs
from runner.programs.lib.near import DISK_BYTES, REPRESENTATIVES, Match, NearTexts, Remember, Text
from tests.programs.recipes import events_of, make_context, write_rows

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    f"{first}{second}" for first in ("ka", "lo", "mi", "nu", "pe", "ri") for second in ("dor", "ven", "stal", "mek")
]


def some_texts(count: int, seed: int = 1) -> list[Text]:
    """Texts of which one in three is a slight change of an earlier one, and one in ten the same again."""
    draw = random.Random(seed)
    texts: list[str] = []
    for number in range(count):
        kind = draw.random()
        if number and kind < 0.1:
            texts.append(draw.choice(texts))
        elif number and kind < 0.4:
            words = draw.choice(texts).split()
            words[draw.randrange(len(words))] = draw.choice(WORDS)
            texts.append(" ".join(words))
        else:
            texts.append(" ".join(draw.choices(WORDS, k=draw.randint(3, 30))))
    return [Text(10 * number, hash(text) & (2**64 - 1), text) for number, text in enumerate(texts)]


def of_a_template(number: int) -> str:
    """Rows that have most of their characters in common, and are still less alike than the threshold."""
    name = "".join(random.Random(number).choices("abcdefghijklmnopqrstuvwxyz", k=40))
    return f"Please write a short and friendly letter to the customer {name} about the late delivery of the order."


def answers(folder: Path, texts: list[Text], remember: Remember, block_texts: int) -> tuple[list[Match | None], Any]:
    """What is found when all texts are looked up, then all again without being remembered."""
    with NearTexts(0.7, folder, block_texts=block_texts) as near:
        found = near.look_up(texts, remember=remember)
        found += near.look_up(texts, remember="none")
        return found, (near.remembered, near.crowded)


@pytest.mark.parametrize("remember", ["different", "new"])
def test_blocks_on_disk_answer_as_one_block_in_memory(
    remember: Remember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_runs, "PIECE_ENTRIES", 500)
    monkeypatch.setattr(key_runs, "FOUND_AT_ONCE", 9)
    texts = some_texts(300) + [Text(n, n, of_a_template(n)) for n in range(40)]
    in_memory = answers(tmp_path / "memory", texts, remember, block_texts=10_000)
    assert answers(tmp_path / "disk", texts, remember, block_texts=11) == in_memory
    found, (remembered, crowded) = in_memory
    assert 0 < sum(match is not None and not match.is_equal for match in found[: len(texts)]) < len(texts)
    assert 0 < crowded < remembered
    assert not list(tmp_path.iterdir()), "the folders are gone"


def test_the_answer_is_the_first_of_the_most_similar_texts(tmp_path: Path) -> None:
    def shingles(text: str) -> set[str]:
        plain = text.replace(" ", "")
        return {plain[n : n + 5] for n in range(len(plain) - 4)}

    base = " ".join(WORDS)
    kept = [base.replace("kadvor", "x"), f"{base} and more", f"{base} a", "nothing like it at all, however long it is"]
    texts = [Text(n, n, text) for n, text in enumerate(kept)]
    with NearTexts(0.5, tmp_path / "near", block_texts=2) as near:
        assert near.look_up(texts[2:], remember="new") == [None, None]
        first, equal = near.look_up([Text(7, 7, base), Text(8, 3, "spelt otherwise")], remember="none")
    assert first is not None
    assert first.label == 2
    assert abs(first.similarity - len(shingles(base) & shingles(kept[2])) / len(shingles(kept[2]))) < 0.05
    assert equal == Match(3, 1.0, True)


def test_runs_find_every_key_after_they_were_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy

    monkeypatch.setattr(key_runs, "PIECE_ENTRIES", 8)
    runs, draw = key_runs.KeyRuns(tmp_path), random.Random(3)
    kept: dict[int, set[int]] = {}
    for block in range(23):
        keys = [draw.randrange(50) * 2**58 for _ in range(draw.randint(0, 40))]
        for place, key in enumerate(keys):
            kept.setdefault(key, set()).add(100 * block + place)
        numbers = numpy.arange(100 * block, 100 * block + len(keys), dtype=numpy.uint32)
        runs.add(numpy.array(keys, numpy.uint64), numbers)
    wanted = [number * 2**57 for number in range(100)]
    found: dict[int, list[int]] = {}
    for places, numbers in runs.find(numpy.array(wanted, numpy.uint64)):
        for place, number in zip(places.tolist(), numbers.tolist(), strict=True):
            found.setdefault(wanted[place], []).append(number)
    assert {key: set(numbers) for key, numbers in found.items()} == kept
    assert all(len(numbers) == len(set(numbers)) for numbers in found.values())
    assert len(list(tmp_path.glob("*.keys"))) < 3 * key_runs.MERGED_RUNS


def test_rows_of_a_template_are_compared_a_bounded_number_of_times(tmp_path: Path) -> None:
    rows = [{"question": of_a_template(number % 19_000), "answer": "yes"} for number in range(20_000)]
    rows[-1] = {"question": of_a_template(3).replace("short", "shorter"), "answer": "yes"}
    given = {"rows": write_rows(tmp_path / "rows.jsonl", rows), "against": [], "threshold": 0.8}
    context = make_context(tmp_path / "run", given)
    overlap.main(context)
    within = json.loads((tmp_path / "run" / "output" / "result.json").read_text())["within"]
    assert within["near"] == 1, "only the last row, the other thousand are equal to one"
    assert (within["samples"][0]["line"], within["samples"][0]["other_line"]) == (20_000, 4)
    compared = within["compared"]
    assert compared["different"] == 19_000
    assert compared["crowded"] > 18_000
    assert compared["comparisons"] <= 20_000 * 32 * REPRESENTATIVES / 8, compared
    progress = events_of(tmp_path / "run", "progress")
    assert (progress[-1]["step"], progress[-1]["total_steps"]) == (20_000, 20_000)
    assert progress[-1]["eta_s"] == 0


def test_a_start_that_was_killed_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "sketches").write_bytes(b"half of it")
    with NearTexts(0.8, tmp_path / "near") as near:
        assert near.look_up([Text(1, 1, "a text")], remember="new") == [None]
        assert near.look_up([Text(2, 1, "a text")], remember="new") == [Match(1, 1.0, True)]


MEASURE = r"""
import re, sys
from pathlib import Path
from runner.programs.lib.near import NearTexts, Text, in_blocks
def texts(count):
    for n in range(count):
        yield Text(n, n, f"row {n * 7919} says {n * 104729} about {n ** 3}")
def peak_mib():  # ru_maxrss would be the parent's, which forked
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024
peaks, folder = [], Path(sys.argv[1]) / "near"
with NearTexts(0.8, folder) as near:
    for block in in_blocks(texts(int(sys.argv[2])), lambda text: len(text.text)):
        near.look_up(block, remember="new")
        peaks.append(peak_mib())
    on_disk = sum(path.stat().st_size for path in folder.iterdir())
    print(peaks[5], peaks[-1], on_disk // near.remembered)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """120,000 rows of a template, of which 61 MiB of sketches lie on disk."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEASURE, str(tmp_path), "120000"]
    early, late, bytes_a_text = map(int, subprocess.check_output(command, env=environment, text=True).split())
    assert late < 160
    assert late - early < 90, (early, late)
    assert bytes_a_text < DISK_BYTES
