"""What a training will need, before it starts: memory, time, tokens and disk, each with a band. Pure functions.

Memory is what must be held at once: weights, gradients and optimizer states of what is trained, activations of one
forward pass, logits in 32 bits (Korthikanti et al. 2022, section 4, for the activations of a transformer layer). Time
counts 6 operations a token and weight for full training and 4 where the weights stay frozen (they need no gradient).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Verdict = Literal["fits", "tight", "will_not_fit"]

MIB = 2**20
#: What Python, torch and the model classes hold before any weight is loaded, measured on the CPU build.
RUNTIME_MIB = 400
#: Operations a second that training reaches: on one core of a common server, and on one data-centre GPU in bf16.
FLOPS_PER_CORE = 3.0e10
FLOPS_PER_GPU = 2.5e14
#: Seconds from the start of the process to the first step, model loading aside.
START_S = 8.0
LOAD_MIB_PER_S = 300.0
#: How far from the estimate a run may land before any run has calibrated it.
FIRST_SPREAD = 2.0
LEAST_SPREAD = 1.15
#: Bytes of text in a token where no tokenizer has counted: between English (4.2) and Chinese (3.0 in UTF-8).
BYTES_PER_TOKEN = 3.4

_OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2, "adafactor": 0.1, "sgd": 0}
_BYTES_PER_WEIGHT = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformer, as its configuration says it."""

    num_parameters: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Load:
    """What is trained on: rows, and their mean and greatest length in tokens."""

    num_rows: int
    mean_tokens: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What the run may use. ``gpu_memory_mib`` 0: a CPU."""

    memory_mib: int
    cpu_cores: float = 1.0
    gpus: int = 0
    gpu_memory_mib: int = 0


@dataclass(frozen=True, slots=True)
class Band:
    """A value and the range in which it is expected."""

    low: float
    expected: float
    high: float

    @classmethod
    def around(cls, value: float, spread: float) -> Band:
        """From value / spread to value x spread, in three significant digits."""
        return cls(*(float(f"{part:.3g}") for part in (value / spread, value, value * spread)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What finished runs say: actual over estimated memory and time, and how much that varies (a factor)."""

    num_runs: int = 0
    memory: float = 1.0
    seconds: float = 1.0
    spread: float = FIRST_SPREAD


