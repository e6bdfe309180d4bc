"""How hard a task is, as three words: each stands for values of documented knobs that a user may still change.

simple: a first try or a few hundred short samples; medium: the knob table's own defaults; complex: many or long
samples, where a lower learning rate with a larger adapter and a validation loss on the way pay off.
"""

from __future__ import annotations

from typing import Any

COMPLEXITIES: dict[str, dict[str, Any]] = {
    "simple": {
        "num_train_epochs": 2,
        "learning_rate": 3e-4,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_seq_length": 512,
        "lora_r": 8,
        "lora_alpha": 16,
        "eval_steps": 0,
    },
    "medium": {
        "num_train_epochs": 3,
        "learning_rate": 2e-4,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_seq_length": 1024,
        "lora_r": 16,
        "lora_alpha": 32,
        "eval_steps": 0,
    },
    "complex": {
        "num_train_epochs": 5,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "max_seq_length": 2048,
        "lora_r": 64,
        "lora_alpha": 128,
        "eval_steps": 50,
    },
}
