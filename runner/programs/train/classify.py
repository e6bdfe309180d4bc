"""A classifier: a language model with one output per class at the end of a text.

``python -m runner.programs.train.classify RUN_FOLDER``. Parameters: ``base_model`` (folder), ``method`` (full, lora),
``train_data`` and ``validation_data`` (JSONL with text/label; the second may be null), ``hyperparameters`` (see
contract/knobs.py), ``model_name``, ``lineage`` (copied to the card). Result: ``output/model/`` with card, bundle and
``labels.json``; it names classes and can not be chatted with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runner.contract.folder import write_json_durably
from runner.programs.lib.adapters import load_trainable_classifier, save_package
from runner.programs.lib.data import read_labelled
from runner.programs.lib.distributed import run_in_processes
from runner.programs.lib.events import ProgramContext, ProgramError
from runner.programs.lib.lengths import LengthPolicy
from runner.programs.lib.recipe import Order, finish_order, read_order


@dataclass(frozen=True, slots=True)
class Labelled:
    """A tokenized text with its class. ``row`` names where it came from."""

    row: str
    token_ids: list[int]
    label: str


def main(context: ProgramContext) -> None:
    """Run the recipe. Raises ProgramError for everything that the user can mend."""
    order = read_order(context, "classify")
    samples = read_samples(context, order, order.train_data, order.knobs["length_policy"])
    labels = sorted({sample.label for sample in samples})
    if len(labels) < 2:
        raise ProgramError("data_invalid", f"every row of {order.train_data.name} has the label {labels[0]!r}")
    held_out: list[Labelled] = []
    if order.validation_data:
        held_out = read_samples(context, order, order.validation_data, "truncate", labels)
    context.report.phase("data", f"{len(labels)} classes: {', '.join(labels[:20])}")
    package = load_trainable_classifier(order, labels, context.report)

    # Late: the library takes seconds to import, and data errors are reported before.
    from runner.programs.lib.trainers import run_trainer

    metrics = run_trainer(context, make_trainer(context, order, package, labels, samples, held_out), order.knobs)

    target = context.output / "model"
    save_package(package, order.method, target)
    write_json_durably(target / "labels.json", labels)
    order.renderer.save(order.base, target)
    finish_order(context, order, metrics, {"task": "classification", "labels": labels})


def read_samples(
    context: ProgramContext, order: Order, path: Path, policy: str, known: Sequence[str] | None = None
) -> list[Labelled]:
    """The texts of a file as tokens. ``known``: the only labels allowed. Raises ProgramError with the line."""
    lengths, samples = LengthPolicy(order.max_tokens, policy), []
    for line_number, text, label in read_labelled(path):
        row = f"{path.name} line {line_number}"
        if known is not None and label not in known:
            raise ProgramError("data_invalid", f"{row}: no training row has the label {label!r}", row)
        token_ids = order.renderer.encode_text(text)
        if not token_ids:
            raise ProgramError("data_invalid", f"{row} has an empty text", row)
        sizes = lengths.replies(0, [len(token_ids)])
        if sizes:
            samples.append(Labelled(row, token_ids[: sizes[0]], label))
    if not samples:
        raise ProgramError("data_empty", f"no sample of {path.name} is left to learn from")
    lengths.tell(context.report, path.name, len(samples), sum(len(sample.token_ids) for sample in samples))
    return samples


def make_trainer(
    context: ProgramContext,
    order: Order,
    package: Any,
    labels: Sequence[str],
    samples: Sequence[Labelled],
    held_out: Sequence[Labelled],
) -> Any:
    """Transformers' own trainer, with accuracy and F1 of the validation data."""
    from transformers import Trainer, TrainingArguments

    from runner.programs.lib.trainers import dataset_of, optimizers_of, sealed, trainer_options

    number_of = {label: number for number, label in enumerate(labels)}

    def columns(sample: Labelled) -> dict[str, Any]:
        return {"rows": sample.row, "input_ids": sample.token_ids, "labels": number_of[sample.label]}

    options = trainer_options(context, order.knobs, order.device, len(samples))
    make_arguments: Any = TrainingArguments
    trainer = sealed(Trainer)(
        model=package,
        args=make_arguments(**options),
        data_collator=lambda batch: padded(batch, order.renderer.padding_id),
        train_dataset=dataset_of([columns(sample) for sample in samples]),
        eval_dataset=dataset_of([columns(sample) for sample in held_out]),
        compute_metrics=lambda output: scores(output.predictions.argmax(-1).tolist(), output.label_ids.tolist()),
        optimizers=optimizers_of(package, order.knobs, options["max_steps"]),
    )
    trainer.model_accepts_loss_kwargs = False  # the loss is a mean over the micro-batch, to be averaged over steps
    return trainer


def padded(batch: Sequence[Mapping[str, Any]], padding_id: int) -> dict[str, Any]:
    """Token ids padded at the right, their mask and the classes."""
    longest = max(len(sample["input_ids"]) for sample in batch)
    fill = [longest - len(sample["input_ids"]) for sample in batch]
    rows = [[*sample["input_ids"], *[padding_id] * size] for sample, size in zip(batch, fill, strict=True)]
    mask = [[1] * (longest - size) + [0] * size for size in fill]
    labels = [sample["labels"] for sample in batch]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}


def scores(predicted: Sequence[int], expected: Sequence[int]) -> dict[str, float]:
    """``accuracy``, and ``f1`` as the mean over the classes that occur (macro F1)."""
    pairs = list(zip(predicted, expected, strict=True))
    per_class = []
    for number in sorted({*predicted, *expected}):
        hits = sum(p == e == number for p, e in pairs)
        named = sum(p == number for p, _ in pairs) + sum(e == number for _, e in pairs)
        per_class.append(2 * hits / named)
    return {"accuracy": sum(p == e for p, e in pairs) / len(pairs), "f1": sum(per_class) / len(per_class)}


if __name__ == "__main__":
    run_in_processes(main, "runner.programs.train.classify")
