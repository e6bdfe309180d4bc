"""Hyperparameter searches: trials are fine-tuning tasks, the next one is chosen when one ends."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from clavier.accounts.access import access_object, creator_of, require_change, require_write
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, DomainError, Invalid, quoted
from clavier.runs.models import Run
from clavier.runs.services import stop_run
from clavier.runs.states import RunState
from finetune_app.models import PRUNERS, FineTuneTask, HyperparameterSearch, SearchTrial
from finetune_app.pruning import curve_of, thinned
from finetune_app.sampling import Known, checked_space, importances, suggest
from finetune_app.services import create_fine_tune_task
from models_app.models import ModelVersion
from models_app.services import check_model_name
from runner.contract.knob_values import BadValue, read_value
from runner.contract.knobs import idle_knobs, knobs_of
from runner.contract.measures import AT_THE_END, is_better_large, measured, our_measure

logger = logging.getLogger(__name__)

MAX_TRIALS = 500
MAX_PARALLEL = 32
#: What a task takes of its own; a search gives the name and the values that it tries.
TASK_FIELDS = (
    "recipe", "method", "train_dataset", "validation_dataset", "base_model", "reward_model", "hyperparameters",
    "resources", "options", "time_limit_s", "description", "config", "tokenizer",
)  # fmt: skip


def create_search(
    *,
    actor: Actor,
    name: str,
    space: Mapping[str, Any],
    num_trials: int,
    num_parallel: int = 1,
    metric: str = "eval/loss",
    maximize: bool | None = None,
    seed: int = 42,
    pruner: str = "none",
    pruning_warmup_steps: int = 0,
    **task: Any,
) -> HyperparameterSearch:
    """A search, its first trials started. ``task``: what a fine-tuning task takes (``TASK_FIELDS``).

    ``metric``: of a finished run, ours or a usual name of it (``validation_loss``, ``accuracy``).
    ``maximize`` None: the largest value is the best, but of losses, perplexity and divergence the smallest.
    ``pruner``: how trials that fall behind are found, after ``pruning_warmup_steps`` steps at the earliest.

    Raises InvalidFields, Invalid, NotFound, Conflict (``already_exists``), Forbidden, Unprocessable.
    """
    require_write(actor)
    check_model_name(name)
    _require_in_range("num_trials", num_trials, 1, MAX_TRIALS)
    _require_in_range("num_parallel", num_parallel, 1, MAX_PARALLEL)
    unknown = sorted(set(task) - set(TASK_FIELDS))
    if unknown:
        raise Invalid(f"{unknown[0]} is no field of a search.", code="unknown_field", field=unknown[0])
    checked = checked_space(task["recipe"], task["method"], space)
    metric = checked_metric(task["recipe"], task["method"], metric, task.get("hyperparameters") or {}, space)
    if metric.startswith("eval/") and not task.get("validation_dataset"):
        raise Invalid(
            f"metric {metric} needs a validation_dataset. Split one off, or search by train/loss.",
            code="required",
            field="validation_dataset",
        )
    _require_measured(pruner, metric, task.get("hyperparameters") or {}, space)
    try:
        with transaction.atomic():
            search = HyperparameterSearch.objects.create(
                tenant_id=actor.tenant_id,
                created_by_id=actor.user_id,
                name=name,
                task={field: _plain(value) for field, value in task.items() if value is not None},
                space=checked,
                metric=metric,
                maximize=is_better_large(metric) if maximize is None else maximize,
                num_trials=num_trials,
                num_parallel=num_parallel,
                seed=seed,
                pruner=pruner,
                pruning_warmup_steps=pruning_warmup_steps,
            )
            for _ in range(min(num_trials, num_parallel)):
                start_trial(actor, search)
    except IntegrityError as error:
        raise Conflict(f"A search {quoted(name)} exists.", code="already_exists", field="name") from error
    return search


def stop_search(*, actor: Actor, search: HyperparameterSearch) -> HyperparameterSearch:
    """Start no further trial and stop those that run. Raises Conflict when it has ended, Forbidden."""
    require_change(actor, search, noun="search")
    with transaction.atomic():
        if search.ended_at is not None:
            raise Conflict("The search has ended.", code="already_ended")
        HyperparameterSearch.objects.filter(pk=search.pk).update(stopped_at=timezone.now())
        search.refresh_from_db()
        for trial in search.trials.filter(ended_at=None).select_related("task__run"):
            if trial.task.run is not None and not trial.task.run.is_final:
                stop_run(run=trial.task.run, actor_name=actor.username)
    return search


def delete_search(*, actor: Actor, search: HyperparameterSearch) -> None:
    """Forget a search; its trials stay as tasks. Raises Conflict while it runs, Forbidden."""
    require_change(actor, search, noun="search")
    if search.ended_at is None:
        raise Conflict("The search runs; stop it first.", code="in_use")
    search.delete()


def access_search(actor: Actor, search_id: UUID | str) -> HyperparameterSearch:
    """The actor's tenant's search. Raises NotFound."""
    return access_object(HyperparameterSearch.objects.select_related("created_by"), actor, search_id, noun="search")


def visible_searches(actor: Actor) -> QuerySet[HyperparameterSearch]:
    """The tenant's searches, newest first."""
    return HyperparameterSearch.objects.filter(tenant_id=actor.tenant_id).select_related("created_by")


def trials_of(search: HyperparameterSearch) -> QuerySet[SearchTrial]:
    """Its trials in order, with their tasks."""
    return SearchTrial.objects.filter(search=search).select_related("task__run").order_by("number")


def best_trial(search: HyperparameterSearch) -> SearchTrial | None:
    """The trial with the best value so far."""
    order = F("value").desc(nulls_last=True) if search.maximize else F("value").asc(nulls_last=True)
    return trials_of(search).exclude(value=None).order_by(order, "number").first()


