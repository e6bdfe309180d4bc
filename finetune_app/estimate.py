"""What a training will need, before it starts: memory, time, tokens and disk, each with a band. Pure functions.

Memory is in ``memory.py``. Time counts 6 operations a token and weight for full training and 4 where the weights stay
frozen (they need no gradient).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from finetune_app.changes import applied, changes
from finetune_app.memory import OPTIMIZER_BYTES, is_by_trainer, peak_memory_bytes, trained_parameters
from finetune_app.shapes import Job, Load, Machine, Shape

Verdict = Literal["fits", "tight", "will_not_fit"]

MIB = 2**20
#: What Python, torch and the model classes hold before any weight is loaded, measured on the CPU build; and what the
#: trainers of transformers and TRL hold besides.
RUNTIME_MIB = 400
TRAINER_MIB = 160
#: Operations a second that training reaches: on one core of a common server, and on one data-centre GPU in bf16.
FLOPS_PER_CORE = 3.0e10
FLOPS_PER_GPU = 2.5e14
#: Seconds from the start of the process to the first step, model loading aside.
START_S = 8.0
LOAD_MIB_PER_S = 300.0
#: How far from the estimate a run may land before any run has calibrated it.
FIRST_SPREAD = 2.0
FIRST_SECONDS_SPREAD = 4.0
LEAST_SPREAD = 1.15
#: The same of tokens that a tokenizer has counted, and that were guessed from bytes.
COUNTED_SPREAD = 1.02
GUESSED_SPREAD = 1.5
#: Bytes of text in a token where no tokenizer has counted: between English (4.2) and Chinese (3.0 in UTF-8).
BYTES_PER_TOKEN = 3.4


@dataclass(frozen=True, slots=True)
class Band:
    """A value and the range in which it is expected."""

    low: float
    expected: float
    high: float

    @classmethod
    def around(cls, value: float, spread: float) -> Band:
        """From value / spread to value x spread."""
        return cls.of(value / spread, value, value * spread)

    @classmethod
    def of(cls, *parts: float) -> Band:
        """Low, expected and high in three significant digits."""
        return cls(*(float(f"{part:.3g}") for part in parts))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What finished runs say: actual over estimated memory and time, and how much each varies (a factor)."""

    num_runs: int = 0
    memory: float = 1.0
    seconds: float = 1.0
    spread: float = FIRST_SPREAD
    seconds_spread: float = FIRST_SECONDS_SPREAD


@dataclass(frozen=True, slots=True)
class Estimate:
    """``memory_mib``: of the GPU when there is one, else of the machine. ``tokens``: read in all epochs.

    ``limit_mib`` and ``verdict`` None: how much memory the GPU has is not known, so nothing can be said of it.

    The factors are the corrections that finished runs have made to the bare formula.
    """

    memory_mib: Band
    seconds: Band
    disk_mib: Band
    tokens: int
    tokens_range: Band
    steps: int
    num_parameters: int
    limit_mib: int | None
    on_gpu: bool
    verdict: Verdict | None
    num_calibrating_runs: int
    memory_factor: float
    seconds_factor: float
    change: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def estimate(shape: Shape, job: Job, load: Load, machine: Machine, calibration: Calibration | None = None) -> Estimate:
    """What the training needs and whether the machine has it, with the smallest change that makes it fit."""
    calibration = calibration or Calibration()
    found = _estimate(shape, job, load, machine, calibration)
    if found.verdict in ("fits", None):
        return found
    for change in changes(job, load, machine, found.memory_mib.high):
        if _estimate(shape, *applied(job, load, machine, change), calibration).verdict == "fits":
            return replace(found, change=change)
    return found


