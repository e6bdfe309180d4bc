"""Trials of a search that fall behind the others are stopped before their end."""

from __future__ import annotations

import logging
import math
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from clavier.runs.outputs import MAX_READ_BYTES, read_metrics
from clavier.runs.services import stop_run
from clavier.runs.states import RunState
from finetune_app.models import HyperparameterSearch, SearchTrial
from finetune_app.sampling import Curve, falls_behind

logger = logging.getLogger(__name__)

#: What is read of a run's metrics, from their end.
RECENT_BYTES = 4 << 20
#: Points of a curve that are kept with an ended trial.
MAX_POINTS = 200


def prune_trials() -> int:
    """Stop each running trial that its search's pruner gives up; how many."""
    searches = HyperparameterSearch.objects.filter(ended_at=None, stopped_at=None).exclude(pruner="none")
    return sum(_prune(search) for search in searches)


def curve_of(run_id: UUID, metric: str) -> Curve:
    """Step -> value of a metric on the way; a step that was measured twice has its newest value."""
    events, offset = read_metrics(run_id, -RECENT_BYTES)
    for _ in range(RECENT_BYTES // MAX_READ_BYTES):  # one call reads no more than a part of that
        more, offset = read_metrics(run_id, offset)
        events = [*events, *more]
    curve: Curve = {}
    for event in events:
        value, step = event.get(metric), event.get("step")
        if isinstance(value, int | float) and not isinstance(value, bool) and isinstance(step, int):
            curve[step] = float(value) if math.isfinite(value) else math.nan
    return curve


def thinned(curve: Curve) -> list[list[float]]:
    """At most ``MAX_POINTS`` pairs of step and value, the last one among them."""
    steps = sorted(curve)
    every = -(-len(steps) // MAX_POINTS) or 1
    return [[step, curve[step]] for step in reversed(steps[::-1][::every]) if math.isfinite(curve[step])]


def _prune(search: HyperparameterSearch) -> int:
    trials = list(search.trials.select_related("task__run").order_by("number"))
    ended = [{int(step): value for step, value in trial.curve} for trial in trials if trial.ended_at is not None]
    stopped = 0
    for trial in trials:
        run = trial.task.run
        if trial.ended_at is not None or trial.pruned_at is not None or run is None or run.state != RunState.RUNNING:
            continue
        curve = curve_of(run.pk, search.metric)
        if falls_behind(
            curve, ended, search.pruner, maximize=search.maximize, warmup_steps=search.pruning_warmup_steps
        ):
            stopped += _stop(trial, max(curve))
    return stopped


def _stop(trial: SearchTrial, step: int) -> bool:
    """Mark the trial and stop its run, unless somebody else did so a moment ago."""
    run = trial.task.run
    assert run is not None
    with transaction.atomic():
        free = SearchTrial.objects.filter(pk=trial.pk, pruned_at=None, ended_at=None)
        if not free.update(pruned_at=timezone.now(), message=f"Stopped at step {step}: it fell behind the others."):
            return False
        stop_run(run=run, actor_name="pruning")
    logger.info("%s was pruned at step %d", trial, step)
    return True
