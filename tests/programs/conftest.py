"""Small real models for the tests of the programs: random weights, a real byte-level BPE, a ChatML template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.programs.tiny_models import write_tiny_adapter, write_tiny_encoder_decoder, write_tiny_model


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-shaped model of 0.1 M parameters in float32 with tokenizer and template. Read only."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "qwen2", "qwen2")


@pytest.fixture(scope="session")
def tiny_adapter_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny model whose weights are not zero. Read only."""
    return write_tiny_adapter(tmp_path_factory.mktemp("tiny-adapter") / "lora", tiny_model_folder)


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same size in the shape of Llama, whose query and key rows GGUF orders differently. Read only."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "llama", "llama")


@pytest.fixture(scope="session")
def tiny_llama_adapter_folder(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny Llama. Read only."""
    return write_tiny_adapter(tmp_path_factory.mktemp("tiny-adapter") / "llama-lora", tiny_llama_folder)


@pytest.fixture(scope="session")
def tiny_encoder_decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of 1 + 1 layers. Read only."""
    return write_tiny_encoder_decoder(tmp_path_factory.mktemp("tiny") / "t5")


@pytest.fixture
def order(tiny_model_folder: Path, tiny_encoder_decoder_folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Makes the parameters of one of ``cases.CASES``, with a method and knobs of its own."""
    # Late: it imports every recipe.
    from tests.programs.cases import parameters_of

    def make(case: str, method: str = "full", **knobs: Any) -> dict[str, Any]:
        base = tiny_encoder_decoder_folder if case == "seq2seq" else tiny_model_folder
        return parameters_of(base, tmp_path, case, method, **knobs)

    return make
