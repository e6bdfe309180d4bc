"""What the programs that train, judge and export import sooner or later: a zygote does it once, before any of them."""

from __future__ import annotations

import importlib
from typing import Any

OURS = (
    "adapters", "answers", "artifacts", "batches", "bundle", "data", "distributed", "lengths", "model", "ppo",
    "preferences", "recipe", "render", "rewards", "train_state", "trainers", "training",
)  # fmt: skip
THEIRS = (
    "peft", "datasets", "gguf", "trl.trainer.dpo_trainer", "trl.trainer.kto_trainer", "trl.trainer.reward_trainer",
    "trl.trainer.grpo_trainer", "trl.trainer.rloo_trainer", "trl.experimental.cpo", "trl.experimental.orpo",
)  # fmt: skip
#: Imported by the library itself only when they are first named.
LAZY = (
    "Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "BitsAndBytesConfig", "Trainer",
    "TrainingArguments", "AutoTokenizer",
)  # fmt: skip


def preload() -> None:
    """Import, and do no more: no model, no device, no thread. Raises ImportError."""
    # Late: whoever only asks what would be loaded must not load it.
    import transformers

    library: Any = transformers
    for name in LAZY:
        getattr(library, name)
    for name in THEIRS:
        importlib.import_module(name)
    for name in OURS:
        importlib.import_module(f"runner.programs.lib.{name}")
    for name in ("generation", "metrics"):
        importlib.import_module(f"runner.programs.evaluate.{name}")
    for name in ("gguf_writer", "modelfile"):
        importlib.import_module(f"runner.programs.serve.{name}")
