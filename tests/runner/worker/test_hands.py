"""What is done for the reconciler beside its passes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from clavier.runs.models import Attempt
from clavier.runs.services import stop_run
from runner.executors.base import ExecutorError
from runner.executors.fake import FakeExecutor
from runner.worker import hands, jobs
from runner.worker.engines import Engine
from runner.worker.hands import THREADS, Hands, ThreadLane
from runner.worker.reconciler import Reconciler
from tests.engine import make_engine

HERE, THERE = Engine("fake"), Engine("fake", "tcp://there")
PATIENCE_S = 60.0


class Hanging:
    """A call that comes back when it is told to."""

    def __init__(self) -> None:
        self.calls = threading.Semaphore(0)
        self.may_return = threading.Event()
        self.returned: list[object] = []

    def __call__(self, *arguments: object) -> None:
        self.calls.release()
        assert self.may_return.wait(PATIENCE_S)
        self.returned.append(arguments)


@pytest.fixture
def hanging():
    made = Hanging()
    yield made
    made.may_return.set()


def test_an_engine_that_hangs_keeps_no_other_engine_and_no_start_waiting(monkeypatch, hanging: Hanging) -> None:
    broken, good = FakeExecutor(), FakeExecutor()
    monkeypatch.setattr(broken, "stop", hanging)
    monkeypatch.setattr(hands, "executor", {HERE: good, THERE: broken}.__getitem__)
    launched, stopped = threading.Semaphore(0), threading.Semaphore(0)
    monkeypatch.setattr(jobs, "launch", lambda attempt_id, is_due: launched.release())
    monkeypatch.setattr(good, "stop", lambda name, grace_s: stopped.release())
    made = Hands(ThreadLane)
    for number in range(THREADS + 3):
        made.stop(THERE, f"a{number}", 1)
    for _ in range(THREADS):
        assert hanging.calls.acquire(timeout=PATIENCE_S)
    assert not hanging.calls.acquire(blocking=False), "an engine gets no more calls at once"
    made.stop(HERE, "b", 1)
    made.launch("c", [THERE])
    made.launch("d", [THERE, HERE])
    for done in (stopped, launched, launched):
        assert done.acquire(timeout=PATIENCE_S)
    assert (made.stopped_at("a0"), hanging.returned) == (None, [])


def test_what_is_asked_for_again_is_not_done_twice_at_once_and_a_mistake_ends_no_lane() -> None:
    lane, done = ThreadLane("a lane", threads=1), threading.Semaphore(0)
    held, seen = threading.Event(), []

    def act(what: str) -> Callable[[], None]:
        def action() -> None:
            assert held.wait(PATIENCE_S)
            seen.append(what)
            done.release()
            raise ExecutorError(what)

        return action

    for what in ("one", "one", "two", "one", "two"):
        lane.put(what, act(what))
    held.set()
    assert done.acquire(timeout=PATIENCE_S)
    assert done.acquire(timeout=PATIENCE_S)
    assert seen == ["one", "two"]
    lane.put("one", act("one again"))
    assert done.acquire(timeout=PATIENCE_S)
    assert seen[-1] == "one again"


@pytest.mark.django_db
def test_a_pass_does_not_wait_for_an_engine_that_hangs_on_a_stop(monkeypatch, alice, hanging: Hanging) -> None:
    engine = make_engine(monkeypatch)
    engine.will(runs_for_s=None)
    run = engine.submit(alice)
    engine.step(2)
    monkeypatch.setattr(engine.executor, "stop", hanging)
    run.refresh_from_db()
    stop_run(run=run, actor_name="alice")
    reconciler = Reconciler(Hands(ThreadLane))
    for _ in range(3):
        reconciler.run_pass()
    assert hanging.calls.acquire(timeout=PATIENCE_S)
    assert (hanging.returned, Attempt.objects.get().ended_at) == ([], None)
    assert not hanging.calls.acquire(blocking=False), "it is asked for once, not by each pass"
