"""LoRA layers as one product after the other, without passes over whole activations in between.

PEFT adds the adapter to the base by two extra passes over the output of each layer and converts its input to float32
and back; here the small products are added into the large ones in place. Nothing is computed for the frozen base's own
gradient.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch


def quicken_lora(model: Any) -> None:
    """Let the plain LoRA layers of a model compute this way.

    Layers with dropout, with a quantized base or a variant such as DoRA keep PEFT's own way.
    """
    from peft.tuners.lora.layer import Linear  # late: seconds to import

    for layer in model.modules():
        if type(layer) is Linear and _is_plain(layer):
            layer.__dict__["forward"] = MethodType(_forward, layer)


def _is_plain(layer: Any) -> bool:
    return (
        list(layer.lora_A) == ["default"]
        and not layer.lora_variant
        and type(layer.base_layer) is torch.nn.Linear
        and isinstance(layer.lora_dropout["default"], torch.nn.Identity)
        and layer.lora_A["default"].bias is None
        and layer.lora_B["default"].bias is None
    )


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    base, down, up = layer.base_layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    if layer.disable_adapters or layer.merged or base.weight.requires_grad or layer.active_adapters != ["default"]:
        return type(layer).forward(layer, x)  # type: ignore[no-any-return]
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else base.weight.dtype
    apply: Any = _LoraLinear.apply
    return apply(x.to(dtype), base.weight, base.bias, down, up, layer.scaling["default"])  # type: ignore[no-any-return]


class _LoraLinear(torch.autograd.Function):
    """``x @ base.T + bias + scaling * (x @ down.T) @ up.T`` with a frozen base."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        base: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        rows, dtype = x.flatten(0, -2), x.dtype
        base, down_cast, up_cast = base.to(dtype), down.to(dtype), up.to(dtype)
        y = torch.nn.functional.linear(rows, base, None if bias is None else bias.to(dtype))
        small = rows @ down_cast.T
        y.addmm_(small, up_cast.T, alpha=scaling)
        ctx.save_for_backward(rows, base, down, up, small)
        ctx.scaling, ctx.shape = scaling, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, base, down, up, small = ctx.saved_tensors
        y_gradient = outputs[0].flatten(0, -2)
        small_gradient = (y_gradient @ up.to(rows.dtype)).mul_(ctx.scaling)
        down_gradient = (small_gradient.T @ rows).to(down.dtype)
        up_gradient = (y_gradient.T @ small).mul_(ctx.scaling).to(up.dtype)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = (y_gradient @ base).addmm_(small_gradient, down.to(rows.dtype)).view(ctx.shape)
        return x_gradient, None, None, down_gradient, up_gradient, None
