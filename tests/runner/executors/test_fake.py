"""The fake's own tools; what it shares with real executors is in test_contract.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.contract.run_spec import Limits
from runner.executors.base import ExecutorError, LaunchRefused
from runner.executors.fake import FakeExecutor, Outcome
from tests.runner.executors.bench import make_launch, seen


class Clock:
    """A clock that stands still until moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_time_passes_only_by_the_given_clock(tmp_path: Path) -> None:
    clock = Clock()
    executor = FakeExecutor(clock=clock)
    executor.will("a", Outcome(runs_for_s=30, exit_code=64, log="hello\n", files={"output/model.txt": "w"}))
    launch = make_launch(tmp_path, "a")
    executor.start(launch)
    assert [observation.state for observation in executor.list()] == ["running"]
    clock.now += 31
    [ended] = executor.list()
    assert (ended.state, ended.exit_code, ended.started_at, ended.ended_at) == ("exited", 64, 1000.0, 1030.0)
    assert (launch.run_folder / "output/model.txt").read_text() == "w"
    assert (launch.run_folder / "log.txt").read_text() == "hello\n"
    assert json.loads((launch.run_folder / "result.json").read_text())["exit_code"] == 64


def test_the_earliest_of_end_limit_and_kill_decides(tmp_path: Path) -> None:
    clock = Clock()
    executor = FakeExecutor(clock=clock)
    executor.will(outcome=Outcome(runs_for_s=50, ignores_term=True))
    executor.start(make_launch(tmp_path, "limited", limits=Limits(time_limit_s=20, stop_grace_s=5)))
    executor.start(make_launch(tmp_path, "stopped", limits=Limits(time_limit_s=None)))
    executor.stop("stopped", 10)
    clock.now += 100
    limited, stopped = executor.list()
    assert (limited.cause, limited.exit_code, limited.ended_at) == ("time_limit", 137, 1025.0)
    assert (stopped.cause, stopped.exit_code, stopped.ended_at) == ("stopped", 137, 1010.0)


def test_finish_ends_a_program_as_told_and_lost_leaves_no_result(tmp_path: Path) -> None:
    executor = FakeExecutor()
    executor.will(outcome=Outcome(runs_for_s=None))
    launch = make_launch(tmp_path, "a")
    executor.start(launch)
    executor.finish("a", exit_code=None, cause="lost")
    observation = seen(executor, "a")
    assert observation is not None
    assert (observation.state, observation.cause) == ("exited", "lost")
    assert not (launch.run_folder / "result.json").exists()


def test_a_placed_fault_hits_its_call_only(tmp_path: Path) -> None:
    executor = FakeExecutor()
    executor.fail("list", on_call=2, message="engine down")
    assert executor.list() == []
    with pytest.raises(ExecutorError, match="engine down"):
        executor.list()
    assert executor.list() == []


def test_a_start_can_succeed_although_its_caller_sees_an_error(tmp_path: Path) -> None:
    executor = FakeExecutor()
    executor.fail("start", takes_effect=True)
    launch = make_launch(tmp_path, "a")
    with pytest.raises(ExecutorError):
        executor.start(launch)
    executor.start(launch)
    assert executor.starts("a") == 1
    assert seen(executor, "a") is not None


def test_a_scripted_refusal_starts_nothing(tmp_path: Path) -> None:
    executor = FakeExecutor()
    executor.will("a", Outcome(refused="image is missing"))
    with pytest.raises(LaunchRefused, match="image is missing"):
        executor.start(make_launch(tmp_path, "a"))
    assert executor.starts("a") == 0
    assert executor.list() == []
