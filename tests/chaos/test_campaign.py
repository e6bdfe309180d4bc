"""Forty faults over fifty jobs: nothing lost, nothing twice, nothing left behind (docs/chaos.md)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.judge import Told, judge, p95
from tests.docker_engine import why_not
from tests.test_postgresql import INITDB

REPOSITORY = Path(__file__).resolve().parents[2]
CLEAN = {"lost": 0, "duplicated": 0, "overlapping": 0, "leaked": 0, "stuck": 0}


def what_is_missing(executor: str, database: str) -> list[str]:
    """What a campaign of this kind needs and this machine lacks."""
    missing = []
    if database == "postgresql":
        wanted = {"redis-server": shutil.which("redis-server"), "PostgreSQL": INITDB}
        missing += [name for name, found in wanted.items() if not found]
    if executor == "docker_engine" and (reason := why_not()):
        missing.append(reason)
    return missing


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("executor", "database"),
    [
        ("local_process", "sqlite"),
        pytest.param("docker_engine", "postgresql", marks=[pytest.mark.postgres, pytest.mark.docker]),
    ],
)
def test_forty_faults_lose_and_double_nothing(executor: str, database: str):
    if (missing := what_is_missing(executor, database)) and "CI" not in os.environ:
        pytest.skip(f"needs {', '.join(missing)}")
    words = ["--faults", "40", "--jobs", "50", "--pause", "1", "--executor", executor, "--database", database]
    told = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *words],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=880, check=False,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'platform'}"},
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr[-6000:]
    line = json.loads(told.stdout)
    assert {name: line[name] for name in CLEAN} == CLEAN
    assert line["jobs"] == 50


def journal(folder: Path, *events: tuple[str, str, int]) -> None:
    """Lines as a program would have written them."""
    folder.mkdir(parents=True)
    lines = [json.dumps({"event": event, "who": who, "step": step, "at": 0.0}) for event, who, step in events]
    (folder / "journal").write_text("".join(line + "\n" for line in lines))


GOOD = [("start", "a", 0), ("sealed", "a", 1), ("start", "b", 1), ("sealed", "b", 2), ("end", "b", 2)]


@pytest.mark.parametrize(
    ("events", "attempts", "wrong"),
    [
        (GOOD, 2, {}),
        (GOOD, 1, {"duplicated": "2 programs were started in 1 attempts"}),
        (GOOD[:-1], 2, {"lost": "no program of it ever reached its end"}),
        ([GOOD[0], GOOD[1], ("end", "a", 1)], 1, {"lost": "steps [2] were never done"}),
        ([*GOOD[:2], ("start", "b", 0), ("sealed", "b", 1), *GOOD[3:]], 2, {"duplicated": "though 1 was sealed"}),
        ([*GOOD[:3], ("sealed", "a", 2), *GOOD[4:]], 2, {"overlapping": "after a later one had begun"}),
        ([*GOOD, ("overlap", "c", 0)], 2, {"overlapping": "held the lock"}),
    ],
)  # fmt: skip
def test_the_judge_sees_what_went_wrong(tmp_path, events, attempts, wrong):
    journal(tmp_path / "job", *events)
    found = vars(judge(tmp_path, {"job": Told("COMPLETED", attempts)}, steps=2))
    assert {kind for kind, sentences in found.items() if sentences} == set(wrong)
    for kind, words in wrong.items():
        assert words in found[kind][0]


def test_the_judge_sees_what_is_gone_and_what_is_stuck(tmp_path):
    found = judge(tmp_path, {"gone": None, "stuck": Told("RUNNING", 1), "bad": Told("FAILED", 1, message="no")}, 2)
    assert found.stuck == ["stuck is RUNNING in attempt 1"]
    assert found.lost[:2] == ["gone was accepted and is gone", "bad is FAILED: no"]


def test_the_95th_percentile_is_one_of_the_values():
    assert p95([]) is None
    assert p95([float(n) for n in range(1, 101)]) == 95.0
    assert p95([3.0]) == 3.0
