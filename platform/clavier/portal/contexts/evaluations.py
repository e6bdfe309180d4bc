"""What the pages of evaluations show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from django.http import HttpRequest

from clavier.core.actor import Actor
from clavier.portal.contexts.choices import Option, dataset_options, model_options
from clavier.portal.forms.evaluations import EvaluationForm
from clavier.portal.listing import Listing, whole_number
from clavier.runs.models import RunEvent
from clavier.runs.queries import events, progress
from clavier.runs.states import LIVE_STATES, RunState
from clavier.runs.waiting import explain
from evaluation_app.models import EvaluationTask
from evaluation_app.queries import samples, score_table
from evaluation_app.services import QUESTION_KINDS

SAMPLES_SHOWN = 25


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One metric: a cell for each candidate, and tuned minus base where both are there."""

    metric: str
    cells: list[dict[str, float | None]]
    difference: float | None


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """An evaluation in a list with the scores of one metric."""

    task: EvaluationTask
    is_live: bool
    score: ScoreRow | None


@dataclass(frozen=True, slots=True)
class EvaluationList:
    """The list of evaluations."""

    listing: Listing[EvaluationTask]
    rows: list[EvaluationRow]
    is_live: bool


@dataclass(frozen=True, slots=True)
class EvaluationNew:
    """The form of a new evaluation."""

    form: EvaluationForm
    models: list[Option]
    datasets: list[Option]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one candidate said; ``is_right`` None when exact match was not asked for."""

    label: str
    text: str
    is_right: bool | None
    scores: list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One question with its reference and the answers in the order of the candidates."""

    number: int
    question: str
    reference: str
    answers: list[Answer]


@dataclass(frozen=True, slots=True)
class EvaluationDetail:
    """An evaluation's whole page."""

    task: EvaluationTask
    state: str | None
    is_live: bool
    may_change: bool
    can_retry: bool
    step: int | None
    total_steps: int | None
    eta_s: float | None
    phase: str
    events: list[RunEvent]
    candidates: list[str]
    scores: list[ScoreRow]
    samples: list[Sample]
    only: str
    start: int
    previous_start: int | None
    next_start: int | None


def evaluation_list(listing: Listing[EvaluationTask]) -> EvaluationList:
    """The rows of one page."""
    rows = [evaluation_row(task) for task in listing.rows]
    return EvaluationList(listing, rows, any(row.is_live for row in rows))


def evaluation_row(task: EvaluationTask) -> EvaluationRow:
    """One row; the first metric asked for stands for all."""
    rows = score_rows(task)
    return EvaluationRow(task, task.run is not None and task.run.state in LIVE_STATES, rows[0] if rows else None)


def evaluation_new(actor: Actor, form: EvaluationForm) -> EvaluationNew:
    """The form with what can be chosen."""
    return EvaluationNew(form, model_options(actor, "generation"), dataset_options(actor, *QUESTION_KINDS))


def evaluation_detail(request: HttpRequest, actor: Actor, task: EvaluationTask) -> EvaluationDetail:
    """Scores, and the samples that ``?start=`` and ``?only=`` (wrong, changed) ask for."""
    run = task.run
    state = run.state if run else None
    is_live = state in LIVE_STATES
    found = progress(run.pk) if run and is_live else {}
    start = whole_number(request, "start", 0)
    only = request.GET.get("only", "")
    all_of_it = all_samples(task) if task.create_way == "system" else iter(())
    wanted = (sample for sample in all_of_it if is_wanted(sample, only))
    shown = list(islice(wanted, start, start + SAMPLES_SHOWN + 1))
    return EvaluationDetail(
        task=task,
        state=state,
        is_live=is_live,
        may_change=actor.may_write and (actor.manages_tenant or task.created_by_id == actor.user_id),
        can_retry=state in (RunState.FAILED, RunState.STOPPED),
        step=found.get("progress", {}).get("step"),
        total_steps=found.get("progress", {}).get("total_steps"),
        eta_s=found.get("progress", {}).get("eta_s"),
        phase=found.get("phase", {}).get("message", "") or explain(run).why,
        events=list(events(run)) if run else [],
        candidates=candidate_labels(task),
        scores=score_rows(task),
        samples=[sample_of(sample, candidate_labels(task)) for sample in shown[:SAMPLES_SHOWN]],
        only=only,
        start=start,
        previous_start=max(0, start - SAMPLES_SHOWN) if start else None,
        next_start=start + SAMPLES_SHOWN if len(shown) > SAMPLES_SHOWN else None,
    )


def score_rows(task: EvaluationTask) -> list[ScoreRow]:
    """One row for each metric, in the order in which they were asked for."""
    table = score_table(task)
    labels = candidate_labels(task)
    rows = []
    for metric in task.metrics:
        if metric in table:
            cells = [table[metric].get(label, {}) for label in labels]
            base, tuned = (table[metric].get(label, {}).get("value") for label in ("base", "tuned"))
            rows.append(ScoreRow(metric, cells, tuned - base if tuned is not None and base is not None else None))
    return rows


def candidate_labels(task: EvaluationTask) -> list[str]:
    """Base before tuned; a version without a base stands alone, and so does own code."""
    return ["base", "tuned"] if task.model_version and task.model_version.base_version_id else ["model"]


def all_samples(task: EvaluationTask) -> Iterator[dict[str, Any]]:
    """Every sample's results, read as they are asked for."""
    found, offset = samples(task, 0)
    while found:
        yield from found
        found, offset = samples(task, offset)


def sample_of(sample: dict[str, Any], labels: list[str]) -> Sample:
    """A line of samples.jsonl."""
    answers = []
    for label in labels:
        given = sample["answers"].get(label, {})
        scores = [(name, value) for name, value in given.items() if name != "text"]
        answers.append(Answer(label, str(given.get("text", "")), is_right(given), scores))
    return Sample(sample["index"] + 1, sample["question"], sample["reference"], answers)


def is_right(answer: dict[str, Any]) -> bool | None:
    """Exactly the reference; None when that was not measured."""
    return bool(answer["exact_match"]) if "exact_match" in answer else None


def is_wanted(sample: dict[str, Any], only: str) -> bool:
    """Whether a sample passes the filter."""
    verdicts = [is_right(answer) for answer in sample["answers"].values()]
    if only == "wrong":
        return verdicts[-1] is False
    return len(set(verdicts)) > 1 if only == "changed" else True
