"""What the programs that train, judge and export import sooner or later: a zygote does it once, before any of them."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from runner.programs import evaluate, train
from runner.programs.lib.render import DEFAULT_TEMPLATE, compile_template
from runner.programs.rehearsal import rehearse

#: Imported by programs only once they know that they need it.
LATE = (
    "peft", "peft.tuners.lora.bnb", "peft.utils.transformers_weight_conversion", "datasets", "gguf",
    "trl.trainer.dpo_trainer", "trl.trainer.kto_trainer", "trl.trainer.reward_trainer", "trl.trainer.grpo_trainer",
    "trl.trainer.rloo_trainer", "trl.experimental.cpo", "trl.experimental.orpo",
    "runner.programs.lib.attention", "runner.programs.lib.trainers", "runner.programs.models.export_model",
)  # fmt: skip
#: Imported by the library only when they are first named.
LAZY = (
    "Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "BitsAndBytesConfig", "Trainer",
    "TrainingArguments", "AutoTokenizer",
)  # fmt: skip


def preload() -> None:
    """Import, and fill the caches that are the same for all. Nothing stays open, no thread. Raises ImportError."""
    # Late: whoever only asks what would be loaded must not load it.
    import transformers
    from transformers import conversion_mapping

    library: Any = transformers
    patterns: Any = conversion_mapping
    for name in LAZY:
        getattr(library, name)
    for name in LATE:
        importlib.import_module(name)
    for package in (train, evaluate):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    patterns.get_checkpoint_conversion_mapping("qwen2")  # compiles hundreds of them, for all models
    compile_template(DEFAULT_TEMPLATE)
    rehearse()
