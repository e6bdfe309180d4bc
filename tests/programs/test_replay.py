"""A finished training is run again and compared with what it was."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.contract import exits, folder
from runner.contract.run_spec import RunSpec
from runner.programs import replay
from tests.programs.recipes import QUESTIONS, run_in_processes, write_rows

KNOBS = {"max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1, "precision": "fp32"}


@pytest.mark.slow
def test_a_training_that_is_run_again_is_bit_identical(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = {
        "base_model": str(tiny_model_folder),
        "method": "lora",
        "train_data": write_rows(tmp_path / "train.jsonl", QUESTIONS),
        "hyperparameters": KNOBS,
    }
    run_in_processes("runner.programs.train.sft", tmp_path / "first", parameters, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert replay.main(tmp_path / "first", tmp_path / "again") == exits.OK
    assert capsys.readouterr().out.splitlines() == ["bit-identical: weights and 3 losses"]


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A run as far as a replay looks at it."""
    run = tmp_path / "first"
    (run / replay.BUNDLE).parent.mkdir(parents=True)
    (run / folder.SPEC).write_text(json.dumps(RunSpec("fine_tune", "p", {}).to_json()))
    events = [{"kind": "phase"}, *({"kind": "metric", "step": step, "train/loss": 1 / step} for step in (1, 2, 3))]
    (run / folder.METRICS).write_text("\n".join(map(json.dumps, events)))
    bundle = {
        "code_sha256": "other", "packages": replay.packages() | {"torch": "1"}, "data_sha256": {"d": "1"},
        "hardware": {"device": "CPU"}, "artifact_sha256": {"model.safetensors": "2", "model_card.md": "3"},
    }  # fmt: skip
    (run / replay.BUNDLE).write_text(json.dumps(bundle))
    return run


@pytest.fixture
def rerun(first: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the program make the same run, with other values in its bundle and a loss that is off."""

    def prepare(off: float = 0.0, **changes: Any) -> None:
        def run(command: list[str]) -> Any:
            again = Path(command[-1])
            shutil.copytree(first / folder.OUTPUT, again / folder.OUTPUT)
            bundle = json.loads((first / replay.BUNDLE).read_text()) | changes
            (again / replay.BUNDLE).write_text(json.dumps(bundle))
            lines = [json.loads(line) for line in (first / folder.METRICS).read_text().splitlines()]
            lines[2]["train/loss"] += off
            (again / folder.METRICS).write_text("\n".join(map(json.dumps, lines)))
            return SimpleNamespace(returncode=0)

        monkeypatch.setattr(subprocess, "run", run)

    return prepare


@pytest.mark.parametrize(
    ("off", "changes", "code", "words"),
    [
        (0.0, {}, 0, "bit-identical: weights and 3 losses"),
        (0.0, {"artifact_sha256": {"model.safetensors": "9"}}, 0, "within tolerance: 3 losses, at most 0 apart"),
        (5e-5, {}, 0, "within tolerance: 3 losses, at most 5e-05 apart (allowed: 0.0001)"),
        (2e-4, {}, 1, "differs at step 2: train/loss was 0.5, is 0.5002"),
        (float("nan"), {}, 1, "differs at step 2: train/loss was 0.5, is nan"),
        (0.0, {"data_sha256": {"d": "2"}}, exits.USER_ERROR, "another data than the first time"),
    ],
)
def test_the_verdict_says_how_near_it_came(
    off: float, changes: dict[str, Any], code: int, words: str,
    first: Path, rerun: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rerun(off, **changes)
    assert replay.main(first, tmp_path / "again") == code
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("code_sha256: other then, ")
    assert told[1].startswith("torch: 1 then, ")
    assert told[-1].startswith(words)


def test_only_a_finished_training_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main(tmp_path, tmp_path / "again") == exits.USER_ERROR
    assert "only a training that finished" in capsys.readouterr().out
