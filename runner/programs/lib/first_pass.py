"""The longest batch runs first through a trainer of transformers or TRL, so that memory runs out now or never."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from runner.programs.lib.sealed_steps import ROWS
from runner.programs.lib.train_state import random_states, restore_random_states
from runner.programs.lib.training import memory_error

#: Where TRL's trainers add up what they measure.
MEASURED = ("_metrics", "_stored_metrics", "_total_train_tokens")


def try_longest(trainer: Any) -> None:
    """One pass, forward and back, over the longest samples. Nothing is learned, measured or drawn by it.

    Raises ProgramError (``out_of_memory``).
    """
    numbers, num_tokens = longest_rows(trainer.train_dataset, trainer.args.per_device_train_batch_size)
    measured = {name: deepcopy(getattr(trainer, name)) for name in MEASURED if hasattr(trainer, name)}
    drawn, model = random_states(), trainer.model_wrapped
    model.train()
    batch = trainer.data_collator([trainer.train_dataset[number] for number in numbers])
    inputs = trainer._prepare_inputs({name: value for name, value in batch.items() if name != ROWS})
    try:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, inputs)
        trainer.accelerator.backward(loss)
    except torch.OutOfMemoryError:
        raise memory_error(len(numbers), num_tokens, str(trainer.args.device)) from None
    model.zero_grad(set_to_none=True)
    for name, value in measured.items():
        setattr(trainer, name, value)
    restore_random_states(drawn)


def longest_rows(dataset: Any, count: int) -> tuple[list[int], int]:
    """The numbers of the rows with the most tokens in all their lists, and how many those are together."""
    # Late: a part of the library of data sets, which takes a second to import.
    import pyarrow
    import pyarrow.compute

    table = dataset.with_format("arrow")[:]
    sizes = torch.zeros(table.num_rows, dtype=torch.int64)
    for field, column in zip(table.schema, table.columns, strict=True):
        if pyarrow.types.is_list(field.type) or pyarrow.types.is_large_list(field.type):
            lengths = pyarrow.compute.list_value_length(column).combine_chunks()
            sizes += torch.from_numpy(lengths.to_numpy(zero_copy_only=False).astype("int64"))
    longest = sizes.topk(min(count, len(sizes)))
    return longest.indices.tolist(), int(longest.values.sum())
