"""Trainers of transformers and TRL behind our own interface.

The trainer computes the loss and takes the steps; events, the schedule of logs and evaluations, stopping, sealed
checkpoints, exact resumption, patience and the best weights are ours, as in ``training.py``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from runner.contract import exits
from runner.programs.lib import distributed, sharding
from runner.programs.lib.artifacts import prune_checkpoints, seal_checkpoint, starting_point
from runner.programs.lib.divergence import diverged
from runner.programs.lib.evaluations import evaluation_interval
from runner.programs.lib.events import ProgramContext, ProgramError, Reporter, Stopped
from runner.programs.lib.first_pass import try_longest
from runner.programs.lib.model import Device
from runner.programs.lib.sealed_steps import SealedSteps, with_rows
from runner.programs.lib.train_state import (
    Gathered,
    Progress,
    gathered_state,
    restore_state,
    write_state,
)
from runner.programs.lib.training import (
    BEST_REWARD,
    EVALUATED,
    PROGRESS_INTERVAL_S,
    learning_rate_share,
    make_optimizer,
)

#: Names in a trainer's log that say nothing a user needs.
SILENT = (
    "epoch",
    "num_tokens",
    "total_flos",
    "runtime",
    "samples_per_second",
    "steps_per_second",
    "step_time",
    "entropy",
    "logits",
    "completions",
    "clip_ratio",
    "sampling",
)
#: Names that document 003 asks for as they are, without train/ in front.
BARE = ("reward/mean", "kl_divergence", "episode_length")
#: Losses of a few whole samples leap where one is misjudged; from so many nats on more than a sample is wrong.
SURE_AND_WRONG = 10.0
#: A trainer's own words -> ours.
RENAMED = {
    "rewards/accuracies": "reward_accuracy",
    "rewards/margins": "reward_margin",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "mean_token_accuracy": "token_accuracy",
}
#: Measured values that belong into the summary of a run, besides its losses.
SCORES = ("reward_accuracy", "reward_margin", "accuracy", "f1")


def trainer_options(
    context: ProgramContext, knobs: Mapping[str, Any], device: Device, num_samples: int
) -> dict[str, Any]:
    """What every class of training arguments takes, out of our knobs."""
    return {**base_options(context, knobs, device), "max_steps": total_steps(knobs, num_samples)}


def base_options(context: ProgramContext, knobs: Mapping[str, Any], device: Device) -> dict[str, Any]:
    """``trainer_options`` without the number of steps."""
    batch_size = knobs["per_device_train_batch_size"]
    return {
        "output_dir": str(context.work),
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "gradient_accumulation_steps": knobs.get("gradient_accumulation_steps", 1),
        "learning_rate": knobs["learning_rate"],
        "max_grad_norm": knobs["max_grad_norm"],
        "gradient_checkpointing": False,  # done by ourselves, where the model is loaded
        "bf16": device.autocast_dtype == torch.bfloat16,
        "fp16": device.autocast_dtype == torch.float16,
        "use_cpu": device.device.type == "cpu",
        "seed": knobs["seed"],
        "remove_unused_columns": False,  # the collator passes the rows' names on
        "logging_strategy": "no",
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
    }


def total_steps(knobs: Mapping[str, Any], num_samples: int) -> int:
    """Optimizer steps of the whole training."""
    max_steps, epochs = int(knobs["max_steps"]), float(knobs["num_train_epochs"])
    return max_steps or max(1, round(epochs * epoch_steps(knobs, num_samples)))


def epoch_steps(knobs: Mapping[str, Any], num_samples: int) -> int:
    """Optimizer steps of one pass over the data."""
    batches = math.ceil(num_samples / int(knobs["per_device_train_batch_size"]) / distributed.num_processes())
    return math.ceil(batches / int(knobs["gradient_accumulation_steps"]))


def optimizers_of(model: Any, knobs: Mapping[str, Any], num_steps: int) -> tuple[Any, Any]:
    """Our optimizer and our schedule, so that a knob means the same in every recipe."""
    optimizer = make_optimizer(model.named_parameters(), knobs)
    warmup_steps = math.ceil(knobs["warmup_ratio"] * num_steps)

    def share(done: int) -> float:
        return learning_rate_share(min(done + 1, num_steps), num_steps, warmup_steps, knobs["lr_scheduler_type"])

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def tokenizer_of(base: Path) -> Any:
    """The tokenizer that a trainer wants beside tokens that are made already: it only names the padding token."""
    from transformers import AutoTokenizer

    load: Any = AutoTokenizer.from_pretrained
    tokenizer = load(base, local_files_only=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def dataset_of(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as the data set of a trainer; None where there are none."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    make: Any = Dataset.from_list
    return make(list(rows)) if rows else None


def sealed(trainer_class: type) -> type:
    """The trainer class with our checkpoints and guards."""
    return type(f"Sealed{trainer_class.__name__}", (SealedSteps, trainer_class), {})


def run_trainer(
    context: ProgramContext,
    trainer: Any,
    knobs: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    whole_every: int = 1,
    rewards: list[float] | None = None,
) -> dict[str, float]:
    """Train with a trainer made from ``sealed``; the final metrics. ``names``: more words of the trainer -> ours.

    ``whole_every``: checkpoints are sealed, and a stop is followed, after multiples of so many steps only, because
    between them the trainer holds what no checkpoint has. ``rewards``: grows by the mean reward of each batch of
    answers, which is then what patience and the best weights go by.

    Resumes from the newest sealed checkpoint. Raises Stopped after sealing one on request, and ProgramError with exit
    code DIVERGED where a loss, a gradient or a weight is no number.
    """
    if sharding.is_wanted(knobs):
        shard_trainer(trainer, knobs, context.report)
    session = Session(context, trainer, knobs, {**RENAMED, **(names or {})}, whole_every, rewards)
    trainer.data_collator = with_rows(trainer.data_collator)
    trainer.session = session
    trainer.add_callback(session)
    for callback in ("PrinterCallback", "ProgressCallback"):
        for found in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == callback]:
            trainer.remove_callback(found)
    newest = distributed.first_then_others(lambda: starting_point(context))
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    if session.is_stopped:
        raise Stopped(f"stopped after step {session.progress.step}; a restart goes on from there")
    metrics = session.finish()
    if not distributed.is_first():  # the first process writes the result
        raise SystemExit
    return metrics


def shard_trainer(trainer: Any, knobs: Mapping[str, Any], say: Reporter) -> None:
    """Share the model of a trainer out over the processes, with a new optimizer over the shares.

    The trainer takes it as it takes one that transformers shared out while it was loaded: accelerate wraps nothing.
    """
    sharding.shard(trainer.model, trainer.args.device, averages=True)
    sharding.tell(say)
    trainer.is_distributed_loading_by_transformers = True
    trainer.optimizer, trainer.lr_scheduler = optimizers_of(trainer.model, knobs, int(trainer.args.max_steps))


class Session(TrainerCallback):
    """One training: what the trainer's callbacks report and decide."""

    def __init__(
        self,
        context: ProgramContext,
        trainer: Any,
        knobs: Mapping[str, Any],
        names: Mapping[str, str],
        whole_every: int,
        rewards: list[float] | None,
    ) -> None:
        self.context, self.trainer, self.knobs, self.names = context, trainer, knobs, names
        self.whole_every, self._is_due = whole_every, False
        self.rewards, self._is_due_for_rewards = rewards, False
        self.total_steps = int(trainer.args.max_steps)
        self.eval_steps = 0
        if trainer.eval_dataset is not None:
            one_epoch = epoch_steps(knobs, len(trainer.train_dataset))
            self.eval_steps = evaluation_interval(context.report, knobs, one_epoch, self.total_steps)
        self.trainable = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
        self.optimizer = trainer.optimizer
        self.progress = Progress()
        self.is_stopped = False
        self.last_rows: list[str] = []
        self.step_loss, self.step_rows = 0.0, list[str]()
        self.last_values: dict[str, float] = {}
        self._told_at = 0.0
        self._log_started, self._log_tokens = time.monotonic(), 0.0
        self.own_tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The steps of a broken logging interval count."""
        self.trainer._tr_loss += self.progress.loss_sum
        self.trainer._globalstep_last_logged = state.global_step - self.progress.loss_count
        if self.rewards is None and state.global_step < self.total_steps:
            try_longest(self.trainer)
        say = self.context.report
        say.phase("train", f"training started at step {state.global_step} of {self.total_steps}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Several processes draw apart, the same numbers whenever this step is run."""
        distributed.draw_apart(self.knobs["seed"], state.global_step + 1)
        self.step_loss, self.step_rows = 0.0, []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Decide what happens after this step."""
        step, knobs = state.global_step, self.knobs
        is_last = step >= self.total_steps
        self.progress.step = step
        if self.rewards is None:
            self._look_for_a_spike(step)
        control.should_log = step == 1 or step % knobs["logging_steps"] == 0 or is_last
        due = bool(self.eval_steps) and step % self.eval_steps == 0
        control.should_evaluate = self.trainer.eval_dataset is not None and (is_last or due)
        is_whole = is_last or step % self.whole_every == 0
        self._is_due = self._is_due or (bool(knobs["save_steps"]) and step % knobs["save_steps"] == 0)
        control.should_save = self._is_due and is_whole
        self._is_due = self._is_due and not is_whole
        if is_last or time.monotonic() - self._told_at >= PROGRESS_INTERVAL_S:
            self._told_at = time.monotonic()
            self.context.report.progress(step, self.total_steps)
        if distributed.summed(self.context.should_stop)[0] and is_whole and not is_last:
            self.is_stopped = control.should_save = control.should_training_stop = True
        if self.rewards is not None:
            self._look_at_rewards(state, control, is_last=is_last, is_whole=is_whole)
        control.should_training_stop = control.should_training_stop or is_last

    def note_loss(self, loss: float) -> None:
        """The loss of a pass over ``last_rows``; in every process ProgramError where that of one is no number."""
        if distributed.summed(not math.isfinite(loss))[0]:
            passes = distributed.shares_together([(loss, self.last_rows)])
            broken = [(value, rows) for value, rows in passes if not math.isfinite(value)]
            what = f"the loss of step {self.progress.step + 1} is {broken[0][0]}"
            raise diverged(what, [row for _, rows in broken for row in rows], self.knobs)
        self.step_loss += loss
        self.step_rows += self.last_rows

    def _look_for_a_spike(self, step: int) -> None:
        """Raises ProgramError where the loss of a step, the mean over the processes, has left what it was by far."""
        loss = distributed.summed(self.step_loss)[0] / distributed.num_processes()
        times = self.progress.leap(loss, SURE_AND_WRONG)
        if times is not None:
            raise self.diverged(f"the loss of step {step} is {loss:.4g}, {times:.0f} times that of the last steps")

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Report what the trainer measured under our names."""
        logs = given["logs"]
        if "loss" in logs:
            self.progress.train_loss = float(logs["loss"])
            self._report(state, "train", logs, self._speed(logs))
        elif "eval_loss" in logs:
            values = {key.removeprefix("eval_"): value for key, value in logs.items()}
            self.progress.eval_loss = float(logs["eval_loss"])
            self._report(state, "eval", values, {})

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember the best step; stop when patience is over."""
        if self.progress.eval_loss is not None:
            self._follow(control, is_best=self.progress.note(self.progress.eval_loss))

    def _follow(self, control: Any, *, is_best: bool) -> None:
        """Keep the best step; stop when patience is over."""
        control.should_save = control.should_save or (is_best and self.knobs["load_best"])
        if self.progress.is_patience_over(self.knobs["early_stopping_patience"]):
            control.should_training_stop = True

    def _look_at_rewards(self, state: Any, control: Any, *, is_last: bool, is_whole: bool) -> None:
        """The mean reward of the last ``eval_steps`` steps; looked at where a checkpoint can be made."""
        step, every = self.progress.step, self.knobs["eval_steps"]
        while self.rewards:
            self.progress.reward_sum += self.rewards.pop()
            self.progress.reward_count += 1
        self._is_due_for_rewards = self._is_due_for_rewards or (bool(every) and (step % every == 0 or is_last))
        if self._is_due_for_rewards and is_whole and self.progress.reward_count:
            self._is_due_for_rewards = False
            mean, is_best = self.progress.note_rewards()
            self.context.report.metric(step, self.total_steps, state.epoch or 0.0, {EVALUATED: mean})
            self._follow(control, is_best=is_best)

    def seal(self) -> None:
        """Seal a checkpoint of this step, tell of it, and remove old ones except the best."""
        progress, trainer = self.progress, self.trainer
        progress.loss_sum = float(trainer._tr_loss)
        progress.loss_count = trainer.state.global_step - trainer._globalstep_last_logged
        state = gathered_state(self.trainable, self.optimizer)
        if distributed.is_first():
            self._write_checkpoint(state, self._losses())
        distributed.wait_for_all()

    def _write_checkpoint(self, gathered: Gathered, known: Mapping[str, float]) -> None:
        progress, folder, trainer = self.progress, self.context.checkpoints, self.trainer

        def write(target: Path) -> None:
            write_state(target, gathered, progress)
            trainer.state.log_history = []
            trainer.state.save_to_json(str(target / "trainer_state.json"))

        path = seal_checkpoint(folder, progress.step, write, known)
        self.context.report.checkpoint(progress.step, path.relative_to(self.context.run_folder).as_posix(), known)
        best = folder / f"step-{progress.best_step:08d}" if progress.best_step else None
        prune_checkpoints(folder, self.knobs["save_total_limit"], protected=best)

    def restore(self, folder: Path) -> None:
        """Weights, optimizer, schedule, random numbers and position of a sealed checkpoint."""
        self.progress = restore_state(folder, self.trainable, self.optimizer)
        self.trainer.lr_scheduler.last_epoch = self.progress.step
        self.trainer.lr_scheduler._step_count = self.progress.step + 1
        self.trainer.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def finish(self) -> dict[str, float]:
        """Take the best weights where the knob asks for them, and the final metrics. Raises ProgramError."""
        progress, say = self.progress, self.context.report
        said = "eval/loss" if self.rewards is None else EVALUATED
        if progress.step < self.total_steps:
            say.phase("train", f"stopped early: {said} has been best at step {progress.best_step}")
        if self.knobs["load_best"] and progress.best_step not in (None, progress.step):
            restore_state(self.context.checkpoints / f"step-{progress.best_step:08d}", self.trainable, None)
            say.phase("train", f"weights of step {progress.best_step} taken: the best {said}")
        sharding.gather(self.trainer.model, self.trainer.args.device)
        learned = ((name, p) for name, p in self.trainer.model.named_parameters() if p.requires_grad)
        for name, parameter in learned:
            if not torch.isfinite(parameter).all():
                raise ProgramError("diverged", f"the weights {name} are no numbers", "learning_rate", exits.DIVERGED)
        scores = {
            name: value for name, value in self.last_values.items() if name in BARE or name.split("/")[-1] in SCORES
        }
        best = {} if progress.best_loss is None else {"eval/best_loss": progress.best_loss}
        if best and self.rewards is not None:
            best = {BEST_REWARD: -best["eval/best_loss"]}
        epochs = round(self.trainer.state.epoch or 0.0, 4)
        return {"steps": progress.step, "epochs": epochs, **self._losses(), **best, **scores}

    def diverged(self, what: str) -> ProgramError:
        """The error that names the rows of the step, first those of the process with the highest loss; all call it."""
        shares = distributed.shares_together([(self.step_loss, self.step_rows)])
        shares.sort(key=lambda share: share[0], reverse=True)
        return diverged(what, [row for _, rows in shares for row in rows], self.knobs)

    def _report(self, state: Any, part: str, logs: Mapping[str, Any], more: Mapping[str, float]) -> None:
        values = {}
        for name, value in logs.items():
            if isinstance(value, int | float) and (name in self.names or name.split("/")[0] not in SILENT):
                ours = self.names.get(name, name)
                values[ours if ours in BARE else f"{part}/{ours}"] = float(value)
        self.last_values |= values
        self.context.report.metric(state.global_step, self.total_steps, state.epoch or 0.0, {**values, **more})

    def _speed(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Tokens per second since the last log, as the trainer counts them or, where it does not, we do."""
        now, counted = time.monotonic(), logs.get("num_tokens")
        tokens = distributed.summed(self.own_tokens)[0] if counted is None else float(counted)
        speed = (tokens - self._log_tokens) / max(1e-9, now - self._log_started)
        self._log_started, self._log_tokens = now, tokens
        return {"train/tokens_per_second": speed} if speed > 0 else {}

    def _losses(self) -> dict[str, float]:
        losses = {"train/loss": self.progress.train_loss, "eval/loss": self.progress.eval_loss}
        return {name: value for name, value in losses.items() if value is not None}
