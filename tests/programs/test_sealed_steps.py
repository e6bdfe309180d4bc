"""What our own trainers add, without a trainer: guards, and checkpoints that keep by how much fp16 scales losses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runner.programs.lib.events import ProgramError
from runner.programs.lib.sealed_steps import SealedSteps
from runner.programs.lib.train_state import Progress


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


def test_a_resumed_run_scales_losses_of_fp16_as_the_stopped_one_did() -> None:
    stopped, resumed = Guarded(None), Guarded(None)
    sealed: list[Progress] = []
    for trainer in (stopped, resumed):
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
        trainer.session.progress = Progress()
        trainer.session.context = SimpleNamespace(report=SimpleNamespace(phase=lambda name, words: None))
    scaler = stopped.accelerator.scaler
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for gradient in (float("inf"), float("inf"), 1.0):
        scaler.scale(weight.sum() * gradient).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    stopped.session.seal = lambda: sealed.append(stopped.session.progress)
    stopped._save_checkpoint(None, None)
    resumed.session.restore = lambda folder: setattr(resumed.session, "progress", sealed[0])
    resumed._load_optimizer_and_scheduler("step-1")
    assert resumed.accelerator.scaler.state_dict() == scaler.state_dict()
    assert (resumed._loss_scale(), sealed[0].finite_steps) == (16384.0, 1)
