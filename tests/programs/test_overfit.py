"""Each recipe x method x loss overfits eight samples, and the saved model does what the samples teach.

The cases are walked out of the table of hyperparameters: what the product offers is proved, or a test fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.programs.lib.artifacts import is_whole
from runner.programs.lib.render import Renderer
from runner.programs.train import classify, preference, pretrain, reward, rl, seq2seq, sft
from tests.programs.proofs import (
    EIGHT_QUESTIONS,
    Cell,
    answers_of,
    base_model,
    cells,
    encoded_preferences,
    fell_to,
    log_probability,
    manifest_of,
    saved_model,
    score,
    unjudged_choices,
)
from tests.programs.recipes import PAIRS, PREFERENCES, TEXTS, make_context, values_by_step, write_rows
from tests.programs.tiny_models import write_tiny_encoder_decoder

pytestmark = pytest.mark.slow

COMMON = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "precision": "fp32",
}
#: A text of about eight sequences.
CORPUS = "The piano has eighty-eight keys. 钢琴有八十八个键。The capital of France is Paris, 法国的首都是巴黎。\n" * 4


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def run(main: Callable[[Any], None], cell: Cell, base: Path, place: Path, data: str, **knobs: Any) -> Path:
    """Train a cell and return its run folder; the training data are the validation data, except with rl."""
    parameters = {
        "base_model": str(base),
        "method": cell.method,
        "train_data": data,
        "validation_data": None if cell.recipe == "rl" else data,
        "hyperparameters": {**COMMON, **cell.knobs, **knobs},
    }
    main(make_context(place / "run", parameters))
    assert is_whole(place / "run" / "output")
    facts = manifest_of(place / "run")["facts"]
    assert facts["format"] == ("full" if cell.method == "full" else "adapter")
    name = "model" if cell.method == "full" else "adapter_model"
    saved = load_file(place / "run/output/model" / f"{name}.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    return place / "run"


def prove_sft(cell: Cell, base: Path, place: Path) -> None:
    """Every answer comes back word by word."""
    data = write_rows(place / "train.jsonl", EIGHT_QUESTIONS)
    done = run(sft.main, cell, base, place, data, max_seq_length=64, num_train_epochs=40)
    assert fell_to(done) < 0.02
    answers = answers_of(done)
    assert len(answers) == 8
    assert all(answer == reference for answer, reference in answers)


def prove_preference(cell: Cell, base: Path, place: Path) -> None:
    """The saved model prefers every chosen reply, by the measure that its loss is about."""
    data = write_rows(place / "train.jsonl", PREFERENCES)
    rate = 1e-3 if cell.method == "full" else 5e-3
    done = run(preference.main, cell, base, place, data, max_seq_length=96, num_train_epochs=15, learning_rate=rate)
    if cell.loss != "orpo":  # its loss holds that of the answers, which is not the point
        assert fell_to(done) < 0.3
    model, before = saved_model(done, base, "AutoModelForCausalLM"), base_model(base)
    has_reference = cell.loss in ("dpo", "ipo", "kto")
    won, won_before = 0, 0
    for prompt, replies in encoded_preferences(base, data):
        after, at_first = ([log_probability(one, prompt, reply) for reply in replies] for one in (model, before))
        if has_reference:
            after = [new - old for new, old in zip(after, at_first, strict=True)]
            at_first = [0.0, 0.0]
        else:
            after, at_first = (
                [value / len(reply) for value, reply in zip(values, replies, strict=True)]
                for values in (after, at_first)
            )
        won += after[0] > after[1]
        won_before += at_first[0] > at_first[1]
    assert (won, won_before < 8) == (8, True)
    if cell.loss == "kto":
        chosen, rejected = (values_by_step(done, f"train/reward_{name}") for name in ("chosen", "rejected"))
        assert chosen[max(chosen)] > 0 > rejected[max(rejected)]
    else:
        metrics = manifest_of(done)["metrics"]
        assert metrics["eval/reward_accuracy"] == 1.0
        assert metrics["eval/reward_margin"] > 0.1


def prove_reward(cell: Cell, base: Path, place: Path) -> None:
    """Every chosen reply earns more."""
    data = write_rows(place / "train.jsonl", PREFERENCES)
    done = run(reward.main, cell, base, place, data, num_train_epochs=10, learning_rate=5e-3)
    assert fell_to(done) < 0.1
    manifest = manifest_of(done)
    assert (manifest["facts"]["task"], manifest["metrics"]["eval/reward_accuracy"]) == ("reward", 1.0)
    model = saved_model(done, base, "AutoModelForSequenceClassification", num_labels=1)
    for prompt, (chosen, rejected) in encoded_preferences(base, data):
        assert score(model, prompt, chosen) > score(model, prompt, rejected) + 1


def prove_classify(cell: Cell, base: Path, place: Path) -> None:
    """Every text gets its class."""
    data = write_rows(place / "train.jsonl", TEXTS)
    done = run(
        classify.main, cell, base, place, data, num_train_epochs=15, learning_rate=5e-3, max_seq_length=64, eval_steps=1
    )
    accuracy, f1 = (values_by_step(done, f"eval/{name}") for name in ("accuracy", "f1"))
    assert accuracy[1] < accuracy[max(accuracy)] == f1[max(f1)] == 1.0
    assert fell_to(done) < 0.1
    facts, labels = manifest_of(done)["facts"], ["code", "music", "places"]
    assert (facts["task"], facts["labels"]) == ("classification", labels)
    assert json.loads((done / "output/model/labels.json").read_text(encoding="utf-8")) == labels
    model = saved_model(done, base, "AutoModelForSequenceClassification", num_labels=len(labels))
    renderer = Renderer.from_folder(base)
    with torch.inference_mode():
        told = [model(input_ids=torch.tensor([renderer.encode_text(row["text"])])).logits for row in TEXTS]
    assert [labels[int(logits.argmax())] for logits in told] == [row["label"] for row in TEXTS]


def prove_seq2seq(cell: Cell, base: Path, place: Path) -> None:
    """Every target comes back, from a causal model and from an encoder-decoder."""
    data = write_rows(place / "train.jsonl", PAIRS)
    rate = 3e-3 if cell.method == "full" else 1e-2
    shapes = (("generation", base, 1e-2, 60), ("seq2seq", write_tiny_encoder_decoder(place / "t5"), rate, 80))
    for task, model, learning_rate, epochs in shapes:
        sizes = {"max_seq_length": 64, "generation_max_length": 8}
        (place / task).mkdir()
        done = run(
            seq2seq.main, cell, model, place / task, data,
            num_train_epochs=epochs, learning_rate=learning_rate, **sizes,
        )  # fmt: skip
        assert manifest_of(done)["facts"]["task"] == task
        assert fell_to(done) < 0.05
        assert answers_of(done) == [(pair["target"], pair["target"]) for pair in PAIRS]


def prove_rl(cell: Cell, base: Path, place: Path) -> None:
    """Answers of four tokens learn to hold a vowel, which the base's seldom do."""
    prompts = [{"prompt": f"Say {word}", "reference": word} for word in "abcdefgh"] * 4
    is_ppo = cell.loss == "ppo"
    done = run(
        rl.main, cell, base, place, write_rows(place / "prompts.jsonl", prompts),
        per_device_train_batch_size=32, max_seq_length=64, num_train_epochs=1000, lr_scheduler_type="constant",
        learning_rate=5e-3 if cell.method == "full" else 2e-2, reward_function="regex", reward_pattern="[aeiou]",
        max_completion_length=4, rollout_batch_size=32 if is_ppo else 8, max_steps=40 if is_ppo else 120,
        update_epochs=2, kl_coef=0.01, **({"kl_target": 0.0} if is_ppo else {}),
    )  # fmt: skip
    earned = list(values_by_step(done, "reward/mean").values())
    assert fmean(earned[-5:]) > max(0.85, fmean(earned[:3]) + 0.15)
    distance, length = (values_by_step(done, name) for name in ("kl_divergence", "episode_length"))
    assert distance[max(distance)] > 0.05
    assert 1 <= length[max(length)] <= 4
    assert {"reward/mean", "kl_divergence", "episode_length"} <= manifest_of(done)["metrics"].keys()


