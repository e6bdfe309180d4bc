"""What happens to samples that are longer than a model reads, and how much of what they teach is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.programs.lib.events import Reporter
from runner.programs.lib.model import model_config


class LengthPolicy:
    """Cuts, drops or splits long samples. ``max_tokens``: of one sample; ``policy``: truncate, drop or split."""

    def __init__(self, max_tokens: int, policy: str) -> None:
        self.max_tokens = max_tokens
        self.policy = policy
        self._num_long = 0
        self._num_labels = 0
        self._num_lost = 0
        self._num_source = 0
        self._num_source_lost = 0

    def spans(self, is_label: Sequence[bool]) -> list[tuple[int, int]]:
        """Which parts of a sample are kept, as (start, end); parts without a label are left out."""
        size, limit = len(is_label), self.max_tokens
        if size <= limit or self.policy == "split":
            spans = [(start, min(start + limit, size)) for start in range(0, size, limit)]
        else:
            spans = [(0, limit)] if self.policy == "truncate" else []
        # The first token of a part has nothing before it and is never learned.
        kept = [(start, end) for start, end in spans if any(is_label[start + 1 : end])]
        self._count(sum(is_label), sum(sum(is_label[start:end]) for start, end in kept), is_long=size > limit)
        return kept

    def replies(self, prompt_size: int, sizes: Sequence[int]) -> list[int] | None:
        """How many tokens of each reply to a prompt are kept; None where the sample is dropped."""
        room = self.max_tokens - prompt_size
        is_long = max(sizes) > room
        kept = [min(size, room) for size in sizes] if not is_long or self.policy != "drop" else []
        kept = kept if kept and min(kept) > 0 else []
        self._count(sum(sizes), sum(kept), is_long=is_long)
        return kept or None

    def pair(self, source_size: int, target_size: int) -> tuple[int, int] | None:
        """How many tokens are kept of a source and its target, which an encoder-decoder reads apart; None: dropped."""
        is_long = max(source_size, target_size) > self.max_tokens
        is_kept = not is_long or self.policy != "drop"
        source, target = (min(size, self.max_tokens) if is_kept else 0 for size in (source_size, target_size))
        self._count(target_size, target, is_long=is_long)
        self._num_source += source_size
        self._num_source_lost += source_size - source
        return (source, target) if is_kept else None

    def tell(self, say: Reporter, source: str, num_samples: int, num_tokens: int) -> None:
        """Report what was read, and warn where samples were too long."""
        num_kept = self._num_labels - self._num_lost
        say.phase("data", f"{source}: {num_samples} samples, {num_tokens} tokens, {num_kept} of them learned")
        if self._num_long:
            lost = f"{self._num_lost / max(1, self._num_labels):.1%} of the answer tokens"
            if self._num_source:
                lost += f" and {self._num_source_lost / self._num_source:.1%} of the source tokens"
            say.warning(
                f"{self._num_long} samples are longer than {self.max_tokens} tokens ({self.policy}): {lost} are lost",
                "samples_too_long",
            )

    @property
    def counts(self) -> list[int]:
        """What was counted, to be kept: long samples, answer tokens, lost ones of them."""
        return [self._num_long, self._num_labels, self._num_lost]

    @counts.setter
    def counts(self, counts: Sequence[int]) -> None:
        self._num_long, self._num_labels, self._num_lost = counts

    @property
    def num_long(self) -> int:
        """Samples that were too long."""
        return self._num_long

    def _count(self, num_labels: int, num_kept: int, *, is_long: bool) -> None:
        self._num_long += is_long
        self._num_labels += num_labels
        self._num_lost += num_labels - num_kept


def longest_sample(base: Path, knobs: Mapping[str, Any], say: Reporter) -> int:
    """``max_seq_length``, or the context of the base model where that is shorter."""
    context_tokens = int(model_config(base).get("max_position_embeddings", knobs["max_seq_length"]))
    if context_tokens < knobs["max_seq_length"]:
        say.warning(
            f"max_seq_length {knobs['max_seq_length']} is longer than the model's context: {context_tokens} used"
        )
    return int(min(context_tokens, knobs["max_seq_length"]))
