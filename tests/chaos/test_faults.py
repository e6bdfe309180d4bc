"""One fault each, with real processes, disks and engines, and the verdict that the table of docs/runs.md promises."""

from __future__ import annotations

import gc
import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from rest_framework.test import APIClient

from clavier.accounts.services import create_api_key
from clavier.core.actor import Actor
from clavier.quotas.services import ensure_local_node
from clavier.runs.models import Attempt, Run
from clavier.runs.outputs import run_folder
from clavier.runs.services import stop_run, submit_run
from clavier.runs.waiting import explain
from runner.contract.run_spec import Image, Limits, Resources, RunSpec
from runner.executors.base import Executor
from runner.executors.docker_engine import DockerEngineExecutor
from runner.executors.local_process import LocalProcessExecutor
from runner.worker import hands, invariants, jobs, reconciler, scheduler
from runner.worker.invariants import check_everything
from tests.api.native.test_files import content_of, send
from tests.docker_engine import DockerDaemon, docker_daemon, new_daemon, why_not
from tests.platform.test_backup import Installation

__all__ = ["docker_daemon"]

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.timeout(300)]

MIB = 2**20
PATIENCE_S = 60.0
WRITES = "open('../output/x', 'w').write('x')"


@dataclass
class Machine:
    """The real engine of runs over a real executor."""

    executor: Executor
    python: str = sys.executable
    image: Image | None = None
    loop: reconciler.Reconciler = field(default_factory=reconciler.Reconciler)

    def submit(self, actor: Actor, source: str = "", **changes: Any) -> Run:
        spec = {"kind": "fine_tune", "program": None, "parameters": {}, "argv": (self.python, "-c", source)}
        spec |= {"resources": Resources(cpu_milli=100, memory_mib=96), "limits": Limits(stop_grace_s=1)}
        spec |= {"image": self.image, **changes}
        return submit_run(actor=actor, kind="fine_tune", name="a run", subject_id=uuid4(), spec=RunSpec(**spec))

    def step(self) -> None:
        for attempt_id in scheduler.schedule_pass():
            jobs.launch(str(attempt_id))
        self.loop.run_pass()

    def until(self, run: Run, holds: Callable[[Run], Any]) -> Run:
        """Steps until something holds for the run."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.step()
            run.refresh_from_db()
            if holds(run):
                return run
            assert time.monotonic() < deadline, f"{run} after {PATIENCE_S:g} s: {run.message}"
            time.sleep(0.05)

    def end(self, run: Run) -> tuple[str, str, int]:
        """How it ended: state, reason and number of attempts. Nothing may be left."""
        self.until(run, lambda run: run.is_final)
        self.step()
        assert self.executor.list() == []
        assert check_everything().findings == []
        return run.state, run.end_reason, run.attempts.count()


def is_running(run: Run) -> bool:
    return run.state == "RUNNING"


def install(monkeypatch: pytest.MonkeyPatch, executor: Executor, settings: Any) -> None:
    """Everybody talks to this executor; the queue loses each message it takes."""
    for module in (jobs, reconciler, hands, invariants):
        monkeypatch.setattr(module, "executor", lambda engine: executor)
    monkeypatch.setattr("clavier.runs.queue.enqueue", lambda *job: True)
    settings.RUN_FINISHED_HOOKS = dict.fromkeys(settings.RUN_FINISHED_HOOKS, "tests.runner.worker.test_engine.no_hook")
    ensure_local_node()


def end_everything(executor: Executor) -> None:
    """Nothing of a test lives on."""
    for seen in executor.list():
        executor.stop(seen.name, 0)
    deadline = time.monotonic() + 20
    while any(seen.state != "exited" for seen in executor.list()) and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.fixture
def local(home: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[Machine]:
    executor = LocalProcessExecutor(home / "executors" / "local_process")
    install(monkeypatch, executor, settings)
    yield Machine(executor)
    end_everything(executor)


# --- the table of verdicts, with real programs ---------------------------------------------------------------------

IGNORES_TERM = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


@pytest.mark.parametrize(
    ("source", "changes", "ending"),
    [
        (WRITES, {}, ("COMPLETED", "COMPLETED", 1)),
        ("pass", {}, ("FAILED", "NO_OUTPUT", 1)),
        ("raise SystemExit(3)", {}, ("FAILED", "EXIT_NONZERO", 1)),
        ("", {"argv": ("/nowhere/program",)}, ("FAILED", "COMMAND_NOT_FOUND", 1)),
        ("", {"argv": ("/etc/hostname",)}, ("FAILED", "COMMAND_NOT_FOUND", 1)),
        ("x = bytearray(300 << 20); import time; time.sleep(60)", {}, ("FAILED", "OUT_OF_MEMORY", 1)),
        ("import subprocess, sys; subprocess.run([sys.executable, '-c', 'raise MemoryError']);" + WRITES, {},
         ("COMPLETED", "COMPLETED", 1)),
        (IGNORES_TERM, {"limits": Limits(time_limit_s=1, stop_grace_s=1)}, ("FAILED", "TIME_LIMIT", 1)),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", {"retries": 1}, ("FAILED", "EXECUTOR_LOST", 2)),
    ],
    ids=["good", "no output", "exit 3", "not found", "not executable", "memory", "a child's memory", "time limit",
         "killed from outside"],
)  # fmt: skip
def test_what_a_program_does_gets_the_verdict_of_the_table(local, alice, source, changes, ending):
    assert local.end(local.submit(alice, source, **changes)) == ending


def test_a_program_that_ignores_term_is_stopped_after_its_grace(local, alice):
    run = local.until(local.submit(alice, IGNORES_TERM), is_running)
    began = time.monotonic()
    stop_run(run=run, actor_name="alice")
    assert local.end(run) == ("STOPPED", "STOPPED_BY_USER", 1)
    assert time.monotonic() - began >= 1


def test_a_killed_program_goes_on_in_a_second_attempt(local, alice):
    source = (
        "import os, pathlib, signal; mark = pathlib.Path('../checkpoints/first')\n"
        "if not mark.exists(): mark.touch(); os.kill(os.getpid(), signal.SIGKILL)\n" + WRITES
    )
    assert local.end(local.submit(alice, source)) == ("COMPLETED", "COMPLETED", 2)


def test_a_queue_that_forgets_everything_loses_no_run(local, alice):
    """FLUSHALL: every wake-up and launch was taken and is gone."""
    runs = [local.submit(alice, WRITES) for _ in range(3)]
    deadline = time.monotonic() + PATIENCE_S
    while any(not Run.objects.get(pk=run.pk).is_final for run in runs) and time.monotonic() < deadline:
        local.loop.run_pass()
        time.sleep(0.1)
    assert [Run.objects.get(pk=run.pk).state for run in runs] == ["COMPLETED"] * 3
    assert Attempt.objects.count() == 3


# --- full disks ------------------------------------------------------------------------------------------------------


class Disk:
    """A file system of 64 MiB at a place, and a file that takes its room away."""

    def __init__(self, place: Path) -> None:
        self.place, self.filler = place, place / "filler"
        place.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", str(place)], check=False)
        if done.returncode:
            pytest.skip("this machine allows no mounts")

    def fill(self, leave_mib: int = 0) -> None:
        """Take all but some MiB."""
        free = os.statvfs(self.place)
        room = free.f_bavail * free.f_frsize - leave_mib * MIB
        with suppress(OSError), open(self.filler, "ab") as stream:
            stream.write(b"x" * (room if leave_mib else room + MIB))
        assert leave_mib or os.statvfs(self.place).f_bavail == 0

    def free(self) -> None:
        """Give the room back."""
        self.filler.unlink()

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.place)], check=True)


@pytest.fixture
def disk() -> Iterator[Callable[[Path], Disk]]:
    """Makes disks; needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    made: list[Disk] = []

    def make(place: Path) -> Disk:
        made.append(Disk(place))
        return made[-1]

    yield make
    for one in reversed(made):
        one.close()


