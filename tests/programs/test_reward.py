"""Reward models: they learn to tell better from worse replies and say what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contract import folder
from runner.programs.lib.artifacts import is_whole
from runner.programs.train import reward
from tests.programs.recipes import PREFERENCES, make_context, values_by_step, write_rows

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def parameters_of(base: Path, folder: Path, method: str) -> dict[str, Any]:
    return {
        "base_model": str(base),
        "method": method,
        "train_data": write_rows(folder / "train.jsonl", PREFERENCES),
        "validation_data": write_rows(folder / "validation.jsonl", PREFERENCES[:4]),
        "hyperparameters": {
            "num_train_epochs": 8,
            "per_device_train_batch_size": 4,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            "precision": "fp32",
        },
    }


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reward_model_learns_to_tell_better_from_worse(tiny_model_folder: Path, tmp_path: Path, method: str) -> None:
    reward.main(make_context(tmp_path / "run", parameters_of(tiny_model_folder, tmp_path, method)))
    accuracy = values_by_step(tmp_path / "run", "train/reward_accuracy")
    margin = values_by_step(tmp_path / "run", "train/reward_margin")
    assert accuracy[max(accuracy)] == 1.0
    assert margin[max(margin)] > margin[1]
    output = tmp_path / "run" / folder.OUTPUT
    assert is_whole(output)
    manifest = json.loads((output / folder.MANIFEST).read_text(encoding="utf-8"))
    assert manifest["facts"]["task"] == "reward"
    assert manifest["metrics"]["eval/reward_accuracy"] == 1.0


def test_the_saved_reward_model_scores_the_chosen_reply_higher(tiny_model_folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import Qwen2ForSequenceClassification

    from runner.programs.lib.data import read_preferences
    from runner.programs.lib.preferences import encode_replies
    from runner.programs.lib.render import Renderer

    parameters = parameters_of(tiny_model_folder, tmp_path, "lora")
    reward.main(make_context(tmp_path / "run", parameters))
    base: Any = Qwen2ForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
    model = PeftModel.from_pretrained(base, str(tmp_path / "run" / folder.OUTPUT / "model")).eval()
    renderer = Renderer.from_folder(tiny_model_folder)
    for _, preference in read_preferences(parameters["train_data"]):
        prompt, replies = encode_replies(renderer, preference.prompt, [preference.chosen, preference.rejected], "")
        chosen, rejected = (float(model(torch.tensor([[*prompt, *reply]])).logits) for reply in replies)
        assert chosen > rejected
