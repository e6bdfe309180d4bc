"""Which values the next trial of a search tries: Optuna's TPE sampler over what earlier trials found. Pure."""

from __future__ import annotations

import json
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
#: Ended trials without which nothing is compared, and without which nothing is said of hyperparameters.
FEWEST_OTHERS = 2
FEWEST_FOR_IMPORTANCE = 4

optuna.logging.set_verbosity(optuna.logging.WARNING)


#: Step -> value of a metric on the way.
Curve = dict[int, float]


@dataclass(frozen=True, slots=True)
class Known:
    """An earlier trial. ``value`` None: it has not ended, failed (``has_failed``) or was stopped early (``pruned``)."""

    parameters: Mapping[str, Any]
    value: float | None
    has_failed: bool = False
    pruned: Curve | None = None


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
    return {name: _tried(space[name], value) for name, value in study.ask(distributions).params.items()}


def falls_behind(curve: Curve, others: Sequence[Curve], pruner: str, *, maximize: bool, warmup_steps: int) -> bool:
    """Whether Optuna's pruner gives a running trial up, after what the others had at the same steps."""
    if not curve or max(curve) < warmup_steps:
        return False
    made: optuna.pruners.BasePruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=max(1, warmup_steps), reduction_factor=3
    )
    if pruner == "median":
        made = optuna.pruners.MedianPruner(n_startup_trials=FEWEST_OTHERS, n_warmup_steps=warmup_steps)
    study = optuna.create_study(direction="maximize" if maximize else "minimize", pruner=made)
    for other in others:
        trial = study.ask()
        _replay(trial, other)
        study.tell(trial, other[max(other)]) if other else study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return _replay(study.ask(), curve)


def importances(space: Mapping[str, Any], known: Sequence[Known]) -> dict[str, float]:
    """Hyperparameter -> its share of what moves the value, the largest first; empty while too few trials ended.

    Trials are grouped by the hyperparameter (numbers in thirds, choices as they are); what counts is how far the mean
    ranks of the groups lie apart, less what chance would do (epsilon squared). Optuna's own measures need scikit-learn,
    or mistake a range that the sampler has narrowed for an unimportant one.
    """
    ended = [trial for trial in known if trial.value is not None]
    if len({trial.value for trial in ended}) < FEWEST_FOR_IMPORTANCE:
        return {}
    ranks = _ranks([float(trial.value or 0.0) for trial in ended])
    effects = {}
    for name, each in space.items():
        tried = [trial.parameters[name] for trial in ended]
        is_choice = "choices" in each
        groups = list(map(_choice, tried)) if is_choice else [int(3 * rank / len(ended)) for rank in _ranks(tried)]
        effects[name] = _effect(ranks, groups)
    whole = sum(effects.values())
    shares = {name: effect / whole if whole else 0.0 for name, effect in effects.items()}
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))


def _ranks(values: Sequence[float]) -> list[float]:
    """The place of each value from 0, equal ones in between."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def _effect(ranks: Sequence[float], groups: Sequence[Any]) -> float:
    """Share of the spread of ranks that lies between the groups (epsilon squared); 0 where chance explains it."""
    members: dict[Any, list[float]] = {}
    for rank, group in zip(ranks, groups, strict=True):
        members.setdefault(group, []).append(rank)
    count, middle = len(ranks), sum(ranks) / len(ranks)
    total = sum((rank - middle) ** 2 for rank in ranks)
    between = sum(len(m) * (sum(m) / len(m) - middle) ** 2 for m in members.values())
    if len(members) < 2 or count <= len(members):
        return 0.0
    error = (total - between) / (count - len(members))
    return max(0.0, (between - (len(members) - 1) * error) / total)


def _replay(trial: optuna.trial.Trial, curve: Curve) -> bool:
    """Report a curve as it came; whether the pruner gives the trial up at its last step."""
    is_behind = False
    for step in sorted(curve):
        trial.report(curve[step], step)
        is_behind = trial.should_prune()  # asked at each step: halving counts the rungs that a trial has passed
    return is_behind


def _frozen(trial: Known, distributions: dict[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    state = optuna.trial.TrialState.RUNNING
    if trial.pruned:
        state = optuna.trial.TrialState.PRUNED
    elif trial.has_failed:
        state = optuna.trial.TrialState.FAIL
    elif trial.value is not None:
        state = optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(
        params={name: _choice(value) for name, value in trial.parameters.items()},
        distributions=distributions,
        value=trial.value,
        state=state,
        intermediate_values=trial.pruned or {},
    )


def _distribution(each: Mapping[str, Any]) -> BaseDistribution:
    if "choices" in each:
        return CategoricalDistribution([_choice(value) for value in each["choices"]])
    if isinstance(each["low"], int) and isinstance(each["high"], int):
        return IntDistribution(each["low"], each["high"], log=each["log"])
    return FloatDistribution(each["low"], each["high"], log=each["log"])


def _choice(value: Any) -> Any:
    """A value as Optuna takes it: a list of names as one text."""
    return json.dumps(value) if isinstance(value, list) else value


def _tried(each: Mapping[str, Any], value: Any) -> Any:
    """A value of Optuna's as the knob has it."""
    return next(known for known in each["choices"] if _choice(known) == value) if "choices" in each else value


def _range(knob: Knob, given: Any) -> dict[str, Any]:
    """One knob's range in its own type. Raises BadValue."""
    if not isinstance(given, Mapping):
        raise BadValue("wrong_type", 'needs {"low": ..., "high": ...} or {"choices": [...]}')
    if "choices" in given:
        choices = given["choices"]
        if not isinstance(choices, list) or not 1 <= len(choices) <= MAX_CHOICES or set(given) != {"choices"}:
            raise BadValue("wrong_type", f"choices must be a list of 1 to {MAX_CHOICES} values, and nothing beside it")
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
