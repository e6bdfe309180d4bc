"""What safetensors files hold, by their headers; tensors are read one at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.programs.lib.events import ProgramError

if TYPE_CHECKING:
    import torch

#: Smaller models are served in float32: it costs nothing, and greedy text equals the evaluator's.
FULL_PRECISION_BELOW = 100_000_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in a safetensors file, not yet read. ``dtype``: safetensors' name, like ``BF16``."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]

    def load(self) -> torch.Tensor:
        """The tensor, in the type in which it is stored."""
        from safetensors import safe_open

        with safe_open(str(self.file), framework="pt") as stream:
            tensor: torch.Tensor = stream.get_tensor(self.key)
        return tensor


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a model or adapter folder by name. Raises ProgramError (code ``no_weights``)."""
    from safetensors import safe_open

    stored: dict[str, StoredTensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as stream:
            for key in stream.keys():  # noqa: SIM118 - a safetensors file is not a dict
                view = stream.get_slice(key)
                stored[key] = StoredTensor(file, key, str(view.get_dtype()), tuple(view.get_shape()))
    if not stored:
        raise ProgramError("no_weights", f"{folder} holds no *.safetensors file.", field="model")
    return stored


def num_parameters(tensors: Mapping[str, StoredTensor]) -> int:
    """Number of values in all tensors."""
    return sum(math.prod(tensor.shape) for tensor in tensors.values())
