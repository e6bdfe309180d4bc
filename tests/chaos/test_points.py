"""A process of the runner is killed, or stands still, at every point where it could hurt; the clock is set."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.judge import Told, judge
from tests.chaos.platform_process import REPOSITORY, PlatformProcess, base_environment
from tests.docker_engine import DockerDaemon, docker_daemon

__all__ = ["docker_daemon"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STEPS = 5
KILL_POINTS = (
    "in the transaction of the reservation",
    "between reservation and launch",
    "before the intent is written",
    "between intent and wrapper",
    "after the start",
    "before RUNNING is written",
    "after RUNNING was written",
    "while collecting",
    "in the transaction of the end",
    "after the end was written",
    "before the executor forgets",
)
#: Outside of transactions: a process that stands still inside of one keeps the row, as it must.
STOP_POINTS = ("between reservation and launch", "after the start", "while collecting", "before the executor forgets")
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)


@dataclass
class Runner:
    """A home with a database, and processes on it."""

    home: Path
    journals: Path

    def command(self, verbs: str, point: str = "none") -> list[str]:
        return [sys.executable, "-m", "tests.chaos.at_a_point", verbs, point]

    def environment(self, job: str, **more: str) -> dict[str, str]:
        own = {"JOB": job, "JOURNALS": str(self.journals), "STEPS": str(STEPS), "LOG_LEVEL": "WARNING"}
        return base_environment(self.home) | own | more

    def run(self, job: str, verbs: str, point: str = "none", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(verbs, point), cwd=REPOSITORY, env=self.environment(job, **more),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def heal(self, job: str, verbs: str = "schedule,launch,reconcile,tell", **more: str) -> dict[str, Any]:
        """Another process does what is left to do."""
        done = self.run(job, verbs, **more)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told

    def assert_once(self, job: str, facts: dict[str, Any]) -> None:
        """Completed, by one attempt that was started once, and everything in order."""
        self.assert_in_order(facts)
        assert vars(judge(self.journals, {job: Told(**facts["told"])}, STEPS)) == {
            "lost": [], "duplicated": [], "overlapping": [], "stuck": [],
        }  # fmt: skip

    def assert_in_order(self, facts: dict[str, Any]) -> None:
        """Completed in one attempt, and no invariant is broken."""
        told = Told(**facts["told"])
        assert (told.state, told.attempts) == ("COMPLETED", 1)
        assert facts["findings"] == []


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = Path("/tmp") / f"clavier-points-{secrets.token_hex(4)}"
    made = Runner(folder / "home", folder / "journals")
    for path in (folder, made.home, made.journals):
        path.mkdir(mode=0o755)
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "-v0"], cwd=REPOSITORY, env=base_environment(made.home), check=True
    )
    yield made
    PlatformProcess(made.home, {}).stop()
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_kill_at_any_point_costs_nothing_and_doubles_nothing(runner: Runner, point: str):
    job = f"kill {point}".replace(" ", "-")
    died = runner.run(job, "submit,schedule,launch,reconcile", point)
    assert (died.returncode, f"reached: {point}" in died.stdout) == (-signal.SIGKILL, True), died.stderr[-3000:]
    runner.assert_once(job, runner.heal(job))


@pytest.mark.parametrize("point", STOP_POINTS)
def test_who_stood_still_and_wakes_up_when_all_is_over_changes_nothing(runner: Runner, point: str):
    job = f"stop {point}".replace(" ", "-")
    frozen = subprocess.Popen(
        runner.command("submit,schedule,launch,reconcile", point),
        cwd=REPOSITORY, env=runner.environment(job, HOW="STOP"), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert os.waitid(os.P_PID, frozen.pid, os.WSTOPPED | os.WNOWAIT) is not None
        before = runner.heal(job)
        runner.assert_once(job, before)
        frozen.send_signal(signal.SIGCONT)
        said, _ = frozen.communicate(timeout=60)
    finally:
        frozen.kill()
    assert "woke up" in said
    if point == "while collecting":
        assert "lost the lease" in said
    after = runner.heal(job, "tell")
    assert after == before, "the one that woke up added nothing"


needs_faketime = pytest.mark.skipif(FAKETIME is None and "CI" not in os.environ, reason="needs faketime")


def set_the_clock(runner: Runner, job: str, jumps: list[str], **more: str) -> None:
    """A reconciler with a clock of its own after another, while one run goes on, which must not notice."""
    watches = [{"LD_PRELOAD": str(FAKETIME), "FAKETIME": jump} if jump else {} for jump in jumps]
    for verbs, clock in [("submit,schedule,launch", {}), *(("watch", clock) for clock in watches)]:
        done = runner.run(job, verbs, STEPS="40", WATCH_S="1", **clock, **more)
        assert done.returncode == 0, done.stderr[-3000:]
    runner.assert_in_order(runner.heal(job, **more))


@needs_faketime
@pytest.mark.parametrize("jump", ["+1h", "-1h"])
def test_a_clock_that_is_set_loses_no_run(runner: Runner, jump: str):
    set_the_clock(runner, f"clock{jump}", [jump, "", jump])


@needs_faketime
@pytest.mark.docker
def test_a_clock_that_is_set_loses_no_container(runner: Runner, docker_daemon: DockerDaemon):
    docker = {
        "CLAVIER_EXECUTOR": "docker_engine",
        "DOCKER_ENGINE_URL": docker_daemon.url,
        "DOCKER_PROGRAM_IMAGE": docker_daemon.images.python,
        "IMAGE": docker_daemon.images.python,
    }
    set_the_clock(runner, "clock-docker", ["+1h", "", "-1h"], **docker)
