"""Attention over samples that lie end to end in one row: none of them sees another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

import torch
from torch.nn.attention.varlen import varlen_attn

from runner.contract.heads import PLAIN_HEADS

NAME = "sample_by_sample"
#: Ways to turn positions into angles in which a sample's angles depend on its own positions only.
PLAIN_ROPES = ("default", "linear", "llama3", "yarn")
#: What flash attention takes: compute capability, formats, and the width of a head in steps of 8 (torch 2.13).
FLASH_CAPABILITY = (8, 0)
FLASH_FORMATS = (torch.bfloat16, torch.float16)
FLASH_WIDTH = 256
Kernel = Literal["flash", "by_sample"]


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
    if sizes and kernel_of(query, len(sizes), dropout) == "flash":
        return _flash(query, key, value, tuple(sizes), scaling), None
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


def kernel_of(query: torch.Tensor, num_samples: int, dropout: float) -> Kernel:
    """How the samples of a row attend on this device."""
    if query.device.type != "cuda":
        return "by_sample"
    capability = torch.cuda.get_device_capability(query.device)
    has_flash = torch.backends.cuda.is_flash_attention_available()
    return choose_kernel(capability if has_flash else None, query.dtype, query.shape[-1], num_samples, dropout)


def choose_kernel(
    capability: tuple[int, int] | None, dtype: torch.dtype, width: int, num_samples: int, dropout: float
) -> Kernel:
    """``flash``: one call for all samples, where the GPU, the format and the ``width`` of a head allow; else a call of
    torch's own choice for each sample. ``capability`` None: no flash attention.

    FlexAttention is no third way: where flash attention can not go it would have to be compiled anew for new lengths.
    """
    if capability is None or capability < FLASH_CAPABILITY or dtype not in FLASH_FORMATS:
        return "by_sample"
    if width % 8 or width > FLASH_WIDTH or dropout:  # which the call for all samples does not have
        return "by_sample"
    return "flash" if num_samples > 1 else "by_sample"


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sizes: tuple[int, ...], scaling: float | None
) -> torch.Tensor:
    """One call for all samples; (1, heads, tokens, width) in, (1, tokens, heads, width) out."""
    ends, longest = _ends(sizes, query.device), max(sizes)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    is_grouped, causal = query.shape[1] != key.shape[1], (-1, 0)
    answer: Any = varlen_attn(
        q, k, v, ends, ends, longest, longest, scale=scaling, window_size=causal, enable_gqa=is_grouped
    )
    return torch.as_tensor(answer[None])


@lru_cache(maxsize=4)
def _ends(sizes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Where samples begin and the last one ends; the same for every layer of a pass."""
    return torch.tensor([0, *itertools.accumulate(sizes)], dtype=torch.int32, device=device)