def disk_mib(shape: Shape, job: Job, steps: int) -> Band:
    """The result and the checkpoints that are kept, each with its optimizer states.

    Without ``save_steps`` one is written only where the run is stopped, and where the best is to be the result.
    """
    trained = trained_parameters(shape, job)
    each = trained * (4 + OPTIMIZER_BYTES.get(str(job.knobs.get("optim", "adamw")), 8))
    every, best = int(job.knobs.get("save_steps") or 0), 1 if job.knobs.get("load_best") else 0
    kept = min(steps // every if every else 0, int(job.knobs.get("save_total_limit") or 2))
    counts = (max(kept, best), kept + best, max(1, kept + best))
    low, expected, high = ((trained * 4 + count * each) / MIB for count in counts)
    return Band.of(low / LEAST_SPREAD, expected, high * LEAST_SPREAD)


def fewer_checkpoints(shape: Shape, job: Job, steps: int, left_mib: float) -> dict[str, Any] | None:
    """The smallest change after which the disk may take what is written; None: not even the result fits."""
    for change in ({"save_total_limit": 2}, {"save_steps": 0}):
        if disk_mib(shape, replace(job, knobs={**job.knobs, **change}), steps).low <= left_mib:
            return change
    return None


def _estimate(shape: Shape, job: Job, load: Load, machine: Machine, calibration: Calibration) -> Estimate:
    steps, tokens = _work(job, load, machine)
    peak = peak_memory_bytes(shape, job, load, machine) / MIB + RUNTIME_MIB + (TRAINER_MIB if is_by_trainer(job) else 0)
    memory = Band.around(peak * calibration.memory, calibration.spread)
    return Estimate(
        memory_mib=memory,
        seconds=Band.around(_seconds(shape, job, tokens, machine) * calibration.seconds, calibration.seconds_spread),
        disk_mib=disk_mib(shape, job, steps),
        tokens=tokens,
        tokens_range=Band.around(tokens, COUNTED_SPREAD if load.is_counted else GUESSED_SPREAD),
        steps=steps,
        num_parameters=shape.num_parameters,
        limit_mib=machine.limit_mib,
        on_gpu=machine.is_gpu,
        verdict=_verdict(memory, machine.limit_mib),
        num_calibrating_runs=calibration.num_runs,
        memory_factor=calibration.memory,
        seconds_factor=calibration.seconds,
    )


def _verdict(memory: Band, limit_mib: int | None) -> Verdict | None:
    if limit_mib is None:
        return None
    return "fits" if memory.high <= limit_mib else "will_not_fit" if memory.low > limit_mib else "tight"


def _work(job: Job, load: Load, machine: Machine) -> tuple[int, int]:
    """Optimizer steps and tokens of the whole training."""
    knobs, epochs = job.knobs, float(job.knobs.get("num_train_epochs") or 1)
    if job.recipe == "rl":
        return _work_of_rl(job, load, epochs)
    batch = int(knobs.get("per_device_train_batch_size") or 1) * int(knobs.get("gradient_accumulation_steps") or 1)
    batch *= machine.num_processes
    per_epoch = math.ceil(load.num_rows / batch)
    steps = int(knobs.get("max_steps") or 0) or max(1, round(per_epoch * epochs))
    return steps, round(steps * min(batch, load.num_rows) * load.mean_tokens)


def _work_of_rl(job: Job, load: Load, epochs: float) -> tuple[int, int]:
    """Optimizer steps, or of ppo batches of prompts; tokens that are learned from, answers of full length."""
    knobs = job.knobs
    prompts = min(int(knobs["rollout_batch_size"]), load.num_rows)
    if knobs["algorithm"] == "ppo":
        per_epoch, rows = math.ceil(load.num_rows / prompts), prompts * int(knobs["update_epochs"])
    else:
        per_epoch = load.num_rows // prompts * int(knobs["update_epochs"])
        rows = prompts * int(knobs["num_generations"])
    steps = int(knobs.get("max_steps") or 0) or max(1, round(per_epoch * epochs))
    return steps, round(steps * rows * (load.mean_tokens + int(knobs["max_completion_length"])))


def _seconds(shape: Shape, job: Job, tokens: int, machine: Machine) -> float:
    operations = (6 if job.method == "full" else 4) * (4 / 3 if job.knobs.get("gradient_checkpointing") else 1)
    speed = FLOPS_PER_GPU * machine.gpus if machine.gpus else FLOPS_PER_CORE * max(0.5, machine.cpu_cores)
    loading = shape.num_parameters * 2 / MIB / LOAD_MIB_PER_S
    return START_S + loading + operations * shape.num_parameters * tokens / speed
