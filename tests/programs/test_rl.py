"""Reinforcement learning: every algorithm earns more than before, and PPO resumes exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contract import folder
from runner.contract.knobs import idle_knobs
from runner.programs.lib.artifacts import hash_file, hash_folder
from runner.programs.lib.events import ProgramError, Stopped
from runner.programs.lib.model import choose_device
from runner.programs.lib.ppo_losses import advantages_of
from runner.programs.lib.rewards import Prompt, make_reward
from runner.programs.train import reward, rl
from tests.programs.recipes import PREFERENCES, StoppingReporter, make_context, values_by_step, write_rows

#: Eight prompts, four times over: small models learn from many draws.
PROMPTS = [{"prompt": f"Say {word}", "reference": word} for word in "abcdefgh"] * 4
FAST = {
    "num_train_epochs": 1000,
    "per_device_train_batch_size": 32,
    "max_seq_length": 64,
    "learning_rate": 2e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "precision": "fp32",
    "reward_function": "regex",
    "reward_pattern": "[aeiou]",
    "max_completion_length": 4,
    "rollout_batch_size": 32,
    "update_epochs": 2,
    "kl_coef": 0.01,
    "kl_target": 0.0,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def parameters_of(base: Path, folder: Path, method: str = "lora", **knobs: Any) -> dict[str, Any]:
    idle = {knob.name for knob in idle_knobs("rl", method, {**FAST, **knobs})}
    knobs = {name: value for name, value in {**FAST, **knobs}.items() if name not in idle}
    return {
        "base_model": str(base),
        "method": method,
        "train_data": write_rows(folder / "prompts.jsonl", PROMPTS),
        "hyperparameters": knobs,
    }


@pytest.mark.slow
def test_ppo_learns_from_a_reward_model(tiny_model_folder: Path, tmp_path: Path) -> None:
    train = {
        "base_model": str(tiny_model_folder),
        "method": "lora",
        "train_data": write_rows(tmp_path / "pairs.jsonl", PREFERENCES),
        "hyperparameters": {"num_train_epochs": 8, "per_device_train_batch_size": 4, "learning_rate": 5e-3},
    }
    reward.main(make_context(tmp_path / "reward", train))
    knobs = {"reward_function": "reward_model", "max_steps": 40}
    parameters = parameters_of(tiny_model_folder, tmp_path, **knobs)
    parameters["train_data"] = write_rows(tmp_path / "prompts.jsonl", PREFERENCES * 8)
    parameters["reward_model"] = {
        "model": str(tiny_model_folder), "adapter": str(tmp_path / "reward" / folder.OUTPUT / "model"),
    }  # fmt: skip
    rl.main(make_context(tmp_path / "run", parameters))
    bundle = json.loads((tmp_path / "run" / folder.OUTPUT / "model/bundle.json").read_text(encoding="utf-8"))
    scored_by = {name: hash_folder(Path(path)) for name, path in parameters["reward_model"].items()}
    assert bundle["reward_fingerprint"] == scored_by
    earned = list(values_by_step(tmp_path / "run", "reward/mean").values())
    # What is drawn early moves all that follows, so the ends of a longer run are compared.
    assert sum(earned[-10:]) / 10 > sum(earned[:10]) / 10 + 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "end"), [("ppo", "stop"), ("ppo", "crash"), ("grpo", "stop"), ("grpo", "crash"), ("rloo", "crash")]
)
def test_a_resumed_run_ends_exactly_like_an_unbroken_one(
    tiny_model_folder: Path, tmp_path: Path, algorithm: str, end: str
) -> None:
    """GRPO and RLOO pass twice over their answers and are broken in between."""
    size: dict[str, Any] = {"max_steps": 6, "save_steps": 2, "rollout_batch_size": 4, "num_generations": 2}
    parameters = parameters_of(tiny_model_folder, tmp_path, algorithm=algorithm, **size)
    rl.main(make_context(tmp_path / "whole", parameters))

    def interrupt() -> None:
        if end == "crash":
            raise KeyboardInterrupt
        context.should_stop = True

    broken = tmp_path / "broken"
    context = make_context(broken, parameters)
    context.report = StoppingReporter(broken, 3, interrupt)
    with pytest.raises(KeyboardInterrupt if end == "crash" else Stopped):
        rl.main(context)
    rl.main(make_context(broken, parameters))
    for name in ("reward/mean", "kl_divergence", "train/loss"):
        assert values_by_step(broken, name) == values_by_step(tmp_path / "whole", name)
    weights = [path / folder.OUTPUT / "model" / "adapter_model.safetensors" for path in (broken, tmp_path / "whole")]
    assert hash_file(weights[0]) == hash_file(weights[1])


def test_every_rule_pays_for_what_it_names() -> None:
    def paid(rule: str, text: str, **knobs: Any) -> float:
        return make_reward({"reward_function": rule, **knobs}, {}, choose_device("fp32"))(prompt, text, len(text))

    prompt = Prompt("line 1", [], [], "eight")
    assert [paid("exact_match", text) for text in (" eight ", "eight keys")] == [1.0, 0.0]
    assert [paid("contains", text) for text in ("eight keys", "nine")] == [1.0, 0.0]
    assert [paid("regex", text, reward_pattern="^e") for text in ("eight", "nine")] == [1.0, 0.0]
    assert [paid("length", text, reward_length=4) for text in ("nine", "nines", "x" * 12)] == [1.0, 0.75, 0.0]


def test_advantages_are_rewards_to_come_less_their_mean() -> None:
    keep = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    earned = torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    advantages, returns = advantages_of(earned, torch.zeros(2, 2), keep, 1.0)
    assert returns.tolist() == [[1.0, 1.0], [0.5, 0.0]]
    assert advantages[0, 0] == advantages[0, 1] > 0 > advantages[1, 0]
    assert advantages[1, 1] == 0


@pytest.mark.parametrize(
    ("knobs", "field", "word"),
    [
        ({"reward_function": "reward_model"}, "reward_model", "choose one, or another reward_function"),
        ({"reward_pattern": ""}, "reward_pattern", "needs reward_pattern"),
        ({"reward_pattern": "("}, "reward_pattern", "is no regular expression"),
        ({"packing": False}, "packing", "rl with method lora does not take it"),
        ({"load_best": True}, "load_best", "give eval_steps"),
        ({"early_stopping_patience": 2}, "early_stopping_patience", "give eval_steps"),
    ],
)
def test_a_reward_that_can_not_be_given_is_refused(
    tiny_model_folder: Path, tmp_path: Path, knobs: dict[str, Any], field: str, word: str
) -> None:
    with pytest.raises(ProgramError, match=word) as caught:
        rl.main(make_context(tmp_path / "run", parameters_of(tiny_model_folder, tmp_path, **knobs)))
    assert caught.value.field == field
