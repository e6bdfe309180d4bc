"""A Run engine in a test: the real services, scheduler and reconciler over the scripted executor."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from clavier.core.actor import Actor
from clavier.quotas.models import Node, Reservation, ResourceGroup
from clavier.quotas.services import audit_usage, ensure_local_node, set_cap
from clavier.runs.models import Attempt, Run
from clavier.runs.queries import replayed_state
from clavier.runs.services import submit_run
from runner.contract.run_spec import Resources, RunSpec
from runner.executors.fake import FakeExecutor, Outcome
from runner.executors.local_process import LocalProcessExecutor
from runner.worker import engines, hands, jobs, reconciler, scheduler

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
        spec = {"kind": "fine_tune", "program": "runner.programs.train.sft", "parameters": {}, **changes}
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
    monkeypatch.setattr(hands, "executor", lambda name: executor)
    monkeypatch.setattr("clavier.runs.queue.enqueue", lambda *job: False)
    ensure_local_node()
    made = Engine(executor, clock)
    made.will(files=GOOD_OUTPUT)
    return made


@dataclass
class RealEngine:
    """The engine over real processes: ``finish`` steps until a run has ended."""

    executor: LocalProcessExecutor
    reconciler: reconciler.Reconciler = field(default_factory=reconciler.Reconciler)

    def finish(self, run: Run, limit_s: float = 60.0) -> Run:
        """The ended run. Raises AssertionError when it takes longer."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            for attempt_id in scheduler.schedule_pass():
                jobs.launch(str(attempt_id))
            self.reconciler.run_pass()
            run.refresh_from_db()
            if run.is_final:
                return run
            time.sleep(0.05)
        raise AssertionError(f"{run} did not end within {limit_s:g} s")


def make_real_engine(monkeypatch: Any, home: Path) -> RealEngine:
    """An engine whose executor starts processes; nothing is sent to a queue."""
    executor = LocalProcessExecutor(home / "executors" / "local_process", hidden=(home,))
    for module in (engines, jobs, reconciler, hands):
        monkeypatch.setattr(module, "executor", lambda name: executor)
    monkeypatch.setattr("clavier.runs.queue.enqueue", lambda *job: False)
    ensure_local_node()
    return RealEngine(executor)


def add_node(
    name: str, executor: str = "local_process", url: str = "", network: str = "", cpu_milli: int = 200
) -> Node:
    """One more node of the only group, with room for a little and without GPUs."""
    node = Node.objects.create(
        name=name, resource_group=ResourceGroup.objects.get(), executor=executor, engine_url=url, engine_network=network
    )
    for resource, cap in (("cpu_milli", cpu_milli), ("memory_mib", 4096), ("gpus", 0)):
        set_cap(scope="node", scope_id=node.pk, resource=resource, cap=cap)
    return node


def assert_consistent() -> None:
    """I1, I2, I10: reservations only of live attempts, use equals their sum, events replay to the state."""
    assert audit_usage() == []
    held = set(Reservation.objects.filter(released_at=None).values_list("attempt_id", flat=True))
    live = set(Attempt.objects.filter(ended_at=None).values_list("pk", flat=True))
    assert held == live
    for run in Run.objects.all():
        assert replayed_state(run) == run.state
