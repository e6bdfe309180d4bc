"""The estimator: it grows with what costs, names the smallest change that fits, and learns from finished runs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from clavier.core.actor import Actor
from clavier.core.errors import Unprocessable
from clavier.runs.models import Attempt, Run
from finetune_app.estimate import (
    FIRST_SPREAD,
    Calibration,
    Load,
    Machine,
    Shape,
    count_parameters,
    estimate,
    peak_memory_bytes,
    shape_of_config,
)
from finetune_app.forecast import calibration_of
from finetune_app.models import FineTuneTask, TrainingCalibration
from finetune_app.services import create_fine_tune_task
from models_app.models import ModelVersion
from runner.contract.knobs import check_hyperparameters
from tests.engine import make_engine
from tests.worlds import make_dataset, make_model_version, output_of

#: Qwen2.5-0.5B as its configuration says it.
QWEN = {
    "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "intermediate_size": 4864, "vocab_size": 151936,
}  # fmt: skip
LOAD = Load(num_rows=1000, mean_tokens=200, max_tokens=512)
GPU = Machine(memory_mib=32_768, cpu_cores=8, gpus=1, gpu_memory_mib=81_920)


def shape() -> Shape:
    found = shape_of_config(QWEN, 494_032_768)
    assert found is not None
    return found


def knobs(method: str = "lora", **changes: Any) -> dict[str, Any]:
    return check_hyperparameters("sft", method, changes)


def test_the_parameters_of_a_known_model_are_counted_within_one_percent() -> None:
    assert abs(count_parameters(shape()) / 494_032_768 - 1) < 0.01


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        (knobs("lora", per_device_train_batch_size=2), knobs("lora", per_device_train_batch_size=4)),
        (knobs("lora", gradient_checkpointing=True), knobs("lora")),
        (knobs("lora", lora_r=8), knobs("lora", lora_r=64)),
    ],
)
def test_memory_grows_with_what_costs_memory(smaller: dict[str, Any], larger: dict[str, Any]) -> None:
    less, more = (peak_memory_bytes(shape(), "lora", each, LOAD, on_gpu=False) for each in (smaller, larger))
    assert less < more


def test_full_training_needs_more_memory_than_lora_and_qlora_less() -> None:
    sizes = [
        peak_memory_bytes(shape(), method, knobs(method), replace(LOAD, max_tokens=16), on_gpu=True)
        for method in ("qlora", "lora", "full")
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 4


def test_a_large_gpu_takes_a_small_model_and_the_numbers_are_of_the_right_size() -> None:
    found = estimate(shape(), "lora", knobs(), LOAD, GPU)
    assert (found.verdict, found.on_gpu, found.steps) == ("fits", True, 375)
    assert found.tokens == 600_000
    assert 5_000 < found.memory_mib.expected < 20_000
    assert found.memory_mib.low < found.memory_mib.expected < found.memory_mib.high


def test_what_will_not_fit_comes_with_the_smallest_change_that_does() -> None:
    found = estimate(shape(), "lora", knobs(per_device_train_batch_size=64), LOAD, replace(GPU, gpu_memory_mib=24_576))
    assert found.verdict == "will_not_fit"
    assert found.change is not None
    batch, accumulation = found.change["per_device_train_batch_size"], found.change["gradient_accumulation_steps"]
    assert batch * accumulation == 64
    again = estimate(shape(), "lora", knobs(**found.change), LOAD, replace(GPU, gpu_memory_mib=24_576))
    assert again.verdict == "fits"


def test_on_a_cpu_more_memory_is_the_last_proposal() -> None:
    load = replace(LOAD, max_tokens=64)
    found = estimate(shape(), "full", knobs("full", per_device_train_batch_size=1), load, Machine(2_048))
    assert found.verdict == "will_not_fit"
    assert found.change is not None
    assert set(found.change) == {"memory_mib"}


def test_a_model_that_fits_nowhere_gets_no_proposal_that_would_not_help() -> None:
    huge = replace(shape(), num_parameters=70_000_000_000)
    assert estimate(huge, "full", knobs("full"), LOAD, GPU).change is None


def test_finished_runs_move_the_estimate_and_narrow_its_band() -> None:
    first = estimate(shape(), "lora", knobs(), LOAD, GPU)
    learned = estimate(shape(), "lora", knobs(), LOAD, GPU, Calibration(20, memory=0.5, seconds=2.0, spread=1.2))
    assert learned.memory_mib.expected == pytest.approx(first.memory_mib.expected / 2, rel=0.01)
    assert learned.seconds.expected == pytest.approx(first.seconds.expected * 2, rel=0.01)
    assert learned.memory_mib.high / learned.memory_mib.low < first.memory_mib.high / first.memory_mib.low
    assert learned.num_calibrating_runs == 20


@pytest.mark.parametrize("config", [{}, {"hidden_size": "wide"}, {**QWEN, "num_hidden_layers": 0}])
def test_a_configuration_that_says_too_little_gives_no_shape(config: dict[str, Any]) -> None:
    assert shape_of_config(config, None) is None


def base_with_config(actor: Actor) -> ModelVersion:
    base = make_model_version(actor, num_parameters=494_032_768)
    (base.path / "config.json").write_text(json.dumps(QWEN))
    return base


def test_a_task_that_can_not_fit_is_refused_before_a_run_exists(
    alice: Actor, spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine(monkeypatch)
    with pytest.raises(Unprocessable) as refused:
        create_fine_tune_task(
            actor=alice, name="tune", recipe="sft", method="full", base_model=base_with_config(alice).pk,
            train_dataset=make_dataset(alice, spooled).pk, resources={"memory_mib": 1024},
        )  # fmt: skip
    assert (refused.value.code, refused.value.field) == ("will_not_fit", "resources.memory_mib")
    assert "1,024 MiB" in refused.value.message
    assert "memory_mib = " in refused.value.message
    assert not FineTuneTask.objects.exists()
    assert not Run.objects.exists()


def test_a_completed_run_teaches_the_estimator(alice: Actor, spooled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(monkeypatch)
    engine.will(files=output_of(), max_memory_mib=3000, runs_for_s=30)
    task = create_fine_tune_task(
        actor=alice, name="tune", recipe="sft", method="lora", base_model=base_with_config(alice).pk,
        train_dataset=make_dataset(alice, spooled).pk, resources={"memory_mib": 16_384},
        hyperparameters={"per_device_train_batch_size": 1},
    )  # fmt: skip
    assert task.estimate["run"] == str(task.run_id)
    promised = task.estimate["memory_mib"]["expected"]
    engine.step(2)
    engine.clock.now += 60
    engine.step(2)
    row = TrainingCalibration.objects.get(recipe="sft", method="lora", on_gpu=False)
    assert row.num_runs == 1
    assert Attempt.objects.get(run=task.run_id).max_memory_mib == 3000
    learned = calibration_of("sft", "lora", on_gpu=False)
    assert learned.memory == pytest.approx(3000 / promised, rel=0.01)
    assert learned.spread < FIRST_SPREAD
