"""Pretraining: a tokenizer and a model out of text, resumption, and going on from a base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.contract import folder
from runner.contract.knobs import NEW_MODEL_SHAPE
from runner.programs.lib.artifacts import hash_file
from runner.programs.lib.events import ProgramError, Stopped
from runner.programs.lib.golden import GOLDEN_CONVERSATIONS
from runner.programs.lib.render import Renderer
from runner.programs.train import pretrain
from tests.programs.recipes import StoppingReporter, fork_processes, make_context, values_by_step

TEXT = "The piano has eighty-eight keys. 钢琴有八十八个键。 A short sentence ends here.\n" * 40
FAST = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "sequence_length": 16,
    "per_device_train_batch_size": 4,
    "max_steps": 12,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "precision": "fp32",
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def parameters_of(corpus: Path, base: Path | None = None, **knobs: Any) -> dict[str, Any]:
    shape = {} if base else FAST
    small = {name: value for name, value in FAST.items() if name not in NEW_MODEL_SHAPE}
    return {
        "base_model": str(base) if base else None,
        "train_data": [str(corpus)],
        "validation_data": None,
        "hyperparameters": {**shape, **small, **knobs},
        "model_name": "small",
        "lineage": {},
    }


def test_text_becomes_a_model_that_transformers_loads_and_renders_alike(corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    pretrain.main(make_context(tmp_path / "run", parameters_of(corpus)))
    losses = values_by_step(tmp_path / "run", "train/loss")
    assert losses[12] < losses[1]
    target = tmp_path / "run" / folder.OUTPUT / "model"
    model = Qwen2ForCausalLM.from_pretrained(target)
    renderer = Renderer.from_folder(target)
    assert model.config.vocab_size == renderer.vocabulary_size == 320
    assert model.config.max_position_embeddings == 16
    assert model.generation_config.eos_token_id == renderer.stop_token_ids
    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    for messages in GOLDEN_CONVERSATIONS[:-1]:
        expected = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True)["input_ids"]
        assert renderer.encode_conversation(messages).token_ids == expected
    facts = json.loads((tmp_path / "run" / folder.OUTPUT / folder.MANIFEST).read_text(encoding="utf-8"))["facts"]
    assert facts["num_parameters"] == model.num_parameters()
    assert facts["context_tokens"] == 16


def test_a_resumed_pretraining_ends_exactly_like_an_unbroken_one(corpus: Path, tmp_path: Path) -> None:
    parameters = parameters_of(corpus, save_steps=4)
    pretrain.main(make_context(tmp_path / "whole", parameters))
    broken = tmp_path / "broken"
    context = make_context(broken, parameters)
    context.report = StoppingReporter(broken, 6, lambda: setattr(context, "should_stop", True))
    with pytest.raises(Stopped):
        pretrain.main(context)
    pretrain.main(make_context(broken, parameters))
    assert values_by_step(broken, "train/loss") == values_by_step(tmp_path / "whole", "train/loss")
    weights = [path / folder.OUTPUT / "model" / "model.safetensors" for path in (broken, tmp_path / "whole")]
    assert hash_file(weights[0]) == hash_file(weights[1])
    beside = Renderer.from_folder(broken / folder.CHECKPOINTS / "step-00000012" / "tokenizer")
    assert beside.render_hash == Renderer.from_folder(broken / folder.OUTPUT / "model").render_hash


def test_pretraining_goes_on_from_a_base_with_its_tokenizer(
    corpus: Path, tmp_path: Path, tiny_model_folder: Path
) -> None:
    pretrain.main(make_context(tmp_path / "run", parameters_of(corpus, tiny_model_folder)))
    target = tmp_path / "run" / folder.OUTPUT / "model"
    assert Renderer.from_folder(target).render_hash == Renderer.from_folder(tiny_model_folder).render_hash
    before, after = (load_file(path / "model.safetensors") for path in (tiny_model_folder, target))
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])


def test_another_shape_than_the_base_has_is_refused(corpus: Path, tmp_path: Path, tiny_model_folder: Path) -> None:
    parameters = parameters_of(corpus, tiny_model_folder, hidden_size=96)
    with pytest.raises(ProgramError, match="the base model has hidden_size 64, not 96") as caught:
        pretrain.main(make_context(tmp_path / "run", parameters))
    assert caught.value.field == "hidden_size"


def test_validation_loss_is_measured_on_other_text(corpus: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.txt"
    held_out.write_text(TEXT[:2000], encoding="utf-8")
    parameters = {**parameters_of(corpus, eval_steps=6), "validation_data": str(held_out)}
    pretrain.main(make_context(tmp_path / "run", parameters))
    evaluated = values_by_step(tmp_path / "run", "eval/loss")
    assert list(evaluated) == [6, 12]
    assert evaluated[12] < evaluated[6]


def test_each_epoch_sees_every_sequence_once_at_another_offset() -> None:
    tokens = torch.arange(16 * 9 + 5, dtype=torch.int32)
    batches_of, steps = pretrain.packed_batches(tokens, length=16, batch_size=2, accumulation=2, seed=3)
    assert steps == 2
    epochs = []
    for first in (1, 3):
        batches = [batch for step in (first, first + 1) for batch in batches_of(step)]
        epochs.append(sorted(int(row[0]) for batch in batches for row in batch.token_ids))
    assert epochs[0] == list(range(0, 16 * 8, 16))
    offset = epochs[1][0]
    assert epochs[1] == [offset + start for start in epochs[0]]
    assert 0 <= offset < 16


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.", encoding="utf-8")
    with pytest.raises(ProgramError, match="lower sequence_length"):
        pretrain.main(make_context(tmp_path / "run", parameters_of(short)))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_go_on_from_the_checkpoint_of_one_and_seal_the_same(
    corpus: Path, tmp_path: Path, strategy: str
) -> None:
    """Sequences of one step: 2 a process and pass, times 2 processes = 2, times 2 passes."""
    sizes: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2}
    one = {**parameters_of(corpus, **sizes, gradient_accumulation_steps=2), "validation_data": str(corpus)}
    pretrain.main(make_context(tmp_path / "one", one))
    shutil.copytree(tmp_path / "one/checkpoints/step-00000002", tmp_path / "two/checkpoints/step-00000002")
    knobs = {**one["hyperparameters"], "gradient_accumulation_steps": 1, "distributed_strategy": strategy}
    fork_processes(pretrain.main, tmp_path / "two", {**one, "hyperparameters": knobs}, 2)
    for name in ("train/loss", "eval/loss", "train/grad_norm", "weights/norm"):
        theirs = {step: v for step, v in values_by_step(tmp_path / "one", name).items() if step > 2}
        assert values_by_step(tmp_path / "two", name) == pytest.approx(theirs, abs=1e-4)
    files = (f"{folder.OUTPUT}/model/model", "checkpoints/step-00000004/weights", "checkpoints/step-00000004/optimizer")
    for file in files:
        left, right = (load_file(tmp_path / name / f"{file}.safetensors") for name in ("one", "two"))
        assert left.keys() == right.keys()
        assert all(torch.allclose(tensor, right[name], atol=1e-4) for name, tensor in left.items())
