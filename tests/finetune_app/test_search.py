"""Searches: trials follow one another, the best is found, and nothing is tried that a knob does not allow."""

from __future__ import annotations

import math
from typing import Any

import pytest

from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Forbidden, Invalid, InvalidFields, NotFound
from clavier.runs.models import Attempt
from finetune_app.models import FineTuneTask, HyperparameterSearch, SearchTrial
from finetune_app.sampling import Known, checked_space, suggest
from finetune_app.search import access_search, best_trial, best_version, create_search, delete_search, stop_search
from finetune_app.services import delete_fine_tune_task
from runner.worker import jobs
from tests.engine import Engine, assert_consistent, make_engine
from tests.worlds import FACTS, make_dataset, make_model_version, output_of

RATES = {"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}}


@pytest.fixture
def engine(alice: Actor, monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = make_engine(monkeypatch)
    made.will(files=output_of(FACTS))
    return made


@pytest.fixture
def order(engine: Engine, alice: Actor, spooled: Any) -> dict[str, Any]:
    return {
        "actor": alice, "name": "search", "space": RATES, "metric": "train/loss", "recipe": "sft", "method": "lora",
        "base_model": make_model_version(alice).pk, "train_dataset": make_dataset(alice, spooled).pk,
        "resources": {"cpu_milli": 100, "memory_mib": 2048},
    }  # fmt: skip


def step(engine: Engine, times: int) -> None:
    """The whole engine; what the reconciler's own scheduler pass admits is launched as the queue would."""
    for _ in range(times):
        engine.step()
        for attempt in Attempt.objects.filter(ended_at=None):
            jobs.launch(str(attempt.pk))


def values(search: HyperparameterSearch) -> list[float | None]:
    return [trial.value for trial in search.trials.order_by("number")]


def test_each_trial_that_ends_starts_the_next_until_all_are_done(engine: Engine, order: dict[str, Any]) -> None:
    search = create_search(**order, num_trials=4, num_parallel=2)
    assert search.trials.count() == 2
    step(engine, 12)
    search.refresh_from_db()
    assert (search.state, values(search)) == ("COMPLETED", [0.1] * 4)
    tried = {trial.parameters["learning_rate"] for trial in search.trials.all()}
    assert len(tried) == 4
    assert all(1e-5 <= rate <= 1e-1 for rate in tried)
    task = search.trials.get(number=3).task
    assert task.name == "search-3"
    assert task.hyperparameters["learning_rate"] == search.trials.get(number=3).parameters["learning_rate"]
    version = best_version(search)
    assert version is not None
    assert version.model.name == "search"
    assert_consistent()


def test_a_trial_that_fails_is_noted_with_its_reason_and_the_search_goes_on(
    engine: Engine, order: dict[str, Any]
) -> None:
    search = create_search(**order, num_trials=2)
    engine.will(exit_code=1)
    engine.step()
    engine.will(files=output_of(FACTS))
    step(engine, 4)
    search.refresh_from_db()
    assert (search.state, values(search)) == ("COMPLETED", [None, 0.1])
    assert search.trials.get(number=1).message
    best = best_trial(search)
    assert best is not None
    assert best.number == 2


def test_a_metric_that_the_run_does_not_have_is_named(engine: Engine, order: dict[str, Any]) -> None:
    search = create_search(**(order | {"metric": "train/accuracy"}), num_trials=1)
    step(engine, 4)
    trial = SearchTrial.objects.get(search=search)
    assert trial.value is None
    assert "train/accuracy" in trial.message
    assert "train/loss" in trial.message


def test_a_stopped_search_starts_nothing_more_and_ends_with_its_last_trial(
    engine: Engine, order: dict[str, Any], alice: Actor, bob: Actor
) -> None:
    engine.will(runs_for_s=None)
    search = create_search(**order, num_trials=5)
    step(engine, 2)
    with pytest.raises(Forbidden):
        stop_search(actor=bob, search=search)
    stop_search(actor=alice, search=search)
    step(engine, 4)
    search.refresh_from_db()
    assert (search.state, search.trials.count()) == ("STOPPED", 1)
    with pytest.raises(Conflict):
        stop_search(actor=alice, search=search)
    delete_search(actor=alice, search=search)
    assert FineTuneTask.objects.count() == 1


def test_a_search_that_can_not_go_on_says_why(engine: Engine, order: dict[str, Any]) -> None:
    search = create_search(**order, num_trials=3)
    HyperparameterSearch.objects.filter(pk=search.pk).update(task=search.task | {"base_model": "gone"})
    step(engine, 4)
    search.refresh_from_db()
    assert search.state == "STOPPED"
    assert "gone" in search.message


def test_a_trials_task_is_deleted_with_its_search_only(engine: Engine, order: dict[str, Any], alice: Actor) -> None:
    engine.will(exit_code=1)
    search = create_search(**order, num_trials=1)
    step(engine, 3)
    task = FineTuneTask.objects.get()
    with pytest.raises(Conflict, match="search"):
        delete_fine_tune_task(actor=alice, task=task)
    search.refresh_from_db()
    delete_search(actor=alice, search=search)
    delete_fine_tune_task(actor=alice, task=task)
    assert not FineTuneTask.objects.exists()


@pytest.mark.parametrize(
    ("space", "code"),
    [
        ({}, "out_of_range"),
        ({"learning_rte": {"low": 1, "high": 2}}, "unknown_field"),
        ({"learning_rate": 0.1}, "wrong_type"),
        ({"learning_rate": {"low": 0.1}}, "wrong_type"),
        ({"learning_rate": {"low": 0.2, "high": 0.1}}, "out_of_range"),
        ({"learning_rate": {"low": 0.0, "high": 0.1, "log": True}}, "out_of_range"),
        ({"learning_rate": {"low": 0.1, "high": 7}}, "out_of_range"),
        ({"optim": {"low": 1, "high": 2}}, "wrong_type"),
        ({"optim": {"choices": ["adamw", "magic"]}}, "not_a_choice"),
        ({"lora_r": {"choices": []}}, "wrong_type"),
    ],
)
def test_a_range_that_no_knob_has_is_refused_by_name(space: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        checked_space("sft", "lora", space)
    assert refused.value.code == code


def test_a_metric_of_the_validation_data_needs_such_data(order: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as refused:
        create_search(**(order | {"metric": "eval/loss"}), num_trials=1)
    assert refused.value.field == "validation_dataset"
    assert not HyperparameterSearch.objects.exists()


def test_a_name_is_used_once(order: dict[str, Any]) -> None:
    create_search(**order, num_trials=1)
    with pytest.raises(Conflict):
        create_search(**order, num_trials=1)
    assert FineTuneTask.objects.count() == 1


def test_charlie_finds_no_search_of_alice(order: dict[str, Any], charlie: Actor) -> None:
    search = create_search(**order, num_trials=1)
    with pytest.raises(NotFound):
        access_search(charlie, search.pk)


def test_the_sampler_closes_in_on_the_best_place_and_repeats_itself_exactly() -> None:
    space = checked_space("sft", "lora", RATES)

    def run() -> list[float]:
        known: list[Known] = []
        for _ in range(30):
            parameters = suggest(space, known, maximize=False, seed=7)
            known.append(Known(parameters, abs(math.log10(parameters["learning_rate"]) + 3)))
        return [trial.parameters["learning_rate"] for trial in known]

    first = run()
    assert first == run()
    late = [abs(math.log10(rate) + 3) for rate in first[-10:]]
    assert sum(late) / 10 < 0.7
