"""Writes a Hugging Face model folder, or a LoRA adapter folder, as GGUF files that llama.cpp loads."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runner.programs.lib.events import ProgramError
from runner.programs.lib.render import Renderer
from runner.programs.serve.gguf_tokenizer import add_tokenizer
from runner.programs.serve.weights import FULL_PRECISION_BELOW, StoredTensor, list_tensors, num_parameters

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGUFWriter, TensorNameMap

Precision = Literal["f32", "f16", "bf16"]


@dataclass(frozen=True, slots=True)
class Shape:
    """How one architecture is written: its name in GGUF, and whether query and key rows are interleaved there."""

    gguf_name: str
    permutes_query_and_key: bool


SUPPORTED = {
    "LlamaForCausalLM": Shape("llama", True),
    "Qwen2ForCausalLM": Shape("qwen2", False),
    "Qwen3ForCausalLM": Shape("qwen3", False),
}


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What was written: number of parameters, the precision of the matrices, bytes on disk."""

    num_parameters: int
    precision: Precision
    size_bytes: int


def write_model_gguf(
    model_folder: Path,
    path: Path,
    *,
    tokenizer_folder: Path | None = None,
    precision: Precision | None = None,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> GgufFacts:
    """Write weights, tokenizer and chat template as one GGUF file, holding one tensor in memory at a time.

    ``tokenizer_folder``: where the tokenizer is read instead (a private copy).
    ``precision`` None: f32 below 100 M parameters, else bf16 for bf16 weights and f16 for the others.
    ``on_tensor`` is called with (tensors written, tensors in all); what it raises ends the writing.
    Raises ProgramError (code ``unsupported_model``) for what llama.cpp would compute differently.
    """
    config = read_config(model_folder)
    shape = _supported_shape(config)
    tensors = list_tensors(model_folder)
    chosen = precision or _default_precision(tensors)
    with _written_durably(path, shape.gguf_name) as writer:
        writer.add_type("model")
        writer.add_file_type({"f32": 0, "f16": 1, "bf16": 32}[chosen])
        _add_hyperparameters(writer, config)
        stop_token_ids = Renderer.from_folder(model_folder).stop_token_ids
        add_tokenizer(writer, tokenizer_folder or model_folder, int(config["vocab_size"]), stop_token_ids)
        _write_tensors(writer, _model_tensors(config, shape, tensors), chosen, on_tensor)
    return GgufFacts(num_parameters(tensors), chosen, path.stat().st_size)


def write_adapter_gguf(adapter_folder: Path, model_folder: Path, path: Path) -> None:
    """Write a PEFT LoRA adapter of ``model_folder`` as a GGUF LoRA in float32.

    Raises ProgramError (code ``unsupported_adapter``) for DoRA, trained biases and fully trained modules.
    """
    adapter = json.loads((adapter_folder / "adapter_config.json").read_text(encoding="utf-8"))
    _refuse_unsupported_adapter(adapter)
    config = read_config(model_folder)
    shape = _supported_shape(config)
    with _written_durably(path, shape.gguf_name) as writer:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(adapter["lora_alpha"]))
        planned = _adapter_tensors(config, shape, adapter, list_tensors(adapter_folder))
        _write_tensors(writer, planned, "f32", lambda done, total: None)


def read_config(model_folder: Path) -> dict[str, Any]:
    """The parsed config.json of a model folder."""
    config: dict[str, Any] = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    return config


