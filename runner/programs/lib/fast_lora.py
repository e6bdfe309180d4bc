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


def is_quick(layer: Any) -> bool:
    """The layer computes this way."""
    return "forward" in vars(layer) and vars(layer)["forward"].__func__ is _forward


def product_dtype(layer: Any) -> torch.dtype | None:
    """What a quick layer computes with; None where it has to compute in PEFT's own way now."""
    weight: torch.Tensor = layer.base_layer.weight
    if layer.disable_adapters or layer.merged or weight.requires_grad or layer.active_adapters != ["default"]:
        return None
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def lora_product(
    rows: torch.Tensor,
    base: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``rows @ base.T + bias + scaling * (rows @ down.T) @ up.T``; ``rows @ down.T``; and ``base`` as it was used."""
    dtype = rows.dtype
    base, down_cast, up_cast = base.to(dtype), down.to(dtype), up.to(dtype)
    y = torch.nn.functional.linear(rows, base, None if bias is None else bias.to(dtype))
    small = rows @ down_cast.T
    return y.addmm_(small, up_cast.T, alpha=scaling), small, base


class LoraGradients:
    """Of ``lora_product``, given the gradient ``of_y``: by the adapter's matrices, and, on request, by its input."""

    def __init__(
        self,
        of_y: torch.Tensor,
        rows: torch.Tensor,
        base: torch.Tensor,
        down: torch.Tensor,
        up: torch.Tensor,
        small: torch.Tensor,
        scaling: float,
    ) -> None:
        self._of_y, self._base, self._down = of_y, base, down.to(rows.dtype)
        self._of_small = (of_y @ up.to(rows.dtype)).mul_(scaling)
        self.down = (self._of_small.T @ rows).to(down.dtype)
        self.up = (of_y.T @ small).mul_(scaling).to(up.dtype)

    def inputs(self) -> torch.Tensor:
        """By ``rows``."""
        return (self._of_y @ self._base).addmm_(self._of_small, self._down)


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
    dtype = product_dtype(layer)
    if dtype is None:
        return type(layer).forward(layer, x)  # type: ignore[no-any-return]
    apply: Any = _LoraLinear.apply
    return apply(x.to(dtype), base.weight, base.bias, down, up, layer.scaling["default"])  # type: ignore[no-any-return]


class _LoraLinear(torch.autograd.Function):
    """``lora_product`` with a frozen base."""

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
        rows = x.flatten(0, -2)
        y, small, base = lora_product(rows, base, bias, down, up, scaling)
        ctx.save_for_backward(rows, base, down, up, small)
        ctx.scaling, ctx.shape = scaling, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, base, down, up, small = ctx.saved_tensors
        found = LoraGradients(outputs[0].flatten(0, -2), rows, base, down, up, small, ctx.scaling)
        x_gradient = found.inputs().view(ctx.shape) if ctx.needs_input_grad[0] else None
        return x_gradient, None, None, found.down, found.up, None
