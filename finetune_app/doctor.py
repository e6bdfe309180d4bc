"""What to change in a failed fine-tuning so that the next run gets further, ready to be applied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import gettext_noop

from clavier.runs.doctor import Diagnosis, diagnose
from finetune_app.models import FineTuneTask

_LOWEST_LEARNING_RATE = 1e-7
_LONGEST_TIME_LIMIT_S = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Remedy:
    """Changes of a task, such as ``{"per_device_train_batch_size": 4}``, with the reason for people."""

    reason: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, int] = field(default_factory=dict)
    time_limit_s: int | None = None

    def as_json(self) -> dict[str, Any]:
        """What the retry takes: only what changes."""
        parts = {"hyperparameters": self.hyperparameters, "resources": self.resources}
        changes: dict[str, Any] = {name: part for name, part in parts.items() if part}
        return changes | ({"time_limit_s": self.time_limit_s} if self.time_limit_s else {})


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
    """Half the batch with twice the accumulation: the same update from less memory. Then checkpointing, then memory."""
    knobs = task.hyperparameters
    batch = knobs.get("per_device_train_batch_size")
    if isinstance(batch, int) and batch > 1:
        accumulation = knobs.get("gradient_accumulation_steps", 1) * 2
        changes = {"per_device_train_batch_size": batch // 2, "gradient_accumulation_steps": accumulation}
        return Remedy(
            gettext_noop("Half the batch, accumulated twice as often: the same training, less memory."), changes
        )
    if knobs.get("gradient_checkpointing") is False:
        return Remedy(
            gettext_noop("Recompute activations instead of keeping them: about a third slower."),
            {"gradient_checkpointing": True},
        )
    return _more_memory(task)


def _more_memory(task: FineTuneTask) -> Remedy | None:
    memory = task.resources.get("memory_mib")
    if not isinstance(memory, int):
        return None
    return Remedy(gettext_noop("Half as much memory again."), resources={"memory_mib": memory * 3 // 2})


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
    "gpu_out_of_memory": _less_memory,
    "diverged": _calmer,
    "time_limit": _longer,
    "disk_full": _smaller_on_disk,
    "preempted": lambda task: Remedy(gettext_noop("The same again.")),
    "peers_lost": lambda task: Remedy(gettext_noop("The same again.")),
    "infrastructure": lambda task: Remedy(gettext_noop("The same again.")),
}
