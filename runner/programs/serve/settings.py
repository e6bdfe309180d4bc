"""The parameters of a replica, the same for every server."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.programs.lib.events import ProgramError, require
from runner.programs.lib.render import Renderer

MIN_CONTEXT_TOKENS = 16
MAX_PARALLEL = 256
_SERVED_NAME = re.compile(r"[A-Za-z0-9._:@/-]{1,200}")
#: Of a render spec what must be the same in an adapter and its base; which tokens stop is the base's to say.
DECIDED_BY_TUNING = ("chat_template", "special_tokens", "tokenizer_sha256")


@dataclass(frozen=True, slots=True)
class Settings:
    """What one replica serves.

    ``model``: folder; ``adapter``: LoRA folder that is applied to every request, or None; ``served_name``: the model
    name in requests; ``context_tokens``: prompt and answer of one request; ``parallel``: requests answered at a time.
    ``render_hash``: that of the version, by which its files are recognized; empty: unknown.
    """

    model: Path
    adapter: Path | None
    served_name: str
    context_tokens: int
    parallel: int
    render_hash: str = ""

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
            render_hash=str(parameters.get("render_hash") or ""),
        )

    def renderer(self) -> Renderer:
        """What turns conversations into tokens for the model: that with which the version was tuned.

        Raises ProgramError (``render_differs``) where the version's files are no longer those that were registered, or
        an adapter was tuned with another template or tokenizer than its base has.
        """
        renderer = Renderer.from_folder(self.model)
        has_own = self.adapter is not None and (self.adapter / "tokenizer.json").is_file()
        own = Renderer.from_folder(self.adapter) if self.adapter and has_own else renderer
        if self.render_hash and own.render_hash != self.render_hash:
            raise ProgramError(
                "render_differs",
                f"{self.adapter or self.model} turns conversations into other tokens (render hash "
                f"{own.render_hash[:12]}) than when the version was registered ({self.render_hash[:12]}): its template "
                "or tokenizer was changed. Import it anew as another version.",
            )
        other = [part for part in DECIDED_BY_TUNING if own.render_spec[part] != renderer.render_spec[part]]
        if other:
            raise ProgramError(
                "render_differs",
                f"The adapter was tuned with another {' and '.join(other)} than its base model has, so its base's "
                "server would ask it in words that it never saw. Merge it: the merged version brings its own.",
            )
        return renderer


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
