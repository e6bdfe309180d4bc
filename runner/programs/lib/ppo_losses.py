"""What the tokens of answers gain and lose in proximal policy optimisation. Pure."""

from __future__ import annotations

import torch


def clipped_losses(
    log_probs: torch.Tensor,
    values: torch.Tensor,
    old_log_probs: torch.Tensor,
    old_values: torch.Tensor,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    clip: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each token loses by policy and by value, (rows, tokens) each, neither gaining beyond ``clip``."""
    ratio = torch.exp(log_probs - old_log_probs)
    policy = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    near = old_values + (values - old_values).clamp(-clip, clip)
    return policy, 0.5 * torch.max((values - returns) ** 2, (near - returns) ** 2)


def advantages_of(
    earned: torch.Tensor, values: torch.Tensor, keep: torch.Tensor, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantages (undiscounted), whitened over the tokens that count, and the returns: (rows, tokens)."""
    advantages = torch.zeros_like(earned)
    ahead = torch.zeros_like(earned[:, 0])
    for index in reversed(range(earned.shape[1])):
        next_value = values[:, index + 1] if index + 1 < earned.shape[1] else torch.zeros_like(ahead)
        ahead = (earned[:, index] + next_value - values[:, index] + lam * ahead) * keep[:, index]
        advantages[:, index] = ahead
    returns = advantages + values
    count = keep.sum()
    mean = (advantages * keep).sum() / count
    spread = (((advantages - mean) ** 2) * keep).sum() / count
    return (advantages - mean) * torch.rsqrt(spread + 1e-8) * keep, returns * keep