@pytest.fixture
def client(alice: Actor, alice_user: Any) -> APIClient:
    made = APIClient()
    key = create_api_key(user=alice_user, tenant=alice_user.memberships.get().tenant, name="k")[1]
    made.credentials(HTTP_AUTHORIZATION=f"Bearer {key}")
    return made


@pytest.mark.parametrize("reserve_mib", [16, 0])
def test_an_upload_to_a_full_disk_is_a_507_and_nothing_is_damaged(
    disk, home, client, settings, monkeypatch, reserve_mib
):
    monkeypatch.setattr(logging.getLogger("django.request"), "disabled", True)  # pytest would keep the request
    full = disk(home)
    (home / "uploads").mkdir()
    settings.DISK_RESERVE_MIB = reserve_mib
    kept = send(client, ("kept.txt", b"kept")).json()["items"][0]
    full.fill(leave_mib=8 if reserve_mib else 0)
    before = sorted(str(path) for path in home.rglob("*"))
    answer = send(client, ("new.bin", b"n" * 3 * MIB))
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "insufficient_storage")
    del answer  # with its request the half spooled file goes
    gc.collect()
    assert sorted(str(path) for path in home.rglob("*")) == before
    assert content_of(client.get(f"/api/v1/files/{kept['id']}/content")) == b"kept"
    full.free()
    assert send(client, ("new.bin", b"n" * 3 * MIB)).status_code == 201
    assert check_everything().findings == []


