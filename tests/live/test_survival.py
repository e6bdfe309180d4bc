"""Processes die; trainings do not."""

from __future__ import annotations

import json
import secrets

import pytest

from tests.live.conftest import REPOSITORY, Platform, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TRAINING = "runner.programs.train.pretrain"


@pytest.fixture(scope="module")
def account(platform: Platform):
    return platform.create_user(f"survivor-{secrets.token_hex(2)}")


@pytest.fixture
def training(platform: Platform, account):
    """A training of some twenty seconds, under way; its path in the API."""
    client = platform.client_of(account["api_key"])
    name = secrets.token_hex(3)
    dataset = client.upload_dataset(name, REPOSITORY / "examples" / "demo" / "corpus.txt")
    knobs = json.loads((REPOSITORY / "examples" / "demo" / "pretrain.json").read_text())["hyperparameters"]
    task = client.post(
        "/api/v1/fine-tune-tasks",
        {"name": name, "recipe": "pretrain", "method": "full", "hyperparameters": knobs,
         "train_dataset": dataset["newest_version"]["id"]},
    )  # fmt: skip
    path = f"/api/v1/fine-tune-tasks/{task['id']}"
    wait_for("the first step", lambda: "metric" in client.get(f"{path}/status")["progress"], 90)
    return path


def test_workers_and_reconciler_killed_with_9_change_nothing_for_a_training(platform, account, training):
    client = platform.client_of(account["api_key"])
    (program,) = program_processes(platform)
    killed = platform.processes("rqworker") + platform.processes("reconcile")
    assert len(killed) >= 3
    for process in killed:
        process.kill()
    assert program.is_running()
    client.wait_for_run(training, lambda status: None, limit_s=120)
    task = client.get(training)
    assert task["output_version"]
    attempts = client.get(f"/api/v1/runs/{task['run']['id']}")["attempts"]
    assert [attempt["exit_code"] for attempt in attempts] == [0], "one attempt, begun once"


def test_the_whole_platform_stops_within_ten_seconds_and_finds_everything_again(platform, account, training):
    (program,) = program_processes(platform)
    assert platform.stop() < 10
    assert program.is_running(), "a running training goes on without the platform"
    assert platform.processes("granian") == []
    platform.start()
    client = platform.client_of(account["api_key"])
    client.wait_for_run(training, lambda status: None, limit_s=120)
    run = client.get(f"/api/v1/runs/{client.get(training)['run']['id']}")
    assert [attempt["exit_code"] for attempt in run["attempts"]] == [0]


def test_a_second_platform_on_the_same_home_is_refused(platform):
    told = platform.manage("up", "--port", "0")
    assert told.returncode != 0
    assert "already" in told.stderr.lower()


def program_processes(platform: Platform) -> list:
    """The training itself, by its command line."""
    found = [process for process in platform.processes(TRAINING) if "wrapper.py" not in " ".join(process.cmdline())]
    return [process for process in found if process.cmdline()[1:2] == ["-m"]]
