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
from tests.chaos.kinds import GANG, ONE_GPU, STOPPED
from tests.chaos.timeline import Timeline
from tests.docker_engine import why_not
from tests.test_postgresql import INITDB

REPOSITORY = Path(__file__).resolve().parents[2]
ADOPTION_BAR_S, EXIT_NOTICED_BAR_S = 10.0, 2.0
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
def test_forty_faults_lose_and_double_nothing(executor: str, database: str, capsys: pytest.CaptureFixture[str]):
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
    assert (line["jobs"], line["stopped"], line["gangs"], line["imports"]) == (50, 4, 3, 2)
    with capsys.disabled():
        sys.stderr.write(f"\n{told.stdout}")
    # The bars are those of a machine with a core for everybody; a busy one is given as much longer, and once more.
    slack = 2 * (1 + line["load_per_core"])
    assert (line["adoption_in_service_p95_s"] or 0.0) <= ADOPTION_BAR_S * slack
    assert line["exit_noticed_in_service_p95_s"] <= EXIT_NOTICED_BAR_S * slack


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


def test_the_judge_sees_what_a_stopped_program_still_did(tmp_path):
    stopped = {"job": Told("STOPPED", 1, ended_at=100.0)}
    journal(tmp_path / "job", ("start", "a", 0), ("sealed", "a", 1), ("end", "a", 2))
    found = judge(tmp_path, stopped, 2, {"job": STOPPED})
    assert (found.lost, found.duplicated) == ([], ["job: its program reached its end"])
    later = judge(tmp_path, {"job": Told("STOPPED", 1, ended_at=-2.0)}, 2, {"job": STOPPED})
    assert "job: wrote 'start' 1.0 s after it was stopped" in later.duplicated
    assert judge(tmp_path, stopped, 2).lost[0] == "job is STOPPED: "


def test_the_judge_sees_each_rank_and_each_gpu(tmp_path):
    journal(tmp_path / "job", *GOOD)
    told = {"job": Told("COMPLETED", 2)}
    assert judge(tmp_path, told, 2, {"job": GANG}).lost == ["rank 1 of job: no program of it ever reached its end"]
    assert judge(tmp_path, told, 2, {"job": ONE_GPU}).overlapping == ["job: got the GPUs [], not 1"] * 2
    with (tmp_path / "job" / "journal").open("a") as stream:
        stream.write(json.dumps({"event": "gpu_overlap", "who": "c", "step": 0, "at": 0.0, "gpus": ["GPU-1"]}) + "\n")
    assert judge(tmp_path, told, 2).overlapping == ["job: GPU ['GPU-1'] was held by another program"]


def test_the_times_are_told_in_all_and_in_service():
    """Killed at 10 and at 30; the database was away from 12 to 17, and an engine from 40 to 41."""
    leads = [(1, 9.0), (1, 9.9), (2, 18.0), (2, 19.0), (2, 29.0), (3, 31.0), (4, 33.0), (4, 34.0)]
    timeline = Timeline(away=[(12.0, 17.0), (40.0, 41.0)], died_at=[10.0, 30.0])
    for lead in [*leads, leads[-1], None]:
        timeline.note(lead)
    assert timeline.leads == leads
    assert timeline.adoptions() == [9.0, 4.0]
    assert timeline.adoptions_in_service() == [2.0, 4.0]
    assert timeline.in_service(5.0, 8.0) == 3.0
    assert timeline.in_service(9.0, 20.0) == 2.0
    assert timeline.in_service(35.0, 42.0) == 6.0
    timeline.died_at.append(50.0)
    assert timeline.adoptions() == [9.0, 4.0], "nobody came after the last one"
    assert timeline.in_service(49.0, 60.0) == 1.0


def test_the_95th_percentile_is_one_of_the_values():
    assert p95([]) is None
    assert p95([float(n) for n in range(1, 101)]) == 95.0
    assert p95([3.0]) == 3.0
