"""Searches: trials follow one another, the best is found, and nothing is tried that a knob does not allow."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from django.utils import timezone

from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Forbidden, Invalid, InvalidFields, NotFound
from clavier.runs.models import Attempt
from clavier.runs.outputs import MAX_READ_BYTES, run_folder
from finetune_app.models import FineTuneTask, HyperparameterSearch, SearchTrial
from finetune_app.pruning import curve_of, prune_trials
from finetune_app.sampling import Known, checked_space, falls_behind, importances, suggest
from finetune_app.search import access_search, best_trial, best_version, create_search, delete_search, stop_search
from finetune_app.services import delete_fine_tune_task
from runner.contract import folder
from runner.contract.measures import our_measure
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


def measuring(loss: float) -> dict[str, str]:
    """What a program leaves behind whose training ended with that loss."""
    name = f"{folder.OUTPUT}/{folder.MANIFEST}"
    files = output_of(FACTS)
    return {**files, name: json.dumps(json.loads(files[name]) | {"metrics": {"train/loss": loss}})}


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


def test_a_value_that_would_change_nothing_is_left_out_of_its_trial(
    engine: Engine, alice: Actor, spooled: Any, order: dict[str, Any]
) -> None:
    prompts = make_dataset(alice, spooled, [{"prompt": f"Say {n}"} for n in range(4)], name="prompts")
    space = {
        "algorithm": {"choices": ["grpo"]},
        "kl_target": {"low": 0.3, "high": 0.4},
        "lora_r": {"low": 2, "high": 9},
    }
    task = {**order, "recipe": "rl", "train_dataset": prompts.pk, "space": space, "metric": "reward/mean"}
    search = create_search(**task, hyperparameters={"reward_function": "length"}, num_trials=1)
    trial = search.trials.get()
    assert 0.3 <= trial.parameters["kl_target"] <= 0.4
    assert trial.task.hyperparameters["kl_target"] == 0.1
    assert trial.task.hyperparameters["lora_r"] == trial.parameters["lora_r"]


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
    asked = {"metric": "eval/rougeL", "validation_dataset": order["train_dataset"]}
    search = create_search(**(order | asked), num_trials=1)
    step(engine, 4)
    trial = SearchTrial.objects.get(search=search)
    assert trial.value is None
    assert "eval/rougeL" in trial.message
    assert "train/loss" in trial.message


@pytest.mark.parametrize("metric", ["accuracy", "nonsense", "train/accuracy", "reward/mean", "eval/chrf", ""])
def test_a_metric_that_no_trial_measures_is_refused_with_the_known_ones(metric: str, order: dict[str, Any]) -> None:
    asked = {"metric": metric, "validation_dataset": order["train_dataset"]}
    asked["hyperparameters"] = {"max_predict_samples": "0"}
    with pytest.raises(Invalid) as refused:
        create_search(**(order | asked), num_trials=1)
    assert (refused.value.code, refused.value.field) == ("not_a_choice", "metric")
    assert "of sft: train/loss, eval/loss, eval/best_loss." in refused.value.message
    assert not HyperparameterSearch.objects.exists()


def test_what_is_tried_may_make_a_metric(order: dict[str, Any]) -> None:
    space = {"max_predict_samples": {"choices": [0, 8]}}
    asked = {"metric": "rougeL", "validation_dataset": order["train_dataset"], "space": space}
    assert create_search(**(order | asked), num_trials=1).metric == "eval/rougeL"


@pytest.mark.parametrize(
    ("recipe", "name", "ours"),
    [
        ("sft", "validation_loss", "eval/loss"),
        ("sft", "train_loss", "train/loss"),
        ("classify", "accuracy", "eval/accuracy"),
        ("classify", "validation_accuracy", "eval/accuracy"),
        ("classify", "eval_f1", "eval/f1"),
        ("reward", "validation_accuracy", "eval/reward_accuracy"),
        ("reward", "train_accuracy", "train/reward_accuracy"),
        ("classify", "train_accuracy", "train_accuracy"),
        ("seq2seq", "ROUGE_L", "eval/rougeL"),
        ("rl", "reward", "reward/mean"),
        ("rl", "validation_loss", "validation_loss"),
        ("sft", "accuracy", "accuracy"),
    ],
)
def test_the_usual_names_of_metrics_are_understood(recipe: str, name: str, ours: str) -> None:
    assert our_measure(recipe, name) == ours


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


def measure(search: HyperparameterSearch, number: int, losses: list[float]) -> None:
    """What the program of a trial has written on its way."""
    events = [{"kind": "metric", "step": step, "train/loss": loss} for step, loss in enumerate(losses, start=1)]
    run = search.trials.get(number=number).task.run
    assert run is not None
    (run_folder(run.pk) / folder.METRICS).write_text("".join(json.dumps(event) + "\n" for event in events))


def test_a_long_curve_is_read_to_its_end(engine: Engine, alice: Actor) -> None:
    run = engine.submit(alice)
    run_folder(run.pk).mkdir(parents=True, exist_ok=True)
    events = [{"kind": "metric", "step": step, "train/loss": 1.0, "note": "x" * 200} for step in range(12_000)]
    text = "".join(json.dumps(event) + "\n" for event in events)
    (run_folder(run.pk) / folder.METRICS).write_text(text)
    assert len(text) > 2 * MAX_READ_BYTES
    assert max(curve_of(run.pk, "train/loss")) == 11_999


def test_a_trial_below_the_median_of_the_others_is_stopped_and_the_search_goes_on(
    engine: Engine, order: dict[str, Any]
) -> None:
    search = create_search(**order, num_trials=4, num_parallel=3, pruner="median")
    engine.will(runs_for_s=None)
    step(engine, 2)
    for number in (1, 2, 3):
        measure(search, number, [3.0, 2.0 + number, 1.0 + number])
    assert prune_trials() == 0  # nobody has ended yet
    SearchTrial.objects.filter(search=search, number__in=(1, 2)).update(
        ended_at=timezone.now(), value=2.0, curve=[[1, 3.0], [2, 3.0], [3, 2.0]]
    )
    assert prune_trials() == 1
    assert prune_trials() == 0
    step(engine, 4)
    trial = search.trials.get(number=3)
    assert trial.task.run is not None
    assert (trial.task.run.state, trial.value, trial.curve) == ("STOPPED", None, [[1, 3.0], [2, 5.0], [3, 4.0]])
    assert trial.pruned_at is not None
    assert "step 3" in trial.message
    assert search.trials.filter(number=4).exists()
    assert_consistent()


@pytest.mark.parametrize("maximize", [False, True])
def test_halving_gives_up_those_that_are_last_at_a_rung(maximize: bool) -> None:
    sign = -1.0 if maximize else 1.0
    others = [{1: sign * n, 3: sign * n} for n in (1.0, 2.0, 3.0)]
    options: Any = {"maximize": maximize, "warmup_steps": 0}
    assert falls_behind({1: sign * 5.0}, others, "halving", **options)
    assert not falls_behind({1: sign * 0.5}, others, "halving", **options)
    assert not falls_behind({1: sign * 5.0}, others, "halving", maximize=maximize, warmup_steps=2)


def test_what_is_compared_on_the_way_must_be_measured_there(order: dict[str, Any]) -> None:
    data = order["train_dataset"]
    with pytest.raises(Invalid, match="eval_steps") as refused:
        create_search(**(order | {"metric": "eval/loss", "validation_dataset": data}), num_trials=1, pruner="median")
    assert refused.value.field == "hyperparameters.eval_steps"
    with pytest.raises(Invalid, match="eval/rougeL is measured at the end") as late:
        create_search(**(order | {"metric": "rougeL", "validation_dataset": data}), num_trials=1, pruner="median")
    assert late.value.field == "pruner"
    with pytest.raises(Invalid, match="none, median, halving"):
        create_search(**order, num_trials=1, pruner="magic")


def test_the_knob_that_moves_the_value_is_the_important_one() -> None:
    space = checked_space("sft", "lora", RATES | {"lora_r": {"low": 4, "high": 64}})
    known: list[Known] = []
    for _ in range(20):
        parameters = suggest(space, known, maximize=False, seed=3)
        known.append(Known(parameters, abs(math.log10(parameters["learning_rate"]) + 3)))
    found = importances(space, known)
    assert found["learning_rate"] > 0.8
    assert sum(found.values()) == pytest.approx(1.0)
    assert importances(space, known[:3]) == {}


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
        ({"target_modules": {"low": 1, "high": 2}}, "wrong_type"),
        ({"target_modules": {"choices": [["q_proj"], []]}}, "wrong_type"),
        ({"target_modules": {"choices": [["q_proj"], 3]}}, "wrong_type"),
    ],
)
def test_a_range_that_no_knob_has_is_refused_by_name(space: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        checked_space("sft", "lora", space)
    assert refused.value.code == code


def test_a_knob_that_is_a_list_has_lists_to_choose_from(engine: Engine, order: dict[str, Any]) -> None:
    lists = [["all-linear"], ["q_proj", "v_proj"]]
    space = {"target_modules": {"choices": [lists[0], "q_proj, v_proj"]}, "lora_r": {"choices": [4, 8]}}
    search = create_search(**(order | {"space": space}), num_trials=6)
    assert search.space["target_modules"] == {"choices": lists}
    step(engine, 16)
    tried = [trial.parameters["target_modules"] for trial in search.trials.all()]
    assert len(tried) == 6
    assert all(names in tried for names in lists)
    assert [trial.task.hyperparameters["target_modules"] for trial in search.trials.all()] == tried
    known = [Known({"target_modules": lists[n % 2], "lora_r": 4 + 4 * (n // 4)}, n + 10.0 * (n % 2)) for n in range(8)]
    assert importances(search.space, known)["target_modules"] > 0.9


@pytest.mark.parametrize(
    ("metric", "best"), [("eval/loss", False), ("validation_loss", False), ("train/loss", False), ("rouge", True)]
)
def test_the_best_is_the_smallest_loss_and_the_largest_of_all_else(
    engine: Engine, order: dict[str, Any], metric: str, best: bool
) -> None:
    order |= {"metric": metric, "validation_dataset": order["train_dataset"]}
    assert create_search(**order, num_trials=1).maximize is best


@pytest.mark.parametrize(("maximize", "number"), [(False, 2), (True, 3)])
def test_the_best_trial_is_the_one_with_the_best_value(
    engine: Engine, order: dict[str, Any], maximize: bool, number: int
) -> None:
    search = create_search(**order, num_trials=4, num_parallel=4, maximize=maximize)
    engine.will(files=measuring(0.5))
    step(engine, 4)
    search.refresh_from_db()
    assert (search.state, values(search)) == ("COMPLETED", [0.5] * 4)
    for other, value in ((2, 0.25), (3, 0.75)):
        SearchTrial.objects.filter(search=search, number=other).update(value=value)
    best, version = best_trial(search), best_version(search)
    assert best is not None
    assert version is not None
    assert (best.number, version.run_id) == (number, best.task.run_id)


def test_of_equal_trials_the_first_is_the_best(engine: Engine, order: dict[str, Any]) -> None:
    search = create_search(**order, num_trials=3)
    step(engine, 8)
    best = best_trial(search)
    assert best is not None
    assert best.number == 1


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
