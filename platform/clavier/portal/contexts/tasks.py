"""What the pages of tasks show."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from clavier.core.actor import Actor
from clavier.portal.contexts.choices import Option, base_model_options, dataset_options, reward_model_options
from clavier.portal.forms.configs import ConfigForm
from clavier.portal.forms.tasks import TaskForm
from clavier.portal.listing import Listing
from clavier.runs.doctor import Diagnosis
from clavier.runs.models import Run, RunEvent
from clavier.runs.queries import events, progress
from clavier.runs.states import LIVE_STATES, RunState
from finetune_app.checks import DATA_KINDS
from finetune_app.doctor import Remedy, examine_task
from finetune_app.models import FineTuneTask
from finetune_app.queries import live_status, metrics, output_version, runs_of
from models_app.models import ModelVersion
from runner.contract.knob_values import Knob
from runner.contract.knobs import KNOBS

#: The end of the metrics file in which the newest measured values are.
RECENT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task in a list."""

    task: FineTuneTask
    is_live: bool
    step: int | None
    total_steps: int | None


@dataclass(frozen=True, slots=True)
class TaskList:
    """The list of tasks and its filters."""

    listing: Listing[FineTuneTask]
    rows: list[TaskRow]
    state: str
    states: list[str]
    is_live: bool


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """The part of a task's page that is asked for again and again."""

    task: FineTuneTask
    state: str | None
    is_live: bool
    can_stop: bool
    can_start: bool
    can_retry: bool
    can_delete: bool
    may_change: bool
    why: str
    starts_when: str
    position: int | None
    message: str
    end_reason: str
    phase: str
    step: int | None
    total_steps: int | None
    eta_s: float | None
    duration_s: float | None
    numbers: dict[str, Any]
    output: ModelVersion | None


@dataclass(frozen=True, slots=True)
class TaskDetail:
    """A task's whole page."""

    status: TaskStatus
    events: list[RunEvent]
    hyperparameters: list[tuple[Knob | None, str, Any]]
    runs: list[Run]
    ranks: list[int]
    rank: int
    estimate: TaskEstimate | None
    diagnosis: Diagnosis | None
    remedy: Remedy | None


@dataclass(frozen=True, slots=True)
class TaskEstimate:
    """What a task will need, or why that can not be said."""

    found: dict[str, Any] | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class TaskNew:
    """The form of a new task."""

    form: TaskForm
    source: ConfigForm
    base_models: list[Option]
    reward_models: list[Option]
    datasets: list[Option]
    kinds: str


def task_list(listing: Listing[FineTuneTask], state: str) -> TaskList:
    """The rows of one page."""
    rows = task_rows(listing.rows)
    return TaskList(listing, rows, state, [word.value for word in RunState], any(row.is_live for row in rows))


def task_rows(tasks: Iterable[FineTuneTask]) -> list[TaskRow]:
    """Rows with the progress of those that run."""
    return [task_row(task) for task in tasks]


def task_row(task: FineTuneTask) -> TaskRow:
    """One row; only a running task's files are looked at."""
    run = task.run
    is_running = run is not None and run.state in (RunState.RUNNING, RunState.STOPPING)
    found = progress(run.pk).get("progress", {}) if run is not None and is_running else {}
    return TaskRow(task, run is not None and run.state in LIVE_STATES, found.get("step"), found.get("total_steps"))


def task_status(actor: Actor, task: FineTuneTask) -> TaskStatus:
    """State, progress, speed and what can be done now."""
    live = live_status(task)
    state = live["state"]
    recent = metrics(task, -RECENT_BYTES)[0]
    found = live["progress"]
    step = found.get("progress", {}).get("step")
    is_live = state in LIVE_STATES
    return TaskStatus(
        task=task,
        state=state,
        is_live=is_live,
        can_stop=is_live and state != RunState.STOPPING,
        can_start=state is None,
        can_retry=state in (RunState.FAILED, RunState.STOPPED),
        can_delete=not is_live,
        may_change=actor.may_write and (actor.manages_tenant or task.created_by_id == actor.user_id),
        why=live["why"],
        starts_when=live["starts_when"],
        position=live["position"],
        message=live["message"],
        end_reason=live["end_reason"],
        phase=newest_phase(found),
        step=step,
        total_steps=found.get("progress", {}).get("total_steps"),
        eta_s=found.get("progress", {}).get("eta_s"),
        duration_s=duration_s(task.run),
        numbers=newest_numbers(recent),
        output=output_version(task) if state == RunState.COMPLETED else None,
    )


def task_detail(actor: Actor, task: FineTuneTask, rank: int = 0) -> TaskDetail:
    """Status, timeline, hyperparameters and earlier runs; ``rank``: whose log is shown of several containers."""
    num_containers = task.run.num_containers if task.run else 1
    known = {knob.name: knob for knob in KNOBS}
    diagnosis, remedy = examine_task(task) or (None, None)
    return TaskDetail(
        status=task_status(actor, task),
        events=list(events(task.run)) if task.run else [],
        hyperparameters=[(known.get(name), name, value) for name, value in task.hyperparameters.items()],
        runs=list(runs_of(task)[:20]),
        ranks=list(range(num_containers)) if num_containers > 1 else [],
        rank=min(rank, num_containers - 1),
        estimate=TaskEstimate(task.estimate) if task.estimate else None,
        diagnosis=diagnosis,
        remedy=remedy,
    )


def task_new(actor: Actor, form: TaskForm, source: ConfigForm | None = None) -> TaskNew:
    """The form with what can be chosen; ``kinds``: which rows fit which recipe, for the page's script.

    ``source``: the refused configuration that the form should have been filled from.
    """
    kinds = {kind for group in DATA_KINDS.values() for kind in group}
    return TaskNew(
        form,
        source or ConfigForm(),
        base_model_options(actor),
        reward_model_options(actor),
        dataset_options(actor, *kinds),
        json.dumps(DATA_KINDS),
    )


def newest_phase(found: dict[str, Any]) -> str:
    """What the program does now; empty while it counts steps, for then the numbers tell more."""
    phase, counted = found.get("phase", {}), found.get("progress", {})
    return str(phase.get("message", "")) if phase.get("t", 0) >= counted.get("t", 0) else ""


def newest_numbers(recent: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest value of each measured name, as templates can ask for it: ``train_loss``."""
    numbers: dict[str, Any] = {}
    for event in recent:
        if event.get("kind") == "metric":
            numbers |= {key.replace("/", "_"): value for key, value in event.items()}
    return numbers


def duration_s(run: Run | None) -> float | None:
    """How long an ended run ran."""
    if run is None or run.started_at is None or run.ended_at is None:
        return None
    return (run.ended_at - run.started_at).total_seconds()
