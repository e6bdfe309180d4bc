"""What a training is made of, in numbers: the model, the job, the data, the machine. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformer, as its configuration says it. ``max_positions`` 0: it does not say."""

    num_parameters: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    architecture: str = ""
    is_tied: bool = True
    max_positions: int = 0

    @property
    def head_parameters(self) -> int:
        """Of the matrix from the last layer to the vocabulary."""
        return self.vocab_size * self.hidden_size

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Rows and columns of the linear layers of one transformer layer."""
        keys = self.hidden_size // self.num_heads * self.num_kv_heads
        attention = [(self.hidden_size, self.hidden_size)] * 2 + [(self.hidden_size, keys)] * 2
        return attention + [(self.hidden_size, self.intermediate_size)] * 3


@dataclass(frozen=True, slots=True)
class Job:
    """A recipe with its method and all its hyperparameters. ``reward_parameters``: of the model that scores."""

    recipe: str
    method: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    reward_parameters: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """What is trained on: rows, and their mean and greatest length in tokens once they are cut.

    ``longest_tokens``: before they are cut; 0: none was. ``learned_share``: of the tokens; 1: all, or unknown.
    """

    num_rows: int
    mean_tokens: float
    max_tokens: int
    longest_tokens: int = 0
    learned_share: float = 1.0

    def longest_together(self, count: int) -> float:
        """Tokens of the ``count`` longest rows. Lengths fall with a power of the rank, through the longest and mean."""
        longest, half = max(self.longest_tokens, self.max_tokens), self.num_rows / 2
        power = math.log(max(1.0, longest / self.mean_tokens)) / math.log(half) if half > 1 else 0.0
        ranks = range(1, min(count, self.num_rows) + 1)
        return sum(min(float(self.max_tokens), longest * math.pow(rank, -power)) for rank in ranks)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the run may use. ``gpus`` 0: a CPU. ``gpu_memory_mib`` 0: of GPUs that nobody knows the size of.

    ``most_memory_mib``: main memory that could be asked for at most.
    """

    memory_mib: int
    cpu_cores: float = 1.0
    gpus: int = 0
    gpu_memory_mib: int = 0
    most_memory_mib: float = math.inf

    @property
    def is_gpu(self) -> bool:
        """Its memory is that of GPUs."""
        return self.gpus > 0

    @property
    def limit_mib(self) -> int | None:
        """The memory that counts: of one GPU where there are some; None: unknown."""
        return (self.gpu_memory_mib or None) if self.is_gpu else self.memory_mib

    @property
    def num_processes(self) -> int:
        """That train together, each with a GPU."""
        return max(1, self.gpus)


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
            architecture=str((config.get("architectures") or [""])[0]),
            is_tied=bool(config.get("tie_word_embeddings", True)),
            max_positions=int(config.get("max_position_embeddings") or 0),
        )
    except (KeyError, TypeError, ValueError, LookupError):
        return None
    if min(hidden, layers, heads) < 1:
        return None
    if not num_parameters:
        return replace(shape, num_parameters=count_parameters(shape))
    # The number of weights knows better than a configuration, which may leave a default of its class out.
    extra = num_parameters - count_parameters(replace(shape, is_tied=True))
    return replace(shape, is_tied=extra < shape.head_parameters / 2)


def count_parameters(shape: Shape) -> int:
    """Weights of a decoder of this shape with a gated feed-forward layer."""
    per_layer = sum(rows * columns for rows, columns in shape.matrices) + 2 * shape.hidden_size
    heads = 1 if shape.is_tied else 2
    return heads * shape.head_parameters + shape.num_layers * per_layer
