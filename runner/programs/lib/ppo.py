"""Proximal policy optimisation of a causal model (Schulman 2017; as Ziegler 2019 applies it to language).

One step: answer a batch of prompts, score the answers, then several passes over them with a clipped objective. What an
answer earns is its reward at the last token, less ``kl_coef`` times the distance to the base at every token; a value
head says what is still to be earned. TRL has no PPO any more; this loop uses our schedule, checkpoints and guards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import log_softmax

from runner.contract import exits
from runner.programs.lib import distributed
from runner.programs.lib.artifacts import prune_checkpoints, seal_checkpoint, starting_point
from runner.programs.lib.batches import epoch_order, steps_per_epoch
from runner.programs.lib.divergence import diverged, draw_together
from runner.programs.lib.events import ProgramContext, ProgramError, Stopped
from runner.programs.lib.model import Device
from runner.programs.lib.ppo_losses import advantages_of, clipped_losses
from runner.programs.lib.render import Renderer
from runner.programs.lib.rewards import Prompt, Reward, rewards_of
from runner.programs.lib.train_state import Progress, gathered_state, restore_state, write_state
from runner.programs.lib.training import (
    BEST_REWARD,
    EVALUATED,
    PROGRESS_INTERVAL_S,
    learning_rate_share,
    make_optimizer,
)

SAMPLES_SHOWN = 2
#: The share by which ``kl_coef`` may change at one step.
KL_STEP = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was drawn. Tensors: (answer tokens,), on the CPU; ``distances``: log probabilities less those of
    the base."""

    token_ids: list[int]
    text: str
    reward: float
    log_probs: torch.Tensor
    distances: torch.Tensor
    values: torch.Tensor


@dataclass(slots=True)
class Rollout:
    """Answers to a batch of prompts. Tensors: (prompts, answer tokens), 0 where ``mask`` is False."""

    prompts: list[Prompt]
    texts: list[str]
    token_ids: torch.Tensor  # (prompts, padded prompt + answer)
    attention: torch.Tensor
    mask: torch.Tensor
    log_probs: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    values: torch.Tensor
    rewards: torch.Tensor  # (prompts,)
    kl: float


