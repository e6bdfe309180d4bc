"""Pretraining of a causal language model on text: from scratch with a tokenizer of its own, or continued from a base.

``python -m runner.programs.train.pretrain RUN_FOLDER``. Parameters: ``base_model`` (folder or null), ``train_data``
(list of .txt or JSONL files), ``validation_data`` (one file or null), ``tokenizer`` (of a new model: a tokenizer.json,
a tokenizer.model or a folder; absent or null: one is trained on the text), ``hyperparameters`` (see contract/knobs.py),
``model_name``, ``lineage`` (copied to the card). Result: ``output/model/`` with card and bundle.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from runner.contract.knobs import NEW_MODEL_SHAPE
from runner.programs.lib.artifacts import is_whole, write_manifest
from runner.programs.lib.batches import epoch_order, steps_per_epoch
from runner.programs.lib.data import Conditions, metadata_conditions, read_texts
from runner.programs.lib.distributed import (
    first_then_others,
    is_first,
    num_processes,
    run_in_processes,
    wait_for_all,
)
from runner.programs.lib.events import ProgramContext, ProgramError, require
from runner.programs.lib.model import load_causal_model, model_config, quiet_transformers
from runner.programs.lib.recipe import checked_knobs, finish, loading_device, open_device, tell_unused
from runner.programs.lib.render import Renderer
from runner.programs.lib.sharding import shard_as_asked
from runner.programs.lib.tokenizer import train_tokenizer
from runner.programs.lib.training import Batch, Plan, train
from runner.programs.models.own_tokenizer import take_tokenizer

TOKEN_BYTES = 4


def main(context: ProgramContext) -> None:
    """Run the recipe. Raises ProgramError for everything that the user can mend."""
    say, base = context.report, context.parameters.get("base_model")
    train_data = [Path(path) for path in require(context.parameters, "train_data")]
    validation_data = [Path(path) for path in [context.parameters.get("validation_data")] if path]
    given = require(context.parameters, "hyperparameters")
    knobs = checked_knobs("pretrain", "full", given, has_base=bool(base), has_validation=bool(validation_data))
    tell_unused(say, knobs, has_validation=bool(validation_data))
    base_folder = Path(base) if base else None
    shape = _shape(base_folder, knobs)
    device = open_device(say, knobs, shape.get("hidden_size", 0))

    wanted = metadata_conditions(knobs["metadata_filter"])
    tokenizer_folder = base_folder or first_then_others(
        lambda: (
            _own_tokenizer(context, knobs)
            if context.parameters.get("tokenizer")
            else _new_tokenizer(context, train_data, wanted, shape["vocab_size"], knobs["sequence_length"])
        )
    )
    renderer = Renderer.from_folder(tokenizer_folder)
    tokens = _tokens_of(context, train_data, wanted, renderer, "training")
    held_out = torch.empty(0)
    if validation_data:
        held_out = _tokens_of(context, validation_data, wanted, renderer, "validation")
    where = loading_device(knobs, device)
    if base_folder:
        model = load_causal_model(base_folder, torch.float32, where)
    else:
        model = _new_model(shape, renderer, knobs, where)
    if knobs["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    say.phase("model", f"{'base model loaded' if base else 'new model made'}: {model.num_parameters():,} parameters")

    shard_as_asked(model, knobs, device.device, say)
    plan = _plan(tokens, held_out, knobs)
    plan.beside = lambda checkpoint: renderer.save(tokenizer_folder, _made(checkpoint / "tokenizer"))
    metrics = train(context, model, plan, knobs, device)
    if not is_first():  # the first process writes the result
        raise SystemExit

    target = context.output / "model"
    target.mkdir(exist_ok=True)
    model.save_pretrained(target)
    renderer.save(tokenizer_folder, target)
    finish(context, "pretrain", "full", knobs, [*train_data, *validation_data], metrics, device, base_folder)


def packed_batches(
    tokens: torch.Tensor, length: int, batch_size: int, accumulation: int, seed: int
) -> tuple[Callable[[int], list[Batch]], int]:
    """The micro-batches of step 1, 2, ... over one long row of tokens, and the steps of an epoch.

    Each epoch cuts the row at another offset into sequences of ``length`` + 1 tokens and shuffles them.
    Raises ProgramError where the text is shorter than two sequences.
    """
    num_sequences = (len(tokens) - length) // length
    if num_sequences < 1:
        raise ProgramError(
            "data_too_short", f"{len(tokens)} tokens make no sequence of {length}; lower sequence_length"
        )
    per_step = batch_size * accumulation
    steps = steps_per_epoch(num_sequences, per_step)

    def batches_of(step: int) -> list[Batch]:
        epoch, position = divmod(step - 1, steps)
        offset = epoch_order(length, seed + 1, epoch)[0] if epoch else 0
        order = epoch_order(num_sequences, seed, epoch)[position * per_step : (position + 1) * per_step]
        starts = [offset + index * length for index in order]
        return [_cut(tokens, starts[at : at + batch_size], length) for at in range(0, len(starts), batch_size)]

    return batches_of, steps


def _plan(tokens: torch.Tensor, held_out: torch.Tensor, knobs: Mapping[str, Any]) -> Plan:
    length, batch_size = knobs["sequence_length"], knobs["per_device_train_batch_size"]
    num_batches = knobs["gradient_accumulation_steps"] * num_processes()
    batches_of, steps = packed_batches(tokens, length, batch_size, num_batches, knobs["seed"])
    starts = list(range(0, len(held_out) - length, length))
    if len(held_out) and not starts:
        message = f"{len(held_out)} tokens of validation text make no sequence of {length}"
        raise ProgramError("data_too_short", message, "validation_data")
    validation = [_cut(held_out, starts[at : at + batch_size], length) for at in range(0, len(starts), batch_size)]
    return Plan(batches_of, steps, validation)


def _cut(tokens: torch.Tensor, starts: Sequence[int], length: int) -> Batch:
    token_ids = torch.stack([tokens[start : start + length + 1] for start in starts]).long()
    rows = tuple(f"tokens {start} to {start + length}" for start in starts)
    return Batch(token_ids, torch.ones_like(token_ids, dtype=torch.bool), rows)


def _shape(base: Path | None, knobs: Mapping[str, Any]) -> dict[str, int]:
    """The shape of the model: the base model's, else what the knobs ask. Raises ProgramError where they differ."""
    asked = {name: knobs[name] for name in NEW_MODEL_SHAPE}
    if base is None:
        return {name: asked[name] or default for name, default in NEW_MODEL_SHAPE.items()}
    config = model_config(base)
    for name, value in asked.items():
        if value and config.get(name) != value:
            message = f"the base model has {name} {config.get(name)}, not {value}; leave {name} out"
            raise ProgramError("hyperparameters_invalid", message, name)
    return {name: int(config[name]) for name in NEW_MODEL_SHAPE if name in config}


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _own_tokenizer(context: ProgramContext, knobs: Mapping[str, Any]) -> Path:
    """The folder of the user's tokenizer, as it was at the first start. Raises ProgramError."""
    target, given = context.work / "tokenizer", Path(context.parameters["tokenizer"])
    if not is_whole(target):
        take_tokenizer(given, target, knobs["sequence_length"])
        write_manifest(target, "tokenizer", {"source": given.name}, {})
    size = Renderer.from_folder(target).vocabulary_size
    if knobs["vocab_size"] not in (None, size):
        message = f"the tokenizer {given.name} has {size} tokens, not {knobs['vocab_size']}; leave vocab_size out"
        raise ProgramError("hyperparameters_invalid", message, "vocab_size")
    context.report.phase("tokenizer", f"own tokenizer {given.name} of {size} tokens ready")
    return target


