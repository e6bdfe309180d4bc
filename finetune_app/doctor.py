"""What to change in a failed fine-tuning so that the next run gets further, ready to be applied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from django.utils.translation import gettext_noop

from clavier.runs.doctor import Diagnosis, diagnose
from finetune_app.changes import Kind, Move, applied, moves
from finetune_app.forecast import job_of, load_of, shape_of
from finetune_app.machines import machine_of, roomiest
from finetune_app.memory import peak_memory_bytes
from finetune_app.models import FineTuneTask
from finetune_app.shapes import Job, Machine

_LOWEST_LEARNING_RATE = 1e-7
_LONGEST_TIME_LIMIT_S = 30 * 24 * 3600
#: A move helps where it leaves at most so much of the memory.
_FELT = 0.95
#: Hyperparameters of own code that mean what ours of that name mean.
_OWN_KNOBS = ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "max_seq_length")
_REASONS: dict[Kind, str] = {
    "batch": gettext_noop("Smaller batches, accumulated more often: the same training, less memory."),
    "updates": gettext_noop("Smaller batches: less memory, more and smaller updates."),
    "checkpointing": gettext_noop("Recompute activations instead of keeping them: about a third slower."),
    "optimizer": gettext_noop("Keep the state of the optimizer in 8 bits."),
    "qlora": gettext_noop("Keep the frozen base in 4 bits (QLoRA)."),
    "length": gettext_noop("Shorter samples; length_policy says what happens to longer ones."),
    "sequence": gettext_noop("Shorter training sequences."),
}


@dataclass(frozen=True, slots=True)
class Remedy:
    """Changes of a task, such as ``{"per_device_train_batch_size": 4}``, with the reason for people."""

    reason: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, int] = field(default_factory=dict)
    time_limit_s: int | None = None
    method: str = ""

    def as_json(self) -> dict[str, Any]:
        """What the retry takes: only what changes."""
        parts = {"hyperparameters": self.hyperparameters, "resources": self.resources}
        changes: dict[str, Any] = {name: part for name, part in parts.items() if part}
        changes |= {"time_limit_s": self.time_limit_s} if self.time_limit_s else {}
        return changes | ({"method": self.method} if self.method else {})


def examine_task(task: FineTuneTask) -> tuple[Diagnosis, Remedy | None] | None:
    """Diagnosis and remedy of a task whose newest run failed; None when it did not."""
    diagnosis = diagnose(task.run) if task.run is not None else None
    if diagnosis is None:
        return None
    return diagnosis, remedy_for(diagnosis.kind, task)


def remedy_for(kind: str, task: FineTuneTask) -> Remedy | None:
    """The smallest change that is likely to help, None where only a person can tell."""
    make = _REMEDIES.get(kind)
    return make(task) if make is not None else None


def _less_memory(task: FineTuneTask) -> Remedy | None:
    """The process held too much main memory. With a GPU that is data and libraries, which only more memory helps."""
    machine = roomiest(machine_of(task), task)
    if machine.is_gpu:
        return _more_memory(task, machine)
    found = _helping(task, machine)
    mild = [move for move in found if move.kind in ("batch", "updates", "checkpointing")]
    return _as_remedy(mild) or _more_memory(task, machine) or _as_remedy(found)


def _less_gpu_memory(task: FineTuneTask) -> Remedy | None:
    """More main memory is no help to a GPU. A run that found one without asking for it has one too."""
    machine = roomiest(machine_of(task), task)
    return _as_remedy(_helping(task, machine if machine.is_gpu else replace(machine, gpus=1)))


def _as_remedy(found: list[Move]) -> Remedy | None:
    """The first of several moves."""
    if not found:
        return None
    knobs = {name: value for name, value in found[0].values.items() if name != "method"}
    return Remedy(_REASONS[found[0].kind], knobs, method=found[0].values.get("method", ""))


def _helping(task: FineTuneTask, machine: Machine) -> list[Move]:
    """Moves after which less memory is held by the estimate; where there is none, all that can be made."""
    if task.create_way == "custom":
        return _known_to_own_code(task)
    job, shape = job_of(task), shape_of(task)
    if shape is None or task.train_dataset is None:
        return moves(job, None)
    load = load_of(task, shape)
    now = peak_memory_bytes(shape, job, load, machine)
    return [
        move
        for move in moves(job, load)
        if peak_memory_bytes(shape, *applied(job, load, machine, move.values)) < now * _FELT
    ]


def _known_to_own_code(task: FineTuneTask) -> list[Move]:
    """Moves of hyperparameters that the owner's code has already, by the names of ours."""
    job = Job("sft", "lora", {name: value for name, value in task.hyperparameters.items() if name in _OWN_KNOBS})
    return [move for move in moves(job, None) if set(move.values) <= set(task.hyperparameters)]


def _more_memory(task: FineTuneTask, machine: Machine) -> Remedy | None:
    memory = min(machine.memory_mib * 3 // 2, machine.most_memory_mib)
    if not machine.memory_mib < memory:
        return None
    return Remedy(gettext_noop("More memory."), resources={"memory_mib": int(memory)})


def _calmer(task: FineTuneTask) -> Remedy | None:
    rate = task.hyperparameters.get("learning_rate")
    if not isinstance(rate, float) or rate <= _LOWEST_LEARNING_RATE:
        return None
    changes: dict[str, Any] = {"learning_rate": float(f"{rate / 5:.3g}")}
    if task.hyperparameters.get("warmup_ratio", 1.0) < 0.1:
        changes["warmup_ratio"] = 0.1
    if task.hyperparameters.get("max_grad_norm") == 0.0:
        changes["max_grad_norm"] = 1.0
    return Remedy(gettext_noop("A fifth of the learning rate, with a longer warm-up and clipped gradients."), changes)


def _longer(task: FineTuneTask) -> Remedy | None:
    limit = min(_LONGEST_TIME_LIMIT_S, (task.time_limit_s or 0) * 2)
    if limit <= (task.time_limit_s or 0):
        return None
    return Remedy(gettext_noop("Twice the time."), time_limit_s=limit)


def _smaller_on_disk(task: FineTuneTask) -> Remedy | None:
    if task.hyperparameters.get("save_total_limit", 2) > 2:
        return Remedy(gettext_noop("Keep the two newest checkpoints only."), {"save_total_limit": 2})
    if task.hyperparameters.get("save_steps"):
        return Remedy(gettext_noop("Save no checkpoint on the way, only when the run is stopped."), {"save_steps": 0})
    return None


_REMEDIES: dict[str, Callable[[FineTuneTask], Remedy | None]] = {
    "out_of_memory": _less_memory,
    "gpu_out_of_memory": _less_gpu_memory,
    "diverged": _calmer,
    "time_limit": _longer,
    "disk_full": _smaller_on_disk,
    "preempted": lambda task: Remedy(gettext_noop("The same again.")),
    "peers_lost": lambda task: Remedy(gettext_noop("The same again.")),
    "infrastructure": lambda task: Remedy(gettext_noop("The same again.")),
}
