"""Reinforcement learning of a causal language model: PPO, GRPO or RLOO against a reward model or a rule.

``python -m runner.programs.train.rl RUN_FOLDER``. Parameters: ``base_model`` (folder of the policy), ``method`` (full,
lora), ``train_data`` (JSONL with prompts), ``reward_model`` (``{"model": folder, "adapter": folder or null}``, or null
where ``reward_function`` is a rule), ``hyperparameters`` (see contract/knobs.py), ``model_name``, ``lineage`` (copied
to the card). Result: ``output/model/``, the policy, with card and bundle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from runner.contract.reinforcement_knobs import even_prompts
from runner.programs.lib.adapters import load_trainable, save_package
from runner.programs.lib.distributed import is_first, num_processes, run_in_processes, summed
from runner.programs.lib.events import ProgramContext, ProgramError, Reporter
from runner.programs.lib.model import load_causal_model
from runner.programs.lib.ppo import Ppo
from runner.programs.lib.recipe import Order, finish_order, read_order, training_dtype
from runner.programs.lib.rewards import Prompt, Reward, make_reward, read_task_prompts, rewards_of

#: TRL's words -> ours, which are those of document 003.
NAMES = {"reward": "reward/mean", "kl": "kl_divergence", "completions/mean_length": "episode_length"}


def main(context: ProgramContext) -> None:
    """Run the recipe. Raises ProgramError for everything that the user can mend."""
    order, say = read_order(context, "rl"), context.report
    knobs = order.knobs
    if order.validation_data:
        raise ProgramError("parameter_unknown", "rl takes no validation data: its reward is measured on the way")
    longest = order.max_tokens - knobs["max_completion_length"]
    prompts = read_task_prompts(order.train_data, order.renderer, longest, knobs, say)
    reward = make_reward(knobs, context.parameters, order.device)
    model, package = load_trainable(order, say)

    if knobs["algorithm"] == "ppo":
        reference = None
        if order.method == "full":
            dtype = training_dtype(order.method, order.device)
            reference = load_causal_model(order.base, dtype, order.device.device)
        policy = Ppo(context, model, package, reference, order.renderer, reward, prompts, knobs, order.device)
        metrics = policy.run()
        if not is_first():  # the first process writes the result
            raise SystemExit
    else:
        # Late: TRL takes seconds to import, and data errors are reported before.
        from runner.programs.lib.trainers import run_trainer

        means: list[float] = []
        trainer = make_trainer(context, order, package, prompts, reward, means)
        # The answers that are passed over several times are in no checkpoint, which is therefore made between them.
        metrics = run_trainer(context, trainer, knobs, NAMES, whole_every=knobs["update_epochs"], rewards=means)

    save_package(package, order.method, context.output / "model")
    order.renderer.save(order.base, context.output / "model")
    finish_order(context, order, metrics)


def make_trainer(
    context: ProgramContext,
    order: Order,
    package: Any,
    prompts: Sequence[Prompt],
    reward: Reward,
    means: list[float],
) -> Any:
    """TRL's trainer of GRPO or RLOO; one optimizer step uses the answers to a whole batch of prompts.

    ``means``: grows by the mean reward of each batch of answers, those of all processes.
    """
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    from runner.programs.lib.trainers import base_options, dataset_of, optimizers_of, sealed, tokenizer_of

    knobs, renderer = order.knobs, order.renderer
    num_prompts = prompts_at_once(knobs, len(prompts), context.report)
    num_answers = num_prompts * knobs["num_generations"] // num_processes()
    batch_size = math.gcd(knobs["per_device_train_batch_size"], num_answers)
    epoch_steps = len(prompts) // num_prompts * knobs["update_epochs"]
    num_steps = knobs["max_steps"] or max(1, round(knobs["num_train_epochs"] * epoch_steps))
    package.generation_config.eos_token_id = renderer.stop_token_ids
    trainer_class, config = (GRPOTrainer, GRPOConfig) if knobs["algorithm"] == "grpo" else (RLOOTrainer, RLOOConfig)
    options = {
        **base_options(context, knobs, order.device),
        "max_steps": num_steps,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": num_answers // batch_size,
        "num_generations": knobs["num_generations"],
        "num_iterations": knobs["update_epochs"],
        "max_completion_length": knobs["max_completion_length"],
        "temperature": knobs["temperature"],
        "beta": knobs["kl_coef"],
        "epsilon": knobs["cliprange"],
    }

    def earned(completion_ids: Sequence[list[int]], number: Sequence[int], **_: Any) -> list[float]:
        texts = [renderer.decode(token_ids) for token_ids in completion_ids]
        rewards = rewards_of(reward, [prompts[index] for index in number], texts, [len(ids) for ids in completion_ids])
        total, count = summed(sum(rewards), len(rewards))
        means.append(total / count)
        return rewards

    def token_ids_of(numbers: Sequence[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [prompts[int(number)].token_ids for number in numbers], None, {}

    # A prompt goes through TRL as its number, so that only our renderer makes tokens of it.
    rows = [{"prompt": str(number), "number": number, "rows": prompt.row} for number, prompt in enumerate(prompts)]
    trainer = sealed(in_order_after_a_restart(trainer_class))(
        model=package,
        reward_funcs=earned,
        args=config(**options),
        train_dataset=dataset_of(rows),
        processing_class=tokenizer_of(order.base),
        optimizers=optimizers_of(package, knobs, num_steps),
    )
    trainer._tokenize_prompts = token_ids_of
    return trainer


def prompts_at_once(knobs: Mapping[str, Any], num_prompts: int, say: Reporter) -> int:
    """Prompts of a step: as many as asked and there, whose answers the processes can share evenly.

    Raises ProgramError where no number is such.
    """
    wanted = min(int(knobs["rollout_batch_size"]), num_prompts)
    taken = even_prompts(wanted, knobs["num_generations"], num_processes())
    if not taken:
        message = (
            f"{wanted} prompts with {knobs['num_generations']} answers each can not be shared out evenly over "
            f"{num_processes()} processes; take more prompts or answers, or fewer GPUs"
        )
        raise ProgramError("hyperparameters_invalid", message, "rollout_batch_size")
    if taken != wanted:
        say.warning(f"{taken} prompts a step instead of {wanted}: their answers are shared out evenly", "not_even")
    return taken


def in_order_after_a_restart(trainer_class: type) -> type:
    """The trainer class, whose order of prompts follows from the epoch and not from the epochs since the start."""

    def _get_train_sampler(self: Any, dataset: Any = None) -> Any:
        sampler = trainer_class._get_train_sampler(self, dataset)  # type: ignore[attr-defined]

        def set_epoch(epoch: int) -> None:
            sampler.generator.manual_seed(sampler.seed)
            for _ in range(epoch):  # TRL draws one order after the other
                torch.randperm(sampler.num_samples, generator=sampler.generator)

        sampler.set_epoch = set_epoch
        return sampler

    return type(trainer_class.__name__, (trainer_class,), {"_get_train_sampler": _get_train_sampler})


if __name__ == "__main__":
    run_in_processes(main, "runner.programs.train.rl")
