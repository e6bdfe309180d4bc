"""Supervised fine-tuning against its references: TRL's trainer, an unbroken run, a run in one process."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.contract import folder
from runner.programs.lib.artifacts import hash_file
from runner.programs.lib.batches import Padded, shuffled_batches
from runner.programs.lib.lengths import LengthPolicy
from runner.programs.lib.render import Renderer
from runner.programs.train import sft
from tests.programs.recipes import (
    QUESTIONS,
    StoppingReporter,
    events_of,
    fork_processes,
    make_context,
    run_in_processes,
    values_by_step,
    write_rows,
)

pytestmark = pytest.mark.slow

KNOBS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "max_seq_length": 64,
    "learning_rate": 1e-3,
    "warmup_ratio": 0.0,
    "logging_steps": 1,
    "precision": "fp32",
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def parameters_of(base: Path, tmp_path: Path, method: str, **knobs: Any) -> dict[str, Any]:
    return {
        "base_model": str(base),
        "method": method,
        "train_data": write_rows(tmp_path / "train.jsonl", QUESTIONS),
        "hyperparameters": {**KNOBS, **knobs},
    }


def test_the_losses_are_those_of_trl_on_the_same_batches(tiny_model_folder: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    context = make_context(tmp_path / "ours", parameters_of(tiny_model_folder, tmp_path, "full", max_steps=20))
    sft.main(context)
    renderer = Renderer.from_folder(tiny_model_folder)
    samples = sft.tokenize(tmp_path / "train.jsonl", renderer, LengthPolicy(64, "truncate"), context.report)
    batches_of = shuffled_batches(samples, 2, 42, Padded(2))
    of_row = {sample.row: sample for sample in samples}
    rows = [
        {"input_ids": of_row[row].token_ids.tolist(), "completion_mask": of_row[row].is_label.int().tolist()}
        for step in range(1, 21)
        for batch in batches_of(step)
        for row in batch.rows
    ]
    arguments = SFTConfig(
        output_dir=str(tmp_path / "theirs"), max_steps=20, per_device_train_batch_size=2, learning_rate=1e-3,
        lr_scheduler_type="cosine", adam_beta2=0.95, optim="adamw_torch_fused", train_sampling_strategy="sequential",
        logging_steps=1, gradient_checkpointing=False, bf16=False, use_cpu=True, report_to=[], save_strategy="no",
        completion_only_loss=True,
    )  # fmt: skip
    load: Any = AutoModelForCausalLM.from_pretrained
    trainer = SFTTrainer(
        model=load(tiny_model_folder, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_model_folder),
    )
    trainer.train()
    theirs = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    ours = values_by_step(tmp_path / "ours", "train/loss")
    assert len(ours) == 20
    assert ours == pytest.approx(theirs, abs=1e-4)


def _train_and_be_killed(run_folder: Path, parameters: dict[str, Any], step: int, delay_s: float) -> None:
    """In a process of its own: killed a moment after the metrics of a step, wherever it then is."""

    def kill() -> None:
        time.sleep(delay_s)
        os.kill(os.getpid(), signal.SIGKILL)

    context = make_context(run_folder, parameters)
    context.report = StoppingReporter(run_folder, step, threading.Thread(target=kill, daemon=True).start)
    sft.main(context)


def test_a_run_that_is_killed_five_times_ends_with_the_weights_of_the_unbroken_one(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    parameters = parameters_of(tiny_model_folder, tmp_path, "lora", max_steps=60, save_steps=1, lora_dropout=0.1)
    sft.main(make_context(tmp_path / "whole", parameters))
    processes, chance = multiprocessing.get_context("fork"), random.Random(5)
    for step in (7, 17, 27, 37, 47):
        arguments = (tmp_path / "broken", parameters, step, chance.uniform(0, 0.02))
        process = processes.Process(target=_train_and_be_killed, args=arguments)
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    sft.main(make_context(tmp_path / "broken", parameters))
    resumed = [e["message"] for e in events_of(tmp_path / "broken", "phase") if e["name"] == "resume"]
    assert len(resumed) == 5
    assert values_by_step(tmp_path / "broken", "train/loss") == values_by_step(tmp_path / "whole", "train/loss")
    weights = [tmp_path / name / folder.OUTPUT / "model/adapter_model.safetensors" for name in ("broken", "whole")]
    assert hash_file(weights[0]) == hash_file(weights[1])


@pytest.mark.timeout(300)
def test_two_processes_have_the_losses_of_one_with_the_same_global_batch(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    one = parameters_of(tiny_model_folder, tmp_path, "lora", max_steps=12, gradient_accumulation_steps=2)
    one["validation_data"] = write_rows(tmp_path / "validation.jsonl", QUESTIONS[:3])
    sft.main(make_context(tmp_path / "one", one))
    two = {**one, "hyperparameters": {**one["hyperparameters"], "gradient_accumulation_steps": 1}}
    run = tmp_path / "two"
    log = run_in_processes("runner.programs.train.sft", run, two, 2)
    assert log.count("training started") == 1
    for name in ("train/loss", "eval/loss", "train/grad_norm"):
        ours, theirs = values_by_step(run, name), values_by_step(tmp_path / "one", name)
        assert len(ours) > 0
        assert ours == pytest.approx(theirs, abs=1e-4)
    left, right = (
        load_file(tmp_path / name / folder.OUTPUT / "model/adapter_model.safetensors") for name in ("one", "two")
    )
    assert all(torch.allclose(tensor, right[name], atol=1e-4) for name, tensor in left.items())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_shared_out_weights_learn_and_are_sealed_like_whole_ones(
    tiny_model_folder: Path, tmp_path: Path, method: str
) -> None:
    """FSDP in two processes goes on from the checkpoint of one process, and seals what that one seals."""
    one = parameters_of(
        tiny_model_folder, tmp_path, method, max_steps=6, gradient_accumulation_steps=2, save_steps=3, lora_dropout=0.0
    )
    one["validation_data"] = write_rows(tmp_path / "validation.jsonl", QUESTIONS[:3])
    if method == "full":
        del one["hyperparameters"]["lora_dropout"]
    sft.main(make_context(tmp_path / "one", one))
    sealed = "checkpoints/step-00000003"
    shutil.copytree(tmp_path / "one" / sealed, tmp_path / "two" / sealed)
    knobs = {**one["hyperparameters"], "gradient_accumulation_steps": 1, "distributed_strategy": "fsdp"}
    fork_processes(sft.main, tmp_path / "two", {**one, "hyperparameters": knobs}, 2)
    told = [event["message"] for event in events_of(tmp_path / "two", "phase")]
    assert "resumed from the checkpoint of step 3" in told
    assert any("shared out over 2 processes" in message for message in told)
    for name in ("train/loss", "eval/loss", "train/grad_norm", "weights/norm"):
        theirs = {step: v for step, v in values_by_step(tmp_path / "one", name).items() if step > 3}
        assert values_by_step(tmp_path / "two", name) == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    model = f"{folder.OUTPUT}/model/{'model' if method == 'full' else 'adapter_model'}.safetensors"
    last = "checkpoints/step-00000006"
    for file in (model, f"{last}/weights.safetensors", f"{last}/optimizer.safetensors"):
        left, right = (load_file(tmp_path / name / file) for name in ("one", "two"))
        assert left.keys() == right.keys()
        assert all(torch.allclose(tensor, right[name], atol=1e-4) for name, tensor in left.items())
    assert json.loads((tmp_path / "two" / folder.OUTPUT / "model/bundle.json").read_text())["recipe"] == "sft"