class Ppo:
    """One training. ``reference``: a frozen copy of the base, or None where ``package`` switches its adapter off."""

    def __init__(
        self,
        context: ProgramContext,
        model: Any,
        package: Any,
        reference: Any,
        renderer: Renderer,
        reward: Reward,
        prompts: Sequence[Prompt],
        knobs: Mapping[str, Any],
        device: Device,
    ) -> None:
        self.context, self.model, self.package, self.reference = context, model, package, reference
        self.renderer, self.reward, self.prompts, self.knobs, self.device = renderer, reward, prompts, knobs, device
        self.batch_size = min(knobs["rollout_batch_size"], len(prompts))
        self.steps_per_epoch = steps_per_epoch(len(prompts), self.batch_size)
        self.total_steps = knobs["max_steps"] or max(1, round(knobs["num_train_epochs"] * self.steps_per_epoch))
        self.warmup_steps = math.ceil(knobs["warmup_ratio"] * self.total_steps)
        self.value_head = torch.nn.Linear(int(model.config.hidden_size), 1).to(device.device)
        torch.nn.init.zeros_(self.value_head.weight)
        self.kl_coef = torch.tensor([float(knobs["kl_coef"])], dtype=torch.float64)
        self.learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.learned |= {f"value_head.{name}": p for name, p in self.value_head.named_parameters()}
        self.optimizer = make_optimizer(self.learned.items(), knobs)
        self.progress = Progress()
        self.told_at = 0.0

    def run(self) -> dict[str, float]:
        """Train and return the final metrics. Raises Stopped, and ProgramError where the training diverges."""
        newest = distributed.first_then_others(lambda: starting_point(self.context))
        if newest is not None:
            self.progress = restore_state(newest, self._state(), self.optimizer)
            self.context.report.phase("resume", f"resumed from the checkpoint of step {self.progress.step}")
        say, values = self.context.report, {}
        say.phase("train", f"training started at step {self.progress.step} of {self.total_steps}")
        patience = self.knobs["early_stopping_patience"]
        while self.progress.step < self.total_steps and not self.progress.is_patience_over(patience):
            if distributed.summed(self.context.should_stop)[0]:
                self._seal()
                raise Stopped(f"stopped after step {self.progress.step}; a restart goes on from there")
            values = self._one_step()
        values |= self._take_best()
        for name, parameter in self.learned.items():
            if not torch.isfinite(parameter).all():
                raise ProgramError("diverged", f"the weights {name} are no numbers", "learning_rate", exits.DIVERGED)
        return {"steps": self.progress.step, "epochs": round(self._epoch(), 4), **values}

    def _one_step(self) -> dict[str, float]:
        step, started = self.progress.step + 1, time.monotonic()
        distributed.draw_apart(self.knobs["seed"], step)
        rollout = self._roll_out(self._prompts_of(step))
        share = learning_rate_share(step, self.total_steps, self.warmup_steps, self.knobs["lr_scheduler_type"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.knobs["learning_rate"] * share
        loss = self._update(step, rollout)
        self._steer(rollout.kl)
        self.progress.step, self.progress.train_loss = step, loss
        num_tokens = int(rollout.mask.sum())
        values = {
            "train/loss": loss,
            "train/learning_rate": self.knobs["learning_rate"] * share,
            "reward/mean": float(rollout.rewards.mean()),
            "kl_divergence": rollout.kl,
            "episode_length": num_tokens / len(rollout.prompts),
        }
        self._report(rollout, {**values, "train/kl_coef": float(self.kl_coef)}, num_tokens, started)
        self.progress.reward_sum += values["reward/mean"]
        self.progress.reward_count += 1
        is_best, every = False, self.knobs["eval_steps"]
        if every and (step % every == 0 or step == self.total_steps):
            mean, is_best = self.progress.note_rewards()
            self.context.report.metric(step, self.total_steps, self._epoch(), {EVALUATED: mean})
        if (self.knobs["save_steps"] and step % self.knobs["save_steps"] == 0) or (is_best and self.knobs["load_best"]):
            self._seal()
        return {name: value for name, value in values.items() if name != "train/learning_rate"}

    def _take_best(self) -> dict[str, float]:
        """The best weights where the knob asks for them; the best reward."""
        progress, say = self.progress, self.context.report
        if progress.step < self.total_steps:
            say.phase("train", f"stopped early: {EVALUATED} has been best at step {progress.best_step}")
        if self.knobs["load_best"] and progress.best_step not in (None, progress.step):
            restore_state(self._best_folder(), self._state(), None)
            say.phase("train", f"weights of step {progress.best_step} taken: the best {EVALUATED}")
        return {} if progress.best_loss is None else {BEST_REWARD: -progress.best_loss}

    def _best_folder(self) -> Path:
        return self.context.checkpoints / f"step-{self.progress.best_step:08d}"

    def _prompts_of(self, step: int) -> list[Prompt]:
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        order = epoch_order(len(self.prompts), self.knobs["seed"], epoch)
        return [self.prompts[index] for index in order[position * self.batch_size : (position + 1) * self.batch_size]]

    def _roll_out(self, prompts: list[Prompt]) -> Rollout:
        """Answers to the prompts and what they earned; every process draws its share and knows all of them."""
        self.model.eval()
        own = distributed.own_share(prompts)
        return self._together(prompts, distributed.shares_together(self._answer(own)))

    def _answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Draw an answer to each prompt and look at it."""
        step, named = self.progress.step + 1, [prompt.row for prompt in prompts]
        drawn = draw_together(lambda: self._draw(prompts) if prompts else None, named, step, self.knobs)
        if drawn is None:
            return []
        token_ids, attention, mask = drawn
        size, sizes = mask.shape[1], mask.sum(1).tolist()
        answers = [row[:count].tolist() for row, count in zip(token_ids[:, -size:], sizes, strict=True)]
        texts = [self.renderer.decode(answer) for answer in answers]
        rewards = rewards_of(self.reward, prompts, texts, sizes)
        with torch.no_grad():
            log_probs, values = self._evaluate(self.model, token_ids, attention, size)
            with self._base() as base:
                distances = log_probs - self._evaluate(base, token_ids, attention, size)[0]
        rows = [tensor.cpu() for tensor in (log_probs, distances, values)]
        return [
            Answer(answers[row], texts[row], rewards[row], *(tensor[row, : sizes[row]].clone() for tensor in rows))
            for row in range(len(prompts))
        ]

    def _together(self, prompts: list[Prompt], answers: list[Answer]) -> Rollout:
        """All answers of a step side by side."""
        device, padding_id = self.device.device, self.renderer.padding_id
        longest, size = max(len(p.token_ids) for p in prompts), max(len(a.token_ids) for a in answers)
        rows, attention = [], []
        for prompt, answer in zip(prompts, answers, strict=True):
            before, after = longest - len(prompt.token_ids), size - len(answer.token_ids)
            ids = [*prompt.token_ids, *answer.token_ids]
            rows.append([padding_id] * before + ids + [padding_id] * after)
            attention.append([0] * before + [1] * len(ids) + [0] * after)

        def padded(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True).to(device)

        rewards = torch.tensor([answer.reward for answer in answers], device=device)
        keep = padded([torch.ones(len(answer.token_ids)) for answer in answers])
        distance = padded([answer.distances for answer in answers])
        values = padded([answer.values for answer in answers])
        earned = -float(self.kl_coef) * distance
        earned[torch.arange(len(prompts)), keep.sum(1).long() - 1] += rewards.to(earned)
        advantages, returns = advantages_of(earned, values, keep, self.knobs["lam"])
        return Rollout(
            prompts,
            [answer.text for answer in answers],
            torch.tensor(rows, device=device),
            torch.tensor(attention, device=device),
            keep.bool(),
            padded([answer.log_probs for answer in answers]),
            advantages,
            returns,
            values,
            rewards,
            float(distance.sum() / keep.sum()),
        )

    def _draw(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Answers drawn from the model: token ids, attention mask, and which answer tokens count (the stop does)."""
        from transformers import GenerationConfig

        make_config: Any = GenerationConfig
        config = make_config(
            do_sample=True,
            temperature=self.knobs["temperature"],
            top_k=0,
            max_new_tokens=self.knobs["max_completion_length"],
            eos_token_id=self.renderer.stop_token_ids,
            pad_token_id=self.renderer.padding_id,
        )
        longest = max(len(prompt.token_ids) for prompt in prompts)
        fill = [longest - len(prompt.token_ids) for prompt in prompts]
        rows = [[self.renderer.padding_id] * n + p.token_ids for n, p in zip(fill, prompts, strict=True)]
        prompt_mask = torch.tensor([[0] * n + [1] * (longest - n) for n in fill], device=self.device.device)
        with torch.inference_mode(), self.device.autocast():
            drawn = self.model.generate(
                input_ids=torch.tensor(rows, device=self.device.device),
                attention_mask=prompt_mask,
                generation_config=config,
            ).clone()
        stops = torch.tensor(self.renderer.stop_token_ids, device=drawn.device)
        has_ended = torch.isin(drawn[:, longest:], stops).int().cumsum(1)
        mask = (has_ended - torch.isin(drawn[:, longest:], stops).int()) == 0
        return drawn, torch.cat([prompt_mask, mask.long()], dim=1), mask

    def _evaluate(
        self, model: Any, token_ids: torch.Tensor, attention: torch.Tensor, size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log probability of each of the last ``size`` tokens, and the value before it: (rows, size) each."""
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        with self.device.autocast():
            output = model(
                input_ids=token_ids,
                attention_mask=attention,
                position_ids=positions,
                output_hidden_states=True,
                use_cache=False,
            )
        logits = output.logits[:, -size - 1 : -1].float() / self.knobs["temperature"]
        chosen = log_softmax(logits, dim=-1).gather(2, token_ids[:, -size:, None]).squeeze(2)
        hidden = output.hidden_states[-1][:, -size - 1 : -1].float()
        return chosen, self.value_head(hidden).squeeze(2)

    def _base(self) -> AbstractContextManager[Any]:
        """The model as it was before the training."""
        if self.reference is not None:
            return nullcontext(self.reference)
        return _without(self.package, self.model)

    def _update(self, step: int, rollout: Rollout) -> float:
        """Several passes over the answers; the mean loss."""
        self.model.train()
        total, count = 0.0, 0
        size = self.knobs["per_device_train_batch_size"] * distributed.num_processes()
        for number in range(self.knobs["update_epochs"]):
            order = epoch_order(len(rollout.prompts), self.knobs["seed"] + step, number)
            for start in range(0, len(order), size):
                total += self._minimise(step, rollout, order[start : start + size])
                count += 1
        return total / count

    def _minimise(self, step: int, rollout: Rollout, rows: list[int]) -> float:
        """One optimizer step on some of the answers, of which every process takes its share; the loss.

        Raises ProgramError where a number is none.
        """
        share, num_tokens = list(distributed.own_share(rows)), rollout.mask[rows].sum()
        named = [rollout.prompts[row].row for row in rows]
        value = 0.0
        if share:
            loss = self._loss_sum(rollout, share) / num_tokens
            loss.backward()  # type: ignore[no-untyped-call]
            value = float(loss.item())
        (total,) = distributed.summed(value)
        if not math.isfinite(total):
            raise diverged(f"the loss of step {step} is {total}", named, self.knobs)
        distributed.sum_gradients(self.learned.values())
        limit = self.knobs["max_grad_norm"] or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.learned.values(), limit))
        if not math.isfinite(norm):
            raise diverged(f"the gradient of step {step} is {norm}", named, self.knobs)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _loss_sum(self, rollout: Rollout, rows: list[int]) -> torch.Tensor:
        """The clipped losses of policy and value, summed over the tokens of some of the answers."""
        size = rollout.mask.shape[1]
        log_probs, values = self._evaluate(self.model, rollout.token_ids[rows], rollout.attention[rows], size)
        policy, value = clipped_losses(
            log_probs,
            values,
            rollout.log_probs[rows],
            rollout.values[rows],
            rollout.advantages[rows],
            rollout.returns[rows],
            self.knobs["cliprange"],
        )
        weighted: torch.Tensor = policy + float(self.knobs["vf_coef"]) * value
        return (weighted * rollout.mask[rows].float()).sum()

    def _steer(self, kl: float) -> None:
        """Make distance dearer where the model goes further than wanted, else cheaper."""
        if self.knobs["kl_target"]:
            error = max(-0.2, min(0.2, kl / self.knobs["kl_target"] - 1))
            self.kl_coef *= 1 + KL_STEP * error

    def _report(self, rollout: Rollout, values: dict[str, float], num_tokens: int, started: float) -> None:
        step, say = self.progress.step, self.context.report
        is_last = step == self.total_steps
        if step == 1 or step % self.knobs["logging_steps"] == 0 or is_last:
            speed = num_tokens / max(1e-9, time.monotonic() - started)
            measured = {**values, "train/tokens_per_second": speed, **self.device.peak_memory_mib()}
            say.metric(step, self.total_steps, self._epoch(), measured)
            for number in range(min(SAMPLES_SHOWN, len(rollout.texts))):
                prompt, text = rollout.prompts[number].messages[-1]["content"], rollout.texts[number]
                say.sample({"step": step, "prompt": prompt, "answer": text, "reward": float(rollout.rewards[number])})
        if is_last or time.monotonic() - self.told_at >= PROGRESS_INTERVAL_S:
            self.told_at = time.monotonic()
            say.progress(step, self.total_steps)

    def _seal(self) -> None:
        if distributed.is_first():
            self._write_checkpoint()
        distributed.wait_for_all()

    def _write_checkpoint(self) -> None:
        folder, step = self.context.checkpoints, self.progress.step
        known = {} if self.progress.train_loss is None else {"train/loss": self.progress.train_loss}
        state = gathered_state(self._state(), self.optimizer)
        path = seal_checkpoint(folder, step, lambda target: write_state(target, state, self.progress), known)
        self.context.report.checkpoint(step, path.relative_to(self.context.run_folder).as_posix(), known)
        best = self._best_folder() if self.progress.best_step else None
        prune_checkpoints(folder, self.knobs["save_total_limit"], protected=best)

    def _state(self) -> dict[str, torch.Tensor]:
        return {**self.learned, "kl_coef": self.kl_coef}

    def _epoch(self) -> float:
        return self.progress.step / self.steps_per_epoch


@contextmanager
def _without(package: Any, model: Any) -> Iterator[Any]:
    """The model without its adapter, for the length of a block."""
    with package.disable_adapter():
        yield model
