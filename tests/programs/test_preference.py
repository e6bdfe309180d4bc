"""Preference tuning: every loss learns to prefer, with adapters and without, and resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contract import folder
from runner.programs.lib.artifacts import hash_file, newest_sealed
from runner.programs.lib.events import ProgramError, Stopped
from runner.programs.train import preference
from tests.programs.recipes import (
    PREFERENCES,
    StoppingReporter,
    events_of,
    make_context,
    run_in_processes,
    values_by_step,
    write_rows,
)

FAST = {
    "num_train_epochs": 6,
    "per_device_train_batch_size": 4,
    "max_seq_length": 96,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "precision": "fp32",
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def train_data(tmp_path: Path) -> str:
    return write_rows(tmp_path / "train.jsonl", PREFERENCES)


def parameters_of(base: Path, train_data: str, method: str = "lora", **knobs: Any) -> dict[str, Any]:
    return {
        "base_model": str(base),
        "method": method,
        "train_data": train_data,
        "validation_data": None,
        "hyperparameters": {**FAST, **knobs},
    }


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stop", "crash"])
def test_a_resumed_run_ends_exactly_like_an_unbroken_one(
    tiny_model_folder: Path, train_data: str, tmp_path: Path, end: str
) -> None:
    knobs = {
        "lora_dropout": 0.2,
        "save_steps": 4,
        "eval_steps": 3,
        "logging_steps": 3,
        "per_device_train_batch_size": 2,
    }
    parameters = parameters_of(tiny_model_folder, train_data, num_train_epochs=3, **knobs)
    parameters["validation_data"] = write_rows(tmp_path / "validation.jsonl", PREFERENCES[:3])
    preference.main(make_context(tmp_path / "whole", parameters))

    def interrupt() -> None:
        if end == "crash":
            raise KeyboardInterrupt
        context.should_stop = True

    broken = tmp_path / "broken"
    context = make_context(broken, parameters)
    context.report = StoppingReporter(broken, 6, interrupt)
    with pytest.raises(KeyboardInterrupt if end == "crash" else Stopped):
        preference.main(context)
    sealed = newest_sealed(broken / folder.CHECKPOINTS)
    assert sealed is not None
    assert not [path for path in sealed.rglob("*") if path.suffix not in (".safetensors", ".json")]
    preference.main(make_context(broken, parameters))
    for name in ("train/loss", "eval/loss", "train/grad_norm"):
        assert values_by_step(broken, name) == values_by_step(tmp_path / "whole", name)
    weights = [path / folder.OUTPUT / "model" / "adapter_model.safetensors" for path in (broken, tmp_path / "whole")]
    assert hash_file(weights[0]) == hash_file(weights[1])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_have_the_losses_of_one_with_the_same_global_batch(
    tiny_model_folder: Path, train_data: str, tmp_path: Path
) -> None:
    knobs = {"per_device_train_batch_size": 2, "max_steps": 6, "save_steps": 3, "eval_steps": 6}
    one = parameters_of(tiny_model_folder, train_data, gradient_accumulation_steps=2, **knobs)
    one["validation_data"] = train_data
    preference.main(make_context(tmp_path / "one", one))
    two = {**one, "hyperparameters": {**one["hyperparameters"], "gradient_accumulation_steps": 1}}
    log = run_in_processes("runner.programs.train.preference", tmp_path / "two", two, 2)
    assert log.count("training started") == 1
    for name in ("train/loss", "eval/loss", "train/reward_margin"):
        ours, theirs = values_by_step(tmp_path / "two", name), values_by_step(tmp_path / "one", name)
        assert len(ours) > 0
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert newest_sealed(tmp_path / "two" / folder.CHECKPOINTS) is not None


@pytest.mark.slow
def test_patience_ends_a_run_and_the_best_weights_are_taken(
    tiny_model_folder: Path, train_data: str, tmp_path: Path
) -> None:
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in PREFERENCES if "chosen" in row]
    parameters = parameters_of(
        tiny_model_folder, train_data, num_train_epochs=30, eval_steps=1, load_best=True, early_stopping_patience=3
    )
    parameters["validation_data"] = write_rows(tmp_path / "validation.jsonl", turned)
    preference.main(make_context(tmp_path / "run", parameters))
    evaluated = values_by_step(tmp_path / "run", "eval/loss")
    best = min(evaluated, key=lambda step: evaluated[step])
    assert max(evaluated) == best + 3 < 60
    messages = [event["message"] for event in events_of(tmp_path / "run", "phase")]
    assert any(f"weights of step {best} taken" in message for message in messages)


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"prompt": "q", "chosen": "a"}, "one of these shapes is needed"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "list of turns under 'prompt'"),
        ({"prompt": "q", "responses": [{"content": "a", "score": 1}]}, "two 'responses' with different scores"),
        ({"prompt": "q", "responses": [{"content": "a"}]}, "{content, score} in each"),
        ({"prompt": "q", "chosen": "a", "rejected": [{"role": "user", "content": "x"}]}, "one turn of the assistant"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tiny_model_folder: Path, tmp_path: Path, row: Any, word: str) -> None:
    data = write_rows(tmp_path / "train.jsonl", [PREFERENCES[0], row])
    with pytest.raises(ProgramError, match=r"train\.jsonl line 2") as caught:
        preference.main(make_context(tmp_path / "run", parameters_of(tiny_model_folder, data)))
    assert word in caught.value.message


def test_kto_needs_liked_and_disliked_replies(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", [{"prompt": "q", "completion": "a", "label": True}])
    with pytest.raises(ProgramError, match=r"every reply of train\.jsonl is liked"):
        preference.main(make_context(tmp_path / "run", parameters_of(tiny_model_folder, data, loss_type="kto")))
