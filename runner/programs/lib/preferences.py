"""Preferences as tokens: the prompt once, and each reply up to the token that ends its turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.programs.lib.data import Message, read_preferences, read_verdicts
from runner.programs.lib.events import ProgramError, Reporter
from runner.programs.lib.lengths import LengthPolicy
from runner.programs.lib.render import Renderer


@dataclass(frozen=True, slots=True)
class Pair:
    """A tokenized preference. ``row`` names where it came from."""

    row: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


@dataclass(frozen=True, slots=True)
class Judged:
    """A tokenized reply with its verdict."""

    row: str
    prompt_ids: list[int]
    completion_ids: list[int]
    is_good: bool


def read_pairs(path: Path, renderer: Renderer, lengths: LengthPolicy, say: Reporter) -> list[Pair]:
    """The preferences of a file as tokens. Raises ProgramError with the line of a bad row, or where none is left."""
    pairs = []
    for line_number, preference in read_preferences(path):
        row = f"{path.name} line {line_number}"
        prompt_ids, replies = encode_replies(renderer, preference.prompt, [preference.chosen, preference.rejected], row)
        sizes = lengths.replies(len(prompt_ids), [len(reply) for reply in replies])
        if sizes:
            pairs.append(Pair(row, prompt_ids, replies[0][: sizes[0]], replies[1][: sizes[1]]))
    num_tokens = sum(2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    _tell(path, lengths, len(pairs), num_tokens, say)
    return pairs


def read_judged(path: Path, renderer: Renderer, lengths: LengthPolicy, say: Reporter) -> list[Judged]:
    """The replies with verdicts of a file as tokens. Raises ProgramError as ``read_pairs``."""
    judged = []
    for line_number, verdict in read_verdicts(path):
        row = f"{path.name} line {line_number}"
        prompt_ids, (reply,) = encode_replies(renderer, verdict.prompt, [verdict.completion], row)
        sizes = lengths.replies(len(prompt_ids), [len(reply)])
        if sizes:
            judged.append(Judged(row, prompt_ids, reply[: sizes[0]], verdict.is_good))
    if len({sample.is_good for sample in judged}) == 1:
        word = "liked" if judged[0].is_good else "disliked"
        raise ProgramError("data_invalid", f"every reply of {path.name} is {word}; kto needs both kinds", path.name)
    _tell(path, lengths, len(judged), sum(len(s.prompt_ids) + len(s.completion_ids) for s in judged), say)
    return judged


def encode_replies(
    renderer: Renderer, prompt: Sequence[Message], replies: Sequence[Message], row: str
) -> tuple[list[int], list[list[int]]]:
    """Token ids of the prompt and of each reply after it. Raises ProgramError where a template joins them otherwise."""
    prompt_ids = renderer.encode_prompt(prompt)
    encoded = []
    for reply in replies:
        whole = renderer.encode_conversation([*prompt, reply])
        end = len(whole.is_label) - whole.is_label[::-1].index(True) if any(whole.is_label) else 0
        if whole.token_ids[: len(prompt_ids)] != prompt_ids or end <= len(prompt_ids):
            raise ProgramError("template_failed", f"{row}: the chat template shows the prompt otherwise in an answer")
        encoded.append(whole.token_ids[len(prompt_ids) : end])
    return prompt_ids, encoded


def _tell(path: Path, lengths: LengthPolicy, num_samples: int, num_tokens: int, say: Reporter) -> None:
    if not num_samples:
        message = f"no sample of {path.name} is left to learn from (of {lengths.num_long} too long ones)"
        raise ProgramError("data_empty", message)
    lengths.tell(say, path.name, num_samples, num_tokens)