@dataclass(frozen=True, slots=True)
class Estimate:
    """``memory_mib``: of the GPU when there is one, else of the machine. ``tokens``: read in all epochs.

    The factors are the corrections that finished runs have made to the bare formula.
    """

    memory_mib: Band
    seconds: Band
    disk_mib: Band
    tokens: int
    steps: int
    limit_mib: int
    on_gpu: bool
    verdict: Verdict
    num_calibrating_runs: int
    memory_factor: float
    seconds_factor: float
    change: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def shape_of_config(config: Mapping[str, Any], num_parameters: int | None) -> Shape | None:
    """The shape that a ``config.json`` describes; None where it lacks what counts."""
    try:
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads = int(config["num_attention_heads"])
        shape = Shape(
            num_parameters=num_parameters or 0,
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            intermediate_size=int(config.get("intermediate_size") or 4 * hidden),
            vocab_size=int(config["vocab_size"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
    if min(hidden, layers, heads) < 1:
        return None
    return shape if num_parameters else replace(shape, num_parameters=count_parameters(shape))


def count_parameters(shape: Shape) -> int:
    """Weights of a decoder of this shape with tied embeddings and a gated feed-forward layer."""
    per_layer = sum(rows * columns for rows, columns in _matrices(shape)) + 2 * shape.hidden_size
    return shape.vocab_size * shape.hidden_size + shape.num_layers * per_layer


def estimate(
    shape: Shape,
    method: str,
    knobs: Mapping[str, Any],
    load: Load,
    machine: Machine,
    calibration: Calibration | None = None,
) -> Estimate:
    """What the training needs and whether the machine has it, with the smallest change that makes it fit."""
    calibration = calibration or Calibration()
    found = _estimate(shape, method, knobs, load, machine, calibration)
    if found.verdict == "fits":
        return found
    for change in _changes(knobs, machine, found):
        changed = replace(machine, memory_mib=change.get("memory_mib", machine.memory_mib))
        trial = {**knobs, **{name: value for name, value in change.items() if name != "memory_mib"}}
        if _estimate(shape, method, trial, load, changed, calibration).verdict == "fits":
            return replace(found, change=change)
    return found


def peak_memory_bytes(shape: Shape, method: str, knobs: Mapping[str, Any], load: Load, *, on_gpu: bool) -> float:
    """Bytes held at the worst moment, the backward pass of the longest batch; the runtime is not counted."""
    width = _BYTES_PER_WEIGHT["bf16" if on_gpu else "fp32"] if knobs.get("precision", "auto") == "auto" else (
        _BYTES_PER_WEIGHT.get(str(knobs["precision"]), 4.0)
    )  # fmt: skip
    trained = trained_parameters(shape, method, knobs)
    base_width = {4: 0.6, 8: 1.1}.get(int(knobs.get("quantization_bits") or 0), width) if method == "qlora" else width
    weights = shape.num_parameters * base_width + (trained * 4 if method != "full" else 0)
    states = trained * (4 + _OPTIMIZER_BYTES.get(str(knobs.get("optim", "adamw")), 8))
    return weights + states + _activation_bytes(shape, knobs, load, width)


def trained_parameters(shape: Shape, method: str, knobs: Mapping[str, Any]) -> int:
    """Weights that get gradients: all, or the adapters of the usual linear layers."""
    if method == "full":
        return shape.num_parameters
    rank = int(knobs.get("lora_r") or 16)
    return shape.num_layers * sum(rank * (rows + columns) for rows, columns in _matrices(shape))


def _estimate(
    shape: Shape, method: str, knobs: Mapping[str, Any], load: Load, machine: Machine, calibration: Calibration
) -> Estimate:
    on_gpu = machine.gpus > 0 and machine.gpu_memory_mib > 0
    steps, tokens = _work(knobs, load)
    peak = peak_memory_bytes(shape, method, knobs, load, on_gpu=on_gpu) / MIB + RUNTIME_MIB
    memory = Band.around(peak * calibration.memory, calibration.spread)
    limit = machine.gpu_memory_mib if on_gpu else machine.memory_mib
    return Estimate(
        memory_mib=memory,
        seconds=Band.around(
            _seconds(shape, method, knobs, tokens, machine) * calibration.seconds, calibration.spread**2
        ),
        disk_mib=Band.around(_disk_bytes(shape, method, knobs) / MIB, LEAST_SPREAD),
        tokens=tokens,
        steps=steps,
        limit_mib=limit,
        on_gpu=on_gpu,
        verdict="fits" if memory.high <= limit else "will_not_fit" if memory.low > limit else "tight",
        num_calibrating_runs=calibration.num_runs,
        memory_factor=calibration.memory,
        seconds_factor=calibration.seconds,
    )


def _work(knobs: Mapping[str, Any], load: Load) -> tuple[int, int]:
    """Optimizer steps and tokens of the whole training."""
    batch = int(knobs.get("per_device_train_batch_size") or 1) * int(knobs.get("gradient_accumulation_steps") or 1)
    per_epoch = max(1, math.ceil(load.num_rows / batch))
    steps = int(knobs.get("max_steps") or 0) or math.ceil(per_epoch * float(knobs.get("num_train_epochs") or 1))
    return steps, round(steps * min(batch, load.num_rows) * load.mean_tokens)


def _activation_bytes(shape: Shape, knobs: Mapping[str, Any], load: Load, width: float) -> float:
    """Of one forward pass over a batch of the longest samples, with attention that keeps no score matrix."""
    tokens = int(knobs.get("per_device_train_batch_size") or 1) * load.max_tokens
    per_layer = tokens * (12 * shape.hidden_size + 4 * shape.intermediate_size) * width
    kept = tokens * shape.hidden_size * width
    layers = (
        per_layer + shape.num_layers * kept if knobs.get("gradient_checkpointing") else shape.num_layers * per_layer
    )
    return layers + 2 * tokens * shape.vocab_size * 4


def _seconds(shape: Shape, method: str, knobs: Mapping[str, Any], tokens: int, machine: Machine) -> float:
    operations = (6 if method == "full" else 4) * (4 / 3 if knobs.get("gradient_checkpointing") else 1)
    speed = FLOPS_PER_GPU * machine.gpus if machine.gpus else FLOPS_PER_CORE * max(0.5, machine.cpu_cores)
    loading = shape.num_parameters * 2 / MIB / LOAD_MIB_PER_S
    return START_S + loading + operations * shape.num_parameters * tokens / speed


def _disk_bytes(shape: Shape, method: str, knobs: Mapping[str, Any]) -> float:
    """The result and the checkpoints that are kept, each with its optimizer states."""
    trained = trained_parameters(shape, method, knobs)
    result = trained * 4
    kept = int(knobs.get("save_total_limit") or 2) + (1 if knobs.get("load_best") else 0)
    return result + kept * trained * (4 + _OPTIMIZER_BYTES.get(str(knobs.get("optim", "adamw")), 8))


def _changes(knobs: Mapping[str, Any], machine: Machine, found: Estimate) -> list[dict[str, Any]]:
    """What could make it fit, the least intrusive first: the same update from less memory, then other trade-offs."""
    changes: list[dict[str, Any]] = []
    batch = int(knobs.get("per_device_train_batch_size") or 1)
    accumulation = int(knobs.get("gradient_accumulation_steps") or 1)
    smaller: dict[str, Any] = {}
    while batch > 1:
        batch, accumulation = batch // 2, accumulation * 2
        smaller = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        changes.append(smaller)
    if knobs.get("gradient_checkpointing") is False:
        changes += [{"gradient_checkpointing": True}, {**smaller, "gradient_checkpointing": True}]
    if not found.on_gpu:
        changes.append({"memory_mib": math.ceil(found.memory_mib.high / 256) * 256})
    return changes


def _matrices(shape: Shape) -> list[tuple[int, int]]:
    """Rows and columns of the linear layers of one transformer layer."""
    head = shape.hidden_size // shape.num_heads
    keys = head * shape.num_kv_heads
    attention = [(shape.hidden_size, shape.hidden_size)] * 2 + [(shape.hidden_size, keys)] * 2
    return attention + [(shape.hidden_size, shape.intermediate_size)] * 3
