"""What we change in the steps of a trainer of transformers or TRL: guards, checkpoints, where weights lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from runner.programs.lib import sharding
from runner.programs.lib.divergence import draw_together
from runner.programs.lib.speed import tokens_of
from runner.programs.lib.train_state import restore_random

if TYPE_CHECKING:
    from runner.programs.lib.trainers import Session

#: The column of a batch that names where its samples came from.
ROWS = "rows"


def with_rows(collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The collator, which leaves the samples' row names in the batch."""

    def collate_with_rows(samples: Sequence[Mapping[str, Any]]) -> Any:
        rows = [str(sample.get(ROWS, "")) for sample in samples]
        batch = collate([{key: value for key, value in sample.items() if key != ROWS} for sample in samples])
        if isinstance(batch, Mapping):
            return {**batch, ROWS: rows}
        return [{**sample, ROWS: row} for sample, row in zip(batch, rows, strict=True)]

    return collate_with_rows


class SealedSteps:
    """Mixed into a trainer class: what its checkpoints are and when it gives up; ``session`` is set before."""

    session: Session

    def training_step(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        """One forward and backward pass. Raises ProgramError in every process where the loss of one is no number."""
        if isinstance(inputs, dict):
            self.session.last_rows = inputs.pop(ROWS, [])
            self.session.own_tokens += tokens_of(inputs)
        else:
            self.session.last_rows = list(dict.fromkeys(sample[ROWS] for sample in inputs))  # several answers to each
        parent: Any = super()
        loss = parent.training_step(model, inputs, *rest, **options)
        self.session.note_loss(float(loss))
        return loss

    def _generate_single_turn(self, *given: Any, **options: Any) -> Any:
        """Draw answers, where a trainer does. Raises ProgramError in every process where one of them can draw none."""
        parent: Any = super()
        session = self.session
        return draw_together(
            lambda: parent._generate_single_turn(*given, **options),
            session.last_rows,
            session.progress.step + 1,
            session.knobs,
        )

    def prediction_step(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        """One forward pass of an evaluation."""
        parent: Any = super()
        if isinstance(inputs, dict):
            inputs.pop(ROWS, None)
        return parent.prediction_step(model, inputs, *rest, **options)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        parent: Any = super()
        norm = parent._get_grad_norm(model, grad_norm=grad_norm)
        norm = None if norm is None else sharding.whole(torch.as_tensor(norm))
        if norm is not None and not math.isfinite(float(norm)) and self._loss_scale() > 1.0:
            return norm  # too large for fp16: the step is skipped, and losses are scaled less
        is_first = self.session.progress.step == 0 and self.session.rewards is None  # equal rewards teach nothing
        if norm is not None and (not math.isfinite(float(norm)) or (is_first and float(norm) == 0.0)):
            raise self.session.diverged(f"the gradient of step {self.session.progress.step + 1} is {float(norm)}")
        return norm

    def _loss_scale(self) -> float:
        """By which losses are multiplied in fp16; 1 in every other format."""
        scaler = self.accelerator.scaler  # type: ignore[attr-defined]
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        """Weights that are shared out later need not fit into one GPU and go there as shares."""
        parent: Any = super()
        if not getattr(model, "is_shared_out_later", False):
            parent._move_model_to_device(model, device)

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Sum the gradients of shares once a step, not after each of its micro-batches."""
        model: Any = self.model  # type: ignore[attr-defined]
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        scaler = self.accelerator.scaler  # type: ignore[attr-defined]
        if scaler is not None:
            state, progress = scaler.state_dict(), self.session.progress
            progress.loss_scale, progress.finite_steps = state["scale"], state["_growth_tracker"]
        self.session.seal()

    def _load_from_checkpoint(self, folder: str, model: Any = None) -> None:
        """All is restored at once, when the optimizer stands."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint:
            self.session.restore(Path(checkpoint))
            progress, scaler = self.session.progress, self.accelerator.scaler  # type: ignore[attr-defined]
            if scaler is not None:
                known = {"scale": progress.loss_scale, "_growth_tracker": progress.finite_steps}
                scaler.load_state_dict(scaler.state_dict() | known)
            self.session.context.report.phase("resume", f"resumed from the checkpoint of step {progress.step}")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called once the data loader has drawn its own numbers: those of the checkpoint come last."""
        if checkpoint:
            restore_random(Path(checkpoint))