def best_version(search: HyperparameterSearch) -> ModelVersion | None:
    """The model version that the best trial has made."""
    best = best_trial(search)
    run_id = best.task.run_id if best is not None else None
    return ModelVersion.objects.select_related("model").filter(run_id=run_id).first() if run_id else None


def on_trial_finished(task: FineTuneTask, run: Run) -> None:
    """Note a trial's value and start the next one. Call in the transaction that ends the run."""
    trial = SearchTrial.objects.filter(task=task, ended_at=None).first()
    if trial is None or task.run_id != run.pk:
        return
    # One at a time: two trials that end together must not both start the last one.
    search = _locked(trial.search_id)
    trial.ended_at = timezone.now()
    trial.curve = thinned(curve_of(run.pk, search.metric))
    if trial.pruned_at is None or run.state == RunState.COMPLETED:
        trial.value, trial.message = _value_of(run, search.metric)
    trial.save(update_fields=["ended_at", "value", "message", "curve"])
    _continue(search)


def start_trial(actor: Actor, search: HyperparameterSearch) -> SearchTrial:
    """The next trial with the values that the sampler suggests. Raises as ``create_fine_tune_task`` does."""
    known = known_trials(search)
    parameters = suggest(search.space, known, maximize=search.maximize, seed=search.seed)
    number = len(known) + 1
    given = dict(search.task)
    given["hyperparameters"] = {**given.get("hyperparameters", {}), **parameters}
    for knob in idle_knobs(given["recipe"], given["method"], given["hyperparameters"]):
        if knob.name in parameters:  # tried beside a choice with which it changes nothing
            del given["hyperparameters"][knob.name]
    task = create_fine_tune_task(actor=actor, name=f"{search.name}-{number}", output_model_name=search.name, **given)
    return SearchTrial.objects.create(search=search, number=number, parameters=parameters, task=task)


def known_trials(search: HyperparameterSearch) -> list[Known]:
    """What the sampler learns from."""
    known = []
    for trial in trials_of(search):
        has_failed = trial.ended_at is not None and trial.value is None
        pruned = {int(step): value for step, value in trial.curve} if has_failed and trial.pruned_at else None
        known.append(Known(trial.parameters, trial.value, has_failed, pruned))
    return known


def importances_of(search: HyperparameterSearch) -> dict[str, float]:
    """Hyperparameter -> its share of what moves the value, the largest first."""
    return importances(search.space, known_trials(search))


def checked_metric(recipe: str, method: str, metric: str, given: Mapping[str, Any], space: Mapping[str, Any]) -> str:
    """The metric under our name. Raises Invalid (``not_a_choice``) where no trial would measure it."""
    values = {}
    for knob in knobs_of(recipe, method):
        if knob.name not in space:
            with suppress(BadValue):  # which the first trial is refused for
                values[knob.name] = read_value(knob, given.get(knob.name))
    known = measured(recipe, values, has_validation=True)
    ours = our_measure(recipe, metric)
    if ours not in known:
        message = f"metric {quoted(metric)} is none of those of {recipe}: {', '.join(known)}."
        raise Invalid(message, code="not_a_choice", field="metric")
    return ours


def _require_measured(pruner: str, metric: str, given: Mapping[str, Any], space: Mapping[str, Any]) -> None:
    """Who prunes must measure on the way. Raises Invalid."""
    if pruner not in PRUNERS:
        raise Invalid(f"pruner {quoted(pruner)} is none of {', '.join(PRUNERS)}.", code="not_a_choice", field="pruner")
    if pruner != "none" and metric in AT_THE_END:
        message = f"pruner {pruner} compares on the way; {metric} is measured at the end; take another metric, or none."
        raise Invalid(message, code="conflicting_fields", field="pruner")
    is_measured = (
        not metric.startswith("eval/") or "eval_steps" in space or given.get("eval_steps") not in (None, 0, "0")
    )
    if pruner != "none" and not is_measured:
        message = f"pruner {pruner} compares {metric} on the way: give hyperparameters.eval_steps, such as 50."
        raise Invalid(message, code="required", field="hyperparameters.eval_steps")


def _continue(search: HyperparameterSearch) -> None:
    """Start what is still to be tried, or end the search."""
    trials = search.trials.count()
    live = search.trials.filter(ended_at=None).count()
    while search.stopped_at is None and trials < search.num_trials and live < search.num_parallel:
        try:
            with transaction.atomic():
                start_trial(creator_of(search), search)
        except DomainError as error:
            logger.warning("search %s can not go on: %s", search.pk, error.message)
            search.stopped_at, search.message = timezone.now(), error.message
            break
        trials, live = trials + 1, live + 1
    if live == 0:
        search.ended_at = timezone.now()
    search.save(update_fields=["stopped_at", "ended_at", "message", "updated_at"])


def _locked(search_id: UUID) -> HyperparameterSearch:
    rows = HyperparameterSearch.objects.select_for_update(of=("self",)).select_related("tenant", "created_by")
    return rows.get(pk=search_id)


def _value_of(run: Run, metric: str) -> tuple[float | None, str]:
    """The metric of a completed run, or why there is none."""
    if run.state != RunState.COMPLETED:
        return None, run.message or run.end_reason
    version = ModelVersion.objects.filter(run=run).first()
    value = version.metrics.get(metric) if version is not None else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        known = ", ".join(sorted(version.metrics)) if version is not None else "none"
        return None, f"The run has no metric {metric}; it has {known}."
    return float(value), ""


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value


def _require_in_range(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise Invalid(f"{field} {value} is outside {least} to {most}.", code="out_of_range", field=field)
