"""Preference tuning of a causal language model: DPO, IPO, KTO, ORPO or SimPO, with all weights, LoRA or QLoRA.

``python -m runner.programs.train.preference RUN_FOLDER``. Parameters: ``base_model`` (folder), ``method`` (full, lora,
qlora), ``train_data`` and ``validation_data`` (JSONL with prompt/chosen/rejected, prompt/responses with scores, or for
kto prompt/completion/label; the second may be null), ``hyperparameters`` (see contract/knobs.py), ``model_name``,
``lineage`` (copied to the card). Result: ``output/model/`` with card and bundle.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.contract.alignment_knobs import PREFERENCE_BETAS
from runner.programs.lib.adapters import hold_in_float32, load_trainable, save_package
from runner.programs.lib.distributed import run_in_processes
from runner.programs.lib.events import ProgramContext
from runner.programs.lib.lengths import LengthPolicy
from runner.programs.lib.model import load_causal_model
from runner.programs.lib.preferences import Judged, Pair, read_judged, read_pairs
from runner.programs.lib.recipe import Order, finish_order, read_order, training_dtype

Samples = Sequence[Pair] | Sequence[Judged]


def main(context: ProgramContext) -> None:
    """Run the recipe. Raises ProgramError for everything that the user can mend."""
    order = read_order(context, "preference")
    samples = read_samples(context, order, order.train_data, order.knobs["length_policy"])
    held_out = read_samples(context, order, order.validation_data, "drop") if order.validation_data else []
    _, package = load_trainable(order, context.report)

    # Late: TRL takes seconds to import, and data errors are reported before.
    from runner.programs.lib.trainers import run_trainer

    metrics = run_trainer(context, make_trainer(context, order, package, samples, held_out), order.knobs)

    save_package(package, order.method, context.output / "model")
    order.renderer.save(order.base, context.output / "model")
    finish_order(context, order, metrics)


def read_samples(context: ProgramContext, order: Order, path: Path, policy: str) -> Samples:
    """Pairs, or single replies with verdicts for KTO."""
    lengths = LengthPolicy(order.max_tokens, policy)
    if order.knobs["loss_type"] != "kto":
        return read_pairs(path, order.renderer, lengths, context.report)
    judged = read_judged(path, order.renderer, lengths, context.report)
    random.Random(order.knobs["seed"]).shuffle(judged)  # KTO reads in order: liked and disliked must be mixed
    return judged


def make_trainer(context: ProgramContext, order: Order, package: Any, samples: Samples, held_out: Samples) -> Any:
    """TRL's trainer of the loss, on tokens that we made."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    from runner.programs.lib.trainers import dataset_of, optimizers_of, sealed, tokenizer_of, trainer_options

    knobs, loss = order.knobs, order.knobs["loss_type"]
    options = trainer_options(context, knobs, order.device, len(samples))
    options |= {
        "beta": PREFERENCE_BETAS[loss] if knobs["beta"] is None else knobs["beta"],
        "max_length": order.max_tokens,
        # Without LoRA's dropout there is nothing random in a forward pass; with it the user asked for that.
        "disable_dropout": not knobs.get("lora_dropout"),
    }
    has_reference = loss in ("dpo", "ipo", "kto")
    trainer_class, config = {
        "dpo": (DPOTrainer, DPOConfig),
        "ipo": (DPOTrainer, DPOConfig),
        "kto": (KTOTrainer, KTOConfig),
        "orpo": (ORPOTrainer, ORPOConfig),
        "simpo": (CPOTrainer, CPOConfig),
    }[loss]
    if loss == "ipo":
        options["loss_type"] = "ipo"
    if loss == "simpo":
        options |= {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": knobs["simpo_gamma"]}
    columns = tokens_of_pair if has_reference else labels_of_pair
    trainer = sealed(pretokenized(trainer_class))(
        model=package,
        args=config(**options),
        train_dataset=dataset_of([columns(sample) for sample in samples]),
        eval_dataset=dataset_of([columns(sample) for sample in held_out]),
        processing_class=tokenizer_of(order.base),
        optimizers=optimizers_of(package, knobs, options["max_steps"]),
        **({"ref_model": reference_model(order)} if has_reference else {}),
    )
    hold_in_float32(package)
    return trainer


def reference_model(order: Order) -> Any:
    """The untouched base; None with an adapter, which is switched off instead."""
    if order.method != "full":
        return None
    return load_causal_model(order.base, training_dtype(order.method, order.device), order.device.device)


def pretokenized(trainer_class: type) -> type:
    """The trainer class without its own way from text to tokens."""
    return type(trainer_class.__name__, (_Pretokenized, trainer_class), {})


def tokens_of_pair(sample: Pair | Judged) -> dict[str, Any]:
    """The columns of TRL's DPO and KTO trainers."""
    if isinstance(sample, Judged):
        return {
            "rows": sample.row,
            "prompt_ids": sample.prompt_ids,
            "completion_ids": sample.completion_ids,
            "label": sample.is_good,
        }
    return {
        "rows": sample.row,
        "prompt_ids": sample.prompt_ids,
        "chosen_ids": sample.chosen_ids,
        "rejected_ids": sample.rejected_ids,
    }


def labels_of_pair(sample: Pair | Judged) -> dict[str, Any]:
    """The columns of TRL's ORPO and CPO trainers: -100 where nothing is learned."""
    assert isinstance(sample, Pair)
    columns: dict[str, Any] = {"rows": sample.row, "prompt_input_ids": sample.prompt_ids}
    columns["prompt_attention_mask"] = [1] * len(sample.prompt_ids)
    for name, reply in (("chosen", sample.chosen_ids), ("rejected", sample.rejected_ids)):
        columns[f"{name}_input_ids"] = [*sample.prompt_ids, *reply]
        columns[f"{name}_attention_mask"] = [1] * (len(sample.prompt_ids) + len(reply))
        columns[f"{name}_labels"] = [-100] * len(sample.prompt_ids) + list(reply)
    return columns


class _Pretokenized:
    """Mixed into a trainer class: the data set is made of tokens already."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, name: str) -> Any:
        if not getattr(self, "calculate_KL", False):
            return dataset
        # KTO estimates its KL term on replies that belong to another prompt of the same batch.
        return dataset.map(_with_foreign_replies, batched=True, batch_size=args.per_device_train_batch_size)

    def tokenize_row(self, feature: Any, model: Any = None) -> Any:
        return feature


def _with_foreign_replies(samples: dict[str, Any]) -> dict[str, Any]:
    replies = samples["completion_ids"]
    return {**samples, "KL_completion_ids": [replies[-1], *replies[:-1]]}


if __name__ == "__main__":
    run_in_processes(main, "runner.programs.train.preference")
