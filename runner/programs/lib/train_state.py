"""The whole state of a training as files: weights, optimizer, random numbers, position. Never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from runner.programs.lib.sharding import kept, share_of

#: A loss so many times the mean of the last steps, and twice the first one, is a training that has gone off.
SPIKE = 5.0
SPIKE_OF_FIRST = 2.0
#: Between the names of nested state in a file.
NESTED = "/"


@dataclass(slots=True)
class Progress:
    """Where a training stands. Losses: nats per labelled token; ``loss_sum``, ``clipped_count``: of the steps since
    the last log; ``best_loss``: with rl the highest mean reward, negative; ``reward_sum``, ``reward_count``: of the
    answers since rewards were last looked at; ``mean_loss``: of the last steps, newer ones weigh more; ``loss_scale``:
    of fp16, with the steps since it was too large."""

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    train_loss: float | None = None
    eval_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    first_loss: float | None = None
    mean_loss: float = 0.0
    clipped_count: int = 0
    loss_scale: float = 1.0
    finite_steps: int = 0
    reward_sum: float = 0.0
    reward_count: int = 0

    def note(self, loss: float) -> bool:
        """Remember an evaluation of this step; True where it is the best so far."""
        improved = self.best_loss is None or loss < self.best_loss
        if improved:
            self.best_loss, self.best_step, self.evaluations_without_gain = loss, self.step, 0
        else:
            self.evaluations_without_gain += 1
        return improved

    def note_rewards(self) -> tuple[float, bool]:
        """The mean reward since the last call, and whether it is the best so far."""
        mean = self.reward_sum / self.reward_count
        self.reward_sum, self.reward_count = 0.0, 0
        return mean, self.note(-mean)

    def leap(self, loss: float, least: float = 0.0) -> float | None:
        """How many times the mean of the last steps a step's loss is, where that is a training that has gone off.

        ``least``: nats below which no loss is.
        """
        if self.first_loss is None:
            self.first_loss = self.mean_loss = loss
        if loss > max(least, SPIKE * self.mean_loss, SPIKE_OF_FIRST * self.first_loss):
            return loss / self.mean_loss
        self.mean_loss = 0.9 * self.mean_loss + 0.1 * loss
        return None

    def is_patience_over(self, patience: int) -> bool:
        """``patience`` evaluations have brought nothing; 0: never."""
        return bool(patience) and self.evaluations_without_gain >= patience


@dataclass(frozen=True, slots=True)
class Gathered:
    """Weights and optimizer state, whole; on the CPU where they were shared out before."""

    weights: Mapping[str, torch.Tensor]
    tensors: Mapping[str, torch.Tensor]
    plain: Mapping[str, Any]
    param_groups: Any


def gathered_state(trainable: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> Gathered:
    """The state of a training; every process must ask for it where the weights are shared out."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {}
    for index, values in state["state"].items():
        for name, value in _flat(values).items():
            if isinstance(value, torch.Tensor):
                # Nested tables are shared between parameters, which a file can not say.
                tensors[f"{index}.{name}"] = value.clone() if NESTED in name else kept(value)
            else:
                plain[f"{index}.{name}"] = value
    weights = {name: kept(parameter.detach()) for name, parameter in trainable.items()}
    return Gathered(weights, tensors, plain, state["param_groups"])


def write_state(target: Path, state: Gathered, progress: Progress) -> None:
    """Write everything that ``restore_state`` needs into an empty folder."""
    save_file(dict(state.weights), target / "weights.safetensors")
    save_file(dict(state.tensors), target / "optimizer.safetensors")
    save_file(random_states(), target / "random.safetensors")
    described = {"progress": asdict(progress), "optimizer_plain": state.plain, "param_groups": state.param_groups}
    (target / "state.json").write_text(json.dumps(described), encoding="utf-8")


def restore_state(
    source: Path, trainable: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer | None
) -> Progress:
    """Load a sealed checkpoint into weights, optimizer and random numbers; ``optimizer`` None: the weights only."""
    weights = load_file(source / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(share_of(weights[name], parameter))
    described = json.loads((source / "state.json").read_text(encoding="utf-8"))
    if optimizer is not None:
        state: dict[int, dict[str, Any]] = {}
        tensors = load_file(source / "optimizer.safetensors")
        owners = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for key, value in [*tensors.items(), *described["optimizer_plain"].items()]:
            index, name = key.split(".", 1)
            *outer, inner = name.split(NESTED)
            values = state.setdefault(int(index), {})
            for part in outer:
                values = values.setdefault(part, {})
            values[inner] = share_of(value, owners[int(index)]) if isinstance(value, torch.Tensor) else value
        optimizer.load_state_dict({"state": state, "param_groups": described["param_groups"]})
        restore_random_states(load_file(source / "random.safetensors"))
    return Progress(**described["progress"])


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The state of one parameter without nesting; bitsandbytes keeps its 8-bit numbers one level deeper."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = _flat(value) if isinstance(value, Mapping) else {"": value}
        flat |= {f"{name}{NESTED}{key}" if key else name: found for key, found in inner.items()}
    return flat


def restore_random(source: Path) -> None:
    """Load the random numbers alone of a sealed checkpoint."""
    restore_random_states(load_file(source / "random.safetensors"))


def seed_all(seed: int) -> None:
    """Every source of random numbers. Without a GPU torch would still take down the stack for each kind of one."""
    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def random_states() -> dict[str, torch.Tensor]:
    """The state of every source of random numbers."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, torch.Tensor]) -> None:
    """Go on drawing where ``random_states`` was called."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
