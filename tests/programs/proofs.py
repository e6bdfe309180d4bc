"""What every recipe is proved on: the cells of the product, eight samples each, and what the saved model must do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from runner.contract import folder
from runner.contract.knobs import KNOBS, RECIPES, knobs_of
from runner.programs.lib.data import read_preferences
from runner.programs.lib.preferences import encode_replies
from runner.programs.lib.render import Renderer
from tests.programs.recipes import PREFERENCES, QUESTIONS, events_of, values_by_step

#: Knobs whose values are losses or bases of their own: each value is proved with each method.
AXES = ("loss_type", "algorithm", "quantization_bits")
#: Knobs with choices that change neither: how long, how fast, how exactly, how widely; or where a reward comes from.
NO_AXES = {
    "length_policy",
    "lr_scheduler_type",
    "optim",
    "precision",
    "distributed_strategy",
    "bnb_4bit_quant_type",
    "reward_function",
}
EIGHT_QUESTIONS = (
    *QUESTIONS,
    {"question": "Name a city", "answer": "Paris"},
    {"question": "法国的首都是哪里？", "answer": "巴黎。"},
)
assert len(EIGHT_QUESTIONS) == len(PREFERENCES) == 8


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to train that the product offers. ``loss``: "" where a recipe has one only; ``bits``: of the base."""

    recipe: str
    method: str
    loss: str = ""
    bits: str = ""

    @property
    def name(self) -> str:
        """For the list of tests."""
        return "-".join(filter(None, (self.recipe, self.loss, self.method + self.bits)))

    @property
    def knobs(self) -> dict[str, Any]:
        """The hyperparameters that choose this cell."""
        axis = {"preference": "loss_type", "rl": "algorithm"}.get(self.recipe)
        return ({axis: self.loss} if axis else {}) | ({"quantization_bits": int(self.bits)} if self.bits else {})


def cells() -> Iterator[Cell]:
    """All that the table of hyperparameters offers: recipe x method x loss x bits."""
    for recipe, methods in RECIPES.items():
        for method in methods:
            choices = {knob.name: knob.choices for knob in knobs_of(recipe, method) if knob.name in AXES}
            losses = choices.get("loss_type") or choices.get("algorithm") or ("",)
            for loss, bits in product(losses, choices.get("quantization_bits", ("",))):
                yield Cell(recipe, method, loss, bits)


def unjudged_choices() -> set[str]:
    """Knobs with choices that nobody has sorted into ``AXES`` or ``NO_AXES``."""
    return {knob.name for knob in KNOBS if knob.choices} ^ {*AXES, *NO_AXES}


def manifest_of(run: Path) -> dict[str, Any]:
    """What a finished run says of its result."""
    read: dict[str, Any] = json.loads((run / folder.OUTPUT / folder.MANIFEST).read_text(encoding="utf-8"))
    return read


def fell_to(run: Path, name: str = "train/loss") -> float:
    """The last value of a loss as a share of its first one."""
    values = values_by_step(run, name)
    return values[max(values)] / values[min(values)]


def answers_of(run: Path) -> list[tuple[str, str]]:
    """Greedy answer and reference of every sample shown."""
    return [(shown["answer"], shown["reference"]) for shown in events_of(run, "sample")]


def saved_model(run: Path, base: Path, model_class: str, **options: Any) -> Any:
    """The result of a run as transformers and PEFT load it, without any code of ours."""
    import transformers
    from peft import PeftModel

    kind, result = getattr(transformers, model_class), run / folder.OUTPUT / "model"
    if not (result / "adapter_config.json").exists():
        return kind.from_pretrained(result, dtype=torch.float32, **options).eval()
    model = kind.from_pretrained(base, dtype=torch.float32, **options)
    return PeftModel.from_pretrained(model, str(result)).eval()


def base_model(base: Path, model_class: str = "AutoModelForCausalLM") -> Any:
    """The model before any training."""
    import transformers

    return getattr(transformers, model_class).from_pretrained(base, dtype=torch.float32).eval()


def encoded_preferences(base: Path, data: str) -> list[tuple[list[int], list[list[int]]]]:
    """Prompt and the two replies (chosen, rejected) of each preference as tokens."""
    renderer = Renderer.from_folder(base)
    return [
        encode_replies(renderer, pair.prompt, [pair.chosen, pair.rejected], "") for _, pair in read_preferences(data)
    ]


def log_probability(model: Any, prompt: Sequence[int], reply: Sequence[int]) -> float:
    """Of a reply after its prompt: the sum over its tokens, in nats."""
    token_ids = torch.tensor([[*prompt, *reply]])
    with torch.inference_mode():
        logits = model(input_ids=token_ids).logits[0, len(prompt) - 1 : -1].float()
    return float(torch.log_softmax(logits, -1).gather(1, token_ids[0, len(prompt) :, None]).sum())


def score(model: Any, prompt: Sequence[int], reply: Sequence[int]) -> float:
    """What a reward model says of a reply."""
    with torch.inference_mode():
        return float(model(input_ids=torch.tensor([[*prompt, *reply]])).logits[0, 0])