@dataclass(frozen=True, slots=True)
class _Planned:
    """One tensor to write: its GGUF name, its shape and the function that makes its float32 values."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]


def _supported_shape(config: dict[str, Any]) -> Shape:
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in SUPPORTED:
        raise ProgramError(
            "unsupported_model",
            f"The CPU server can not serve the architecture {architecture}; it serves {', '.join(sorted(SUPPORTED))}. "
            "Serve this model with vLLM on a GPU instead (server: vllm).",
            field="model",
        )
    if config.get("use_sliding_window") and config.get("sliding_window"):
        raise ProgramError(
            "unsupported_model",
            f"config.json asks for sliding-window attention (window {config['sliding_window']}), which the CPU server "
            "does not compute for this architecture. Set use_sliding_window to false, or serve with vLLM.",
            field="model",
        )
    return SUPPORTED[architecture]


def _default_precision(tensors: dict[str, StoredTensor]) -> Precision:
    if num_parameters(tensors) < FULL_PRECISION_BELOW:
        return "f32"
    largest = max(tensors.values(), key=lambda entry: math.prod(entry.shape))
    return "bf16" if largest.dtype == "BF16" else "f16"


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _add_hyperparameters(writer: GGUFWriter, config: dict[str, Any]) -> None:
    heads = int(config["num_attention_heads"])
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    _add_rope(writer, config)


def _rope(config: dict[str, Any]) -> tuple[float, str, dict[str, Any]]:
    """(base frequency, scaling type, scaling settings), from either place where transformers writes them."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = float(scaling.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    return base, str(scaling.get("rope_type") or scaling.get("type") or "default"), scaling


def _add_rope(writer: GGUFWriter, config: dict[str, Any]) -> None:
    from gguf import RopeScalingType

    base, kind, scaling = _rope(config)
    writer.add_rope_freq_base(base)
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    elif kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
        original = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(int(original))
    elif kind not in ("default", "llama3"):
        raise ProgramError(
            "unsupported_model",
            f"config.json asks for rope type {kind!r}; the CPU server computes default, linear, yarn and llama3.",
            field="model",
        )


