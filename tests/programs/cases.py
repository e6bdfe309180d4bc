"""Every recipe with data that it learns in seconds, for what they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.contract.knobs import RECIPES
from runner.programs.train import classify, preference, pretrain, reward, rl, seq2seq, sft
from tests.programs.recipes import PAIRS, PREFERENCES, QUESTIONS, TEXTS, write_rows

Main = Callable[[Any], None]
PROMPTS = tuple({"prompt": f"Say {letter}"} for letter in "abcdefgh")
#: Case -> program and data. ``seq2seq`` with a causal model is ``sft``, so here it is an encoder-decoder.
CASES: dict[str, tuple[Main, tuple[dict[str, Any], ...]]] = {
    "sft": (sft.main, QUESTIONS),
    "classify": (classify.main, TEXTS),
    "seq2seq": (seq2seq.main, PAIRS),
    "preference": (preference.main, PREFERENCES),
    "reward": (reward.main, PREFERENCES),
    "pretrain": (pretrain.main, ({"text": "The piano has eighty-eight keys. " * 12},)),
    "rl": (rl.main, PROMPTS),
    "rl by grpo": (rl.main, PROMPTS),
}
#: The same programs with the other losses and algorithms of TRL, for what may differ with them.
OTHER_LOSSES: dict[str, tuple[Main, tuple[dict[str, Any], ...]]] = {
    **{f"preference by {loss}": CASES["preference"] for loss in ("ipo", "kto", "orpo", "simpo")},
    "rl by rloo": CASES["rl"],
}
#: Those that have a loss on validation data.
LEARNERS = [name for name in CASES if not name.startswith("rl")]
METHODS = [(case, method) for case in CASES for method in ("full", "lora") if method in RECIPES[case.split()[0]]]
KNOBS: dict[str, Any] = {
    "max_steps": 7,
    "per_device_train_batch_size": 2,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "precision": "fp32",
}
RL: dict[str, Any] = {
    "reward_function": "regex",
    "reward_pattern": "[aeiou]",
    "rollout_batch_size": 4,
    "max_completion_length": 4,
    "update_epochs": 1,
    "eval_steps": 2,
}


def parameters_of(base: Path, folder: Path, case: str, method: str = "full", **knobs: Any) -> dict[str, Any]:
    """The parameters of a case; its data is written into the folder."""
    data = write_rows(folder / "train.jsonl", (CASES | OTHER_LOSSES)[case][1])
    recipe, _, way = case.partition(" by ")
    more: dict[str, Any] = {"sequence_length": 16} if case == "pretrain" else {}
    if case.startswith("rl"):
        more = RL | ({"algorithm": way, "num_generations": 2} if way else {})
    elif way:
        more = {"loss_type": way}
    return {
        "base_model": str(base),
        "method": method,
        "train_data": [data] if case == "pretrain" else data,
        "validation_data": data if recipe in LEARNERS else None,
        "hyperparameters": {**KNOBS, **more, **knobs},
    }


def result_of(run: Path) -> Path:
    """The weights that a run made."""
    return next((run / "output/model").glob("*model.safetensors"))
