"""The estimator: it grows with what costs, names the smallest change that fits, and learns from finished runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from clavier.core.actor import Actor
from clavier.core.errors import Unprocessable
from clavier.files.models import StorageUsage
from clavier.files.usage import set_storage_limits
from clavier.quotas.models import Gpu, Node, ResourceGroup
from clavier.quotas.services import count_devices, ensure_local_node, set_cap
from clavier.runs.models import Attempt, Run
from datasets_app.models import DataTask
from finetune_app.calibration import calibration_of, running_seconds
from finetune_app.changes import applied, changes
from finetune_app.estimate import FIRST_SPREAD, LEAST_SPREAD, Calibration, estimate
from finetune_app.forecast import load_of, shape_of
from finetune_app.memory import peak_memory_bytes, trained_parameters
from finetune_app.models import FineTuneTask, TrainingCalibration
from finetune_app.services import create_fine_tune_task, estimate_fine_tune_task
from finetune_app.shapes import Job, Load, Machine, Shape, count_parameters, shape_of_config
from models_app.models import ModelVersion
from runner.contract.knobs import RECIPES, check_hyperparameters
from tests.engine import make_engine
from tests.worlds import make_dataset, make_model_version, output_of, put_tree

#: Qwen2.5-0.5B as its configuration says it.
QWEN = {
    "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "intermediate_size": 4864, "vocab_size": 151936,
}  # fmt: skip
LOAD = Load(num_rows=1000, mean_tokens=200, max_tokens=512)
GPU = Machine(memory_mib=32_768, cpu_cores=8, gpus=1, gpu_memory_mib=81_920)
CPU = Machine(memory_mib=32_768)
MIB = 2**20


def shape() -> Shape:
    found = shape_of_config(QWEN, 494_032_768)
    assert found is not None
    return found


def job(method: str = "lora", recipe: str = "sft", **changes: Any) -> Job:
    return Job(recipe, method, check_hyperparameters(recipe, method, changes))


def peak_mib(asked: Job, load: Load = LOAD, machine: Machine = GPU, **changes: Any) -> float:
    return peak_memory_bytes(replace(shape(), **changes), asked, load, machine) / MIB


def test_the_parameters_of_a_known_model_are_counted_within_one_percent() -> None:
    assert abs(count_parameters(shape()) / 494_032_768 - 1) < 0.01


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        (job(gradient_checkpointing=True), job()),
        (job(lora_r=8), job(lora_r=64)),
        (job(), job(packing=False)),
        (job("qlora"), job("qlora", quantization_bits=8)),
        (job("full", optim="sgd"), job("full", optim="adamw_8bit")),
        (job("full"), job("full", "preference")),
        (job(recipe="preference"), job(recipe="preference", loss_type="simpo")),
        (job(recipe="rl", algorithm="grpo"), job(recipe="rl", algorithm="ppo")),
        (job(recipe="rl"), replace(job(recipe="rl"), reward_parameters=500_000_000)),
    ],
)
def test_memory_grows_with_what_costs_memory(smaller: Job, larger: Job) -> None:
    assert peak_mib(smaller) < peak_mib(larger)
    assert peak_mib(smaller, machine=CPU) < peak_mib(larger, machine=CPU)


def test_a_larger_batch_is_longer_rows_on_a_gpu_and_more_rows_on_a_cpu() -> None:
    few, many = job(per_device_train_batch_size=2), job(per_device_train_batch_size=4)
    assert peak_mib(few) < peak_mib(many)
    assert peak_mib(few, machine=CPU) == peak_mib(many, machine=CPU)
    few, many = (replace(one, knobs={**one.knobs, "packing": False}) for one in (few, many))
    assert peak_mib(few, machine=CPU) < peak_mib(many, machine=CPU)


def test_our_own_loop_holds_no_logits_of_a_large_vocabulary() -> None:
    load = replace(LOAD, mean_tokens=512)
    whole = 8 * 512 * shape().vocab_size * 4 / MIB
    assert peak_mib(job(), load) < whole + peak_mib(job(), load, vocab_size=1000)
    assert peak_mib(job(), load) - peak_mib(job(), load, vocab_size=1000) < 10
    assert peak_mib(job(), load, architecture="GemmaForCausalLM") > whole


def test_a_packed_row_is_as_long_as_the_longest_samples_together() -> None:
    assert LOAD.longest_together(8) < 8 * 512
    assert replace(LOAD, mean_tokens=512).longest_together(8) == 8 * 512
    assert Load(3, 200, 512).longest_together(8) <= 3 * 512
    assert replace(LOAD, longest_tokens=4000).longest_together(8) == 8 * 512  # each is cut at 512


def test_several_gpus_hold_whole_copies_or_shares_and_take_fewer_steps() -> None:
    four = replace(GPU, gpus=4)
    ddp, fsdp = job("full"), job("full", distributed_strategy="fsdp")
    assert peak_mib(ddp, machine=four) == peak_mib(ddp)
    assert peak_mib(fsdp, machine=four) < peak_mib(ddp, machine=four)
    assert peak_mib(fsdp) == peak_mib(ddp)
    assert estimate(shape(), ddp, LOAD, four).steps == pytest.approx(
        estimate(shape(), ddp, LOAD, GPU).steps / 4, rel=0.1
    )


def test_the_steps_of_reinforcement_learning_are_batches_of_prompts() -> None:
    ppo = job(recipe="rl", num_train_epochs=1, rollout_batch_size=16)
    grpo = job(recipe="rl", num_train_epochs=1, rollout_batch_size=16, algorithm="grpo", update_epochs=2)
    assert (estimate(shape(), ppo, LOAD, GPU).steps, estimate(shape(), grpo, LOAD, GPU).steps) == (63, 124)


def test_full_training_needs_more_memory_than_lora_and_qlora_less() -> None:
    sizes = [
        peak_mib(job(method), replace(LOAD, max_tokens=16, mean_tokens=16)) for method in ("qlora", "lora", "full")
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 4


def test_a_large_gpu_takes_a_small_model_and_the_numbers_are_of_the_right_size() -> None:
    found = estimate(shape(), job(), LOAD, GPU)
    assert (found.verdict, found.on_gpu, found.steps) == ("fits", True, 375)
    assert found.tokens == 600_000
    assert 2_000 < found.memory_mib.expected < 10_000
    assert found.memory_mib.low < found.memory_mib.expected < found.memory_mib.high


def test_what_will_not_fit_comes_with_the_smallest_change_that_does() -> None:
    found = estimate(shape(), job(per_device_train_batch_size=64), LOAD, replace(GPU, gpu_memory_mib=8_192))
    assert found.verdict == "will_not_fit"
    assert found.change is not None
    batch, accumulation = found.change["per_device_train_batch_size"], found.change["gradient_accumulation_steps"]
    assert batch * accumulation == 64
    again = estimate(shape(), job(**found.change), LOAD, replace(GPU, gpu_memory_mib=8_192))
    assert again.verdict == "fits"


def test_on_a_cpu_more_memory_is_the_last_proposal() -> None:
    load = replace(LOAD, max_tokens=64)
    found = estimate(shape(), job("full", per_device_train_batch_size=1), load, Machine(2_048))
    assert found.verdict == "will_not_fit"
    assert found.change is not None
    assert set(found.change) == {"memory_mib"}


@pytest.mark.parametrize("machine", [GPU, CPU])
@pytest.mark.parametrize(("recipe", "method"), [(name, method) for name, each in RECIPES.items() for method in each])
def test_every_proposed_change_is_one_that_the_recipe_takes(recipe: str, method: str, machine: Machine) -> None:
    asked = job(method, recipe, per_device_train_batch_size=6)
    found = list(changes(asked, LOAD, machine, 10_000))
    assert {"memory_mib": 10_240} in found or machine.is_gpu
    peaks: list[float] = []
    for change in found:
        changed, load, larger = applied(asked, LOAD, machine, change)
        check_hyperparameters(recipe, changed.method, changed.knobs)
        peaks.append(peak_mib(changed, load, larger))
        if recipe != "rl":
            batches = (one.knobs["per_device_train_batch_size"] * one.knobs["gradient_accumulation_steps"]
                       for one in (asked, changed))  # fmt: skip
            assert len(set(batches)) == 1
    assert min(peaks) < peak_mib(asked, LOAD, machine)


def test_shorter_samples_qlora_or_another_optimizer_are_proposed_where_nothing_milder_helps() -> None:
    small = replace(GPU, gpu_memory_mib=3_600)
    one = {"per_device_train_batch_size": 1, "gradient_checkpointing": True}
    full = estimate(shape(), job("full", **one), LOAD, replace(GPU, gpu_memory_mib=13_000))
    assert full.change == {"optim": "adamw_8bit"}
    lora = estimate(shape(), job(**one), LOAD, small)
    assert lora.change is not None
    assert lora.change["method"] == "qlora"
    long = replace(LOAD, max_tokens=4096, mean_tokens=4000)
    cut = estimate(shape(), job(recipe="classify", max_seq_length=4096, **one), long, small)
    assert cut.change is not None
    assert cut.change["max_seq_length"] < 4096


def test_no_more_memory_is_proposed_than_a_node_has() -> None:
    asked, load = job("full", per_device_train_batch_size=1), replace(LOAD, max_tokens=64)
    found = estimate(shape(), asked, load, Machine(2_048, most_memory_mib=16_384))
    assert found.memory_mib.high > 16_384
    assert "memory_mib" not in (found.change or {})


def test_a_model_that_fits_nowhere_gets_no_proposal_that_would_not_help() -> None:
    huge = replace(shape(), num_parameters=70_000_000_000)
    assert estimate(huge, job("full"), LOAD, GPU).change is None


def test_finished_runs_move_the_estimate_and_narrow_its_band() -> None:
    first = estimate(shape(), job(), LOAD, GPU)
    learned = estimate(shape(), job(), LOAD, GPU, Calibration(20, memory=0.5, seconds=2.0, spread=1.2))
    assert learned.memory_mib.expected == pytest.approx(first.memory_mib.expected / 2, rel=0.01)
    assert learned.seconds.expected == pytest.approx(first.seconds.expected * 2, rel=0.01)
    assert learned.memory_mib.high / learned.memory_mib.low < first.memory_mib.high / first.memory_mib.low
    assert learned.num_calibrating_runs == 20


T5 = {"is_encoder_decoder": True, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
      "vocab_size": 32_128, "feed_forward_proj": "relu", "n_positions": 512}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "parameters", "trained"),
    [
        ({"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
          "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151_936}, 596_049_920, 10_092_544),  # Qwen3-0.6B
        (T5, 60_506_624, 2_162_688),
        ({"n_embd": 512, "n_layer": 4, "n_head": 8, "n_positions": 2048, "vocab_size": 50_400,
          "tie_word_embeddings": False}, 64_258_272, 589_824),  # a small GPT-J
    ],
)  # fmt: skip
def test_parameters_and_those_of_its_adapter_are_counted_as_transformers_and_peft_make_them(
    config: dict[str, Any], parameters: int, trained: int
) -> None:
    found = shape_of_config(config, None)
    assert found is not None
    assert abs(found.num_parameters / parameters - 1) < 0.01
    assert trained_parameters(found, job(lora_r=16)) == trained


def test_an_encoder_decoder_is_estimated_with_one_sample_a_row() -> None:
    found = shape_of_config(T5, 60_506_624)
    assert found is not None
    assert (found.max_positions, found.is_tied) == (0, True)
    packed, padded = (job("full", "seq2seq", packing=packing) for packing in (True, False))
    assert peak_memory_bytes(found, packed, LOAD, GPU) == peak_memory_bytes(found, padded, LOAD, GPU)


@pytest.mark.parametrize(
    "config",
    [
        {}, {"hidden_size": "wide"}, {**QWEN, "num_hidden_layers": 0}, {**QWEN, "max_position_embeddings": math.inf},
        {**QWEN, "vocab_size": -1}, {**QWEN, "head_dim": math.nan},
    ],
)  # fmt: skip
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
    learned = calibration_of("sft", "lora", 494_032_768, on_gpu=False)
    assert learned.memory == pytest.approx(3000 / promised, rel=0.01)
    assert learned.spread < FIRST_SPREAD
    assert learned.seconds == pytest.approx(30 / task.estimate["seconds"]["expected"], rel=0.01)
    assert calibration_of("sft", "lora", 8_000_000_000, on_gpu=False) == Calibration()


def test_waits_between_attempts_are_no_time_of_the_training() -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    spans = [(0, 40), (None, 50), (500, 560), (900, None)]
    moments = [[None if at is None else begin + timedelta(seconds=at) for at in span] for span in spans]
    assert running_seconds(Attempt(started_at=started, ended_at=ended) for started, ended in moments) == 100


@pytest.mark.django_db
def test_runs_that_agree_narrow_a_band_and_those_that_do_not_keep_it_wide() -> None:
    row = {"recipe": "sft", "method": "lora", "on_gpu": False, "magnitude": 8}
    TrainingCalibration.objects.create(**row, num_runs=20, memory_log_m2=0.0, seconds_log_m2=19.0)
    found = calibration_of("sft", "lora", 494_032_768, on_gpu=False)
    assert found.spread == LEAST_SPREAD
    assert found.seconds_spread == pytest.approx(math.exp(2))
    seconds = estimate(shape(), job(), LOAD, GPU, found).seconds
    assert seconds.high / seconds.expected == pytest.approx(math.exp(2), rel=0.01)


def test_the_band_of_tokens_is_narrow_where_they_were_counted() -> None:
    guessed = estimate(shape(), job(), LOAD, GPU).tokens_range
    counted = estimate(shape(), job(), replace(LOAD, is_counted=True), GPU).tokens_range
    assert counted.high / counted.low < 1.1 < 2 < guessed.high / guessed.low
    assert counted.low < 600_000 < counted.high


def add_gpu(memory_mib: int = 80_000, **columns: Any) -> Gpu:
    """A GPU of the only node."""
    node = Node.objects.get()
    gpu = Gpu.objects.create(uuid=f"GPU-{Gpu.objects.count()}", node=node, memory_mib=memory_mib, **columns)
    count_devices(node)
    return gpu


@pytest.mark.parametrize(
    ("told", "learned"), [({"memory/gpu_peak_mib": 2600.0}, 3000), ({"memory/peak_mib": 9.0}, None)]
)
def test_a_gpu_teaches_what_the_program_took_of_it_and_nothing_where_none_was_used(
    told: dict[str, float], learned: float | None, alice: Actor, spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(monkeypatch)
    add_gpu()
    events = [{"kind": "metric", "memory/gpu_peak_mib": 100.0} if learned else {}, {"kind": "summary", **told}]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    engine.will(files={**output_of(), "metrics.jsonl": lines}, max_memory_mib=9_000, runs_for_s=30)
    task = create_fine_tune_task(
        actor=alice, name="tune", recipe="sft", method="lora", base_model=base_with_config(alice).pk,
        train_dataset=make_dataset(alice, spooled).pk, resources={"memory_mib": 16_384, "gpus": 1},
    )  # fmt: skip
    engine.step(2)
    engine.clock.now += 60
    engine.step(2)
    task.refresh_from_db()
    assert task.run is not None
    assert (task.run.state, task.estimate["on_gpu"]) == ("COMPLETED", True)
    row = TrainingCalibration.objects.filter(recipe="sft", method="lora", on_gpu=True).first()
    assert (row is None) == (learned is None)
    if learned is not None:
        found = calibration_of("sft", "lora", 494_032_768, on_gpu=True).memory
        assert found == pytest.approx(learned / task.estimate["memory_mib"]["expected"], rel=0.01)


def tune(actor: Actor, spooled: Any, resources: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The arguments of a task that fine-tunes the base with a configuration."""
    return {
        "actor": actor, "recipe": "sft", "method": "full", "base_model": base_with_config(actor).pk,
        "train_dataset": make_dataset(actor, spooled).pk, "resources": resources, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("resources", "limit_mib"),
    [
        ({"gpus": 1}, 40_000),
        ({"gpus": 1, "options": {"node_names": ["other"]}}, 80_000),
        ({"mig_profile": "1g.10gb", "mig_devices": 1}, 9_856),
        ({"mig_profile": "3g.40gb", "mig_devices": 2}, 40_960),
        ({"mig_profile": "odd", "mig_devices": 1}, None),
        ({"gpu_cores_percent": 50, "gpu_memory_mib": 12_000}, 12_000),
        ({"gpus": 1, "options": {"resource_group": "cluster"}}, None),
    ],
)
def test_the_memory_of_a_gpu_is_that_of_the_smallest_that_the_task_may_get(
    resources: dict[str, Any], limit_mib: int | None, alice: Actor, spooled: Any
) -> None:
    group = ensure_local_node().resource_group
    other = Node.objects.create(name="other", resource_group=group, executor="local_process")
    cluster = ResourceGroup.objects.create(name="cluster")
    Node.objects.create(name="pod", resource_group=cluster, executor="local_process", assigns_gpus=True)
    node = Node.objects.get(name="local")
    for uuid, where, memory_mib, columns in (
        ("GPU-0", node, 40_000, {}), ("GPU-1", other, 80_000, {}), ("GPU-2", node, 24_000, {"is_present": False}),
        ("GPU-3", node, 30_000, {}), ("MIG-0", node, 9_856, {"mig_profile": "1g.10gb", "parent_uuid": "GPU-3"}),
    ):  # fmt: skip
        Gpu.objects.create(uuid=uuid, node=where, memory_mib=memory_mib, **columns)
    options = resources.pop("options", {})
    TrainingCalibration.objects.create(recipe="sft", method="full", on_gpu=True, magnitude=8, num_runs=3)
    found = estimate_fine_tune_task(**tune(alice, spooled, resources, options=options))
    assert found is not None
    assert (found.on_gpu, found.limit_mib, found.num_calibrating_runs) == (True, limit_mib, 3)
    assert (found.verdict is None) == (limit_mib is None)


