"""Which values the next trial of a search tries: Optuna's TPE sampler over what earlier trials found. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from clavier.core.errors import FieldProblem, InvalidFields
from runner.contract.knob_values import BadValue, Knob, read_value
from runner.contract.knobs import knobs_of

MAX_KNOBS = 16
MAX_CHOICES = 64

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, slots=True)
class Known:
    """An earlier trial. ``value`` None: it has not ended, or failed (``has_failed``)."""

    parameters: Mapping[str, Any]
    value: float | None
    has_failed: bool = False


def checked_space(recipe: str, method: str, space: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Knob -> ``{low, high, log}`` or ``{choices}``, each value allowed for its knob. Raises InvalidFields."""
    knobs = {knob.name: knob for knob in knobs_of(recipe, method)}
    problems: list[FieldProblem] = []
    checked: dict[str, dict[str, Any]] = {}
    if not 1 <= len(space) <= MAX_KNOBS:
        problems.append(FieldProblem("space", "out_of_range", f"space must name 1 to {MAX_KNOBS} hyperparameters."))
    for name, given in space.items():
        field = f"space.{name}"
        if name not in knobs:
            problems.append(FieldProblem(field, "unknown_field", f"{recipe} with {method} has no {name}."))
            continue
        try:
            checked[name] = _range(knobs[name], given)
        except BadValue as error:
            problems.append(FieldProblem(field, error.code, f"{field}: {error}."))
    if problems:
        raise InvalidFields(problems)
    return checked


def suggest(
    space: Mapping[str, Mapping[str, Any]], known: Sequence[Known], *, maximize: bool, seed: int
) -> dict[str, Any]:
    """The next trial's values; the same earlier trials and seed give the same ones.

    Trials that still run count as bad ones, so that several at once do not all try the same place.
    """
    distributions = {name: _distribution(each) for name, each in space.items()}
    sampler = optuna.samplers.TPESampler(
        seed=seed + len(known), multivariate=True, constant_liar=True, n_startup_trials=min(10, max(4, 2 * len(space)))
    )
    study = optuna.create_study(sampler=sampler, direction="maximize" if maximize else "minimize")
    for trial in known:
        study.add_trial(_frozen(trial, distributions))
    return dict(study.ask(distributions).params)


def _frozen(trial: Known, distributions: dict[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    state = optuna.trial.TrialState.RUNNING
    if trial.has_failed:
        state = optuna.trial.TrialState.FAIL
    elif trial.value is not None:
        state = optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(
        params=dict(trial.parameters), distributions=distributions, value=trial.value, state=state
    )


def _distribution(each: Mapping[str, Any]) -> BaseDistribution:
    if "choices" in each:
        return CategoricalDistribution(each["choices"])
    if isinstance(each["low"], int) and isinstance(each["high"], int):
        return IntDistribution(each["low"], each["high"], log=each["log"])
    return FloatDistribution(each["low"], each["high"], log=each["log"])


def _range(knob: Knob, given: Any) -> dict[str, Any]:
    """One knob's range in its own type. Raises BadValue."""
    if not isinstance(given, Mapping):
        raise BadValue("wrong_type", 'needs {"low": ..., "high": ...} or {"choices": [...]}')
    if "choices" in given:
        choices = given["choices"]
        if not isinstance(choices, list) or not 1 <= len(choices) <= MAX_CHOICES or set(given) != {"choices"}:
            raise BadValue("wrong_type", f"choices must be a list of 1 to {MAX_CHOICES} values, and nothing beside it")
        if knob.type == "list":
            raise BadValue("not_a_choice", "a list of names can not be searched")
        return {"choices": [read_value(knob, value) for value in choices]}
    if set(given) - {"low", "high", "log"} or not {"low", "high"} <= set(given):
        raise BadValue("wrong_type", "needs low and high, and may have log")
    if knob.type not in ("int", "float"):
        raise BadValue("wrong_type", "is no number; give choices")
    low, high, log = read_value(knob, given["low"]), read_value(knob, given["high"]), given.get("log", False)
    if not isinstance(log, bool):
        raise BadValue("wrong_type", "log must be true or false")
    if low >= high or (log and low <= 0):
        raise BadValue("out_of_range", f"low {low} must be below high {high}" + (" and above 0" if log else ""))
    return {"low": low, "high": high, "log": log}
