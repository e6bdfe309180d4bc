"""What the estimator says of the memory of a real training, beside what the training takes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_app.estimate import FIRST_SPREAD
from finetune_app.memory import peak_memory_bytes
from finetune_app.shapes import Job, Load, Machine, Shape, shape_of_config
from runner.contract.knobs import check_hyperparameters
from runner.programs.lib.render import Renderer
from runner.programs.train import preference, sft
from tests.programs.peaks import MIB, peak_above_start_mib
from tests.programs.recipes import write_rows
from tests.programs.tiny_models import write_tiny_tokenizer

WORDS = "What is the capital of France? The capital of France is Paris. " * 12


def write_model(folder: Path, vocabulary: int, width: int) -> Shape:
    """Four layers with random weights under a vocabulary of any size."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    write_tiny_tokenizer(folder)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=1024,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder)
    shape = shape_of_config(json.loads((folder / "config.json").read_text()), model.num_parameters())
    assert shape is not None
    return shape


@pytest.mark.parametrize(
    ("recipe", "program", "method", "vocabulary", "width"),
    [
        ("sft", sft.main, "lora", 2_048, 192),
        ("sft", sft.main, "lora", 151_936, 128),
        ("sft", sft.main, "full", 151_936, 64),
        ("preference", preference.main, "lora", 32_768, 64),
    ],
)
def test_the_band_holds_the_peak_of_a_real_training(
    recipe: str, program: Callable[..., None], method: str, vocabulary: int, width: int, tmp_path: Path
) -> None:
    import peft  # noqa: F401  (seconds to import; before the fork, whose memory is measured)
    from trl.trainer.dpo_trainer import DPOTrainer  # noqa: F401

    shape = write_model(tmp_path / "base", vocabulary, width)
    pairs = recipe == "preference"
    words = WORDS[: len(WORDS) // 12] if pairs else WORDS
    rows = [
        {"prompt": "Say it.", "chosen": words, "rejected": words} if pairs else {"question": "Say it.", "answer": words}
    ] * 8
    given = {"precision": "fp32", "max_steps": 2, **({} if pairs else {"max_predict_samples": 0})}
    data = write_rows(tmp_path / "d.jsonl", rows)
    peak = peak_above_start_mib(
        program, tmp_path / "run",
        {"base_model": str(tmp_path / "base"), "method": method, "train_data": data, "hyperparameters": given},
    )  # fmt: skip
    renderer = Renderer.from_folder(tmp_path / "base")
    size = len(renderer.encode_text("".join(rows[0].values()))) + 10
    knobs: dict[str, Any] = check_hyperparameters(recipe, method, given)
    said = peak_memory_bytes(shape, Job(recipe, method, knobs), Load(8, size, size), Machine(8192)) / MIB
    sys.stdout.write(f"{recipe} {method}, {vocabulary:,} tokens: {peak:.0f} MiB taken, {said:.0f} said\n")
    assert said / FIRST_SPREAD < peak < said * FIRST_SPREAD
