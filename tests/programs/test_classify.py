"""Classifiers: their scores, and the labels that they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.programs.lib.events import ProgramError
from runner.programs.train import classify
from tests.programs.recipes import TEXTS, make_context, write_rows

FAST = {
    "num_train_epochs": 10,
    "per_device_train_batch_size": 4,
    "max_seq_length": 64,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "precision": "fp32",
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def parameters_of(base: Path, data: str, method: str, **knobs: Any) -> dict[str, Any]:
    return {
        "base_model": str(base),
        "method": method,
        "train_data": data,
        "validation_data": data,
        "hyperparameters": {**FAST, **knobs},
    }


def test_f1_is_the_mean_over_the_classes() -> None:
    found = classify.scores([0, 0, 1, 1], [0, 1, 1, 1])
    assert found == {"accuracy": 0.75, "f1": pytest.approx((2 / 3 + 4 / 5) / 2)}


@pytest.mark.parametrize(
    ("train", "validation", "word"),
    [
        ([{"text": "a", "label": "x"}], None, "every row of train.jsonl has the label 'x'"),
        ([{"text": "a"}], None, "line 1 needs a text under 'text' and a class"),
        (TEXTS, [{"text": "a", "label": "sports"}], "no training row has the label 'sports'"),
    ],
)
def test_labels_that_teach_nothing_are_refused(
    tiny_model_folder: Path, tmp_path: Path, train: Any, validation: Any, word: str
) -> None:
    parameters = parameters_of(tiny_model_folder, write_rows(tmp_path / "train.jsonl", list(train)), "lora")
    parameters["validation_data"] = write_rows(tmp_path / "validation.jsonl", validation) if validation else None
    with pytest.raises(ProgramError) as caught:
        classify.main(make_context(tmp_path / "run", parameters))
    assert word in caught.value.message
