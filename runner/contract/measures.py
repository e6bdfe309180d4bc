"""What a finished training has measured: the names that a search may look for, and what others call them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Recipes that answer validation samples and compare the answers with the references.
ANSWERING = ("sft", "seq2seq")
#: What of these has no value before the training has ended.
AT_THE_END = ("eval/best_loss", "eval/rougeL", "eval/bleu", "eval/chrf", "reward/best")
#: Metrics that are the better the smaller they are end with one of these.
COSTS = ("loss", "perplexity", "kl_divergence")
#: What a measure is called elsewhere -> what it may be called here; the first that a recipe has counts.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "loss": ("train/loss",),
    "accuracy": ("eval/accuracy", "eval/reward_accuracy"),
    "f1": ("eval/f1",),
    "margin": ("eval/reward_margin",),
    "rougel": ("eval/rougeL",),
    "rouge": ("eval/rougeL",),
    "bleu": ("eval/bleu",),
    "chrf": ("eval/chrf",),
    "reward": ("reward/mean",),
    "kl": ("kl_divergence",),
}
#: How names elsewhere say which data a measure is of.
PARTS = {"validation_": "eval", "val_": "eval", "eval_": "eval", "training_": "train", "train_": "train"}


def is_better_large(metric: str) -> bool:
    """Whether the largest value of a metric is the best; of losses, perplexity and divergence it is the smallest."""
    return not metric.lower().endswith(COSTS)


def measured(recipe: str, values: Mapping[str, Any], *, has_validation: bool) -> tuple[str, ...]:
    """The metrics of a finished training. ``values``: its hyperparameters; where one is missing, any value counts."""
    if recipe == "rl":
        best = ("reward/best",) if values.get("eval_steps") != 0 else ()
        return ("train/loss", "reward/mean", "kl_divergence", "episode_length", *best)
    scores: tuple[str, ...] = ("accuracy", "f1") if recipe == "classify" else ()
    if recipe in ("preference", "reward"):
        scores = ("reward_margin",) if values.get("loss_type") == "kto" else ("reward_accuracy", "reward_margin")
    train = ["train/loss", *(f"train/{name}" for name in scores if recipe != "classify")]
    if not has_validation:
        return tuple(train)
    answers = recipe in ANSWERING and values.get("max_predict_samples") != 0
    held_out = ["eval/loss", "eval/best_loss", *(f"eval/{name}" for name in scores)]
    return (*train, *held_out, *(("eval/rougeL", "eval/bleu", "eval/chrf") if answers else ()))


def our_measure(recipe: str, name: str) -> str:
    """What ``validation_loss``, ``accuracy`` and so on are called here; another name stays as it is."""
    known = measured(recipe, {}, has_validation=True)
    if name in known:
        return name
    word = name.lower()
    prefix = next((prefix for prefix in PARTS if word.startswith(prefix)), "")
    here = ELSEWHERE.get(word.removeprefix(prefix).replace("_", ""), ())
    if prefix:
        here = tuple(f"{PARTS[prefix]}/{each.rpartition('/')[2]}" for each in here)
    return next((each for each in here if each in known), name)
