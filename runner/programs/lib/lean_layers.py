"""Layers of a frozen base that keep less for the backward pass, on a CPU: cheap parts are computed again there.

transformers' gated MLP keeps four tensors as wide as itself, of which two follow from the others; its norms keep what
they read in float32 although it is there in the model's own format. The numbers stay the same to the last bit but for
the gradient of a norm, whose sums come in another order.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch

from runner.programs.lib.fast_lora import LoraGradients, is_quick, lora_product, product_dtype


def spare_activations(model: Any) -> None:
    """Let the norms and gated MLPs of a model with quick LoRA layers compute this way, wherever their weights allow."""
    for module in model.modules():
        if _is_plain_norm(module):
            module.__dict__["forward"] = MethodType(_norm, module)
        elif _is_plain_gate(module):
            module.__dict__["forward"] = MethodType(_gated, module)


def _is_plain_norm(module: Any) -> bool:
    name = type(module).__name__
    return name in ("Qwen2RMSNorm", "Qwen3RMSNorm", "LlamaRMSNorm", "MistralRMSNorm") and module.weight.is_cpu


def _is_plain_gate(module: Any) -> bool:
    if type(module).__name__ not in ("Qwen2MLP", "Qwen3MLP", "LlamaMLP", "MistralMLP"):
        return False
    is_silu = type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")
    return is_silu and is_quick(module.down_proj) and module.down_proj.base_layer.weight.is_cpu


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    if module.weight.requires_grad:
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    return _FrozenNorm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-any-return, no-untyped-call]


def _gated(module: Any, x: torch.Tensor) -> torch.Tensor:
    layer = module.down_proj
    dtype = product_dtype(layer)
    if dtype is None:
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    gate, up = module.gate_proj(x).to(dtype), module.up_proj(x).to(dtype)
    apply: Any = _GatedLora.apply
    down, up_lora = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    base, scaling = layer.base_layer, layer.scaling["default"]
    return apply(gate, up, base.weight, base.bias, down, up_lora, scaling)  # type: ignore[no-any-return]


class _FrozenNorm(torch.autograd.Function):
    """``weight * x / sqrt(mean(x ** 2) + epsilon)`` as the models compute it, with a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = x.float()
        scale = wide.pow(2).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        scaled = x.float().mul_(scale) if x.dtype != torch.float32 else x * scale
        gradient = (outputs[0] * weight).to(x.dtype).float()
        share = (gradient * scaled).mean(-1, keepdim=True)
        return (gradient - scaled.mul_(share)).mul_(scale).to(x.dtype), None, None


class _GatedLora(torch.autograd.Function):
    """The LoRA product of ``silu(gate) * up``, which is computed again for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        gate: torch.Tensor,
        up: torch.Tensor,
        base: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up_lora: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        rows = torch.nn.functional.silu(gate).mul_(up).flatten(0, -2)
        y, small, base = lora_product(rows, base, bias, down, up_lora, scaling)
        ctx.save_for_backward(gate, up, base, down, up_lora, small)
        ctx.scaling = scaling
        return y.view(*gate.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up, base, down, up_lora, small = ctx.saved_tensors
        opened = torch.nn.functional.silu(gate)
        rows = (opened * up).flatten(0, -2)
        found = LoraGradients(outputs[0].flatten(0, -2), rows, base, down, up_lora, small, ctx.scaling)
        del rows
        gradient = found.inputs().view(gate.shape)
        up_gradient = opened.mul_(gradient)
        gate_gradient = torch.ops.aten.silu_backward(gradient.mul_(up), gate)
        return gate_gradient, up_gradient, None, None, found.down, found.up, None
