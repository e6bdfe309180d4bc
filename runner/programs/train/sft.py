"""Supervised fine-tuning of a causal language model on conversations or texts, all weights, LoRA or QLoRA.

``python -m runner.programs.train.sft RUN_FOLDER``. Parameters: ``base_model`` (folder), ``method`` (full, lora,
qlora), ``train_data`` and ``validation_data`` (JSONL; the second may be null), ``hyperparameters`` (see
contract/knobs.py), ``model_name``, ``lineage`` (copied to the card). Result: ``output/model/`` with card and bundle.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from runner.programs.lib.adapters import load_trainable, save_package
from runner.programs.lib.answers import answer_scores, questions_of
from runner.programs.lib.attention import sample_by_sample, why_not_packed
from runner.programs.lib.batches import Packed, Padded, Sample, pad, row_tokens, shuffled_batches, steps_per_epoch
from runner.programs.lib.data import read_learnable
from runner.programs.lib.distributed import first_then_others, is_first, num_processes, run_in_processes
from runner.programs.lib.events import ProgramContext, ProgramError, Reporter
from runner.programs.lib.lengths import LengthPolicy
from runner.programs.lib.recipe import Order, finish_order, read_order
from runner.programs.lib.render import Renderer
from runner.programs.lib.sharding import shard_as_asked
from runner.programs.lib.token_cache import TokenCache
from runner.programs.lib.training import Plan, train

#: Smaller data is tokenized again at each start: that takes less time than to write it durably.
LEAST_CACHED_BYTES = 64 * 1024


def main(context: ProgramContext) -> None:
    """Run the recipe. Raises ProgramError for everything that the user can mend."""
    order = read_order(context, "sft")
    metrics = tune(context, order)
    order.renderer.save(order.base, context.output / "model")
    finish_order(context, order, metrics)


def tune(context: ProgramContext, order: Order) -> dict[str, float]:
    """Train on conversations, save the weights and return the final metrics."""
    knobs, say = order.knobs, context.report
    cache = TokenCache(context.work / "tokens")
    lengths = LengthPolicy(order.max_tokens, knobs["length_policy"])
    samples = read_samples(order.train_data, order.renderer, lengths, say, cache)
    held_out: list[Sample] = []
    if order.validation_data:
        lengths = LengthPolicy(order.max_tokens, "drop")
        held_out = read_samples(order.validation_data, order.renderer, lengths, say, cache)
    model, package = load_trainable(order, say)
    packed = is_packed(order, model, say)
    shard_as_asked(model, knobs, order.device.device, say)
    plan = plan_of(
        samples,
        held_out,
        knobs,
        row_tokens(samples, knobs["per_device_train_batch_size"], order.device.device.type) if packed else None,
    )
    with sample_by_sample(model) if packed else nullcontext():
        metrics = train(context, model, plan, knobs, order.device)
    if not is_first():  # the first process writes the result
        raise SystemExit
    save_package(package, order.method, context.output / "model")
    return {**metrics, **score_validation(context, order, model)}


def plan_of(samples: list[Sample], held_out: list[Sample], knobs: dict[str, Any], max_tokens: int | None) -> Plan:
    """What to train on, in rows of ``max_tokens`` or, where that is None, padded; a step has the same samples."""
    batch_size = knobs["per_device_train_batch_size"]
    longest = sorted(samples, key=lambda sample: len(sample.token_ids))[-batch_size:]
    samples_per_step = batch_size * knobs["gradient_accumulation_steps"] * num_processes()
    lay_out = Padded(batch_size) if max_tokens is None else Packed(max_tokens, num_processes())
    largest = (
        pad(longest)
        if max_tokens is None
        else max(Packed(max_tokens)(longest), key=lambda batch: batch.token_ids.numel())
    )
    return Plan(
        shuffled_batches(samples, samples_per_step, knobs["seed"], lay_out),
        steps_per_epoch(len(samples), samples_per_step),
        lay_out(held_out),
        longest=largest,
    )


def is_packed(order: Order, model: Any, say: Reporter) -> bool:
    """Whether samples lie end to end, which the knob ``packing`` asks for and not every architecture allows."""
    if not order.knobs["packing"]:
        return False
    reason = why_not_packed(model, order.max_tokens)
    if reason is not None:
        say.warning(f"samples are padded instead of packed: {reason}", "not_packed")
    return reason is None


def score_validation(context: ProgramContext, order: Order, model: Any) -> dict[str, float]:
    """Greedy answers to the first validation samples beside their references, as metrics."""
    limit = order.knobs["max_predict_samples"]
    if not order.validation_data or not limit:
        return {}
    found = (found for _, found in islice(read_learnable(order.validation_data), limit))
    conversations = [messages for messages in found if not isinstance(messages, str)]  # a text asks nothing
    questions = questions_of(conversations, order.renderer, order.max_tokens)
    max_new_tokens = order.knobs["generation_max_length"]
    return answer_scores(model, order.renderer, questions, max_new_tokens, order.device, context.report)


def read_samples(
    path: Path, renderer: Renderer, lengths: LengthPolicy, say: Reporter, cache: TokenCache | None = None
) -> list[Sample]:
    """The conversations of a file as tokens, large ones from the cache if there are any. Raises ProgramError."""
    if cache is None or not path.is_file() or path.stat().st_size < LEAST_CACHED_BYTES:
        return tokenize(path, renderer, lengths, say)
    key = cache.key(path, renderer, lengths)

    def read() -> list[Sample]:
        found = cache.load(key, lengths)
        if found is None:
            made = tokenize(path, renderer, lengths, say)
            cache.store(key, path.name, made, lengths)
            return made
        say.phase("data", f"{path.name}: {len(found)} samples, tokenized before")
        return found

    return first_then_others(read)


def tokenize(path: Path, renderer: Renderer, lengths: LengthPolicy, say: Reporter) -> list[Sample]:
    """Tokenize the rows of a file; longer ones go by the policy. Raises ProgramError with the line."""
    samples: list[Sample] = []
    for line_number, found in read_learnable(path):
        where = f"{path.name} line {line_number}"
        rendered = renderer.encode_document(found) if isinstance(found, str) else renderer.encode_conversation(found)
        if not any(rendered.is_label):
            raise ProgramError("data_invalid", f"{where} has no assistant message to learn from", where)
        for start, end in lengths.spans(rendered.is_label):
            token_ids = torch.tensor(rendered.token_ids[start:end], dtype=torch.int32)
            samples.append(Sample(where, token_ids, torch.tensor(rendered.is_label[start:end])))
    if not samples:
        raise ProgramError(
            "no_usable_rows",
            f"no row of {path.name} is left to learn from: {lengths.num_long} are longer than max_seq_length "
            f"({lengths.max_tokens} tokens). Raise max_seq_length, or set length_policy to truncate or split.",
            "max_seq_length",
        )
    lengths.tell(say, path.name, len(samples), sum(len(sample.token_ids) for sample in samples))
    return samples


if __name__ == "__main__":
    run_in_processes(main, "runner.programs.train.sft")
