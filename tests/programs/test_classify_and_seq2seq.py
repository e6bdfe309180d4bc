"""Classifiers and models that turn one text into another: they learn, and their scores move as they must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contract import folder
from runner.programs.lib.artifacts import is_whole
from runner.programs.lib.events import ProgramError
from runner.programs.train import classify, seq2seq
from tests.programs.recipes import events_of, make_context, values_by_step, write_rows
from tests.programs.tiny_models import write_tiny_encoder_decoder

FAST = {
    "num_train_epochs": 10,
    "per_device_train_batch_size": 4,
    "max_seq_length": 64,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "precision": "fp32",
}
TEXTS = (
    {"text": "The piano has eighty-eight keys", "label": "music"},
    {"text": "The capital of France is Paris", "label": "places"},
    {"text": "钢琴有八十八个键", "label": "music"},
    {"text": "法国的首都是巴黎", "label": "places"},
    {"text": "def add(first, second)", "label": "code"},
    {"text": "keys of the piano", "label": "music"},
    {"text": "Paris, a capital", "label": "places"},
    {"text": "return first + second", "label": "code"},
)
PAIRS = (
    {"source": "Hello", "target": "你好"},
    {"source": "The piano", "target": "钢琴"},
    {"source": "The capital", "target": "首都"},
    {"source": "Paris", "target": "巴黎"},
    {"source": "a question", "target": "问题"},
    {"source": "a model", "target": "模型"},
    {"source": "a task", "target": "任务"},
    {"source": "a service", "target": "服务"},
)


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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_classifier_learns_eight_texts(tiny_model_folder: Path, tmp_path: Path, method: str) -> None:
    data = write_rows(tmp_path / "train.jsonl", TEXTS)
    classify.main(make_context(tmp_path / "run", parameters_of(tiny_model_folder, data, method, eval_steps=1)))
    accuracy, f1 = (values_by_step(tmp_path / "run", f"eval/{name}") for name in ("accuracy", "f1"))
    assert accuracy[1] < accuracy[max(accuracy)] == f1[max(f1)] == 1.0
    output = tmp_path / "run" / folder.OUTPUT
    assert is_whole(output)
    facts = json.loads((output / folder.MANIFEST).read_text(encoding="utf-8"))["facts"]
    assert (facts["task"], facts["labels"]) == ("classification", ["code", "music", "places"])
    assert json.loads((output / "model/labels.json").read_text(encoding="utf-8")) == facts["labels"]


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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_causal_model_learns_eight_translations(tiny_model_folder: Path, tmp_path: Path, method: str) -> None:
    data = write_rows(tmp_path / "train.jsonl", PAIRS)
    parameters = parameters_of(
        tiny_model_folder, data, method, num_train_epochs=60, learning_rate=1e-2, generation_max_length=8
    )
    seq2seq.main(make_context(tmp_path / "run", parameters))
    manifest = json.loads((tmp_path / "run" / folder.OUTPUT / folder.MANIFEST).read_text(encoding="utf-8"))
    assert manifest["facts"]["task"] == "generation"
    assert manifest["metrics"]["eval/rougeL"] == 1.0
    assert manifest["metrics"]["eval/chrf"] == pytest.approx(100.0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_encoder_decoder_learns_eight_translations(tmp_path: Path, method: str) -> None:
    base = write_tiny_encoder_decoder(tmp_path / "t5")
    data = write_rows(tmp_path / "train.jsonl", PAIRS)
    rate = 1e-2 if method == "lora" else 3e-3
    parameters = parameters_of(base, data, method, num_train_epochs=80, learning_rate=rate, generation_max_length=8)
    seq2seq.main(make_context(tmp_path / "run", parameters))
    manifest = json.loads((tmp_path / "run" / folder.OUTPUT / folder.MANIFEST).read_text(encoding="utf-8"))
    assert manifest["facts"]["task"] == "seq2seq"
    assert manifest["metrics"]["eval/rougeL"] == 1.0
    shown = events_of(tmp_path / "run", "sample")
    assert [sample["answer"] for sample in shown] == [pair["target"] for pair in PAIRS]
