"""One text into another: translation, summaries, rewriting; with an encoder-decoder or a causal model.

``python -m runner.programs.train.seq2seq RUN_FOLDER``. Parameters: ``base_model`` (folder), ``method`` (full, lora),
``train_data`` and ``validation_data`` (JSONL with source/target, or the pairs that ``sft`` takes; the second may be
null), ``hyperparameters`` (see contract/knobs.py), ``model_name``, ``lineage`` (copied to the card). Result:
``output/model/`` with card and bundle. A causal model reads the source as a user's turn and answers with the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runner.programs.lib.adapters import load_trainable_encoder_decoder, save_package
from runner.programs.lib.answers import Question, answer_scores
from runner.programs.lib.data import read_messages
from runner.programs.lib.distributed import run_in_processes
from runner.programs.lib.events import ProgramContext, ProgramError
from runner.programs.lib.lengths import LengthPolicy
from runner.programs.lib.model import architecture_of
from runner.programs.lib.recipe import Order, finish_order, read_order
from runner.programs.lib.tools import has_tools
from runner.programs.train.sft import tune

#: The label of a position that is not learned, in transformers.
NOT_LEARNED = -100


@dataclass(frozen=True, slots=True)
class Translation:
    """Source and target as tokens. ``row`` names where they came from."""

    row: str
    source_ids: list[int]
    target_ids: list[int]
    target: str


def main(context: ProgramContext) -> None:
    """Run the recipe. Raises ProgramError for everything that the user can mend."""
    order = read_order(context, "seq2seq")
    architecture = architecture_of(order.base, "ForCausalLM", "ForConditionalGeneration")
    is_causal = architecture.endswith("ForCausalLM")
    metrics = tune(context, order) if is_causal else tune_encoder_decoder(context, order)
    order.renderer.save(order.base, context.output / "model")
    finish_order(context, order, metrics, {"task": "generation" if is_causal else "seq2seq"})


def tune_encoder_decoder(context: ProgramContext, order: Order) -> dict[str, float]:
    """Train on sources and targets, save the weights and return the final metrics."""
    if order.knobs["length_policy"] == "split":
        message = (
            "length_policy split needs a causal base: an encoder-decoder makes a target in one; truncate or drop it"
        )
        raise ProgramError("hyperparameters_invalid", message, "length_policy")
    if order.knobs["packing"]:
        context.report.warning("samples are padded instead of packed: an encoder-decoder reads one a row", "not_packed")
    samples = read_samples(context, order, order.train_data, order.knobs["length_policy"])
    held_out: list[Translation] = []
    if order.validation_data:
        held_out = read_samples(context, order, order.validation_data, "drop")
    model, package = load_trainable_encoder_decoder(order, context.report)

    # Late: the library takes seconds to import, and data errors are reported before.
    from runner.programs.lib.trainers import run_trainer

    metrics = run_trainer(context, make_trainer(context, order, package, samples, held_out), order.knobs)
    save_package(package, order.method, context.output / "model")
    questions = [Question(s.source_ids, s.target) for s in held_out[: order.knobs["max_predict_samples"]]]
    max_new_tokens = order.knobs["generation_max_length"]
    scores = answer_scores(model, order.renderer, questions, max_new_tokens, order.device, context.report)
    return {**metrics, **scores}


def read_samples(context: ProgramContext, order: Order, path: Path, policy: str) -> list[Translation]:
    """The pairs of a file as tokens, each text with the end token after it. Raises ProgramError with the line."""
    lengths, samples = LengthPolicy(order.max_tokens, policy), []
    end_id = order.renderer.stop_token_ids[0]
    for line_number, messages in read_messages(path):
        row = f"{path.name} line {line_number}"
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise ProgramError("data_invalid", f"{row} has no target to learn", row)
        if has_tools(messages):
            raise ProgramError("data_invalid", f"{row} has tools, which only a causal base can be shown", row)
        source = "\n".join(message["content"] for message in messages[:-1])
        source_ids = order.renderer.encode_text(source)
        target_ids = [*order.renderer.encode_text(messages[-1]["content"]), end_id]
        sizes = lengths.pair(len(source_ids) + 1, len(target_ids))
        if sizes:
            source_ids = [*source_ids[: sizes[0] - 1], end_id]
            samples.append(Translation(row, source_ids, target_ids[: sizes[1]], messages[-1]["content"]))
    if not samples:
        left = f"no sample of {path.name} is left to learn from (of {lengths.num_long} too long ones)"
        raise ProgramError("data_empty", left)
    num_tokens = sum(len(sample.source_ids) + len(sample.target_ids) for sample in samples)
    lengths.tell(context.report, path.name, len(samples), num_tokens)
    return samples


def make_trainer(
    context: ProgramContext, order: Order, package: Any, samples: Sequence[Translation], held_out: Sequence[Translation]
) -> Any:
    """Transformers' own trainer."""
    from transformers import Trainer, TrainingArguments

    from runner.programs.lib.trainers import dataset_of, optimizers_of, sealed, trainer_options

    def columns(sample: Translation) -> dict[str, Any]:
        return {"rows": sample.row, "input_ids": sample.source_ids, "labels": sample.target_ids}

    options = trainer_options(context, order.knobs, order.device, len(samples))
    make_arguments: Any = TrainingArguments
    trainer = sealed(Trainer)(
        model=package,
        args=make_arguments(**options, prediction_loss_only=True),
        data_collator=lambda batch: padded(batch, order.renderer.padding_id),
        train_dataset=dataset_of([columns(sample) for sample in samples]),
        eval_dataset=dataset_of([columns(sample) for sample in held_out]),
        optimizers=optimizers_of(package, order.knobs, options["max_steps"]),
    )
    trainer.model_accepts_loss_kwargs = False  # the loss is a mean over the micro-batch, to be averaged over steps
    return trainer


def padded(batch: Sequence[Mapping[str, Any]], padding_id: int) -> dict[str, Any]:
    """Sources and targets padded at the right; where a target is padded nothing is learned."""
    sources, targets = [sample["input_ids"] for sample in batch], [sample["labels"] for sample in batch]
    longest, longest_target = max(map(len, sources)), max(map(len, targets))
    return {
        "input_ids": torch.tensor([[*ids, *[padding_id] * (longest - len(ids))] for ids in sources]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sources]),
        "labels": torch.tensor([[*ids, *[NOT_LEARNED] * (longest_target - len(ids))] for ids in targets]),
    }


if __name__ == "__main__":
    run_in_processes(main, "runner.programs.train.seq2seq")
