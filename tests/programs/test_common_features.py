"""What every recipe shares: exact resumption, patience, the best weights, recomputation, length, guards, processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.contract import exits
from runner.contract.knobs import RECIPES
from runner.programs.lib import distributed, ppo
from runner.programs.lib.artifacts import hash_file
from runner.programs.lib.events import ProgramError, Stopped
from runner.programs.lib.first_pass import longest_rows
from runner.programs.lib.trainers import dataset_of
from runner.programs.train import classify, preference, pretrain, reward, rl, seq2seq, sft
from tests.programs.recipes import (
    PAIRS,
    PREFERENCES,
    QUESTIONS,
    TEXTS,
    StoppingReporter,
    events_of,
    fork_processes,
    make_context,
    values_by_step,
    write_rows,
)
from tests.programs.tiny_models import write_tiny_encoder_decoder

pytestmark = pytest.mark.slow

Main = Callable[[Any], None]
PROMPTS = tuple({"prompt": f"Say {letter}"} for letter in "abcdefgh")
#: Case -> program and data. ``seq2seq`` with a causal model is ``sft``, so here it is an encoder-decoder.
CASES: dict[str, tuple[Main, tuple[dict[str, Any], ...]]] = {
    "sft": (sft.main, QUESTIONS),
    "classify": (classify.main, TEXTS),
    "seq2seq": (seq2seq.main, PAIRS),
    "preference": (preference.main, PREFERENCES),
    "reward": (reward.main, PREFERENCES),
    "pretrain": (pretrain.main, ({"text": "The piano has eighty-eight keys. " * 12},)),
    "rl": (rl.main, PROMPTS),
    "rl by grpo": (rl.main, PROMPTS),
}
#: Those that have a loss on validation data.
LEARNERS = [name for name in CASES if not name.startswith("rl")]
METHODS = [(case, method) for case in CASES for method in ("full", "lora") if method in RECIPES[case.split()[0]]]
#: What this file's other cases and the files of sft, preference and pretrain do not run in two processes.
IN_PROCESSES = ["classify", "seq2seq", "reward"]
KNOBS: dict[str, Any] = {
    "max_steps": 7,
    "per_device_train_batch_size": 2,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "precision": "fp32",
}
RL: dict[str, Any] = {
    "reward_function": "regex",
    "reward_pattern": "[aeiou]",
    "rollout_batch_size": 4,
    "max_completion_length": 4,
    "update_epochs": 1,
    "eval_steps": 2,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder_decoder(tmp_path_factory.mktemp("tiny") / "t5")


@pytest.fixture
def order(tiny_model_folder: Path, encoder_decoder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Makes the parameters of a case."""

    def make(case: str, method: str = "full", **knobs: Any) -> dict[str, Any]:
        data = write_rows(tmp_path / "train.jsonl", CASES[case][1])
        more: dict[str, Any] = {"sequence_length": 16} if case == "pretrain" else {}
        if case.startswith("rl"):
            more = RL | ({"algorithm": "grpo", "num_generations": 2} if case == "rl by grpo" else {})
        return {
            "base_model": str(encoder_decoder if case == "seq2seq" else tiny_model_folder),
            "method": method,
            "train_data": [data] if case == "pretrain" else data,
            "validation_data": data if case in LEARNERS else None,
            "hyperparameters": {**KNOBS, **more, **knobs},
        }

    return make


def result_of(run: Path) -> Path:
    """The weights that a run made."""
    return next((run / "output/model").glob("*model.safetensors"))


def turned(case: str) -> list[dict[str, Any]]:
    """Validation data on which what is learned is wrong, so that the loss soon rises."""
    if case in ("preference", "reward"):
        return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in PREFERENCES if "chosen" in row]
    if case == "classify":
        return [{"text": row["text"], "label": "code" if row["label"] != "code" else "music"} for row in TEXTS]
    if case == "pretrain":
        return [{"text": "def add(first, second): return first + second 1234567890 " * 8}]
    names = ("question", "answer") if case == "sft" else ("source", "target")
    rows = CASES[case][1]
    return [{names[0]: row[names[0]], names[1]: rows[index - 1][names[1]]} for index, row in enumerate(rows)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("end", "step"), [("stop", 5), ("crash", 3)])
