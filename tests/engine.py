"""A Run engine in a test: the real services, scheduler and reconciler over the scripted executor."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from clavier.core.actor import Actor
from clavier.quotas.models import Reservation
from clavier.quotas.services import audit_usage, ensure_local_node
from clavier.runs.models import Attempt, Run
from clavier.runs.queries import replayed_state
from clavier.runs.services import submit_run
from runner.contract.run_spec import Resources, RunSpec
from runner.executors.fake import FakeExecutor, Outcome
from runner.worker import engines, jobs, reconciler, scheduler

GOOD_OUTPUT = {
    "output/hello.txt": "hello",
    "output/MANIFEST.json": json.dumps({"files": [{"path": "hello.txt", "size": 5}], "kind": "model", "facts": {}}),
}


@dataclass
class Clock:
    """Seconds since the epoch, moved by hand."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Engine:
    """What a test drives: ``step`` is one scheduler pass, the queue's launches, and one reconciler pass."""

    executor: FakeExecutor
    clock: Clock
    reconciler: reconciler.Reconciler = field(default_factory=reconciler.Reconciler)

    def step(self, times: int = 1) -> None:
        """The whole engine, ``times`` times."""
        for _ in range(times):
            for attempt_id in scheduler.schedule_pass():
                jobs.launch(str(attempt_id))
            self.reconciler.run_pass()

    def submit(self, actor: Actor, **changes: Any) -> Run:
        """A run of a program that exists."""
        spec = {"kind": "fine_tune", "program": None, "argv": ("/bin/true",), "parameters": {}, **changes}
        spec.setdefault("resources", Resources(cpu_milli=100, memory_mib=64))
        return submit_run(actor=actor, kind=spec["kind"], name="a run", subject_id=uuid4(), spec=RunSpec(**spec))

    def will(self, **outcome: Any) -> None:
        """Script every attempt that starts from now on."""
        self.executor.will(outcome=Outcome(**outcome))


def make_engine(monkeypatch: Any) -> Engine:
    """An engine whose executor is scripted; nothing is sent to a queue."""
    clock = Clock()
    executor = FakeExecutor(clock=clock)
    monkeypatch.setattr(engines, "executor", lambda name: executor)
    monkeypatch.setattr(jobs, "executor", lambda name: executor)
    monkeypatch.setattr(reconciler, "executor", lambda name: executor)
    monkeypatch.setattr("clavier.runs.queue.enqueue", lambda *job: False)
    ensure_local_node()
    made = Engine(executor, clock)
    made.will(files=GOOD_OUTPUT)
    return made


def assert_consistent() -> None:
    """I1, I2, I10: reservations only of live attempts, use equals their sum, events replay to the state."""
    assert audit_usage() == []
    held = set(Reservation.objects.filter(released_at=None).values_list("attempt_id", flat=True))
    live = set(Attempt.objects.filter(ended_at=None).values_list("pk", flat=True))
    assert held == live
    for run in Run.objects.all():
        assert replayed_state(run) == run.state
