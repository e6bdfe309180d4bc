"""No recipe takes a hyperparameter and ignores it: short trainings record which ones their programs read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.contract import folder
from runner.contract import knobs as table
from runner.contract.knob_values import Knob
from runner.contract.knobs import RECIPES, knobs_of
from runner.contract.measures import measured
from runner.programs.lib import recipe as first_steps
from runner.programs.lib.events import ProgramError
from runner.programs.train import classify, preference, pretrain, reward, rl, seq2seq, sft
from tests.programs.recipes import (
    PAIRS,
    PREFERENCES,
    QUESTIONS,
    TEXTS,
    events_of,
    make_context,
    values_by_step,
    write_rows,
)
from tests.programs.tiny_models import write_tiny_encoder_decoder

pytestmark = pytest.mark.slow

DATA: dict[str, tuple[dict[str, Any], ...]] = {
    "sft": QUESTIONS,
    "preference": PREFERENCES,
    "reward": PREFERENCES,
    "classify": TEXTS,
    "seq2seq": PAIRS,
    "rl": tuple({"prompt": f"Say {letter}", "reference": letter} for letter in "abcd"),
    "pretrain": ({"text": "The piano has eighty-eight keys. " * 12},),
}
MAIN: dict[str, Callable[[Any], None]] = {
    "sft": sft.main,
    "preference": preference.main,
    "reward": reward.main,
    "classify": classify.main,
    "seq2seq": seq2seq.main,
    "rl": rl.main,
    "pretrain": pretrain.main,
}
#: Few steps, as many as the epochs say, with a checkpoint and an evaluation.
SHORT: dict[str, Any] = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "save_steps": 1, "precision": "fp32"}
#: A new model that is quickly made.
SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "sequence_length": 16,
}
#: Validation data on which what is learned is wrong.
OPPOSITE: dict[str, Any] = {
    "sft": tuple({**row, "answer": QUESTIONS[index - 1]["answer"]} for index, row in enumerate(QUESTIONS)),
    "reward": tuple({**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in PREFERENCES if "chosen" in r),
    "pretrain": ({"text": "def add(first, second): return first + second 1234567890 " * 8},),
}
RULE: dict[str, Any] = {"reward_function": "regex", "reward_pattern": "a", "max_completion_length": 2}


@dataclass(frozen=True, slots=True)
class Case:
    """A training that reads knobs which others do not. ``base``: the kind of model, "" for none."""

    recipe: str
    method: str
    knobs: dict[str, Any] = field(default_factory=dict)
    base: str = "causal"

    def __str__(self) -> str:
        return (
            "-".join((self.recipe, self.method, *map(str, self.knobs.values()))) if len(self.knobs) < 3 else self.base
        )


def answered(**knobs: Any) -> dict[str, Any]:
    return {**RULE, **knobs}


CASES = (
    Case("sft", "full"),
    Case("sft", "lora"),
    Case("sft", "qlora"),
    Case("preference", "full", {"loss_type": "orpo"}),
    Case("preference", "lora"),
    Case("preference", "lora", {"loss_type": "simpo"}),
    Case("preference", "qlora", {"loss_type": "kto"}),
    Case("reward", "full"),
    Case("reward", "lora"),
    Case("classify", "full"),
    Case("classify", "lora"),
    Case("seq2seq", "full", {}, "encoder-decoder"),
    Case("seq2seq", "lora", {}, "encoder-decoder"),
    Case("seq2seq", "lora"),
    Case("rl", "full", answered(algorithm="ppo"), "ppo"),
    Case("rl", "lora", answered(algorithm="grpo"), "grpo"),
    Case("rl", "lora", {"reward_function": "length", "algorithm": "rloo", "max_completion_length": 2}, "rloo"),
    Case("pretrain", "full", SMALL, ""),
    Case("pretrain", "full", {"sequence_length": 16}),
)


class Recording(dict[str, Any]):
    """Hyperparameters that know which of them were asked for; copying or writing all of them asks for none."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder_decoder(tmp_path_factory.mktemp("tiny") / "t5")


