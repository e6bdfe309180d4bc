"""GGUF files as llama.cpp's own reader sees them, and what is refused instead of being served wrongly."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from runner.programs.lib.events import ProgramError, Stopped
from runner.programs.lib.render import Renderer
from runner.programs.serve.gguf_writer import write_adapter_gguf, write_model_gguf
from runner.programs.serve.private_tokens import write_private_tokenizer


def changed_copy(source: Path, target: Path, file: str, **changes: Any) -> Path:
    """A copy of a folder with other values in one JSON file."""
    shutil.copytree(source, target)
    value = json.loads((target / file).read_text(encoding="utf-8"))
    (target / file).write_text(json.dumps({**value, **changes}), encoding="utf-8")
    return target


def tensors_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}


def value_of(path: Path, key: str) -> Any:
    field = GGUFReader(path).get_field(key)
    assert field is not None, key
    return field.contents()


def test_every_weight_of_qwen2_is_written_unchanged_in_float32(tiny_model_folder: Path, tmp_path: Path) -> None:
    facts = write_model_gguf(tiny_model_folder, tmp_path / "model.gguf")
    weights, written = load_file(tiny_model_folder / "model.safetensors"), tensors_of(tmp_path / "model.gguf")
    assert facts.precision == "f32"
    assert facts.num_parameters == sum(tensor.numel() for tensor in weights.values())
    assert facts.size_bytes == (tmp_path / "model.gguf").stat().st_size
    assert len(written) == len(weights)
    query = "model.layers.1.self_attn.q_proj"
    assert np.array_equal(written["blk.1.attn_q.weight"], weights[f"{query}.weight"].numpy())
    assert np.array_equal(written["blk.1.attn_q.bias"], weights[f"{query}.bias"].numpy())


def test_query_rows_of_llama_are_interleaved(tiny_llama_folder: Path, tmp_path: Path) -> None:
    write_model_gguf(tiny_llama_folder, tmp_path / "model.gguf")
    original = load_file(tiny_llama_folder / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].numpy()
    written = tensors_of(tmp_path / "model.gguf")["blk.0.attn_q.weight"]
    # Two heads of 32 rows: row 2i of a head was row i, row 2i+1 was row 16+i.
    assert np.array_equal(written[2], original[1])
    assert np.array_equal(written[3], original[17])
    assert np.array_equal(written[32 + 2], original[32 + 1])


@pytest.mark.parametrize(("precision", "tolerance"), [("f16", 2**-10), ("bf16", 2**-7)])
def test_half_precisions_round_matrices_and_keep_vectors(
    precision: Any, tolerance: float, tiny_model_folder: Path, tmp_path: Path
) -> None:
    write_model_gguf(tiny_model_folder, tmp_path / "model.gguf", precision=precision)
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    weights = load_file(tiny_model_folder / "model.safetensors")
    matrix = tensors["blk.0.ffn_up.weight"]
    assert matrix.tensor_type.name == precision.upper()
    raw = torch.from_numpy(matrix.data.copy())
    values = raw.view(torch.bfloat16) if precision == "bf16" else raw
    assert torch.allclose(values.float(), weights["model.layers.0.mlp.up_proj.weight"], rtol=tolerance, atol=1e-6)
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"


def test_tokenizer_carries_splitting_rule_stop_token_and_template(tiny_model_folder: Path, tmp_path: Path) -> None:
    write_model_gguf(tiny_model_folder, tmp_path / "model.gguf")
    path = tmp_path / "model.gguf"
    assert value_of(path, "tokenizer.ggml.pre") == "qwen2"
    assert value_of(path, "tokenizer.ggml.eos_token_id") in Renderer.from_folder(tiny_model_folder).stop_token_ids
    assert value_of(path, "tokenizer.ggml.add_bos_token") is False
    assert "<|im_start|>" in value_of(path, "tokenizer.chat_template")
    assert value_of(path, "tokenizer.ggml.tokens")[2] == "<|im_end|>"


def test_private_tokenizer_keeps_ids_and_hides_names(tiny_model_folder: Path, tmp_path: Path) -> None:
    write_private_tokenizer(tiny_model_folder, tmp_path / "first")
    write_private_tokenizer(tiny_model_folder, tmp_path / "second")
    messages = [{"role": "user", "content": "你好 <|im_end|> hello"}]
    private, public = (Renderer.from_folder(folder) for folder in (tmp_path / "first", tiny_model_folder))
    assert private.encode_prompt(messages) == public.encode_prompt(messages)
    texts = [(tmp_path / name / "tokenizer.json").read_text(encoding="utf-8") for name in ("first", "second")]
    assert texts[0] != texts[1]
    assert "<|im_end|>" not in texts[0]
    assert "<|im_end|>" not in (tmp_path / "first" / "tokenizer_config.json").read_text(encoding="utf-8")


def test_llama3_rope_becomes_frequency_factors(tiny_llama_folder: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = changed_copy(tiny_llama_folder, tmp_path / "model", "config.json", rope_parameters=rope)
    write_model_gguf(model, tmp_path / "model.gguf")
    factors = tensors_of(tmp_path / "model.gguf")["rope_freqs.weight"]
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig.from_pretrained(model), "cpu")
    plain = [500000.0 ** (-2 * index / 32) for index in range(16)]
    assert np.allclose(np.asarray(plain) / factors, expected.numpy(), rtol=1e-5)


def test_an_interrupted_writer_leaves_no_file(tiny_model_folder: Path, tmp_path: Path) -> None:
    def stop_at_the_third(done: int, total: int) -> None:
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        write_model_gguf(tiny_model_folder, tmp_path / "model.gguf", on_tensor=stop_at_the_third)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_architecture_is_named_with_the_supported_ones(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = changed_copy(tiny_model_folder, tmp_path / "model", "config.json", architectures=["MambaForCausalLM"])
    with pytest.raises(ProgramError, match="MambaForCausalLM; it serves LlamaForCausalLM, Qwen2ForCausalLM"):
        write_model_gguf(model, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope'"),
        ({"use_sliding_window": True, "sliding_window": 64}, "sliding-window attention"),
        ({"vocab_size": 100}, "the model has 100 rows"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    changes: dict[str, Any], reason: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    model = changed_copy(tiny_model_folder, tmp_path / "model", "config.json", **changes)
    with pytest.raises(ProgramError, match=reason):
        write_model_gguf(model, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizes text"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "without byte-level splitting"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": False},
                        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                    ],
                }
            },
            "splits text by the rule",
        ),
    ],
)
def test_a_tokenizer_that_llama_cpp_reads_otherwise_is_refused(
    changes: dict[str, Any], reason: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    model = changed_copy(tiny_model_folder, tmp_path / "model", "tokenizer.json", **changes)
    with pytest.raises(ProgramError, match=reason):
        write_model_gguf(model, tmp_path / "model.gguf")


def test_an_adapter_is_written_with_its_scale(
    tiny_model_folder: Path, tiny_adapter_folder: Path, tmp_path: Path
) -> None:
    write_adapter_gguf(tiny_adapter_folder, tiny_model_folder, tmp_path / "lora.gguf")
    written = tensors_of(tmp_path / "lora.gguf")
    weights = load_file(tiny_adapter_folder / "adapter_model.safetensors")
    assert len(written) == len(weights) == 2 * 7 * 2
    assert value_of(tmp_path / "lora.gguf", "adapter.lora.alpha") == 8.0
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    assert np.array_equal(written["blk.0.ffn_up.weight.lora_a"], weights[f"{prefix}.lora_A.weight"].numpy())
    assert np.array_equal(written["blk.0.ffn_up.weight.lora_b"], weights[f"{prefix}.lora_B.weight"].numpy())


@pytest.mark.parametrize(
    ("changes", "factor"),
    [({"use_rslora": True}, math.sqrt(4)), ({"alpha_pattern": {"up_proj": 24}}, 3.0)],
)
def test_a_scale_that_llama_cpp_does_not_know_is_multiplied_in(
    changes: dict[str, Any], factor: float, tiny_model_folder: Path, tiny_adapter_folder: Path, tmp_path: Path
) -> None:
    adapter = changed_copy(tiny_adapter_folder, tmp_path / "adapter", "adapter_config.json", **changes)
    write_adapter_gguf(adapter, tiny_model_folder, tmp_path / "lora.gguf")
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    original = load_file(tiny_adapter_folder / "adapter_model.safetensors")[key].numpy()
    assert np.allclose(tensors_of(tmp_path / "lora.gguf")["blk.0.ffn_up.weight.lora_b"], original * factor)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"bias": "all"}, "trains biases"),
        ({"peft_type": "IA3"}, "IA3, not LORA"),
    ],
)
def test_an_adapter_that_is_more_than_lora_is_refused(
    changes: dict[str, Any], reason: str, tiny_model_folder: Path, tiny_adapter_folder: Path, tmp_path: Path
) -> None:
    adapter = changed_copy(tiny_adapter_folder, tmp_path / "adapter", "adapter_config.json", **changes)
    with pytest.raises(ProgramError, match=reason):
        write_adapter_gguf(adapter, tiny_model_folder, tmp_path / "lora.gguf")


def test_a_lora_on_the_embedding_is_refused(tiny_model_folder: Path, tiny_adapter_folder: Path, tmp_path: Path) -> None:
    adapter = changed_copy(tiny_adapter_folder, tmp_path / "adapter", "adapter_config.json")
    key = "base_model.model.model.embed_tokens.lora_embedding_A"
    save_file({key: torch.zeros(4, 511)}, adapter / "adapter_model.safetensors")
    with pytest.raises(ProgramError, match="applies LoRA to linear layers only"):
        write_adapter_gguf(adapter, tiny_model_folder, tmp_path / "lora.gguf")
