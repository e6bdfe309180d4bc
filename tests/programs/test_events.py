"""How programs speak and end: events, log lines, exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.contract import exits, folder
from runner.contract.run_spec import RunSpec
from runner.programs.lib.events import EXIT_STOPPED, ProgramContext, ProgramError, Reporter, Stopped, run_program
from tests.programs.recipes import events_of


def exit_code_of(main: Callable[[ProgramContext], None], run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    spec = RunSpec("fine_tune", None, {"a": 1})
    (run_folder / folder.SPEC).write_text(json.dumps(spec.to_json()), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["program", str(run_folder)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        run_program(main)
    return ended.value.code


def test_a_step_is_one_line_for_people_and_one_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 1.0, 1.0, 3.0, 3.0])
    report = Reporter(tmp_path, clock=lambda: next(times))
    values = {"train/loss": 1.83421, "train/learning_rate": 1.9e-5, "train/tokens_per_second": 15204.0}
    values["weights/norm"] = 25.7  # for the charts alone
    report.metric(100, 900, 0.5, values)
    report.metric(120, 900, 0.6, values)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "INFO  step 120/900 | loss 1.8342 | lr 1.9e-5 | 15,204 tok/s | ETA 1 min"
    event = events_of(tmp_path, "metric")[1]
    assert event == {"t": 3.0, "kind": "metric", "step": 120, "total_steps": 900, "epoch": 0.6, **values}


def test_a_value_that_is_no_number_is_written_as_null(tmp_path: Path) -> None:
    Reporter(tmp_path).metric(1, 2, 0.0, {"train/loss": float("nan"), "x": float("inf")})
    event = events_of(tmp_path, "metric")[0]
    assert event["train/loss"] is None
    assert event["x"] is None


def test_a_user_error_ends_with_its_code_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(context: ProgramContext) -> None:
        assert context.parameters == {"a": 1}
        raise ProgramError("data_invalid", "line 3 is bad", "train_data")

    assert exit_code_of(main, tmp_path, monkeypatch) == exits.USER_ERROR
    captured = capsys.readouterr()
    assert "ERROR line 3 is bad [data_invalid, field train_data]" in captured.out
    assert "Traceback" not in captured.out + captured.err
    assert events_of(tmp_path, "error")[0]["field"] == "train_data"


def test_a_defect_ends_with_one_and_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_context: ProgramContext) -> None:
        raise KeyError("missing")

    assert exit_code_of(main, tmp_path, monkeypatch) == 1
    assert "KeyError" in capsys.readouterr().err
    assert events_of(tmp_path, "error")[0]["code"] == "program_failed"


def test_a_stop_ends_as_sigterm_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def main(_context: ProgramContext) -> None:
        raise Stopped("stopped after step 3")

    assert exit_code_of(main, tmp_path, monkeypatch) == EXIT_STOPPED == 143
    assert events_of(tmp_path, "phase")[0]["name"] == "stopped"
