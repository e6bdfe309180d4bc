"""What helps a failed fine-tuning, and that it can be applied."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.utils import timezone

from clavier.core.actor import Actor
from clavier.core.errors import Forbidden, InvalidFields
from clavier.quotas.models import Usage
from clavier.runs.doctor import read_signs
from clavier.runs.models import Run
from finetune_app.changes import carried
from finetune_app.doctor import examine_task, remedy_for
from finetune_app.models import FineTuneTask
from finetune_app.services import create_fine_tune_task, retry_fine_tune_task
from runner.contract import exits
from runner.contract.knobs import RECIPES, check_hyperparameters
from tests.engine import Engine, make_engine
from tests.worlds import make_dataset, make_model_version

#: Qwen2.5-0.5B as its configuration says it.
QWEN = {
    "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "intermediate_size": 4864, "vocab_size": 151936,
}  # fmt: skip


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


def seen(task: FineTuneTask, kind: str, **columns: Any) -> list[dict[str, Any]]:
    """The remedies of one failure after the other, each applied, until none is left."""
    for name, value in columns.items():
        setattr(task, name, value)
    found: list[dict[str, Any]] = []
    while len(found) < 40 and (remedy := remedy_for(kind, task)) is not None:
        found.append(remedy.as_json())
        task.method = remedy.method or task.method
        knobs = carried(task.recipe, task.method, {**task.hyperparameters, **remedy.hyperparameters})
        task.hyperparameters = check_hyperparameters(task.recipe, task.method, knobs)
        task.resources = {**task.resources, **remedy.resources}
    return found


def names(found: list[dict[str, Any]]) -> list[str]:
    """What each remedy changes, in a word."""
    inner = [{**each.get("hyperparameters", {}), **each.get("resources", {}), **each} for each in found]
    short = ("per_device_train_batch_size", "gradient_checkpointing", "memory_mib", "optim", "method", "max_seq_length",
             "sequence_length")  # fmt: skip
    return [next(name for name in short if name in each) for each in inner]


def with_config(task: FineTuneTask) -> FineTuneTask:
    """A base of which the estimator can tell something, and long rows."""
    assert task.base_version is not None
    assert task.train_dataset is not None
    task.base_version.num_parameters = 494_032_768
    (task.base_version.path / "config.json").write_text(json.dumps(QWEN))
    task.train_dataset.statistics["row_bytes"] = {"mean": 1500, "max": 8000}
    return task


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("has_config", [False, True])
def test_every_remedy_is_one_that_the_recipe_takes(task: FineTuneTask, has_config: bool, on_gpu: bool) -> None:
    Usage.objects.filter(resource="memory_mib").update(cap=10_000)
    if has_config:
        with_config(task)
    asked = [(recipe, method, {}) for recipe, methods in RECIPES.items() for method in methods]
    for recipe, method, extra in [*asked, ("rl", "lora", {"algorithm": "grpo"})]:
        knobs = check_hyperparameters(recipe, method, {"per_device_train_batch_size": 6, **extra})
        resources = {"memory_mib": 4096, "cpu_milli": 1000, "gpus": int(on_gpu)}
        kind = "gpu_out_of_memory" if on_gpu else "out_of_memory"
        found = seen(task, kind, recipe=recipe, method=method, hyperparameters=knobs, resources=resources)
        assert 0 < len(found) < 40
        assert ("memory_mib" in names(found)) == (not on_gpu)
        assert task.resources["memory_mib"] <= 10_000


def test_a_gpu_gets_what_helps_a_gpu(task: FineTuneTask) -> None:
    knobs = check_hyperparameters("sft", "lora", {"per_device_train_batch_size": 1})
    resources = {"memory_mib": 4096, "cpu_milli": 1000, "gpus": 1}
    found = seen(with_config(task), "gpu_out_of_memory", hyperparameters=knobs, resources=resources)
    assert names(found)[:3] == ["gradient_checkpointing", "method", "max_seq_length"]
    assert remedy_for("out_of_memory", task) is not None  # of the machine, which the program filled beside its GPU
    assert names(seen(task, "out_of_memory"))[0] == "memory_mib"


def test_a_batch_that_takes_no_memory_is_left_alone_and_three_is_not_two(task: FineTuneTask) -> None:
    knobs = check_hyperparameters("sft", "lora", {"per_device_train_batch_size": 3, "packing": False})
    found = seen(with_config(task), "out_of_memory", hyperparameters=knobs)
    assert found[0] == {"hyperparameters": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}}
    knobs = check_hyperparameters("sft", "lora", {"per_device_train_batch_size": 8})
    assert names(seen(task, "out_of_memory", hyperparameters=knobs, method="lora"))[0] == "gradient_checkpointing"


def test_own_code_gets_no_hyperparameter_that_it_does_not_have(task: FineTuneTask) -> None:
    own = {"create_way": "custom", "recipe": "", "method": ""}
    for name, value in own.items():
        setattr(task, name, value)
    task.hyperparameters = {"per_device_train_batch_size": 8, "optim": "adamw"}
    remedy = remedy_for("out_of_memory", task)
    assert remedy is not None
    assert set(remedy.as_json()) == {"resources"}
    task.hyperparameters |= {"gradient_accumulation_steps": 2}
    remedy = remedy_for("out_of_memory", task)
    assert remedy is not None
    assert remedy.hyperparameters == {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}


def test_a_program_of_ours_that_fills_a_gpu_is_told_so() -> None:
    line = "ERROR  out of memory: 8 samples of 4096 tokens do not fit into NVIDIA H100 [out_of_memory]"
    assert read_signs("EXIT_NONZERO", ["out_of_memory"], [line]).kind == "gpu_out_of_memory"


def test_a_remedy_can_be_another_method(engine: Engine, task: FineTuneTask, alice: Actor) -> None:
    end(engine, task, exit_code=1)
    retry_fine_tune_task(actor=alice, task=task, method="qlora")
    task.refresh_from_db()
    assert task.method == "qlora"
    assert task.run is not None
    assert task.run.spec["parameters"]["method"] == "qlora"
    assert task.hyperparameters["quantization_bits"] == 4
    end(engine, task, exit_code=1)
    with pytest.raises(InvalidFields):
        retry_fine_tune_task(actor=alice, task=task, method="prefix")


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
