"""The parameters of a replica, the same for every server."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.programs.lib.events import ProgramError, require

MIN_CONTEXT_TOKENS = 16
MAX_PARALLEL = 256
_SERVED_NAME = re.compile(r"[A-Za-z0-9._:@/-]{1,200}")


@dataclass(frozen=True, slots=True)
class Settings:
    """What one replica serves.

    ``model``: folder; ``adapter``: LoRA folder that is applied to every request, or None; ``served_name``: the model
    name in requests; ``context_tokens``: prompt and answer of one request; ``parallel``: requests answered at a time.
    """

    model: Path
    adapter: Path | None
    served_name: str
    context_tokens: int
    parallel: int

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Settings:
        """Checked settings. Raises ProgramError naming the parameter that is missing or out of range."""
        model = _folder(require(parameters, "model"), "model", "config.json")
        adapter = parameters.get("adapter")
        longest = int(json.loads((model / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"])
        return cls(
            model=model,
            adapter=_folder(adapter, "adapter", "adapter_config.json") if adapter else None,
            served_name=_served_name(str(require(parameters, "served_name"))),
            context_tokens=_number(parameters, "context_tokens", longest, MIN_CONTEXT_TOKENS, longest),
            parallel=_number(parameters, "parallel", 1, 1, MAX_PARALLEL),
        )


def _folder(value: Any, name: str, must_hold: str) -> Path:
    folder = Path(str(value))
    if not (folder / must_hold).is_file():
        raise ProgramError(f"{name}_missing", f"{name} is {folder}, which holds no {must_hold}.", field=name)
    return folder


def _served_name(name: str) -> str:
    if not _SERVED_NAME.fullmatch(name):
        raise ProgramError(
            "served_name_invalid",
            f"served_name is {name!r}; letters, digits and . _ - : @ / are allowed, at most 200.",
            field="served_name",
        )
    return name


def _number(parameters: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = parameters.get(name)
    number = default if value is None else value
    if not isinstance(number, int) or not low <= number <= high:
        raise ProgramError(f"{name}_invalid", f"{name} is {number}; allowed are {low} to {high}.", field=name)
    return number
