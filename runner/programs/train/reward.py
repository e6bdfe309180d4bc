"""A reward model: a language model with one output at the end of a reply, trained on preferences (TRL).

``python -m runner.programs.train.reward RUN_FOLDER``. Parameters: ``base_model`` (folder), ``method`` (full, lora),
``train_data`` and ``validation_data`` (JSONL with prompt/chosen/rejected, or prompt/responses with scores; the second
may be null), ``hyperparameters`` (see contract/knobs.py), ``model_name``, ``lineage`` (copied to the card).
Result: ``output/model/`` with card and bundle; it scores replies and can not be chatted with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.programs.lib.adapters import load_trainable_classifier, save_package
from runner.programs.lib.distributed import run_in_processes
from runner.programs.lib.events import ProgramContext
from runner.programs.lib.lengths import LengthPolicy
from runner.programs.lib.preferences import Pair, read_pairs
from runner.programs.lib.recipe import Order, finish_order, read_order


def main(context: ProgramContext) -> None:
    """Run the recipe. Raises ProgramError for everything that the user can mend."""
    order, say = read_order(context, "reward"), context.report
    lengths = LengthPolicy(order.max_tokens, order.knobs["length_policy"])
    pairs = read_pairs(order.train_data, order.renderer, lengths, say)
    held_out: list[Pair] = []
    if order.validation_data:
        held_out = read_pairs(order.validation_data, order.renderer, LengthPolicy(order.max_tokens, "drop"), say)
    package = load_trainable_classifier(order, ["reward"], say)

    # Late: TRL takes seconds to import, and data errors are reported before.
    from runner.programs.lib.trainers import run_trainer

    names = {"accuracy": "reward_accuracy", "margin": "reward_margin"}
    metrics = run_trainer(context, make_trainer(context, order, package, pairs, held_out), order.knobs, names)

    save_package(package, order.method, context.output / "model")
    order.renderer.save(order.base, context.output / "model")
    finish_order(context, order, metrics, {"task": "reward"})


def make_trainer(
    context: ProgramContext, order: Order, package: Any, pairs: Sequence[Pair], held_out: Sequence[Pair]
) -> Any:
    """TRL's trainer of reward models, on tokens that we made."""
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    from runner.programs.lib.trainers import dataset_of, optimizers_of, sealed, tokenizer_of, trainer_options

    options = trainer_options(context, order.knobs, order.device, len(pairs))
    return sealed(RewardTrainer)(
        model=package,
        args=RewardConfig(
            **options,
            max_length=None,  # our own length policy has been applied
            disable_dropout=not order.knobs.get("lora_dropout"),
            center_rewards_coefficient=order.knobs["center_rewards_coefficient"] or None,
        ),
        train_dataset=dataset_of([whole_replies(pair) for pair in pairs]),
        eval_dataset=dataset_of([whole_replies(pair) for pair in held_out]),
        processing_class=tokenizer_of(order.base),
        optimizers=optimizers_of(package, order.knobs, options["max_steps"]),
    )


def whole_replies(pair: Pair) -> dict[str, Any]:
    """The columns of TRL's reward trainer: prompt and reply in one."""
    return {
        "rows": pair.row,
        "chosen_ids": [*pair.prompt_ids, *pair.chosen_ids],
        "rejected_ids": [*pair.prompt_ids, *pair.rejected_ids],
    }


if __name__ == "__main__":
    run_in_processes(main, "runner.programs.train.reward")
