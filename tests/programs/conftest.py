"""Small real models for the tests of the programs: random weights, a real byte-level BPE, a ChatML template."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs.tiny_models import write_tiny_adapter, write_tiny_model


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
