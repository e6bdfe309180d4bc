"""What the pages of hyperparameter searches show."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clavier.core.actor import Actor
from clavier.portal.contexts import tasks
from clavier.portal.forms.searches import SearchForm
from clavier.portal.listing import Listing
from finetune_app.models import HyperparameterSearch, SearchTrial
from finetune_app.search import best_trial, best_version, importances_of, trials_of
from models_app.models import ModelVersion

#: The drawing of the trials, in its own units; the margin holds the numbers.
WIDTH, HEIGHT, MARGIN = 640, 240, 46


@dataclass(frozen=True, slots=True)
class SearchList:
    """The list of searches."""

    listing: Listing[HyperparameterSearch]
    rows: list[HyperparameterSearch]


@dataclass(frozen=True, slots=True)
class SearchNew:
    """The form of a new search, with what a task's form can choose."""

    form: SearchForm
    task: tasks.TaskNew


@dataclass(frozen=True, slots=True)
class Dot:
    """A trial in the drawing."""

    x: float
    y: float
    number: int
    value: float
    is_best: bool


@dataclass(frozen=True, slots=True)
class Plot:
    """Trials from left to right, their values upwards; ``best_path``: the best so far, as an SVG path."""

    dots: list[Dot]
    best_path: str
    highest: float
    lowest: float
    width: int = WIDTH
    height: int = HEIGHT
    margin: int = MARGIN
    top: int = 12
    bottom: int = HEIGHT - 24


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A trial in the table."""

    trial: SearchTrial
    state: str
    is_best: bool


@dataclass(frozen=True, slots=True)
class SearchDetail:
    """A search's whole page."""

    search: HyperparameterSearch
    rows: list[TrialRow]
    num_ended: int
    best: SearchTrial | None
    version: ModelVersion | None
    plot: Plot | None
    importances: list[tuple[str, float, int]]
    is_live: bool
    may_change: bool


def search_list(listing: Listing[HyperparameterSearch]) -> SearchList:
    """The rows of one page."""
    return SearchList(listing, listing.rows)


def search_new(actor: Actor, form: SearchForm) -> SearchNew:
    """The form with what can be chosen."""
    return SearchNew(form, tasks.task_new(actor, form))


def search_detail(actor: Actor, search: HyperparameterSearch) -> SearchDetail:
    """Trials, the best of them, the drawing and what moved the value."""
    trials, best = list(trials_of(search)), best_trial(search)
    best_id = best.pk if best is not None else None
    return SearchDetail(
        search=search,
        rows=[TrialRow(trial, state_of(trial), trial.pk == best_id) for trial in trials],
        num_ended=sum(trial.ended_at is not None for trial in trials),
        best=best,
        version=best_version(search),
        plot=plot_of(trials, best_id, maximize=search.maximize),
        importances=[(name, share, round(100 * share)) for name, share in importances_of(search).items()],
        is_live=search.ended_at is None,
        may_change=actor.may_write and (actor.manages_tenant or search.created_by_id == actor.user_id),
    )


def state_of(trial: SearchTrial) -> str:
    """The state of its run; PRUNED where it was stopped for falling behind."""
    if trial.pruned_at is not None:
        return "PRUNED"
    return trial.task.run.state if trial.task.run is not None else ""


def plot_of(trials: list[SearchTrial], best_id: int | None, *, maximize: bool) -> Plot | None:
    """The drawing of the trials that have a value; None without one."""
    valued = [(trial, trial.value) for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    if not valued:
        return None
    values = [value for _, value in valued]
    low, high = min(values), max(values)
    frame = Plot([], "", high, low)
    step = (WIDTH - 2 * MARGIN) / max(1, len(trials) - 1)
    height = frame.bottom - frame.top

    def upwards(value: float) -> float:
        return round(frame.bottom - height * (value - low) / (high - low or 1.0), 1)

    dots = [
        Dot(round(MARGIN + step * (trial.number - 1), 1), upwards(value), trial.number, value, trial.pk == best_id)
        for trial, value in valued
    ]
    path, reached = "", values[0]
    for dot in dots:
        reached = (max if maximize else min)(reached, dot.value)
        path += f"{'H' if path else 'M'}{dot.x}" + (f"V{upwards(reached)}" if path else f" {upwards(reached)}")
    return Plot(dots, path, high, low)
