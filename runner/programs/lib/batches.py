"""Samples to batches, padded or packed, in an order that is a pure function of the seed and the step.

Padded or packed, a step learns from the same samples, and its loss and gradient are the same.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from runner.contract.heads import CPU_ROW_TOKENS
from runner.programs.lib.training import Batch


@dataclass(frozen=True, slots=True)
class Sample:
    """One tokenized sample. ``row`` names where it came from; ``token_ids`` int32, ``is_label`` bool: (length,)."""

    row: str
    token_ids: torch.Tensor
    is_label: torch.Tensor


def pad(samples: Sequence[Sample]) -> Batch:
    """One batch, padded at the right with token 0, which is never a label."""
    length = max(len(sample.token_ids) for sample in samples)
    token_ids = torch.zeros((len(samples), length), dtype=torch.long)
    is_label = torch.zeros((len(samples), length), dtype=torch.bool)
    for index, sample in enumerate(samples):
        size = len(sample.token_ids)
        token_ids[index, :size] = sample.token_ids
        is_label[index, :size] = sample.is_label
    return Batch(token_ids, is_label, tuple(sample.row for sample in samples))


def pack(samples: Sequence[Sample]) -> Batch:
    """One row of samples end to end. The first token of a sample has nothing before it and is never learned."""
    is_label = torch.cat([sample.is_label for sample in samples])
    sizes = [len(sample.token_ids) for sample in samples]
    is_label[[0, *itertools.accumulate(sizes[:-1])]] = False
    token_ids = torch.cat([sample.token_ids for sample in samples]).long()
    return Batch(token_ids[None], is_label[None], tuple(sample.row for sample in samples), tuple(sizes))


@dataclass(frozen=True, slots=True)
class Padded:
    """Lays samples out ``batch_size`` a batch, those of similar length together."""

    batch_size: int

    def __call__(self, samples: Sequence[Sample]) -> list[Batch]:
        by_length = sorted(samples, key=lambda sample: len(sample.token_ids))
        return [pad(by_length[at : at + self.batch_size]) for at in range(0, len(by_length), self.batch_size)]


def row_tokens(samples: Sequence[Sample], batch_size: int, kind: str) -> int:
    """Tokens of a packed row: on a GPU as many as the longest padded batch has, on a CPU as few as cost no speed.

    ``kind``: of the device.
    """
    longest = heapq.nlargest(batch_size, (len(sample.token_ids) for sample in samples))
    return min(CPU_ROW_TOKENS, sum(longest)) if kind == "cpu" else sum(longest)


@dataclass(frozen=True, slots=True)
class Packed:
    """Lays samples out in as few rows as possible, all of about the same length.

    No row has more than ``max_tokens``, or than the longest sample of the step. ``multiple``: processes that share the
    rows, so that each gets as many.
    """

    max_tokens: int
    multiple: int = 1

    def __call__(self, samples: Sequence[Sample]) -> list[Batch]:
        if not samples:
            return []
        sizes = [len(sample.token_ids) for sample in samples]
        limit = max(self.max_tokens, *sizes)
        num_rows = -(-sum(sizes) // limit)
        while True:
            num_rows = -(-num_rows // self.multiple) * self.multiple
            rows = _spread(samples, num_rows)
            if max(sum(len(sample.token_ids) for sample in row) for row in rows) <= limit:
                return [pack(row) for row in rows if row]
            num_rows += max(1, num_rows // 16)


def _spread(samples: Sequence[Sample], num_rows: int) -> list[list[Sample]]:
    """Samples over rows, the longest first, each into the row that is shortest then."""
    rows: list[list[Sample]] = [[] for _ in range(num_rows)]
    shortest = [(0, number) for number in range(num_rows)]
    for sample in sorted(samples, key=lambda sample: len(sample.token_ids), reverse=True):
        size, number = heapq.heappop(shortest)
        rows[number].append(sample)
        heapq.heappush(shortest, (size + len(sample.token_ids), number))
    return rows


def epoch_order(num_samples: int, seed: int, epoch: int) -> list[int]:
    """The shuffled indexes of one epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_samples, generator=generator).tolist()


def steps_per_epoch(num_samples: int, samples_per_step: int) -> int:
    """Optimizer steps of one pass; the last one may be smaller."""
    return -(-num_samples // samples_per_step)


def shuffled_batches(
    samples: Sequence[Sample], samples_per_step: int, seed: int, lay_out: Callable[[Sequence[Sample]], list[Batch]]
) -> Callable[[int], list[Batch]]:
    """The micro-batches of step 1, 2, ...: each epoch shuffled."""
    steps = steps_per_epoch(len(samples), samples_per_step)
    order_of: dict[int, list[int]] = {}

    def batches_of(step: int) -> list[Batch]:
        epoch, position = divmod(step - 1, steps)
        if epoch not in order_of:
            order_of.clear()
            order_of[epoch] = epoch_order(len(samples), seed, epoch)
        chosen = order_of[epoch][position * samples_per_step : (position + 1) * samples_per_step]
        return lay_out([samples[index] for index in chosen])

    return batches_of
