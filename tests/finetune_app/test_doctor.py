"""What helps a failed fine-tuning, and that it can be applied."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from clavier.core.actor import Actor
from clavier.core.errors import Forbidden, InvalidFields
from clavier.runs.doctor import read_signs
from clavier.runs.models import Run
from finetune_app.doctor import examine_task, remedy_for
from finetune_app.models import FineTuneTask
from finetune_app.services import create_fine_tune_task, retry_fine_tune_task
from runner.contract import exits
from tests.engine import Engine, make_engine
from tests.worlds import make_dataset, make_model_version


@pytest.fixture
def engine(alice: Actor, monkeypatch: pytest.MonkeyPatch) -> Engine:
    return make_engine(monkeypatch)


@pytest.fixture
def task(engine: Engine, alice: Actor, spooled: Any) -> FineTuneTask:
    return create_fine_tune_task(
        actor=alice, name="tune", recipe="sft", method="lora", base_model=make_model_version(alice).pk,
        train_dataset=make_dataset(alice, spooled).pk,
    )  # fmt: skip


def end(engine: Engine, task: FineTuneTask, **outcome: Any) -> None:
    engine.will(**outcome)
    engine.step(3)
    task.refresh_from_db()


def test_a_diverged_task_runs_again_with_a_calmer_learning_rate(
    engine: Engine, task: FineTuneTask, alice: Actor
) -> None:
    end(engine, task, exit_code=exits.DIVERGED, log="loss is nan at step 7\n")
    found = examine_task(task)
    assert found is not None
    diagnosis, remedy = found
    assert diagnosis.kind == "diverged"
    assert "loss is nan at step 7" in diagnosis.evidence
    assert remedy is not None
    assert remedy.hyperparameters == {"learning_rate": 4e-5, "warmup_ratio": 0.1}
    failed_run = task.run_id
    retry_fine_tune_task(actor=alice, task=task, **remedy.as_json())
    task.refresh_from_db()
    assert task.run_id != failed_run
    assert task.run is not None
    assert task.run.spec["parameters"]["hyperparameters"]["learning_rate"] == 4e-5


def test_memory_is_saved_step_by_step(task: FineTuneTask) -> None:
    seen = []
    for _ in range(6):
        remedy = remedy_for("out_of_memory", task)
        assert remedy is not None
        seen.append(remedy.as_json())
        task.hyperparameters |= remedy.hyperparameters
        task.resources |= remedy.resources
    batches = [4, 2, 1]
    assert [each["hyperparameters"]["per_device_train_batch_size"] for each in seen[:3]] == batches
    assert [each["hyperparameters"]["gradient_accumulation_steps"] for each in seen[:3]] == [2, 4, 8]
    assert seen[3] == {"hyperparameters": {"gradient_checkpointing": True}}
    assert seen[4] == {"resources": {"memory_mib": 6144}}
    assert seen[5] == {"resources": {"memory_mib": 9216}}


@pytest.mark.parametrize(
    ("reason", "log", "kind", "changes"),
    [
        ("OUT_OF_MEMORY", "step 4/9", "out_of_memory", {"per_device_train_batch_size", "gradient_accumulation_steps"}),
        ("EXIT_NONZERO", "ERROR the loss of step 3 is nan; look at these rows: train.jsonl line 7", "diverged",
         {"learning_rate", "warmup_ratio"}),
        ("EXIT_NONZERO", "ERROR train.jsonl line 3 has no answer", "bad_data", None),
        ("STORAGE_QUOTA", "OSError: [Errno 28] No space left on device", "disk_full", {"save_steps"}),
        ("EXIT_NONZERO", "FileNotFoundError: [Errno 2] No such file or directory: 'a'", "missing_file", None),
        ("EXIT_NONZERO", "ValueError: my own mistake", "user_code", None),
        ("TIME_LIMIT", "step 4/9", "time_limit", {"time_limit_s"}),
        ("PREEMPTED", "checkpoint of step 4 saved", "preempted", set()),
    ],
)  # fmt: skip
def test_every_class_of_failure_has_evidence_and_what_can_be_changed_is_proposed(
    task: FineTuneTask, alice: Actor, reason: str, log: str, kind: str, changes: set[str] | None
) -> None:
    code = {"diverged": ["diverged"], "bad_data": ["data_invalid"]}.get(kind, [])
    diagnosis = read_signs(reason, code, ["INFO  training started", log])
    assert diagnosis.kind == kind
    assert log in diagnosis.evidence
    task.hyperparameters |= {"save_steps": 10, "save_total_limit": 2}
    remedy = remedy_for(kind, task)
    proposed = None if remedy is None else remedy.as_json()
    assert changes == (
        None if proposed is None else {*proposed.get("hyperparameters", {}), *proposed.keys()} - {"hyperparameters"}
    )
    if proposed is not None:
        Run.objects.filter(pk=task.run_id).update(state="FAILED", ended_at=timezone.now())
        task.refresh_from_db()
        failed = task.run_id
        assert retry_fine_tune_task(actor=alice, task=task, **proposed).run_id != failed


def test_a_task_that_has_not_failed_has_no_diagnosis(task: FineTuneTask) -> None:
    assert examine_task(task) is None


def test_a_change_that_no_knob_takes_is_refused_and_nothing_starts(
    engine: Engine, task: FineTuneTask, alice: Actor, bob: Actor
) -> None:
    end(engine, task, exit_code=1)
    failed_run = task.run_id
    with pytest.raises(InvalidFields):
        retry_fine_tune_task(actor=alice, task=task, hyperparameters={"learning_rte": 1})
    with pytest.raises(Forbidden):
        retry_fine_tune_task(actor=bob, task=task, hyperparameters={"learning_rate": 1e-4})
    task.refresh_from_db()
    assert task.run_id == failed_run
