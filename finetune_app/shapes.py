"""What a training is made of, in numbers: the model, the job, the data, the machine. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformer, as its configuration says it. ``max_positions`` 0: it does not say.

    ``head_size`` 0: the width is shared out among the heads. ``num_layers``: that a token passes; of an encoder-decoder
    those of the encoder, beside ``num_decoder_layers``. ``is_gated``: feed-forward layers have a third matrix.
    """

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
    head_size: int = 0
    num_decoder_layers: int = 0
    is_gated: bool = True

    @property
    def head_parameters(self) -> int:
        """Of the matrix from the last layer to the vocabulary."""
        return self.vocab_size * self.hidden_size

    @property
    def query_size(self) -> int:
        """Numbers of a token's queries in all heads."""
        return self.num_heads * self.head_size if self.head_size else self.hidden_size

    @property
    def key_size(self) -> int:
        """Numbers of a token's keys in all heads; of its values as many."""
        return (self.head_size or self.hidden_size // self.num_heads) * self.num_kv_heads

    @property
    def attention(self) -> list[tuple[int, int]]:
        """Rows and columns of what makes queries, keys and values, and of what puts the answers together."""
        return [(self.hidden_size, self.query_size)] * 2 + [(self.hidden_size, self.key_size)] * 2

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Rows and columns of the linear layers of one transformer layer."""
        return self.attention + [(self.hidden_size, self.intermediate_size)] * (3 if self.is_gated else 2)

    @property
    def all_matrices(self) -> list[tuple[int, int]]:
        """Of all layers; one of a decoder beside an encoder has attention twice."""
        return self.matrices * self.num_layers + (self.matrices + self.attention) * self.num_decoder_layers


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
    ``is_counted``: by a tokenizer, not guessed from bytes.
    """

    num_rows: int
    mean_tokens: float
    max_tokens: int
    longest_tokens: int = 0
    learned_share: float = 1.0
    is_counted: bool = False

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
        shape = _read_shape(config)
    except (KeyError, TypeError, ValueError, LookupError, OverflowError):
        return None
    sizes = (shape.hidden_size, shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.intermediate_size)
    if min(*sizes, shape.vocab_size) < 1 or min(shape.max_positions, shape.head_size, shape.num_decoder_layers) < 0:
        return None
    if not num_parameters:
        return replace(shape, num_parameters=count_parameters(shape))
    # The number of weights knows better than a configuration, which may leave a default of its class out.
    extra = num_parameters - count_parameters(replace(shape, is_tied=True))
    return replace(shape, num_parameters=num_parameters, is_tied=extra < shape.head_parameters / 2)


def count_parameters(shape: Shape) -> int:
    """Weights of a model of this shape."""
    heads = 1 if shape.is_tied else 2
    norms = 2 * shape.hidden_size * (shape.num_layers + shape.num_decoder_layers)
    return heads * shape.head_parameters + norms + sum(rows * columns for rows, columns in shape.all_matrices)


#: A size -> how architectures of transformers call it: most, T5, GPT-2 and its kin, MPT, BART.
NAMES = {
    "hidden": ("hidden_size", "d_model", "n_embd"),
    "layers": ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers"),
    "heads": ("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads"),
    "inner": ("intermediate_size", "d_ff", "n_inner", "ffn_dim", "encoder_ffn_dim"),
    "head": ("head_dim", "d_kv"),
    "decoder": ("num_decoder_layers", "decoder_layers"),
}


def _read_shape(config: Mapping[str, Any]) -> Shape:
    """Raises KeyError and whatever the kinds of values do that no configuration has."""

    def size(what: str) -> int | None:
        found = next((config[name] for name in NAMES[what] if config.get(name) is not None), None)
        return None if found is None else int(found)

    hidden, layers, heads = size("hidden"), size("layers"), size("heads")
    if hidden is None or layers is None or heads is None:
        raise KeyError("hidden_size, num_hidden_layers and num_attention_heads")
    # Relative positions have no end; what a T5 says of them is how long its samples were.
    positions = config.get("max_position_embeddings") or (config.get("n_positions") if "n_embd" in config else 0)
    return Shape(
        num_parameters=0,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        intermediate_size=size("inner") or 4 * hidden,
        vocab_size=int(config["vocab_size"]),
        architecture=str((config.get("architectures") or [""])[0]),
        is_tied=bool(config.get("tie_word_embeddings", True)),
        max_positions=int(positions or 0),
        head_size=size("head") or 0,
        num_decoder_layers=(size("decoder") or layers) if config.get("is_encoder_decoder") else 0,
        is_gated="hidden_size" in config or "gated" in str(config.get("feed_forward_proj")),
    )
