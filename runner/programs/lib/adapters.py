"""LoRA adapters on a frozen base, which may be quantized."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from runner.contract.knobs import ADAPTER_METHODS
from runner.programs.lib.events import ProgramError, Reporter
from runner.programs.lib.fast_lora import quicken_lora
from runner.programs.lib.lean_layers import spare_activations
from runner.programs.lib.model import Device, load_causal_model, load_classifier, load_encoder_decoder
from runner.programs.lib.recipe import Order, training_dtype
from runner.programs.lib.sharding import is_wanted
from runner.programs.lib.spared import QUANTIZER, spared


def load_trainable(order: Order, say: Reporter) -> tuple[Any, Any]:
    """The causal model of an order's base as its method trains it, and the package that saves the result.

    Both are the model itself with method ``full``; else the package is PEFT's wrapper, whose adapters sit in the
    model. Raises ProgramError.
    """
    quantized = quantization_of(order.knobs, order.device) if order.method == "qlora" else None
    dtype = training_dtype(order.method, order.device)
    model = load_causal_model(order.base, dtype, order.load_device, quantized)
    keep_layout(model)
    package = add_lora(model, order.base_name, order.knobs) if order.method in ADAPTER_METHODS else model
    if order.method in ADAPTER_METHODS:
        quicken_lora(package)
        spare_activations(package)
    prepare(model, order.knobs)
    tell_size(model, say)
    return model, package


def load_trainable_classifier(order: Order, labels: Sequence[str], say: Reporter) -> Any:
    """The base of an order with a new head for labels; with an adapter PEFT's wrapper, which trains the head too."""
    dtype = training_dtype(order.method, order.device)
    model = load_classifier(order.base, dtype, order.load_device, labels)
    model.config.pad_token_id = order.renderer.padding_id
    package = model if order.method == "full" else add_lora(model, order.base_name, order.knobs, "SEQ_CLS")
    prepare(model, order.knobs)
    tell_size(model, say)
    return package


def load_trainable_encoder_decoder(order: Order, say: Reporter) -> tuple[Any, Any]:
    """The encoder-decoder of an order's base, and the package that saves the result."""
    model = load_encoder_decoder(order.base, training_dtype(order.method, order.device), order.load_device)
    package = model if order.method == "full" else add_lora(model, order.base_name, order.knobs, "SEQ_2_SEQ_LM")
    prepare(model, order.knobs)
    tell_size(model, say)
    return model, package


def add_lora(model: Any, base_name: str, knobs: Mapping[str, Any], task_type: str = "CAUSAL_LM") -> Any:
    """Put adapters into the model in place and return the package that saves them. Raises ProgramError."""
    with spared() if getattr(model, "is_quantized", False) else spared(QUANTIZER):
        return _add_lora(model, base_name, knobs, task_type)


def _add_lora(model: Any, base_name: str, knobs: Mapping[str, Any], task_type: str) -> Any:
    # Late: the library takes seconds to import, and data errors are reported before.
    from peft import LoraConfig, get_peft_model

    names = knobs["target_modules"]
    config = LoraConfig(
        task_type=task_type,
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


def quantization_of(knobs: Mapping[str, Any], device: Device) -> Any:
    """How the base is quantized (bitsandbytes): 4 or 8 bits, computed in the device's precision."""
    # Late: the library takes seconds to import, and data errors are reported before.
    from transformers import BitsAndBytesConfig

    make_config: Any = BitsAndBytesConfig
    if knobs["quantization_bits"] == 8:
        return make_config(load_in_8bit=True)
    return make_config(
        load_in_4bit=True,
        bnb_4bit_quant_type=knobs["bnb_4bit_quant_type"],
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=device.autocast_dtype or torch.float32,
    )


def keep_layout(model: Any) -> None:
    """4-bit weights stay as they are: on some CPUs bitsandbytes would lay them out anew at the first pass of an
    evaluation, in a way that has no gradients when the training goes on."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def hold_in_float32(package: Any) -> None:
    """Trained weights in float32 again: TRL turns those on a quantized base into bf16, which loses small updates."""
    for parameter in package.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save_package(package: Any, method: str, target: Path) -> None:
    """Write the model, or the adapter alone, as safetensors."""
    target.mkdir(exist_ok=True)
    # TRL keeps a second adapter as its reference; it is not part of the result.
    only_ours = {"save_embedding_layers": False, "selected_adapters": ["default"]}
    package.save_pretrained(target, **({} if method == "full" else only_ours))


def prepare(model: Any, knobs: Mapping[str, Any]) -> None:
    """Recompute activations where the knob asks for it."""
    model.is_shared_out_later = is_wanted(knobs)
    if knobs["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def tell_size(model: Any, say: Reporter) -> None:
    """Say how many parameters there are and how many of them are trained."""
    num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say.phase("model", f"model loaded: {model.num_parameters():,} parameters, {num_trainable:,} of them are trained")
