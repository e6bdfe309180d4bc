"""Evaluations: base beside tuned, scores from the run's results."""

from __future__ import annotations

import json

import pytest

from clavier.core.errors import Conflict, Forbidden, Invalid, NotFound
from clavier.runs.models import Run
from evaluation_app.models import EvaluationTask, Score
from evaluation_app.queries import samples, score_table
from evaluation_app.services import (
    access_evaluation_task,
    create_evaluation_task,
    delete_evaluation_task,
    retry_evaluation_task,
    stop_evaluation_task,
)
from finetune_app.services import create_fine_tune_task
from tests.engine import make_engine
from tests.worlds import make_dataset, make_model_version, output_of, spec_on_disk

pytestmark = pytest.mark.django_db(transaction=True)

RESULTS = {
    "num_samples": 5,
    "scores": {"base": {"exact_match": 0.0}, "tuned": {"exact_match": 0.8}},
    "intervals": {"tuned": {"exact_match": [0.4, 1.0]}},
    "fingerprint": "abc",
}
SAMPLES = "".join(json.dumps({"index": n, "question": "q"}) + "\n" for n in range(5))


@pytest.fixture
def engine(monkeypatch, home):
    made = make_engine(monkeypatch)
    made.will(files=output_of({}, **{"scores.json": json.dumps(RESULTS), "samples.jsonl": SAMPLES}))
    return made


@pytest.fixture
def asked(alice, spooled):
    base = make_model_version(alice)
    tuned = make_model_version(alice, "tuned", format="adapter", base_version=base)
    return {
        "actor": alice,
        "name": "judge",
        "model_version": tuned.pk,
        "dataset_version": make_dataset(alice, spooled).pk,
        "metrics": ["exact_match"],
    }


def test_an_adapter_is_judged_beside_its_base(engine, asked):
    task = create_evaluation_task(**asked)
    engine.step(2)
    task = access_evaluation_task(asked["actor"], task.pk)
    assert task.run.state == "COMPLETED"
    assert score_table(task) == {
        "exact_match": {
            "base": {"value": 0.0, "low": None, "high": None},
            "tuned": {"value": 0.8, "low": 0.4, "high": 1.0},
        }
    }
    assert task.fingerprint == "abc"
    assert Score.objects.get(label="base").model_version.model.name == "base"
    first, offset = samples(task, 0)
    assert [sample["index"] for sample in first] == list(range(5))
    assert samples(task, offset) == ([], offset)
    base, tuned = spec_on_disk(task.run.pk)["parameters"]["candidates"]
    assert (base["label"], base["adapter"], tuned["label"]) == ("base", None, "tuned")
    assert tuned["adapter"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"metrics": ["exact_match", "vibes"]}, "not_a_choice"),
        ({"max_new_tokens": 0}, "out_of_range"),
        ({"name": ""}, "required"),
    ],
)
def test_what_is_not_allowed_is_refused(engine, asked, change, code):
    with pytest.raises(Invalid) as refusal:
        create_evaluation_task(**(asked | change))
    assert refusal.value.code == code
    assert not EvaluationTask.objects.exists()
    assert not Run.objects.exists()


def test_charlie_is_a_stranger_and_bob_only_looks(engine, asked, bob, charlie):
    engine.will(runs_for_s=None)
    task = create_evaluation_task(**asked)
    with pytest.raises(NotFound):
        access_evaluation_task(charlie, task.pk)
    with pytest.raises(NotFound):
        create_evaluation_task(**(asked | {"actor": charlie}))
    with pytest.raises(Forbidden):
        stop_evaluation_task(actor=bob, task=access_evaluation_task(bob, task.pk))


def test_a_failed_evaluation_has_no_scores_and_is_retried_or_deleted(engine, asked):
    alice = asked["actor"]
    engine.will(exit_code=64)
    task = create_evaluation_task(**asked)
    with pytest.raises(Conflict, match="stop it first"):
        delete_evaluation_task(actor=alice, task=task)
    engine.step(2)
    assert not Score.objects.exists()
    task = retry_evaluation_task(actor=alice, task=access_evaluation_task(alice, task.pk))
    engine.step(2)
    delete_evaluation_task(actor=alice, task=access_evaluation_task(alice, task.pk))
    assert not Run.objects.exists()


def test_questions_with_references_are_judged_and_never_trained_on(engine, asked, alice, spooled):
    rows = [{"question": f"What is {n}?", "reference": str(n)} for n in range(3)]
    questions = make_dataset(alice, spooled, rows, name="references")
    assert questions.kind == "question_reference"
    assert create_evaluation_task(**(asked | {"dataset_version": questions.pk})).run.state == "PENDING"
    with pytest.raises(Invalid, match="question_reference"):
        create_fine_tune_task(
            actor=alice, name="t", recipe="sft", method="lora", base_model=make_model_version(alice).pk,
            train_dataset=questions.pk,
        )  # fmt: skip


def test_results_without_a_candidate_fail_the_run(engine, asked):
    lacking = RESULTS | {"scores": {"base": {"exact_match": 0.0}}}
    engine.will(files=output_of({}, **{"scores.json": json.dumps(lacking), "samples.jsonl": SAMPLES}))
    task = create_evaluation_task(**asked)
    engine.step(2)
    run = access_evaluation_task(asked["actor"], task.pk).run
    assert (run.state, run.end_reason) == ("FAILED", "BAD_OUTPUT")
    assert not Score.objects.exists()