def test_a_resumed_run_ends_like_an_unbroken_one(case: str, end: str, step: int, order: Any, tmp_path: Path) -> None:
    """Stopped in the middle of a later epoch; crashed in the first one, so that the restart goes into the next."""
    parameters, main = order(case, save_steps=2), CASES[case][0]
    main(make_context(tmp_path / "whole", parameters))

    def interrupt() -> None:
        if end == "crash":
            raise KeyboardInterrupt
        context.should_stop = True

    broken = tmp_path / "broken"
    context = make_context(broken, parameters)
    context.report = StoppingReporter(broken, step, interrupt)
    with pytest.raises(KeyboardInterrupt if end == "crash" else Stopped):
        main(context)
    main(make_context(broken, parameters))
    assert any(event["name"] == "resume" for event in events_of(broken, "phase"))
    losses = values_by_step(broken, "train/loss")
    assert list(losses) == [1, 2, 3, 4, 5, 6, 7]
    assert losses == values_by_step(tmp_path / "whole", "train/loss")
    evaluated = "reward/of_window" if case.startswith("rl") else "eval/loss"
    assert 7 in values_by_step(broken, evaluated)
    assert values_by_step(broken, evaluated) == values_by_step(tmp_path / "whole", evaluated)
    assert hash_file(result_of(broken)) == hash_file(result_of(tmp_path / "whole"))


@pytest.mark.parametrize("case", ["sft", "preference", "rl"])
def test_another_run_goes_on_from_the_checkpoints_of_a_stopped_one(case: str, order: Any, tmp_path: Path) -> None:
    """It ends with the best weights, which the first of the two has seen; that one's folder stays as it was."""
    parameters, main = order(case, save_steps=2, eval_steps=1, load_best=True), CASES[case][0]
    if case != "rl":
        parameters["validation_data"] = write_rows(tmp_path / "validation.jsonl", turned(case))
    main(make_context(tmp_path / "whole", parameters))
    first, context = tmp_path / "first", make_context(tmp_path / "first", parameters)

    def stop() -> None:
        context.should_stop = True

    context.report = StoppingReporter(first, 5, stop)
    with pytest.raises(Stopped):
        main(context)
    sealed = first / "checkpoints"
    before = sorted(path.relative_to(sealed) for path in sealed.rglob("*"))
    main(make_context(tmp_path / "second", {**parameters, "resume_from": str(sealed)}))
    whole = values_by_step(tmp_path / "whole", "train/loss")
    rest = values_by_step(tmp_path / "second", "train/loss")
    assert 1 not in rest
    assert rest == {step: whole[step] for step in range(min(rest), 8)}
    assert hash_file(result_of(tmp_path / "second")) == hash_file(result_of(tmp_path / "whole"))
    assert sorted(path.relative_to(sealed) for path in sealed.rglob("*")) == before
    # Without any checkpoint there it begins at the start.
    main(make_context(tmp_path / "third", {**parameters, "resume_from": str(tmp_path / "none")}))
    assert values_by_step(tmp_path / "third", "train/loss") == whole


@pytest.mark.parametrize("case", LEARNERS)
def test_patience_ends_a_run_and_the_best_weights_are_taken(case: str, order: Any, tmp_path: Path) -> None:
    parameters = order(case, max_steps=60, eval_steps=1, load_best=True, early_stopping_patience=3, learning_rate=2e-2)
    parameters["validation_data"] = write_rows(tmp_path / "validation.jsonl", turned(case))
    run = tmp_path / "run"
    CASES[case][0](make_context(run, parameters))
    evaluated = values_by_step(run, "eval/loss")
    best = min(evaluated, key=lambda step: evaluated[step])
    assert max(evaluated) == best + 3 < 60
    sealed = load_file(run / f"checkpoints/step-{best:08d}/weights.safetensors")
    saved = load_file(result_of(run))
    assert all(torch.equal(saved[name], tensor) for name, tensor in sealed.items() if name in saved)
    assert len(saved.keys() & sealed.keys()) > 5