def test_a_training_on_a_gpu_of_unknown_size_starts(
    alice: Actor, spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine(monkeypatch)
    Node.objects.update(assigns_gpus=True)
    set_cap(scope="node", scope_id=Node.objects.get().pk, resource="mig_devices", cap=4)
    order = tune(alice, spooled, {"memory_mib": 1024, "mig_profile": "all", "mig_devices": 1})
    task = create_fine_tune_task(name="tune", **order)
    assert (task.estimate["on_gpu"], task.estimate["verdict"], task.estimate["change"]) == (True, None, None)
    order["resources"]["mig_profile"] = "1g.1gb"
    with pytest.raises(Unprocessable) as refused:
        create_fine_tune_task(name="large", **order)
    assert (refused.value.code, refused.value.field) == ("will_not_fit", "resources.mig_profile")


def test_disk_is_the_result_and_the_checkpoints_that_are_written() -> None:
    def disk(**changes: Any) -> list[int]:
        found = estimate(shape(), job("full", max_steps=100, **changes), LOAD, GPU).disk_mib
        weights = 494_032_768 * 4 / MIB  # a checkpoint has the weights and twice as much of the optimizer
        return [round(part / weights) for part in (found.low * 1.15, found.expected, found.high / 1.15)]

    assert disk() == [1, 1, 4]
    assert disk(save_steps=10) == [7, 7, 7]
    assert disk(save_steps=10, save_total_limit=5, load_best=True, eval_steps=10) == [16, 19, 19]
    assert disk(save_steps=60, save_total_limit=5) == [4, 4, 4]


def test_a_training_that_the_storage_can_not_take_is_refused_with_what_to_change(
    alice: Actor, spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine(monkeypatch)
    set_cap(scope="node", scope_id=Node.objects.get().pk, resource="memory_mib", cap=100_000)
    knobs = {"max_steps": 100, "save_steps": 10, "save_total_limit": 9, "per_device_train_batch_size": 1}
    order = tune(alice, spooled, {"memory_mib": 60_000}, hyperparameters=knobs)
    refused = []
    for left_gib in (30, 10, 1):
        used = StorageUsage.objects.get(tenant_id=alice.tenant_id, user_id=alice.user_id).bytes_used
        set_storage_limits(tenant_id=alice.tenant_id, user_id=alice.user_id, bytes_limit=used + left_gib * 2**30)
        with pytest.raises(Unprocessable) as told:
            create_fine_tune_task(name="tune", **order)
        refused.append((told.value.field, told.value.message.rsplit(". ", 1)[1]))
        assert told.value.code == "quota_exceeded"
    assert refused == [
        ("hyperparameters.save_total_limit", "It fits with save_total_limit = 2."),
        ("hyperparameters.save_steps", "It fits with save_steps = 0."),
        ("output_model_name", "Delete files, data sets or models, or ask the operator."),
    ]
    assert not Run.objects.exists()
    set_storage_limits(tenant_id=alice.tenant_id, user_id=alice.user_id, bytes_limit=2**40)
    assert create_fine_tune_task(name="tune", **order).run is not None


def test_lengths_that_were_counted_count_more_than_bytes(alice: Actor, spooled: Any) -> None:
    base, data = base_with_config(alice), make_dataset(alice, spooled)
    task = FineTuneTask(recipe="sft", base_version=base, train_dataset=data, hyperparameters=job().knobs)
    guessed = load_of(task, shape())
    result = {"samples": 5, "tokens": 1500, "learned": 600, "mean": 300.0, "longest": 2000}
    DataTask.objects.create(
        tenant_id=alice.tenant_id, created_by_id=alice.user_id, kind="tokens", dataset=data.dataset, version=data,
        subject=str(base.pk), state="done", result=result,
    )  # fmt: skip
    assert guessed.learned_share == 1.0
    assert load_of(task, shape()) == Load(5, 300.0, 1024, 2000, 0.4, is_counted=True)
    assert load_of(task, replace(shape(), max_positions=128)).max_tokens == 128


def test_a_new_model_has_the_vocabulary_of_its_own_tokenizer(alice: Actor, spooled: Any) -> None:
    words = {f"w{number}": number for number in range(50_000)}
    tokenizer = {"model": {"type": "BPE", "vocab": words, "merges": []}, "added_tokens": [{"id": 1, "content": "</s>"}]}
    unigram = {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}}
    pieces = b"".join(b"\x0a\x03\x0a\x01" + bytes([97 + number]) for number in range(20))
    files = {"own/tokenizer.json": json.dumps(tokenizer), "two.json": json.dumps(unigram), "own.model": pieces,
             "bad.json": "[]"}  # fmt: skip
    put_tree(alice, spooled, files)
    sizes = {}
    for name in ("own", "two.json", "own.model", "bad.json", ""):
        task = FineTuneTask(recipe="pretrain", hyperparameters={}, tokenizer=name and f"private/{name}")
        task.tenant_id, task.created_by_id = alice.tenant_id, alice.user_id
        found = shape_of(task)
        sizes[name] = found and found.vocab_size
    assert sizes == {"own": 50_001, "two.json": 2, "own.model": 20, "bad.json": None, "": 4096}
    order: dict[str, Any] = {"recipe": "pretrain", "method": "full", "train_dataset": make_dataset(
        alice, spooled, [{"text": "The piano has keys. " * 40} for _ in range(20)]).pk}  # fmt: skip
    large = estimate_fine_tune_task(actor=alice, tokenizer="private/own", **order)
    small = estimate_fine_tune_task(actor=alice, **order)
    assert large is not None
    assert small is not None
    assert large.memory_mib.expected > small.memory_mib.expected + 50
