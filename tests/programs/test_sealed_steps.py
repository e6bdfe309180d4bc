"""The guards that our own trainers add, without a trainer: gradients of fp16 that are too large."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runner.programs.lib.events import ProgramError
from runner.programs.lib.sealed_steps import SealedSteps


class Trainer:
    """What transformers' trainer is to the guards: it measures the norm."""

    def __init__(self, scale: float | None) -> None:
        self.accelerator = SimpleNamespace(scaler=scale and SimpleNamespace(get_scale=lambda: scale))
        self.session = SimpleNamespace(
            progress=SimpleNamespace(step=0), rewards=None, diverged=lambda what: ProgramError("diverged", what)
        )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return grad_norm


class Guarded(SealedSteps, Trainer):
    """As ``sealed`` makes them."""


@pytest.mark.parametrize("norm", [float("inf"), float("nan")])
def test_a_gradient_that_is_too_large_for_fp16_skips_a_step_until_losses_are_not_scaled(norm: float) -> None:
    told = Guarded(65536.0)._get_grad_norm(None, torch.tensor(norm))
    assert not torch.isfinite(told)
    for scale in (1.0, None):
        with pytest.raises(ProgramError, match=r"the gradient of step 1 is (inf|nan)"):
            Guarded(scale)._get_grad_norm(None, torch.tensor(norm))


def test_a_first_gradient_of_zero_ends_the_run_where_a_loss_is_learned() -> None:
    trainer = Guarded(None)
    with pytest.raises(ProgramError, match="the gradient of step 1 is 0"):
        trainer._get_grad_norm(None, torch.tensor(0.0))
    trainer.session.rewards = []
    assert trainer._get_grad_norm(None, torch.tensor(0.0)) == 0