@pytest.mark.parametrize(("case", "update_epochs"), [("rl", 1), ("rl by grpo", 1), ("rl by grpo", 2)])
def test_patience_ends_a_run_whose_rewards_fall_and_the_best_weights_are_taken(
    case: str, update_epochs: int, order: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch of answers earns what is laid down here; GRPO makes one every ``update_epochs`` steps."""
    levels = iter([0.2, 0.4, 0.9, 0.7, 0.6, 0.8, 1.0, 1.0, 1.0])

    def earned(_reward: Any, prompts: Any, _texts: Any, _sizes: Any) -> list[float]:
        level = next(levels)
        return [level + (0.1 if place % 2 else -0.1) for place in range(len(prompts))]

    for module in (rl, ppo):
        monkeypatch.setattr(module, "rewards_of", earned)
    knobs = {"eval_steps": 1, "load_best": True, "early_stopping_patience": 3, "max_steps": 30, "max_grad_norm": 0.1}
    run, every = tmp_path / "run", update_epochs
    CASES[case][0](make_context(run, order(case, **knobs, update_epochs=update_epochs)))
    expected = {1: 0.2, 2: 0.4, 3: 0.9, 4: 0.7, 5: 0.6, 6: 0.8}
    assert values_by_step(run, "reward/of_window") == pytest.approx({every * n: value for n, value in expected.items()})
    sealed, saved = load_file(run / f"checkpoints/step-{3 * every:08d}/weights.safetensors"), load_file(result_of(run))
    assert len(saved.keys() & sealed.keys()) > 5
    assert all(torch.equal(saved[name], tensor) for name, tensor in sealed.items() if name in saved)
    assert events_of(run, "summary")[0]["reward/best"] == pytest.approx(0.9)
    told = [event["message"] for event in events_of(run, "phase")]
    assert f"weights of step {3 * every} taken: the best reward/of_window" in told


@pytest.mark.parametrize(("case", "method"), METHODS)
def test_recomputed_activations_change_nothing(case: str, method: str, order: Any, tmp_path: Path) -> None:
    for name, is_on in (("kept", False), ("recomputed", True)):
        CASES[case][0](make_context(tmp_path / name, order(case, method, gradient_checkpointing=is_on)))
    kept, recomputed = (values_by_step(tmp_path / name, "train/loss") for name in ("kept", "recomputed"))
    assert kept == pytest.approx(recomputed, rel=1e-5, abs=1e-6)
    assert len(set(kept.values())) > 3


@pytest.mark.parametrize("case", CASES)
def test_a_number_that_is_none_ends_the_run_and_names_the_rows(case: str, order: Any, tmp_path: Path) -> None:
    parameters = order(case)
    base = shutil.copytree(parameters["base_model"], tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if name.endswith(("model.norm.weight", "decoder.final_layer_norm.weight")))
    weights[name][0] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ProgramError) as caught:
        CASES[case][0](make_context(tmp_path / "run", {**parameters, "base_model": str(base)}))
    assert caught.value.exit_code == exits.DIVERGED
    assert ("tokens " if case == "pretrain" else "train.jsonl line") in caught.value.message
    assert not (tmp_path / "run/output/manifest.json").exists()


@pytest.mark.parametrize("case", ["classify", "seq2seq", "preference", "reward"])
def test_a_loss_that_leaps_ends_the_run_and_names_the_rows_of_the_step(
    case: str, order: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer's loss is multiplied from the third step on; sft and pretrain have a test of their own."""
    import transformers

    step, calls = transformers.Trainer.training_step, []

    def leaping(self: Any, *args: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        return step(self, *args, **options) * (1000 if len(calls) > 4 else 1)

    monkeypatch.setattr(transformers.Trainer, "training_step", leaping)
    with pytest.raises(ProgramError, match=r"the loss of step 3 is [\d.e+]+, \d+ times that") as caught:
        CASES[case][0](make_context(tmp_path / "run", order(case, gradient_accumulation_steps=2, learning_rate=1e-4)))
    assert caught.value.exit_code == exits.DIVERGED
    assert caught.value.message.count("train.jsonl line") == 4  # two passes of two rows
    assert not (tmp_path / "run/output/manifest.json").exists()


@pytest.mark.parametrize("case", LEARNERS)
def test_the_longest_batch_runs_first_and_memory_that_is_missing_is_told_in_words(
    case: str, order: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "pretrain":
        pytest.skip("all its sequences are of one length")
    passes: list[int] = []

    def full(*args: Any, **options: Any) -> Any:
        passes.append(1)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.Tensor, "backward", full)
    with pytest.raises(ProgramError, match=r"2 samples of .* tokens do not fit into .*; lower per_device") as caught:
        CASES[case][0](make_context(tmp_path / "run", order(case)))
    assert caught.value.field == "per_device_train_batch_size"
    assert passes == [1]
    assert events_of(tmp_path / "run", "metric") == []


def test_the_longest_rows_are_those_with_the_most_tokens() -> None:
    rows = [
        {"rows": "r", "input_ids": [1] * size, "labels": [2] * more} for size, more in ((3, 9), (8, 1), (2, 2), (9, 9))
    ]
    assert longest_rows(dataset_of(rows), 2) == ([3, 0], 30)
    assert longest_rows(dataset_of(rows).select([2, 1]), 5) == ([1, 0], 13)


@pytest.mark.parametrize("case", [name for name in LEARNERS if name != "pretrain"])
def test_long_samples_are_cut_or_dropped_as_asked(case: str, order: Any, tmp_path: Path) -> None:
    long = {"question": "x", "answer": "word " * 90} if case == "sft" else {"text": "word " * 90, "label": "code"}
    long = {"source": "x", "target": "word " * 90} if case == "seq2seq" else long
    if case in ("preference", "reward"):
        long = {"prompt": "x", "chosen": "word " * 90, "rejected": "no"}
    for policy, more in (("truncate", 1), ("drop", 0)):
        parameters = order(case, max_seq_length=64, length_policy=policy, max_steps=1)
        rows = [*CASES[case][1], long]
        parameters["train_data"] = write_rows(tmp_path / "train.jsonl", rows)
        parameters["validation_data"] = None
        CASES[case][0](make_context(tmp_path / policy, parameters))
        told = next(e["message"] for e in events_of(tmp_path / policy, "phase") if " samples, " in e["message"])
        assert told.startswith(f"train.jsonl: {len(rows) - 1 + more} samples")
        warned = [e["message"] for e in events_of(tmp_path / policy, "warning") if e.get("code") == "samples_too_long"]
        assert len(warned) == 1
        assert f"({policy})" in warned[0]


@pytest.mark.parametrize("case", IN_PROCESSES)
def test_two_processes_have_the_losses_of_one(case: str, order: Any, tmp_path: Path) -> None:
    main, one = CASES[case][0], order(case, gradient_accumulation_steps=2, save_steps=3)
    main(make_context(tmp_path / "one", one))
    two = {**one, "hyperparameters": {**one["hyperparameters"], "gradient_accumulation_steps": 1}}
    fork_processes(main, tmp_path / "two", two, 2)
    for name in ("train/loss", "eval/loss"):
        theirs = values_by_step(tmp_path / "one", name)
        assert len(theirs) > 0
        assert values_by_step(tmp_path / "two", name) == pytest.approx(theirs, abs=1e-4)
    left, right = (load_file(result_of(tmp_path / name)) for name in ("one", "two"))
    assert all(torch.allclose(tensor, right[name], atol=1e-4) for name, tensor in left.items())


#: What the files of sft and pretrain do not train with weights that are shared out.
SHARDED = [
    ("classify", "full"),
    ("classify", "lora"),
    ("seq2seq", "full"),
    ("reward", "lora"),
    ("preference", "full"),
    ("preference", "lora"),
]


@pytest.mark.parametrize(("case", "method"), SHARDED)
def test_shared_out_weights_go_on_from_the_checkpoint_of_one_process_and_seal_the_same(
    case: str, method: str, order: Any, tmp_path: Path
) -> None:
    main = CASES[case][0]
    sizes = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-3, "eval_steps": 2}
    one = order(case, method, gradient_accumulation_steps=4, **sizes)
    main(make_context(tmp_path / "one", one))
    shutil.copytree(tmp_path / "one/checkpoints/step-00000002", tmp_path / "two/checkpoints/step-00000002")
    shared = {**one["hyperparameters"], "gradient_accumulation_steps": 2, "distributed_strategy": "fsdp"}
    fork_processes(main, tmp_path / "two", {**one, "hyperparameters": shared}, 2)
    told = [event["message"] for event in events_of(tmp_path / "two", "phase")]
    assert "weights, gradients and optimizer state are shared out over 2 processes" in told
    assert "resumed from the checkpoint of step 2" in told
    for name in ("train/loss", "eval/loss", "train/grad_norm"):
        theirs = {step: value for step, value in values_by_step(tmp_path / "one", name).items() if step > 2}
        assert len(theirs) > 0
        assert values_by_step(tmp_path / "two", name) == pytest.approx(theirs, abs=1e-4)
    sealed = ("checkpoints/step-00000004/weights", "checkpoints/step-00000004/optimizer")
    files = [
        *(f"{file}.safetensors" for file in sealed),
        str(result_of(tmp_path / "one").relative_to(tmp_path / "one")),
    ]
    for file in files:
        left, right = (load_file(tmp_path / name / file) for name in ("one", "two"))
        assert left.keys() == right.keys()
        assert all(torch.allclose(tensor, right[name], atol=1e-4) for name, tensor in left.items())


def draw_by_row(monkeypatch: pytest.MonkeyPatch, row_of: Callable[[int, int, int], int]) -> None:
    """Answers are drawn by their place in the whole batch, whoever draws: ``row_of(process, row, rows)``."""

    def multinomial(probabilities: torch.Tensor, num_samples: int, **_: Any) -> torch.Tensor:
        process, rows = distributed.rank(), len(probabilities)
        places = torch.tensor([row_of(process, row, rows) for row in range(rows)])
        quantiles = (0.618 * (1 + places)) % 1
        return (probabilities.cumsum(1) < quantiles[:, None]).sum(1, keepdim=True).clamp(max=probabilities.shape[1] - 1)

    monkeypatch.setattr(torch, "multinomial", multinomial)


@pytest.mark.parametrize("case", ["rl", "rl by grpo"])
def test_two_processes_answer_and_learn_as_one(
    case: str, order: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_ppo, main = case == "rl", CASES[case][0]
    draw_by_row(monkeypatch, lambda process, row, rows: 2 * row + process if is_ppo else process * rows + row)
    one = order(case, "lora", per_device_train_batch_size=4, update_epochs=2, max_steps=4)
    with monkeypatch.context() as patch:
        draw_by_row(patch, lambda _process, row, _rows: row)
        main(make_context(tmp_path / "one", one))
    two = {**one, "hyperparameters": {**one["hyperparameters"], "per_device_train_batch_size": 2}}
    fork_processes(main, tmp_path / "two", two, 2)
    for name in ("train/loss", "reward/mean", "kl_divergence", "episode_length"):
        theirs = values_by_step(tmp_path / "one", name)
        assert len(set(theirs.values())) > (name != "episode_length")
        assert values_by_step(tmp_path / "two", name) == pytest.approx(theirs, abs=1e-4)
    left, right = (load_file(result_of(tmp_path / name)) for name in ("one", "two"))
    assert all(torch.allclose(tensor, right[name], atol=1e-4) for name, tensor in left.items())


def stop_after_step_3(context: Any) -> None:
    """Train until the third step has been told, then stop as a user does, by a word to the first process."""
    if distributed.is_first():
        context.report = StoppingReporter(context.run_folder, 3, lambda: setattr(context, "should_stop", True))
    with pytest.raises(Stopped):
        rl.main(context)


@pytest.mark.parametrize("case", ["rl", "rl by grpo"])
def test_two_processes_that_draw_apart_end_a_broken_run_like_an_unbroken_one(
    case: str, order: Any, tmp_path: Path
) -> None:
    parameters = order(case, "lora", save_steps=2, max_steps=5)
    fork_processes(rl.main, tmp_path / "whole", parameters, 2)
    fork_processes(stop_after_step_3, tmp_path / "broken", parameters, 2)
    fork_processes(rl.main, tmp_path / "broken", parameters, 2)
    told = [event["message"] for event in events_of(tmp_path / "broken", "phase")]
    assert any(message.startswith("resumed from the checkpoint of step") for message in told)
    for name in ("train/loss", "reward/mean", "kl_divergence"):
        assert values_by_step(tmp_path / "broken", name) == values_by_step(tmp_path / "whole", name)
    assert hash_file(result_of(tmp_path / "broken")) == hash_file(result_of(tmp_path / "whole"))


def test_every_recipe_is_a_case() -> None:
    assert {case.split()[0] for case in CASES} == RECIPES.keys()
