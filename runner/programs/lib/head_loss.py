"""Cross entropy of chosen positions without their logits.

The head runs over a tile of the vocabulary at a time, and loss and gradient grow together with the tiles, as in flash
attention (a position asks, the rows of the head are keys and values), so that [positions x vocabulary] never exists and
no product is made twice unless the head itself is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from runner.contract.heads import LOGITS_AT_ONCE, POSITIONS_AT_ONCE


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Sum over n positions of the cross entropy of ``hidden @ weight.T``, in nats, as float32.

    ``hidden``: (n, width); ``weight``: (vocabulary, width); ``targets``: (n,), int64; ``dtype``: of the products.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, dtype)  # type: ignore[no-any-return, no-untyped-call]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_gradient = torch.zeros_like(hidden, dtype=torch.float32) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        head = weight.to(dtype)
        for start in range(0, len(hidden), POSITIONS_AT_ONCE):
            part = slice(start, start + POSITIONS_AT_ONCE)
            into = None if hidden_gradient is None else hidden_gradient[part]
            piece = _Piece(hidden[part].to(dtype), head, targets[part])
            loss += piece.loss(into)
            if weight_gradient is not None:
                piece.add_weight_gradient(weight_gradient)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = [
            None if saved is None else (saved * outputs[0]).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*gradients, None, None)


class _Piece:
    """Some positions: ``hidden`` (n, width) and ``head`` (vocabulary, width) of one dtype, ``targets`` (n,)."""

    def __init__(self, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> None:
        self.hidden, self.head, self.targets = hidden, head, targets
        self.width = max(1, LOGITS_AT_ONCE[hidden.device.type] // len(hidden))
        # Memory of their own, since fresh memory costs more than what is computed in it.
        self._logits = hidden.new_empty(len(hidden) * self.width)
        self._shares = self._logits if hidden.dtype == torch.float32 else self._logits.float()
        self.log_sum = hidden.new_empty((len(hidden), 1), dtype=torch.float32)

    def loss(self, gradient: torch.Tensor | None) -> torch.Tensor:
        """The summed loss; its gradient by ``hidden`` is added to ``gradient`` (zeros, float32)."""
        highest = torch.full_like(self.log_sum, -torch.inf)
        total = torch.zeros_like(highest)
        for tile, logits, shares in self._tiles():
            before, highest = highest, torch.maximum(highest, shares.amax(-1, keepdim=True))
            shares.sub_(highest).exp_()
            shrink = (before - highest).exp_()
            total.mul_(shrink).add_(shares.sum(-1, keepdim=True))
            if gradient is not None:
                gradient.mul_(shrink).add_(logits.copy_(shares) @ tile)
        torch.add(highest, total.log(), out=self.log_sum)
        wanted = self.head[self.targets]
        if gradient is not None:
            gradient.div_(total).sub_(wanted)
        return (self.log_sum[:, 0] - (self.hidden.float() * wanted).sum(-1)).sum()

    def add_weight_gradient(self, gradient: torch.Tensor) -> None:
        """Add the gradient by the head to ``gradient``, after ``loss``."""
        start = 0
        for tile, logits, shares in self._tiles():
            shares.sub_(self.log_sum).exp_()
            gradient[start : start + len(tile)].add_(logits.copy_(shares).T @ self.hidden)
            start += len(tile)
        gradient.index_add_(0, self.targets, self.hidden.to(gradient.dtype), alpha=-1)

    def _tiles(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Rows of the head; the logits by them, which may be written over; and those in float32, which too."""
        for tile in torch.split(self.head, self.width):
            logits, shares = (
                memory[: len(self.hidden) * len(tile)].view(len(self.hidden), len(tile))
                for memory in (self._logits, self._shares)
            )
            torch.mm(self.hidden, tile.T, out=logits)
            yield tile, logits, shares if shares.data_ptr() == logits.data_ptr() else shares.copy_(logits)