def _new_tokenizer(
    context: ProgramContext, files: Sequence[Path], wanted: Conditions, vocab_size: int, context_tokens: int
) -> Path:
    """The folder of the run's own tokenizer; a restarted run takes the one that it made before."""
    target = context.work / "tokenizer"
    if not is_whole(target):
        train_tokenizer((piece.text for piece in read_texts(files, wanted)), vocab_size, context_tokens, target)
        write_manifest(target, "tokenizer", {"vocab_size": vocab_size}, {})
    context.report.phase("tokenizer", f"tokenizer of {Renderer.from_folder(target).vocabulary_size} tokens ready")
    return target


def _tokens_of(
    context: ProgramContext, files: Sequence[Path], wanted: Conditions, renderer: Renderer, name: str
) -> torch.Tensor:
    """All documents as one row of int32 tokens on disk (mapped, not loaded), an end-of-text token after each."""
    path = context.work / f"{name}.tokens"
    if is_first():
        num_documents = _write_tokens(path, files, wanted, renderer)
        num_tokens = path.stat().st_size // TOKEN_BYTES
        context.report.phase("data", f"{name} data: {num_documents} documents, {num_tokens:,} tokens")
    wait_for_all()
    return torch.from_file(str(path), shared=False, size=path.stat().st_size // TOKEN_BYTES, dtype=torch.int32)


def _write_tokens(path: Path, files: Sequence[Path], wanted: Conditions, renderer: Renderer) -> int:
    """Write the row; the number of documents."""
    num_documents = 0
    with open(path, "wb") as stream:
        for piece in read_texts(files, wanted):
            ids = array("i", renderer.encode_text(piece.text))
            if piece.ends_document:
                ids.append(renderer.end_of_text_id)
                num_documents += 1
            ids.tofile(stream)
    return num_documents


def _new_model(shape: Mapping[str, int], renderer: Renderer, knobs: Mapping[str, Any], device: torch.device) -> Any:
    """A Qwen2-shaped model with random weights, tied embeddings, in float32."""
    # Late: the library takes seconds to import, and data errors are reported before.
    from transformers import Qwen2Config, Qwen2ForCausalLM

    quiet_transformers()
    sizes: dict[str, Any] = {**shape, "vocab_size": renderer.vocabulary_size}
    config = Qwen2Config(
        **sizes,
        max_position_embeddings=knobs["sequence_length"],
        # From the usual 0.02 a narrow model learns three times slower, and its tied head is never sure of a token.
        initializer_range=max(0.02, 0.7 * shape["hidden_size"] ** -0.5),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=renderer.stop_token_ids,
        pad_token_id=renderer.end_of_text_id,
    )
    model: Any = Qwen2ForCausalLM(config)
    return model.to(device)


if __name__ == "__main__":
    run_in_processes(main, "runner.programs.train.pretrain")
