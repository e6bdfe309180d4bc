"""What could be changed so that a training takes less memory, the least intrusive first. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from finetune_app.shapes import Job, Load, Machine
from runner.contract.knob_values import RECIPES
from runner.contract.knobs import KNOBS, HyperparametersInvalid, check_hyperparameters, knobs_of

#: ``batch``: the same updates from smaller passes; ``updates``: smaller passes that are also smaller updates.
Kind = Literal["batch", "updates", "checkpointing", "memory", "optimizer", "qlora", "length", "sequence"]
#: Shorter rows than these are no help to anybody.
SHORTEST_ROW = 64
#: Memory is asked for in such steps.
MEMORY_STEP_MIB = 256
BATCH, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"


@dataclass(frozen=True, slots=True)
class Move:
    """One thing that is changed. ``values``: of hyperparameters, of ``method``, or of the resource ``memory_mib``."""

    kind: Kind
    values: dict[str, Any]


def moves(job: Job, load: Load | None) -> list[Move]:
    """All that can be changed of a job by itself, in the order in which it should be tried; main memory aside.

    ``load`` None: the lengths of the rows are not known.
    """
    found = [Move("updates" if job.knobs.get("algorithm") == "ppo" else "batch", values) for values in _batches(job)]
    if job.knobs.get("gradient_checkpointing") is False:
        found.append(Move("checkpointing", {"gradient_checkpointing": True}))
    if job.knobs.get("optim") == "adamw":
        found.append(Move("optimizer", {"optim": "adamw_8bit"}))
    if job.method == "lora" and "qlora" in RECIPES.get(job.recipe, ()):
        found.append(Move("qlora", {"method": "qlora"}))
    found += [Move("sequence" if "sequence_length" in values else "length", values) for values in _lengths(job, load)]
    return [move for move in found if is_allowed(job, move.values)]


def changes(job: Job, load: Load, machine: Machine, needed_mib: float) -> Iterator[dict[str, Any]]:
    """Moves and what they do together: first what leaves the training the same, then memory, then other trade-offs."""
    found = moves(job, load)
    least: dict[str, Any] = {}
    for kinds in (("batch", "updates"), ("checkpointing",)):
        same = [move.values for move in found if move.kind in kinds]
        yield from same
        if same and least:
            yield {**least, **same[-1]}
        least |= same[-1] if same else {}
    more_mib = math.ceil(needed_mib / MEMORY_STEP_MIB) * MEMORY_STEP_MIB
    if not machine.is_gpu and more_mib <= machine.most_memory_mib:
        yield {"memory_mib": more_mib}
    frugal = dict(least)
    for move in found:
        if move.kind in ("optimizer", "qlora", "length", "sequence"):
            yield move.values
            yield {**least, **move.values}
            frugal |= move.values
            yield dict(frugal)


def applied(job: Job, load: Load, machine: Machine, change: Mapping[str, Any]) -> tuple[Job, Load, Machine]:
    """Job, load and machine as they are with a change."""
    changed = replace(job, method=change.get("method", job.method), knobs=_knobs_with(job, change))
    return changed, _cut(job, load, change), replace(machine, memory_mib=change.get("memory_mib", machine.memory_mib))


def is_allowed(job: Job, values: Mapping[str, Any]) -> bool:
    """Whether the recipe takes the values with its method and beside its other values."""
    try:
        check_hyperparameters(job.recipe, values.get("method", job.method), _knobs_with(job, values))
    except HyperparametersInvalid:
        return False
    return True


def carried(recipe: str, method: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that go along to another method: all but defaults of those that it does not take.

    What was set and is not taken stays, and is refused by the check that follows.
    """
    defaults = {knob.name: knob.default for knob in KNOBS}
    taken = {knob.name for knob in knobs_of(recipe, method)}
    return {name: value for name, value in knobs.items() if name in taken or value != defaults.get(name)}


def _knobs_with(job: Job, change: Mapping[str, Any]) -> dict[str, Any]:
    knobs = {**job.knobs, **{name: value for name, value in change.items() if name not in ("memory_mib", "method")}}
    method = change.get("method", job.method)
    return knobs if method == job.method else carried(job.recipe, method, knobs)


def _batches(job: Job) -> Iterator[dict[str, Any]]:
    """Smaller batches that divide the batch, the largest first, with the accumulation that keeps the update as it is.

    Reinforcement learning takes no accumulation: TRL's own keeps the update, and for ppo a batch is an update.
    """
    batch = job.knobs.get(BATCH)
    if not isinstance(batch, int):
        return
    for size in range(batch // 2, 0, -1):
        if batch % size == 0:
            more = {ACCUMULATION: int(job.knobs.get(ACCUMULATION) or 1) * (batch // size)}
            yield {BATCH: size, **(more if job.recipe != "rl" else {})}


def _lengths(job: Job, load: Load | None) -> Iterator[dict[str, Any]]:
    """Halves of the longest row, and their halves. An answer in reinforcement learning needs room for its prompt."""
    name = "sequence_length" if "sequence_length" in job.knobs else "max_seq_length"
    length = job.knobs.get(name)
    if not isinstance(length, int):
        return
    answer = int(job.knobs.get("max_completion_length") or 0)
    if load is not None and name == "max_seq_length":
        length = min(length, load.max_tokens + answer)
    while (length := length // 2) >= max(SHORTEST_ROW, 2 * answer):
        yield {name: length}


def _cut(job: Job, load: Load, change: Mapping[str, Any]) -> Load:
    """The load with shorter rows; text that is packed into sequences becomes more of them."""
    if "sequence_length" in change:
        length = int(change["sequence_length"])
        rows = round(load.num_rows * int(job.knobs["sequence_length"]) / length)
        return replace(load, num_rows=rows, mean_tokens=length, max_tokens=length)
    if "max_seq_length" in change:
        length = int(change["max_seq_length"])
        return replace(load, mean_tokens=min(length, load.mean_tokens), max_tokens=min(length, load.max_tokens))
    return load
