"""How fast a training goes: tokens that are none of padding, and the share of a GPU's peak that they need (MFU)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from runner.programs.lib import distributed
from runner.programs.lib.model import Device

#: Dense bf16 TFLOP/s of whole devices as NVIDIA publishes them; the first name found counts.
PEAK_TFLOPS = (
    ("H100 PCIe", 756),
    ("H100 NVL", 835),
    ("H100", 989),
    ("H200", 989),
    ("A100", 312),
    ("A10", 125),
    ("L40S", 362),
    ("RTX 4090", 165),
)
#: Parts of a device and smaller ones that carry its name.
NOT_WHOLE = re.compile(r"\bMIG\b|\bLaptop\b")


def peak_flops(device_name: str) -> float | None:
    """The peak of a whole device in FLOP/s; None where none is known."""
    if NOT_WHOLE.search(device_name):
        return None
    found = (peak * 1e12 for name, peak in PEAK_TFLOPS if re.search(rf"\b{re.escape(name)}\b", device_name))
    return next(found, None)


def flops_per_token(model: Any) -> float:
    """The necessary work: 6 a parameter, 4 where the base is frozen and needs no gradients of its own."""
    is_frozen = any(not parameter.requires_grad for parameter in model.parameters())
    return (4.0 if is_frozen else 6.0) * float(model.num_parameters())


def utilization(model: Any, tokens_per_second: float, device: Device) -> dict[str, float]:
    """``train/mfu``, the share of the peak of all processes' devices; {} where none is known, or in float32."""
    peak = peak_flops(device.name)
    if peak is None or device.autocast_dtype is None:
        return {}
    return {"train/mfu": tokens_per_second * flops_per_token(model) / (peak * distributed.num_processes())}


def tokens_of(inputs: Mapping[str, Any]) -> int:
    """Tokens of a batch of transformers' trainer, and of its targets; no padding."""
    mask, labels = inputs.get("attention_mask"), inputs.get("labels")
    total = int(mask.sum()) if isinstance(mask, torch.Tensor) else 0
    return total + (int((labels >= 0).sum()) if isinstance(labels, torch.Tensor) and labels.ndim > 1 else 0)
