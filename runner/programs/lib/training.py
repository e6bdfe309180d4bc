"""The training loop that every recipe shares: steps, schedule, evaluation, sealed checkpoints, exact resumption.

Each recipe gives a function from step number to micro-batches, so a position in the data is only a number, and a
resumed run sees what the unbroken run would have seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from runner.contract import exits
from runner.programs.lib import distributed, sharding
from runner.programs.lib.artifacts import prune_checkpoints, seal_checkpoint, starting_point
from runner.programs.lib.divergence import diverged
from runner.programs.lib.evaluations import evaluation_interval
from runner.programs.lib.events import ProgramContext, ProgramError, Stopped
from runner.programs.lib.model import Device, next_token_loss
from runner.programs.lib.speed import utilization
from runner.programs.lib.train_state import (
    Gathered,
    Progress,
    gathered_state,
    random_states,
    restore_random_states,
    restore_state,
    write_state,
)

PROGRESS_INTERVAL_S = 1.0
#: The mean reward of some steps, and the highest of them, by which rl keeps its best weights.
EVALUATED, BEST_REWARD = "reward/of_window", "reward/best"
#: fp16 has no small gradients, so losses are scaled up by a power of two that follows what the gradients bear.
FIRST_LOSS_SCALE = 2.0**16
STEPS_TO_DOUBLE = 2000


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one forward pass. ``token_ids``, ``is_label``: (batch, length); ``rows``: where they came from.

    ``sizes``: tokens of each sample where samples lie end to end in a single row; None: a sample a row.
    """

    token_ids: torch.Tensor
    is_label: torch.Tensor
    rows: tuple[str, ...]
    sizes: tuple[int, ...] | None = None

    @property
    def num_labels(self) -> int:
        """Tokens that are learned; a first token has nothing before it and never counts."""
        return int(self.is_label[:, 1:].sum())


@dataclass(slots=True)
class Plan:
    """What to train on. ``batches_of(step)``: the micro-batches of optimizer step 1, 2, ...; ``validation``: whole;
    ``longest``: the micro-batch that needs the most memory.
    """

    batches_of: Callable[[int], Sequence[Batch]]
    steps_per_epoch: int
    validation: Sequence[Batch] = field(default_factory=tuple)
    longest: Batch | None = None
    #: Puts what else belongs to a checkpoint into its folder.
    beside: Callable[[Path], None] | None = None


def train(
    context: ProgramContext, model: Any, plan: Plan, knobs: Mapping[str, Any], device: Device
) -> dict[str, float]:
    """Train the parameters of ``model`` that require a gradient and return the final metrics.

    Resumes from the newest sealed checkpoint of the run folder. Raises Stopped after sealing one on request, and
    ProgramError with exit code DIVERGED where a loss, a gradient or a weight is no number.
    """
    return _Training(context, model, plan, knobs, device).run()


