"""Supervised fine-tuning of a causal language model on conversations, all weights or LoRA.

``python -m runner.programs.train.sft RUN_FOLDER``. Parameters: ``base_model`` (folder), ``method`` (full | lora),
``train_data`` and ``validation_data`` (JSONL; the second may be null), ``hyperparameters`` (see contract/knobs.py),
``model_name``, ``lineage`` (copied to the card). Result: ``output/model/`` with card and bundle.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from runner.programs.lib.batches import Sample, sequential_batches, shuffled_batches, steps_per_epoch
from runner.programs.lib.data import read_messages
from runner.programs.lib.events import ProgramContext, ProgramError, Reporter, require, run_program
from runner.programs.lib.model import load_causal_model, model_config
from runner.programs.lib.recipe import checked_knobs, finish, open_device, training_dtype
from runner.programs.lib.render import Renderer
from runner.programs.lib.training import Plan, train


def main(context: ProgramContext) -> None:
    """Run the recipe. Raises ProgramError for everything that the user can mend."""
    say = context.report
    base, method = Path(require(context.parameters, "base_model")), str(require(context.parameters, "method"))
    train_data = Path(require(context.parameters, "train_data"))
    validation_data = context.parameters.get("validation_data")
    given = require(context.parameters, "hyperparameters")
    knobs = checked_knobs("sft", method, given, has_base=True, has_validation=bool(validation_data))
    device = open_device(say, knobs)

    renderer = Renderer.from_folder(base)
    max_tokens = _longest_sample(base, knobs, say)
    samples = read_samples(train_data, renderer, max_tokens, knobs["length_policy"], say)
    held_out = read_samples(Path(validation_data), renderer, max_tokens, "drop", say) if validation_data else []

    model = load_causal_model(base, training_dtype(method, device), device.device)
    base_name = str((context.parameters.get("lineage") or {}).get("base_model") or base.name)
    package = add_lora(model, base_name, knobs) if method == "lora" else model
    if knobs["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say.phase("model", f"model loaded: {model.num_parameters():,} parameters, {num_trainable:,} of them are trained")

    batch_size, accumulation = knobs["per_device_train_batch_size"], knobs["gradient_accumulation_steps"]
    plan = Plan(
        shuffled_batches(samples, batch_size, accumulation, knobs["seed"]),
        steps_per_epoch(len(samples), batch_size * accumulation),
        sequential_batches(held_out, batch_size),
    )
    metrics = train(context, model, plan, knobs, device)

    target = context.output / "model"
    target.mkdir(exist_ok=True)
    package.save_pretrained(target, **({"save_embedding_layers": False} if method == "lora" else {}))
    renderer.save(base, target)
    data_files = [train_data, *([Path(validation_data)] if validation_data else [])]
    finish(context, "sft", method, knobs, data_files, metrics, device, base)


def read_samples(path: Path, renderer: Renderer, max_tokens: int, policy: str, say: Reporter) -> list[Sample]:
    """Tokenize the conversations of a file; longer ones are cut or dropped. Raises ProgramError with the line."""
    samples: list[Sample] = []
    num_labels, lost_labels, num_long = 0, 0, 0
    for line_number, messages in read_messages(path):
        where = f"{path.name} line {line_number}"
        rendered = renderer.encode_conversation(messages)
        if not any(rendered.is_label):
            raise ProgramError("data_invalid", f"{where} has no assistant message to learn from", where)
        kept = rendered.is_label if len(rendered.token_ids) <= max_tokens else rendered.is_label[:max_tokens]
        if len(rendered.token_ids) > max_tokens:
            num_long += 1
            kept = kept if policy == "truncate" else []
        num_labels += sum(rendered.is_label)
        lost_labels += sum(rendered.is_label) - sum(kept)
        if any(kept):
            token_ids = torch.tensor(rendered.token_ids[: len(kept)], dtype=torch.int32)
            samples.append(Sample(where, token_ids, torch.tensor(kept)))
    if not samples:
        raise ProgramError(
            "data_empty", f"no sample of {path.name} is left to learn from (of {num_long} too long ones)"
        )
    say.phase(
        "data",
        f"{path.name}: {len(samples)} samples, {sum(len(s.token_ids) for s in samples)} tokens, "
        f"{num_labels - lost_labels} of them learned",
    )
    if num_long:
        share = lost_labels / num_labels
        say.warning(
            f"{num_long} samples are longer than {max_tokens} tokens ({policy}): {share:.1%} of the answer "
            "tokens are lost",
            "samples_too_long",
        )
    return samples


def add_lora(model: Any, base_name: str, knobs: Mapping[str, Any]) -> Any:
    """Put adapters into the model in place and return the package that saves them. Raises ProgramError."""
    # Late: the library takes seconds to import, and data errors are reported before.
    from peft import LoraConfig, get_peft_model

    names = knobs["target_modules"]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=knobs["lora_r"],
        lora_alpha=knobs["lora_alpha"],
        lora_dropout=knobs["lora_dropout"],
        target_modules="all-linear" if names == ["all-linear"] else names,
    )
    try:
        with warnings.catch_warnings():
            # peft still reads an attribute that transformers renamed; the warning is not the user's business.
            warnings.simplefilter("ignore", FutureWarning)
            package = get_peft_model(model, config)
    except ValueError:
        linear = {
            name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
        }
        message = f"no layer is called {', '.join(names)}; this model has: all-linear, {', '.join(sorted(linear))}"
        raise ProgramError("target_modules_unknown", message, "target_modules") from None
    # The path of the base on this machine means nothing elsewhere; its name and fingerprint are in the bundle.
    config.base_model_name_or_path = base_name
    return package


def _longest_sample(base: Path, knobs: Mapping[str, Any], say: Reporter) -> int:
    """``max_seq_length``, or the context of the base model where that is shorter."""
    context_tokens = int(model_config(base).get("max_position_embeddings", knobs["max_seq_length"]))
    if context_tokens < knobs["max_seq_length"]:
        say.warning(
            f"max_seq_length {knobs['max_seq_length']} is longer than the model's context: {context_tokens} used"
        )
    return int(min(context_tokens, knobs["max_seq_length"]))


if __name__ == "__main__":
    run_program(main)