def _model_tensors(config: dict[str, Any], shape: Shape, tensors: dict[str, StoredTensor]) -> Iterator[_Planned]:
    names = _name_map(config, shape)
    if _rope(config)[1] == "llama3":
        yield _Planned("rope_freqs.weight", (_head_dim(config) // 2,), lambda: _llama3_frequency_factors(config))
    for key, stored in tensors.items():
        if key == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        if key.endswith(".rotary_emb.inv_freq"):
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ProgramError(
                "unsupported_model", f"The weights hold a tensor {key!r} that {shape.gguf_name} does not know.", "model"
            )
        yield _Planned(name, stored.shape, _loader(config, shape, key, stored))


def _adapter_tensors(
    config: dict[str, Any], shape: Shape, adapter: dict[str, Any], tensors: dict[str, StoredTensor]
) -> Iterator[_Planned]:
    names = _name_map(config, shape)
    for key, stored in tensors.items():
        module, _, part = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        name = names.get_name(module)
        if part not in ("lora_A", "lora_B") or name is None or name == "token_embd":
            raise ProgramError(
                "unsupported_adapter",
                f"The adapter holds a tensor {key!r}; the CPU server applies LoRA to linear layers only. "
                "Merge the adapter into its base model and serve the merged model.",
                field="adapter",
            )
        yield _Planned(
            f"{name}.weight.{part.lower()}", stored.shape, _adapter_loader(config, shape, adapter, key, stored)
        )


def _name_map(config: dict[str, Any], shape: Shape) -> TensorNameMap:
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    arch: MODEL_ARCH = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == shape.gguf_name)
    return get_tensor_name_map(arch, int(config["num_hidden_layers"]))


def _loader(config: dict[str, Any], shape: Shape, key: str, stored: StoredTensor) -> Callable[[], torch.Tensor]:
    def load() -> torch.Tensor:
        tensor = stored.load().float()
        return _interleave_rows(config, key, tensor) if shape.permutes_query_and_key else tensor

    return load


def _adapter_loader(
    config: dict[str, Any], shape: Shape, adapter: dict[str, Any], key: str, stored: StoredTensor
) -> Callable[[], torch.Tensor]:
    def load() -> torch.Tensor:
        tensor = stored.load().float()
        if ".lora_B." not in key:
            return tensor
        tensor = tensor * _scale_correction(adapter, key, rank=stored.shape[1])
        return _interleave_rows(config, key, tensor) if shape.permutes_query_and_key else tensor

    return load


def _interleave_rows(config: dict[str, Any], key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Reorder the rows of a query or key projection, [heads * head_dim, ...], from half-split to interleaved rope."""
    if ".q_proj." in key:
        heads = int(config["num_attention_heads"])
    elif ".k_proj." in key:
        heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    else:
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape).contiguous()


def _scale_correction(adapter: dict[str, Any], key: str, rank: int) -> float:
    """What B is multiplied by: llama.cpp scales by lora_alpha / rank, PEFT also knows rsLoRA and alpha_pattern."""
    import re

    module = key.removeprefix("base_model.model.").split(".lora_B.")[0]
    alpha = float(adapter["lora_alpha"])
    for pattern, value in (adapter.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
            break
    peft_scale = alpha / rank**0.5 if adapter.get("use_rslora") else alpha / rank
    return peft_scale * rank / float(adapter["lora_alpha"])


def _refuse_unsupported_adapter(adapter: dict[str, Any]) -> None:
    reason = None
    if adapter.get("peft_type") != "LORA":
        reason = f"its type is {adapter.get('peft_type')}, not LORA"
    elif adapter.get("use_dora"):
        reason = "it is a DoRA adapter (use_dora)"
    elif adapter.get("modules_to_save"):
        reason = f"it replaces whole modules ({', '.join(adapter['modules_to_save'])})"
    elif adapter.get("bias", "none") != "none":
        reason = f"it trains biases (bias: {adapter['bias']})"
    if reason:
        raise ProgramError(
            "unsupported_adapter",
            f"The CPU server can not apply this adapter: {reason}. Merge it into its base model and serve that.",
            field="adapter",
        )


def _llama3_frequency_factors(config: dict[str, Any]) -> torch.Tensor:
    """Divisors of the rope frequencies, [head_dim / 2], after transformers' _compute_llama3_parameters."""
    import torch

    base, _, scaling = _rope(config)
    factor, low, high = (float(scaling[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    half = _head_dim(config) // 2
    factors = []
    for index in range(half):
        wavelength = 2 * math.pi * base ** (index / half)
        smooth = min(max((original / wavelength - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32)


def _write_tensors(
    writer: GGUFWriter, planned: Iterator[_Planned], precision: Precision, on_tensor: Callable[[int, int], None]
) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType

    kinds: dict[Precision, tuple[Any, np.dtype[Any]]] = {
        "f32": (GGMLQuantizationType.F32, np.dtype(np.float32)),
        "f16": (GGMLQuantizationType.F16, np.dtype(np.float16)),
        "bf16": (GGMLQuantizationType.BF16, np.dtype(np.int16)),
    }
    plan = list(planned)
    for entry in plan:
        kind, dtype = kinds[_precision_of(entry, precision)]
        size = dtype.itemsize * int(np.prod(entry.shape))
        writer.add_tensor_info(entry.name, entry.shape, dtype, size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, entry in enumerate(plan, start=1):
        writer.write_tensor_data(_to_numpy(entry.make(), _precision_of(entry, precision)))
        on_tensor(done, len(plan))


def _precision_of(entry: _Planned, precision: Precision) -> Precision:
    """Vectors (norms, biases, rope factors) stay in float32: llama.cpp computes with them so."""
    return "f32" if len(entry.shape) == 1 else precision


def _to_numpy(tensor: torch.Tensor, precision: Precision) -> np.ndarray[Any, Any]:
    import torch

    if precision == "bf16":
        return tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
    return tensor.to(torch.float16 if precision == "f16" else torch.float32).contiguous().numpy()


@contextmanager
def _written_durably(path: Path, gguf_name: str) -> Iterator[GGUFWriter]:
    """A writer whose file appears under ``path`` only when it is whole and on disk."""
    from gguf import GGUFWriter

    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    writer = GGUFWriter(temporary, gguf_name)
    try:
        yield writer
        writer.close()
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