def learning_rate_share(step: int, total_steps: int, warmup_steps: int, kind: str) -> float:
    """The share of the peak learning rate at step 1..total: a linear rise, then ``kind``."""
    if step <= warmup_steps:
        return step / warmup_steps
    if kind == "constant":
        return 1.0
    done = (step - 1 - warmup_steps) / max(1, total_steps - warmup_steps)
    return 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def make_optimizer(named_parameters: Iterable[tuple[str, Any]], knobs: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of the knob ``optim``; only matrices decay."""
    trainable = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": knobs["weight_decay"]},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if knobs["optim"] == "sgd":
        return torch.optim.SGD(groups, lr=knobs["learning_rate"])
    if knobs["optim"] == "adafactor":
        return torch.optim.Adafactor(groups, lr=knobs["learning_rate"])
    if knobs["optim"] == "adamw_8bit":
        # Late: only this knob needs the library.
        from bitsandbytes.optim.adamw import AdamW8bit

        make: Any = AdamW8bit
        optimizer: torch.optim.Optimizer = make(groups, lr=knobs["learning_rate"], betas=(0.9, 0.95))
        return optimizer
    return torch.optim.AdamW(groups, lr=knobs["learning_rate"], betas=(0.9, 0.95), fused=True)


def weights_norm(parameters: Iterable[torch.Tensor]) -> float:
    """The Euclidean norm of all weights together."""
    norms = [sharding.whole(torch.linalg.vector_norm(parameter.detach().float())) for parameter in parameters]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def memory_error(num_samples: int, num_tokens: int, device_name: str) -> ProgramError:
    """The longest batch does not fit."""
    return ProgramError(
        "out_of_memory",
        f"out of memory: {num_samples} samples of {num_tokens} tokens do not fit into {device_name}; lower "
        "per_device_train_batch_size (and raise gradient_accumulation_steps) or max_seq_length, or turn "
        "gradient_checkpointing on",
        "per_device_train_batch_size",
    )


def mean_loss(model: Any, batches: Iterable[Batch], device: Device) -> float:
    """Loss per labelled token over batches, in nats. Leaves the model in training mode."""
    total, num_labels = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for batch, weight in distributed.even_share(list(batches)):
            total += weight * float(sharding.within(model, _loss_sum, batch, device))
            num_labels += int(weight) * batch.num_labels
    model.train()
    total, labels = distributed.summed(total, num_labels)
    return total / max(1.0, labels)


class _Training:
    """The state of one ``train`` call."""

    def __init__(
        self, context: ProgramContext, model: Any, plan: Plan, knobs: Mapping[str, Any], device: Device
    ) -> None:
        self.context, self.model, self.plan, self.knobs, self.device = context, model, plan, knobs, device
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(self.trainable.items(), knobs)
        self.total_steps = knobs["max_steps"] or max(1, round(knobs["num_train_epochs"] * plan.steps_per_epoch))
        self.warmup_steps = math.ceil(knobs["warmup_ratio"] * self.total_steps)
        self.eval_steps = evaluation_interval(context.report, knobs, plan.steps_per_epoch, self.total_steps)
        self.progress = Progress(loss_scale=FIRST_LOSS_SCALE if device.autocast_dtype == torch.float16 else 1.0)
        self.log_started = time.monotonic()
        self.log_tokens = 0
        self.progress_told = 0.0

    def run(self) -> dict[str, float]:
        self._resume()
        self.model.train()
        self._try_longest()
        say = self.context.report
        say.phase("train", f"training started at step {self.progress.step} of {self.total_steps}")
        patience = self.knobs["early_stopping_patience"]
        while self.progress.step < self.total_steps and not self.progress.is_patience_over(patience):
            if distributed.summed(self.context.should_stop)[0]:
                self._seal()
                raise Stopped(f"stopped after step {self.progress.step}; a restart goes on from there")
            self._one_step()
        return self._finish()

    def _try_longest(self) -> None:
        """One pass over the longest batch, so that memory runs out now or never. Nothing is learned or drawn by it."""
        batch = self.plan.longest
        if batch is None or self.progress.step >= self.total_steps:
            return
        drawn = random_states()
        try:
            sharding.within(self.model, _loss_sum, batch, self.device).backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            raise memory_error(len(batch.rows), batch.token_ids.numel(), self.device.name) from None
        self.optimizer.zero_grad(set_to_none=True)
        restore_random_states(drawn)

    def _one_step(self) -> None:
        step = self.progress.step + 1
        distributed.draw_apart(self.knobs["seed"], step)
        share = learning_rate_share(step, self.total_steps, self.warmup_steps, self.knobs["lr_scheduler_type"])
        learning_rate = self.knobs["learning_rate"] * share
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        batches = self.plan.batches_of(step)
        loss = self._gradients(step, batches)
        self._look_for_a_spike(step, loss, batches)
        norm = self._clip(step, batches)
        if math.isfinite(norm):  # else it was too large for fp16, and the next step is scaled less
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step = step
        self.progress.loss_sum += loss
        self.progress.loss_count += 1
        self.log_tokens += sum(batch.token_ids.numel() for batch in batches)
        self._after_step({"train/learning_rate": learning_rate, "train/grad_norm": norm})

    def _gradients(self, step: int, batches: Sequence[Batch]) -> float:
        """Loss per label over the whole step; micro-batches weigh by their labels, so their size changes nothing."""
        num_labels = max(1, sum(batch.num_labels for batch in batches))
        total = 0.0
        for batch, weight in distributed.even_share(batches):
            loss = sharding.within(self.model, _loss_sum, batch, self.device) * (weight / num_labels)
            value = loss.item()
            if not math.isfinite(value) and distributed.num_processes() == 1:
                raise self._diverged(f"the loss of step {step} is {value}", [batch])
            (loss * self.progress.loss_scale).backward()  # type: ignore[no-untyped-call]
            total += value
        (total,) = distributed.summed(total)
        if not math.isfinite(total):  # of any process: all of them end here, and the first one tells
            raise self._diverged(f"the loss of step {step} is {total}", batches)
        if not sharding.is_sharded(self.model):  # which sums them on the way
            distributed.sum_gradients(self.trainable.values())
        return total

    def _clip(self, step: int, batches: Sequence[Batch]) -> float:
        limit = self.knobs["max_grad_norm"] or math.inf
        scale = self.progress.loss_scale
        if scale != 1.0:
            torch._foreach_div_([p.grad for p in self.trainable.values() if p.grad is not None], scale)
        norm = float(sharding.whole(torch.nn.utils.clip_grad_norm_(self.trainable.values(), limit)))
        self._rescale(is_finite=math.isfinite(norm))
        is_overflow = not math.isfinite(norm) and scale > 1.0
        if (not math.isfinite(norm) and not is_overflow) or (step == 1 and norm == 0.0):
            raise self._diverged(f"the gradient of step {step} is {norm}", batches)
        self.progress.clipped_count += norm > limit
        return norm

    def _rescale(self, *, is_finite: bool) -> None:
        """fp16: half the scale where gradients overflowed, twice where they have not for long."""
        progress = self.progress
        if progress.loss_scale == 1.0:
            return
        progress.finite_steps = progress.finite_steps + 1 if is_finite else 0
        if not is_finite:
            progress.loss_scale = max(1.0, progress.loss_scale / 2)
        elif progress.finite_steps % STEPS_TO_DOUBLE == 0:
            progress.loss_scale *= 2

    def _look_for_a_spike(self, step: int, loss: float, batches: Sequence[Batch]) -> None:
        """Raises ProgramError where the loss has left what it was before by far."""
        times = self.progress.leap(loss)
        if times is not None:
            what = f"the loss of step {step} is {loss:.4g}, {times:.0f} times that of the last steps"
            raise self._diverged(what, batches)

    def _diverged(self, what: str, batches: Sequence[Batch]) -> ProgramError:
        return diverged(what, [row for batch in batches for row in batch.rows], self.knobs)

    def _after_step(self, values: dict[str, float]) -> None:
        step, knobs = self.progress.step, self.knobs
        is_last = step == self.total_steps
        if step == 1 or step % knobs["logging_steps"] == 0 or is_last:
            self._log(values)
        if is_last or time.monotonic() - self.progress_told >= PROGRESS_INTERVAL_S:
            self.progress_told = time.monotonic()
            self.context.report.progress(step, self.total_steps)
        improved = False
        if self.plan.validation and (is_last or (self.eval_steps and step % self.eval_steps == 0)):
            improved = self._evaluate()
        if (knobs["save_steps"] and step % knobs["save_steps"] == 0) or (improved and knobs["load_best"]):
            self._seal()

    def _log(self, values: dict[str, float]) -> None:
        now = time.monotonic()
        speed = self.log_tokens / max(1e-9, now - self.log_started)
        loss = self.progress.loss_sum / self.progress.loss_count
        clipped = self.progress.clipped_count / self.progress.loss_count
        self.progress.loss_sum, self.progress.loss_count, self.progress.train_loss = 0.0, 0, loss
        self.progress.clipped_count = 0
        self.log_started, self.log_tokens = now, 0
        measured = {
            "train/loss": loss,
            **values,
            "train/clipped_share": clipped,
            "weights/norm": weights_norm(self.trainable.values()),
            "train/tokens_per_second": speed,
            **utilization(self.model, speed, self.device),
            **self.device.peak_memory_mib(),
        }
        self.context.report.metric(self.progress.step, self.total_steps, self._epoch(), measured)

    def _evaluate(self) -> bool:
        """Measure the validation loss; True where it is the lowest so far."""
        progress = self.progress
        progress.eval_loss = mean_loss(self.model, self.plan.validation, self.device)
        self.context.report.metric(progress.step, self.total_steps, self._epoch(), {"eval/loss": progress.eval_loss})
        return progress.note(progress.eval_loss)

    def _finish(self) -> dict[str, float]:
        progress = self.progress
        if progress.step < self.total_steps:
            self.context.report.phase("train", f"stopped early: eval/loss did not fall below {progress.best_loss:.4f}")
        if self.knobs["load_best"] and progress.best_step not in (None, progress.step):
            best = self._step_folder(progress.best_step or 0)
            restore_state(best, self.trainable, None)
            self.context.report.phase("train", f"weights of step {progress.best_step} taken: the lowest eval/loss")
        sharding.gather(self.model, self.device.device)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise ProgramError("diverged", f"the weights {name} are no numbers", "learning_rate", exits.DIVERGED)
        values = {
            "train/loss": progress.train_loss,
            "eval/loss": progress.eval_loss,
            "eval/best_loss": progress.best_loss,
        }
        known = {name: value for name, value in values.items() if value is not None}
        return {"steps": progress.step, "epochs": round(self._epoch(), 4), **known}

    def _seal(self) -> None:
        """Seal a checkpoint of this step, tell of it, and remove old ones except the best."""
        metrics = {"eval/loss": self.progress.eval_loss, "train/loss": self.progress.train_loss}
        known = {name: value for name, value in metrics.items() if value is not None}
        state = gathered_state(self.trainable, self.optimizer)
        if distributed.is_first():
            self._write_checkpoint(state, known)
        distributed.wait_for_all()

    def _write_checkpoint(self, state: Gathered, known: Mapping[str, float]) -> None:
        progress, folder = self.progress, self.context.checkpoints

        def write(target: Path) -> None:
            write_state(target, state, progress)
            if self.plan.beside is not None:
                self.plan.beside(target)

        path = seal_checkpoint(folder, progress.step, write, known)
        self.context.report.checkpoint(progress.step, path.relative_to(self.context.run_folder).as_posix(), known)
        best = self._step_folder(progress.best_step) if progress.best_step else None
        prune_checkpoints(folder, self.knobs["save_total_limit"], protected=best)

    def _resume(self) -> None:
        newest = distributed.first_then_others(lambda: starting_point(self.context))
        if newest is not None:
            self.progress = restore_state(newest, self.trainable, self.optimizer)
            self.context.report.phase("resume", f"resumed from the checkpoint of step {self.progress.step}")

    def _step_folder(self, step: int) -> Path:
        return self.context.checkpoints / f"step-{step:08d}"

    def _epoch(self) -> float:
        return self.progress.step / self.plan.steps_per_epoch


def _loss_sum(model: Any, batch: Batch, device: Device) -> torch.Tensor:
    """Sum of the cross entropy over the labelled tokens of a batch, in nats."""
    token_ids = batch.token_ids.to(device.device, non_blocking=True)
    is_label = batch.is_label[:, 1:].to(device.device, non_blocking=True)
    sizes = batch.sizes and (*batch.sizes[:-1], batch.sizes[-1] - 1)
    with device.autocast():
        return next_token_loss(model, token_ids[:, :-1], is_label, token_ids[:, 1:][is_label], sizes)
