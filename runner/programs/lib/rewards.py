"""What an answer earns: the score of a reward model, or a rule over the answer and its reference."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.programs.evaluate.metrics import exact_match
from runner.programs.lib.data import Message, read_prompts
from runner.programs.lib.events import ProgramError, Reporter
from runner.programs.lib.model import Device
from runner.programs.lib.render import Renderer
from runner.programs.lib.scoring import RewardModel


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of reinforcement learning. ``row`` names where it came from; ``reference``: for rules that compare."""

    row: str
    messages: list[Message]
    token_ids: list[int]
    reference: str | None


#: Prompt, text and number of tokens of an answer -> its reward.
Reward = Callable[[Prompt, str, int], float]


def read_task_prompts(
    path: Path, renderer: Renderer, max_tokens: int, knobs: Mapping[str, Any], say: Reporter
) -> list[Prompt]:
    """The prompts of a file as tokens; too long ones are left out. Raises ProgramError with the line of a bad row."""
    needs_reference = knobs["reward_function"] in ("exact_match", "contains")
    prompts, num_long = [], 0
    for line_number, messages, reference in read_prompts(path):
        row = f"{path.name} line {line_number}"
        if needs_reference and not reference:
            message = f"{row} has no reference, which the reward {knobs['reward_function']} compares with"
            raise ProgramError("data_invalid", message, row)
        token_ids = renderer.encode_prompt(messages)
        if len(token_ids) > max_tokens:
            num_long += 1
            continue
        prompts.append(Prompt(row, messages, token_ids, reference))
    if not prompts:
        raise ProgramError("data_empty", f"no prompt of {path.name} is left (of {num_long} too long ones)")
    if num_long:
        say.warning(f"{num_long} prompts are longer than {max_tokens} tokens and left out", "samples_too_long")
    say.phase("data", f"{path.name}: {len(prompts)} prompts")
    return prompts


def make_reward(knobs: Mapping[str, Any], parameters: Mapping[str, Any], device: Device) -> Reward:
    """The reward that the knobs name. Raises ProgramError where it lacks its model or pattern."""
    rule = knobs["reward_function"]
    if rule == "reward_model":
        return _scored_by_model(parameters.get("reward_model"), device)
    if rule == "regex":
        return _matches(knobs["reward_pattern"])
    if rule == "length":
        wanted = knobs["reward_length"]
        return lambda _prompt, _text, size: max(0.0, 1.0 - abs(size - wanted) / wanted)
    if rule == "contains":
        return lambda prompt, text, _size: float((prompt.reference or "") in text)
    return lambda prompt, text, _size: exact_match(text, prompt.reference or "")


def _matches(pattern: str) -> Reward:
    if not pattern:
        message = "the reward regex needs reward_pattern, a regular expression"
        raise ProgramError("hyperparameters_invalid", message, "reward_pattern")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        message = f"reward_pattern {pattern!r} is no regular expression: {error}"
        raise ProgramError("hyperparameters_invalid", message, "reward_pattern") from None
    return lambda _prompt, text, _size: float(compiled.search(text) is not None)


def _scored_by_model(given: Any, device: Device) -> Reward:
    """A checkpoint of the recipe ``reward``: ``{"model": folder, "adapter": folder or null}``."""
    if not isinstance(given, Mapping) or not given.get("model"):
        message = "the reward reward_model needs the parameter reward_model; choose one, or another reward_function"
        raise ProgramError("parameter_missing", message, "reward_model")
    model = RewardModel(Path(given["model"]), given.get("adapter"), device)

    def score(prompt: Prompt, text: str, _size: int) -> float:
        return model.scores([model.encode([*prompt.messages, {"role": "assistant", "content": text}], prompt.row)])[0]

    return score


def rewards_of(reward: Reward, prompts: Sequence[Prompt], texts: Sequence[str], sizes: Sequence[int]) -> list[float]:
    """The rewards of answers, one a prompt."""
    return [reward(prompt, text, size) for prompt, text, size in zip(prompts, texts, sizes, strict=True)]
