"""What every recipe shares: exact resumption, patience, the best weights, recomputation, length, guards."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.contract import exits
from runner.contract.knobs import RECIPES
from runner.programs.lib import ppo
from runner.programs.lib.artifacts import hash_file
from runner.programs.lib.events import ProgramError, Stopped
from runner.programs.lib.first_pass import longest_rows
from runner.programs.lib.recipe import read_order
from runner.programs.lib.trainers import dataset_of
from runner.programs.train import rl, seq2seq
from tests.programs.cases import CASES, LEARNERS, METHODS, OTHER_LOSSES, result_of
from tests.programs.recipes import (
    PREFERENCES,
    TEXTS,
    StoppingReporter,
    events_of,
    make_context,
    values_by_step,
    write_rows,
)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


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


#: Case, method, how the run breaks and after which step.
BROKEN = [
    *((case, "full", end, step) for case in CASES for end, step in (("stop", 5), ("crash", 3))),
    *((case, "full", "stop", 5) for case in OTHER_LOSSES if case != "rl by rloo"),  # which test_rl breaks
    ("sft", "qlora", "stop", 5),
]


@pytest.mark.parametrize(("case", "method", "end", "step"), BROKEN)
def test_a_resumed_run_ends_like_an_unbroken_one(
    case: str, method: str, end: str, step: int, order: Any, tmp_path: Path
) -> None:
    """Stopped in the middle of a later epoch; crashed in the first one, so that the restart goes into the next."""
    parameters, main = order(case, method, save_steps=2), (CASES | OTHER_LOSSES)[case][0]
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


@pytest.mark.parametrize(("case", "method"), [*METHODS, ("sft", "qlora"), ("preference", "qlora")])
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


@pytest.mark.parametrize("case", ["classify", "seq2seq"])
def test_speed_is_told_where_a_trainer_counts_no_tokens(case: str, order: Any, tmp_path: Path) -> None:
    CASES[case][0](make_context(tmp_path / "run", order(case, max_steps=3)))
    assert list(values_by_step(tmp_path / "run", "train/tokens_per_second")) == [1, 2, 3]


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


@pytest.mark.parametrize(("policy", "sizes"), [("truncate", (8, 3)), ("drop", None)])
def test_a_long_source_of_an_encoder_decoder_goes_by_the_length_policy(
    policy: str, sizes: tuple[int, int] | None, order: Any, tmp_path: Path
) -> None:
    parameters = order("seq2seq", max_seq_length=8, length_policy=policy)
    row = {"source": "word " * 50, "target": "no"}
    context = make_context(tmp_path / "run", parameters)
    asked = read_order(context, "seq2seq")
    path = Path(write_rows(tmp_path / "long.jsonl", [{"source": "a", "target": "b"}, row]))
    long = seq2seq.read_samples(context, asked, path, policy)[1:]
    assert [(len(s.source_ids), len(s.target_ids), s.source_ids[-1]) for s in long] == (
        [] if sizes is None else [(*sizes, asked.renderer.stop_token_ids[0])]
    )
    (told,) = [e["message"] for e in events_of(tmp_path / "run", "warning") if e["code"] == "samples_too_long"]
    lost = r"0\.0% of the answer tokens and 9\d\.\d%" if sizes else r"[1-9]\d\.\d% of the answer tokens and 9\d\.\d%"
    assert re.fullmatch(rf"1 samples are longer than 8 tokens \({policy}\): {lost} of the source tokens are lost", told)


@pytest.mark.parametrize("case", [case for case, method in METHODS if method == "lora"])
def test_rows_name_the_adapter_of_every_recipe(case: str, order: Any, tmp_path: Path) -> None:
    asked = {"rank": 2, "target_modules": ["q" if case == "seq2seq" else "q_proj"]}
    parameters = order(case, "lora")
    write_rows(tmp_path / "train.jsonl", [{**row, **asked} for row in CASES[case][1]])
    read = read_order(make_context(tmp_path / "run", parameters), case.split()[0])
    assert (read.knobs["lora_r"], read.knobs["target_modules"]) == (2, asked["target_modules"])
    write_rows(tmp_path / "train.jsonl", [CASES[case][1][0], {**CASES[case][1][1], **asked}])
    with pytest.raises(ProgramError, match=r"line 2 asks for rank 2, but train\.jsonl line 1 names no rank"):
        read_order(make_context(tmp_path / "run", parameters), case.split()[0])


def test_every_recipe_is_a_case() -> None:
    assert {case.split()[0] for case in CASES} == RECIPES.keys()