@pytest.fixture
def trained(
    tiny_model_folder: Path, encoder_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Case], tuple[list[str], set[str]]]:
    """Trains a case: which knobs count beside its choices and were never read, and what was measured at the end."""

    def train(case: Case) -> tuple[list[str], set[str]]:
        records: list[Recording] = []
        check = first_steps.checked_knobs

        def recorded(*args: Any, **options: Any) -> Recording:
            records.append(Recording(check(*args, **options)))
            return records[-1]

        for module in (first_steps, pretrain):
            monkeypatch.setattr(module, "checked_knobs", recorded)
        data = write_rows(tmp_path / "train.jsonl", DATA[case.recipe])
        base = encoder_decoder if case.base == "encoder-decoder" else tiny_model_folder if case.base else None
        parameters = {
            "base_model": base and str(base),
            "method": case.method,
            "train_data": [data] if case.recipe == "pretrain" else data,
            "validation_data": None if case.recipe == "rl" else data,
            "hyperparameters": {**SHORT, "eval_steps": 1, **case.knobs},
        }
        MAIN[case.recipe](make_context(tmp_path / "run", parameters))
        (record,) = records
        counting = [knob for knob in knobs_of(case.recipe, case.method) if knob.counts(record)]
        manifest = json.loads((tmp_path / "run" / folder.OUTPUT / folder.MANIFEST).read_text())
        measures = manifest["metrics"].keys() - {"steps", "epochs"}
        return [knob.name for knob in counting if knob.name not in record.read], measures

    return train


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_program_reads_every_knob_and_measures_what_a_search_may_ask_for(
    case: Case, trained: Callable[[Case], tuple[list[str], set[str]]]
) -> None:
    unread, measures = trained(case)
    assert unread == []
    assert measures == set(measured(case.recipe, {"eval_steps": 1, **case.knobs}, has_validation=True))


def test_a_knob_that_no_program_reads_is_found(
    trained: Callable[[Case], tuple[list[str], set[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = Knob("idle", "int", 1, "Nothing.", "无。", recipes=("classify",))
    monkeypatch.setattr(table, "KNOBS", (*table.KNOBS, idle))
    assert trained(Case("classify", "full"))[0] == ["idle"]


def test_every_recipe_and_method_is_trained() -> None:
    assert {(case.recipe, case.method) for case in CASES} >= {
        (recipe, method) for recipe in RECIPES for method in RECIPES[recipe] if recipe != "rl"
    }
    assert {case.knobs["algorithm"] for case in CASES if case.recipe == "rl"} == {"ppo", "grpo", "rloo"}


def test_an_encoder_decoder_makes_a_target_in_one_piece(encoder_decoder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", PAIRS)
    knobs = {"length_policy": "split", "max_steps": 1}
    parameters = {"base_model": str(encoder_decoder), "method": "full", "train_data": data, "hyperparameters": knobs}
    with pytest.raises(ProgramError, match="split needs a causal base") as caught:
        seq2seq.main(make_context(tmp_path / "run", parameters))
    assert caught.value.field == "length_policy"


def test_what_needs_validation_data_says_so_without_them(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", TEXTS)
    knobs = {**SHORT, "eval_steps": 1}
    parameters = {"base_model": str(tiny_model_folder), "method": "lora", "train_data": data, "hyperparameters": knobs}
    classify.main(make_context(tmp_path / "run", parameters))
    warned = [event for event in events_of(tmp_path / "run", "warning") if event.get("code") == "not_used"]
    assert [event["message"] for event in warned] == ["eval_steps 1 changes nothing: there is no validation data"]


@pytest.mark.parametrize(
    "case", [Case("sft", "lora"), Case("pretrain", "full", {"sequence_length": 16}), Case("reward", "lora")]
)
def test_what_compares_evaluations_has_one_after_each_epoch(
    case: Case, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """The loss on the validation data rises, because it wants the opposite."""
    data, run = write_rows(tmp_path / "train.jsonl", DATA[case.recipe]), tmp_path / "run"
    knobs = {"num_train_epochs": 5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    comparing = {"load_best": True, "early_stopping_patience": 2, "learning_rate": 5e-2, "precision": "fp32"}
    parameters = {
        "base_model": str(tiny_model_folder),
        "method": case.method,
        "train_data": [data] if case.recipe == "pretrain" else data,
        "validation_data": write_rows(tmp_path / "validation.jsonl", OPPOSITE[case.recipe]),
        "hyperparameters": {**knobs, **comparing, **case.knobs},
    }
    MAIN[case.recipe](make_context(run, parameters))
    evaluated = values_by_step(run, "eval/loss")
    best, epoch = min(evaluated, key=lambda step: evaluated[step]), min(evaluated)
    assert list(evaluated) == [epoch * number for number in range(1, 1 + len(evaluated))]
    assert max(evaluated) == best + 2 * epoch < 5 * epoch
    assert f"weights of step {best} taken" in "".join(event["message"] for event in events_of(run, "phase"))
    assert not [event for event in events_of(run, "warning") if event.get("code") == "not_used"]


@pytest.mark.parametrize("recipe", ["sft", "classify"])
def test_a_single_evaluation_is_warned_of_where_a_knob_compares(
    recipe: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "train.jsonl", DATA[recipe])
    parameters = {"base_model": str(tiny_model_folder), "method": "lora", "train_data": data, "validation_data": data}
    knobs = {**SHORT, "max_steps": 1, "load_best": True}
    MAIN[recipe](make_context(tmp_path / "run", {**parameters, "hyperparameters": knobs}))
    warned = [event["message"] for event in events_of(tmp_path / "run", "warning") if event.get("code") == "not_used"]
    assert warned == ["load_best: there is one evaluation only, after the last of 1 steps; give a smaller eval_steps"]
