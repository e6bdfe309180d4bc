"""Values of hyperparameters that are each allowed and can not go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Optimizers whose state is as many numbers as the weights, so that it can be shared out with them.
SHARDED_OPTIMIZERS = ("adamw", "sgd")
#: Knobs that compare evaluations, of rl mean rewards.
COMPARING = ("load_best", "early_stopping_patience")


def contradictions(recipe: str, method: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What contradicts other values: (name of one, what to do). Values that were refused may be missing."""
    if recipe == "rl":
        yield from _of_rl(values)
    if values.get("loss_type") == "kto" and values.get("per_device_train_batch_size") == 1:
        message = "kto compares a reply with another one of the same forward pass; take 2 or more, accumulated or not"
        yield "per_device_train_batch_size", message
    if values.get("distributed_strategy") == "fsdp":
        yield from _of_sharding(method, values)


def _of_rl(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in COMPARING:
        if values.get(name) and values.get("eval_steps") == 0:
            yield name, "compares mean rewards; give eval_steps, such as 10"
    if values.get("algorithm") == "ppo" and values.get("precision") == "fp16":
        yield "precision", "ppo scales no losses, and fp16 has no small gradients; use bf16, fp32 or auto"


def _of_sharding(method: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if method == "qlora":
        yield "distributed_strategy", "fsdp shares no quantized weights out; use ddp, or method lora or full"
    if values.get("optim", "adamw") not in SHARDED_OPTIMIZERS:
        yield "optim", f"distributed_strategy fsdp takes {' or '.join(SHARDED_OPTIMIZERS)}; choose one, or ddp"