def prove_pretrain(cell: Cell, base: Path, place: Path) -> None:
    """The text is known by heart, by a new model and by one that went on from a base."""
    corpus = place / "corpus.txt"
    corpus.write_text(CORPUS, encoding="utf-8")
    shape = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "intermediate_size": 128}
    for name, given, knobs in (("new", None, shape), ("continued", str(base), {})):
        sizes = {"sequence_length": 32, "max_steps": 120}
        parameters = {
            "base_model": given,
            "train_data": [str(corpus)],
            "validation_data": None,
            "hyperparameters": {**COMMON, **knobs, **sizes},
        }
        pretrain.main(make_context(place / name, parameters))
        assert fell_to(place / name) < 0.05
        result = place / name / "output/model"
        token_ids = torch.tensor([Renderer.from_folder(result).encode_text(CORPUS)[:32]])
        with torch.inference_mode():
            told = base_model(result)(input_ids=token_ids).logits.argmax(-1)[0, 4:-1]
        assert torch.equal(told, token_ids[0, 5:])


PROOFS: dict[str, Callable[[Cell, Path, Path], None]] = {
    "sft": prove_sft,
    "preference": prove_preference,
    "reward": prove_reward,
    "classify": prove_classify,
    "seq2seq": prove_seq2seq,
    "rl": prove_rl,
    "pretrain": prove_pretrain,
}


@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.name) for cell in cells()])
def test_eight_samples_are_learned_by_heart(cell: Cell, tiny_model_folder: Path, tmp_path: Path) -> None:
    PROOFS[cell.recipe](cell, tiny_model_folder, tmp_path)


def test_every_choice_of_the_table_is_a_case_or_known_to_be_none() -> None:
    assert unjudged_choices() == set()
    assert {cell.recipe for cell in cells()} == PROOFS.keys()
