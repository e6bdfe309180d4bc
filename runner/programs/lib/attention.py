"""Attention over samples that lie end to end in one row: none of them sees another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from runner.contract.heads import PLAIN_HEADS

NAME = "sample_by_sample"
#: Ways to turn positions into angles in which a sample's angles depend on its own positions only.
PLAIN_ROPES = ("default", "linear", "llama3", "yarn")


def why_not_packed(model: Any, max_tokens: int) -> str | None:
    """Why samples of up to ``max_tokens`` must not share a row of this model; None where they may."""
    kind, config = type(model).__name__, model.config
    if kind not in PLAIN_HEADS:
        return f"{kind} is not one of {', '.join(PLAIN_HEADS)}"
    rope = str((config.rope_parameters or {}).get("rope_type", "default"))
    if rope not in PLAIN_ROPES:
        return f"its positions ({rope}) depend on the length of the whole row"
    window = getattr(config, "sliding_window", None)
    if window and "sliding_attention" in getattr(config, "layer_types", ["sliding_attention"]) and window < max_tokens:
        return f"its attention window of {window} tokens is shorter than a sample"
    return None


@contextmanager
def sample_by_sample(model: Any) -> Iterator[None]:
    """Within the block the model takes ``sizes``; unpacked rows are padded at the right and need no mask either."""
    from transformers import AttentionInterface  # late: seconds to import

    AttentionInterface.register(NAME, attend)
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sizes: Sequence[int] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each of the samples of ``sizes`` tokens; (batch, heads, tokens, width) in.

    Called by transformers, which takes (batch, tokens, heads, width) and the attention weights (None) back.
    """
    dtype = query.dtype
    if query.device.type == "cpu":  # its bf16 kernel takes twice the time of the float32 one on short samples
        query, key, value = query.float(), key.float(), value.float()
    pieces = [torch.split(tensor, list(sizes), dim=2) if sizes else (tensor,) for tensor in (query, key, value)]
    groups = query.shape[1] // key.shape[1]
    answers = [
        torch.nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=groups > 1
        ).transpose(1, 2)
        for q, k, v in zip(*pieces, strict=True)
    ]
    return torch.cat(answers, dim=1).to(dtype), None
