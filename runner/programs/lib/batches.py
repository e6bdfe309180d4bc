"""Samples to padded batches, in an order that is a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

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


def epoch_order(num_samples: int, seed: int, epoch: int) -> list[int]:
    """The shuffled indexes of one epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_samples, generator=generator).tolist()


def steps_per_epoch(num_samples: int, samples_per_step: int) -> int:
    """Optimizer steps of one pass; the last one may be smaller."""
    return -(-num_samples // samples_per_step)


def shuffled_batches(
    samples: Sequence[Sample], batch_size: int, accumulation: int, seed: int
) -> Callable[[int], list[Batch]]:
    """The micro-batches of step 1, 2, ...: each epoch shuffled, samples of one step grouped by length."""
    per_step = batch_size * accumulation
    steps = steps_per_epoch(len(samples), per_step)
    order_of: dict[int, list[int]] = {}

    def batches_of(step: int) -> list[Batch]:
        epoch, position = divmod(step - 1, steps)
        if epoch not in order_of:
            order_of.clear()
            order_of[epoch] = epoch_order(len(samples), seed, epoch)
        chosen = [samples[index] for index in order_of[epoch][position * per_step : (position + 1) * per_step]]
        chosen.sort(key=lambda sample: len(sample.token_ids))
        return [pad(chosen[start : start + batch_size]) for start in range(0, len(chosen), batch_size)]

    return batches_of


def sequential_batches(samples: Sequence[Sample], batch_size: int) -> list[Batch]:
    """All samples once, by length: for evaluation."""
    by_length = sorted(samples, key=lambda sample: len(sample.token_ids))
    return [pad(by_length[start : start + batch_size]) for start in range(0, len(by_length), batch_size)]