def test_on_a_low_disk_nothing_new_starts_and_what_runs_goes_on(disk, home, local, alice, settings):
    runs = disk(home / "runs")
    settings.DISK_RESERVE_MIB = 16
    go = home / "runs" / "go"
    source = f"import pathlib, time\nwhile not pathlib.Path('../work/go').exists(): time.sleep(.05)\n{WRITES}"
    running = local.until(local.submit(alice, source), is_running)
    runs.fill(leave_mib=8)
    waiting = local.submit(alice, WRITES)
    (run_folder(running.pk) / "work" / "go").touch()
    local.until(running, lambda run: run.is_final)
    assert running.state == "COMPLETED"
    waiting.refresh_from_db()
    assert (waiting.state, explain(waiting).obstacle) == ("PENDING", "disk")
    assert not go.exists()
    runs.free()
    assert local.end(waiting) == ("COMPLETED", "COMPLETED", 1)


@pytest.mark.parametrize("store", ["executors", "runs"])
def test_a_start_on_a_full_disk_is_tried_until_there_is_room(disk, home, local, alice, store):
    place = home / store
    place.mkdir(exist_ok=True)
    full = disk(place)
    if store == "executors":
        (place / "local_process").mkdir(mode=0o700)
    full.fill()
    run = local.submit(alice, WRITES)
    for _ in range(3):
        local.step()
    run.refresh_from_db()
    assert (run.state, run.attempts.count()) == ("PREPARING", 1)
    full.free()
    assert local.end(run) == ("COMPLETED", "COMPLETED", 1)


def test_a_program_whose_disk_is_full_fails_in_words_and_its_end_is_kept(disk, home, local, alice):
    disk(home / "runs")
    source = "stream = open('../output/big', 'wb')\nfor _ in range(100): stream.write(b'x' * (1 << 20))"
    run = local.submit(alice, source)
    assert local.end(run) == ("FAILED", "EXIT_NONZERO", 1)
    assert run.message.startswith("The program ended with exit code 1"), "its log had no room for why"
    assert (run_folder(run.pk) / "result.json").exists()


