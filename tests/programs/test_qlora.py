"""Adapters on a quantized base: they learn on a CPU too, and the base stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.contract import folder
from runner.programs.train import preference, sft
from tests.programs.recipes import PREFERENCES, QUESTIONS, fork_processes, make_context, values_by_step, write_rows

pytestmark = pytest.mark.slow

FAST = {
    "num_train_epochs": 6,
    "per_device_train_batch_size": 4,
    "max_seq_length": 64,
    "learning_rate": 5e-3,
    "logging_steps": 1,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(("bits", "kind"), [(4, "nf4"), (4, "fp4"), (8, "nf4")])
def test_sft_learns_on_a_quantized_base(tiny_model_folder: Path, tmp_path: Path, bits: int, kind: str) -> None:
    parameters = {
        "base_model": str(tiny_model_folder),
        "method": "qlora",
        "train_data": write_rows(tmp_path / "train.jsonl", QUESTIONS),
        "hyperparameters": {**FAST, "quantization_bits": bits, "bnb_4bit_quant_type": kind},
    }
    sft.main(make_context(tmp_path / "run", parameters))
    losses = values_by_step(tmp_path / "run", "train/loss")
    assert losses[max(losses)] < 0.8 * losses[1]
    saved = load_file(tmp_path / "run" / folder.OUTPUT / "model" / "adapter_model.safetensors")
    assert all("lora_" in name for name in saved)


@pytest.mark.parametrize(("main", "rows"), [(sft.main, QUESTIONS), (preference.main, PREFERENCES)])
def test_two_processes_on_a_quantized_base_have_the_losses_of_one(
    main: Any, rows: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    sizes = {"max_steps": 4, "per_device_train_batch_size": 1, "precision": "fp32", "distributed_strategy": "ddp"}
    one = {
        "base_model": str(tiny_model_folder),
        "method": "qlora",
        "train_data": write_rows(tmp_path / "train.jsonl", rows),
        "hyperparameters": {**FAST, **sizes, "gradient_accumulation_steps": 2},
    }
    main(make_context(tmp_path / "one", one))
    two = {**one, "hyperparameters": {**one["hyperparameters"], "gradient_accumulation_steps": 1}}
    fork_processes(main, tmp_path / "two", two, 2)
    theirs = values_by_step(tmp_path / "one", "train/loss")
    assert len(set(theirs.values())) == 4
    assert values_by_step(tmp_path / "two", "train/loss") == pytest.approx(theirs, abs=1e-4)
    adapters = [tmp_path / name / folder.OUTPUT / "model" / "adapter_model.safetensors" for name in ("one", "two")]
    left, right = map(load_file, adapters)
    assert all(torch.allclose(tensor, right[name], atol=1e-4) for name, tensor in left.items())
