"""What lists and details of evaluations show."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet

from clavier.core.actor import Actor
from clavier.runs.outputs import read_objects
from evaluation_app.models import EvaluationTask


def visible_evaluations(actor: Actor, *, search: str = "") -> QuerySet[EvaluationTask]:
    """The tenant's evaluations with run and scores."""
    tasks = EvaluationTask.objects.filter(tenant_id=actor.tenant_id).select_related(
        "run", "model_version__model", "dataset_version__dataset", "created_by"
    )
    if search:
        tasks = tasks.filter(name__icontains=search)
    return tasks.prefetch_related("scores")


def score_table(task: EvaluationTask) -> dict[str, dict[str, dict[str, float | None]]]:
    """metric -> label -> ``{value, low, high}``."""
    table: dict[str, dict[str, dict[str, float | None]]] = {}
    for score in task.scores.all():
        table.setdefault(score.metric, {})[score.label] = {"value": score.value, "low": score.low, "high": score.high}
    return table


def samples(task: EvaluationTask, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Per-sample results from a byte offset on, and the next offset."""
    if task.run_id is None:
        return [], 0
    return read_objects(task.run_id, "output/samples.jsonl", offset)
