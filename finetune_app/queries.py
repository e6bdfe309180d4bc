"""What lists and details of tasks show."""

from __future__ import annotations

from typing import Any

from django.db.models import Q, QuerySet

from clavier.core.actor import Actor
from clavier.core.errors import Forbidden
from clavier.runs import outputs
from clavier.runs.models import Run
from clavier.runs.queries import progress
from clavier.runs.waiting import explain
from finetune_app.models import FineTuneTask, HyperparameterSearch
from models_app.models import ModelVersion


def visible_tasks(actor: Actor, *, state: str = "", search: str = "") -> QuerySet[FineTuneTask]:
    """The tenant's tasks with their newest run."""
    tasks = FineTuneTask.objects.filter(tenant_id=actor.tenant_id).select_related(
        "run", "base_version__model", "train_dataset__dataset", "created_by"
    )
    if state:
        tasks = tasks.filter(run__state=state.upper())
    if search:
        tasks = tasks.filter(Q(name__icontains=search) | Q(description__icontains=search))
    return tasks


def tasks_of_all_tenants(operator: Actor) -> QuerySet[FineTuneTask]:
    """Every tenant's tasks with their newest run. Raises Forbidden unless an operator asks."""
    if not operator.is_operator:
        raise Forbidden("Only operators see the tasks of all tenants.")
    return FineTuneTask.objects.select_related("run", "base_version__model", "train_dataset__dataset", "created_by")


def runs_of(task: FineTuneTask) -> QuerySet[Run]:
    """All runs of a task, newest first."""
    return Run.objects.filter(kind="fine_tune", subject_id=task.pk).order_by("-created_at")


def output_version(task: FineTuneTask) -> ModelVersion | None:
    """The model version that the task's newest run has made."""
    if task.run_id is None:
        return None
    return ModelVersion.objects.select_related("model").filter(run_id=task.run_id).first()


def search_of(task: FineTuneTask) -> HyperparameterSearch | None:
    """The search whose trial the task is."""
    return HyperparameterSearch.objects.filter(trials__task=task).first()


def live_status(task: FineTuneTask) -> dict[str, Any]:
    """State, why it waits, position, progress and newest metrics, for polling."""
    run = task.run
    if run is None:
        nothing = dict.fromkeys(("why", "starts_when", "message", "end_reason"), "")
        return {"state": None, "position": None, "progress": {}, **nothing}
    waiting = explain(run)
    return {
        "state": run.state,
        "why": waiting.why,
        "starts_when": waiting.starts_when,
        "position": waiting.position,
        "message": run.message,
        "end_reason": run.end_reason,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "progress": progress(run.pk),
    }


def metrics(task: FineTuneTask, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Events of the newest run from a byte offset on, and the next offset."""
    if task.run_id is None:
        return [], 0
    return outputs.read_metrics(task.run_id, offset)


def log(task: FineTuneTask, offset: int, limit: int) -> outputs.Chunk:
    """The newest run's log from a byte offset on."""
    if task.run_id is None:
        return outputs.Chunk(b"", 0, 0)
    return outputs.read_log(task.run_id, offset, limit)