def test_a_database_whose_disk_is_full_refuses_and_recovers(disk, tmp_path):
    made = Installation(tmp_path / "small", "")
    full = disk(made.home)
    made.manage("migrate", "-v0")
    words = ("--tenant", "t", "--password", "a-good-password")
    made.manage("create_user", "first", *words)
    full.fill()
    refused = made.try_to("create_user", "second", *words)
    assert refused.returncode == 1
    assert "disk" in refused.stderr
    full.free()
    made.manage("create_user", "third", *words)
    with closing(sqlite3.connect(made.home / "clavier.sqlite3")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        users = database.execute("SELECT username FROM accounts_user ORDER BY username").fetchall()
    assert users == [("first",), ("third",)]


# --- the engine of containers ----------------------------------------------------------------------------------------


def docker_machine(
    daemon: DockerDaemon, home: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> tuple[Machine, DockerEngineExecutor]:
    settings.CLAVIER_EXECUTOR = "docker_engine"
    executor = DockerEngineExecutor(home / "executors" / "docker", install_id=uuid4().hex, engine_url=daemon.url)
    install(monkeypatch, executor, settings)
    return Machine(executor, os.path.realpath(sys.executable), Image(daemon.images.python)), executor


@pytest.fixture
def docker(docker_daemon, home, monkeypatch, settings) -> Iterator[Machine]:
    machine, executor = docker_machine(docker_daemon, home, monkeypatch, settings)
    yield machine
    end_everything(executor)


WAITS_FOR_GO = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(.05)\n"
WAITS = WAITS_FOR_GO + WRITES
WRITES_MUCH = WAITS_FOR_GO + "open('../output/x', 'w').write('x' * (8 << 20))"


@pytest.mark.docker
def test_from_an_engine_that_is_down_nothing_is_concluded(docker, docker_daemon, alice, monkeypatch):
    monkeypatch.setattr(reconciler, "LOST_AFTER", reconciler.LOST_AFTER / 20)
    run = docker.until(docker.submit(alice, WAITS), is_running)
    docker_daemon.kill()
    for _ in range(8):
        docker.step()
        time.sleep(0.2)
    run.refresh_from_db()
    assert (run.state, run.attempts.get().missing_since) == ("RUNNING", None)
    (run_folder(run.pk) / "work" / "go").touch()
    docker_daemon.start()
    assert docker.end(run) == ("COMPLETED", "COMPLETED", 1)


@pytest.mark.docker
@pytest.mark.parametrize(
    ("store", "ending"),
    [("executors", ("COMPLETED", "COMPLETED", 1)), ("runs", ("FAILED", "EXIT_NONZERO", 1))],
)
def test_full_disks_hold_containers_up_and_lose_no_end(
    disk, docker_daemon, home, alice, monkeypatch, settings, store, ending
):
    """Full while a container runs: of the run folder its own writes fail, of the other its wrapper's report."""
    full = disk(home / store)
    machine, executor = docker_machine(docker_daemon, home, monkeypatch, settings)
    try:
        running = machine.until(machine.submit(alice, WRITES_MUCH), is_running)
        full.fill()
        waiting = machine.submit(alice, WRITES)
        for _ in range(3):
            machine.step()
        waiting.refresh_from_db()
        assert (waiting.state, waiting.attempts.count()) == ("PREPARING", 1)
        (run_folder(running.pk) / "work" / "go").touch()
        machine.until(running, lambda run: run.is_final)
        assert (running.state, running.end_reason, running.attempts.count()) == ending
        full.free()
        assert machine.end(waiting) == ("COMPLETED", "COMPLETED", 1)
    finally:
        end_everything(executor)


@pytest.mark.docker
def test_memory_of_a_child_is_no_end_and_memory_of_the_program_is(docker, alice):
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = b\"x\" * (300 << 20)'])"
    assert docker.end(docker.submit(alice, f"{child}; {WRITES}")) == ("COMPLETED", "COMPLETED", 1)
    assert docker.end(docker.submit(alice, "x = b'x' * (300 << 20)")) == ("FAILED", "OUT_OF_MEMORY", 1)


@pytest.mark.docker
@pytest.mark.skipif(bool(why_not()) and "CI" not in os.environ, reason=why_not() or "ok")
def test_an_engine_that_takes_its_containers_along_gives_them_a_second_attempt(home, alice, monkeypatch, settings):
    daemon = new_daemon(keeps_containers=False)
    try:
        daemon.start()
        machine, _ = docker_machine(daemon, home, monkeypatch, settings)
        run = machine.until(machine.submit(alice, WAITS), is_running)
        daemon.restart()
        machine.until(run, lambda run: run.attempts.count() == 2)
        (run_folder(run.pk) / "work" / "go").touch()
        assert machine.end(run) == ("COMPLETED", "COMPLETED", 2)
    finally:
        daemon.stop()
