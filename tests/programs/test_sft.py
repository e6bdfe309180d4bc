"""Supervised fine-tuning: what it writes, that it learns, and that a broken run ends like an unbroken one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.contract import exits, folder
from runner.contract.run_spec import RunSpec
from runner.programs.lib import training
from runner.programs.lib.artifacts import hash_file, hash_folder, is_whole, newest_sealed
from runner.programs.lib.events import EXIT_STOPPED, ProgramError, Stopped
from runner.programs.lib.render import Renderer
from runner.programs.train import sft
from tests.programs.recipes import QUESTIONS, StoppingReporter, events_of, make_context, values_by_step, write_rows

FAST = {
    "num_train_epochs": 4,
    "per_device_train_batch_size": 2,
    "max_seq_length": 64,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "precision": "fp32",
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def train_data(tmp_path: Path) -> str:
    return write_rows(tmp_path / "train.jsonl", QUESTIONS)


def parameters_of(base: Path, train_data: str, method: str = "lora", **knobs: Any) -> dict[str, Any]:
    return {
        "base_model": str(base),
        "method": method,
        "train_data": train_data,
        "validation_data": None,
        "hyperparameters": {**FAST, **knobs},
        "model_name": "piano",
        "lineage": {"base_model": "tiny|v1", "dataset": "questions v3"},
    }


def test_lora_learns_and_leaves_an_adapter_that_loads_on_its_base(
    tiny_model_folder: Path, train_data: str, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import Qwen2ForCausalLM

    sft.main(make_context(tmp_path / "run", parameters_of(tiny_model_folder, train_data)))
    losses = values_by_step(tmp_path / "run", "train/loss")
    assert list(losses) == list(range(1, 13))
    assert losses[12] < losses[1]
    output = tmp_path / "run" / folder.OUTPUT
    manifest = json.loads((output / folder.MANIFEST).read_text(encoding="utf-8"))
    names = {entry["path"] for entry in manifest["files"]}
    expected = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "generation_config.json"}
    assert {f"model/{name}" for name in (*expected, "model_card.md", "bundle.json")} <= names
    assert "model/README.md" not in names
    assert manifest["facts"]["format"] == "adapter"
    assert manifest["facts"]["render_hash"] == Renderer.from_folder(tiny_model_folder).render_hash
    assert manifest["facts"]["base_fingerprint"] == hash_folder(tiny_model_folder)
    assert is_whole(output)
    base = Qwen2ForCausalLM.from_pretrained(tiny_model_folder)
    token_ids = torch.tensor([[1, 5, 9]])
    before = base(token_ids).logits
    assert not torch.allclose(before, PeftModel.from_pretrained(base, output / "model")(token_ids).logits)
    assert str(tiny_model_folder) not in (output / "model" / "adapter_config.json").read_text(encoding="utf-8")


def test_full_training_leaves_a_whole_model_with_card_and_bundle(
    tiny_model_folder: Path, train_data: str, tmp_path: Path
) -> None:
    from transformers import Qwen2ForCausalLM

    sft.main(make_context(tmp_path / "run", parameters_of(tiny_model_folder, train_data, "full")))
    output = tmp_path / "run" / folder.OUTPUT
    Qwen2ForCausalLM.from_pretrained(output / "model")
    facts = json.loads((output / folder.MANIFEST).read_text(encoding="utf-8"))["facts"]
    assert (facts["format"], facts["architecture"], facts["dtype"]) == ("full", "Qwen2ForCausalLM", "float32")
    assert facts["context_tokens"] == 1024
    bundle = json.loads((output / "model/bundle.json").read_text(encoding="utf-8"))
    assert bundle["data_sha256"] == {"train.jsonl": hash_file(Path(train_data))}
    assert bundle["render_hash"] == facts["render_hash"]
    assert {"torch", "trl", "accelerate", "bitsandbytes", "datasets"} <= bundle["packages"].keys()
    assert bundle["reward_fingerprint"] is None
    assert bundle["artifact_sha256"]["model.safetensors"] == hash_file(output / "model" / "model.safetensors")
    card = (output / "model/model_card.md").read_text(encoding="utf-8")
    assert card.startswith("# piano\n")
    assert "| base_model | tiny\\|v1 |" in card


@pytest.mark.parametrize("optim", ["adamw", "sgd", "adafactor", "adamw_8bit"])
@pytest.mark.parametrize("end", ["stop", "crash"])
def test_a_resumed_run_ends_exactly_like_an_unbroken_one(
    tiny_model_folder: Path, train_data: str, tmp_path: Path, optim: str, end: str
) -> None:
    parameters = parameters_of(
        tiny_model_folder, train_data, optim=optim, lora_dropout=0.2, save_steps=4, eval_steps=3, logging_steps=3
    )
    parameters["validation_data"] = write_rows(tmp_path / "validation.jsonl", QUESTIONS[:2])
    sft.main(make_context(tmp_path / "whole", parameters))

    def interrupt() -> None:
        if end == "crash":
            raise KeyboardInterrupt
        context.should_stop = True

    broken = tmp_path / "broken"
    context = make_context(broken, parameters)
    context.report = StoppingReporter(broken, 6, interrupt)
    with pytest.raises(KeyboardInterrupt if end == "crash" else Stopped):
        sft.main(context)
    sealed = newest_sealed(broken / folder.CHECKPOINTS)
    assert sealed is not None
    assert sealed.name == ("step-00000004" if end == "crash" else "step-00000006")
    sft.main(make_context(broken, parameters))
    for name in ("train/loss", "eval/loss", "train/grad_norm"):
        assert values_by_step(broken, name) == values_by_step(tmp_path / "whole", name)
    weights = [path / folder.OUTPUT / "model" / "adapter_model.safetensors" for path in (broken, tmp_path / "whole")]
    assert hash_file(weights[0]) == hash_file(weights[1])


def test_a_quantized_state_of_the_optimizer_outlives_a_crash(
    tiny_model_folder: Path, train_data: str, tmp_path: Path
) -> None:
    parameters = parameters_of(tiny_model_folder, train_data, "full", optim="adamw_8bit", save_steps=4)
    sft.main(make_context(tmp_path / "whole", parameters))

    def crash() -> None:
        raise KeyboardInterrupt

    context = make_context(tmp_path / "broken", parameters)
    context.report = StoppingReporter(tmp_path / "broken", 6, crash)
    with pytest.raises(KeyboardInterrupt):
        sft.main(context)
    state = load_file(tmp_path / "broken" / folder.CHECKPOINTS / "step-00000004/optimizer.safetensors")
    assert torch.uint8 in {tensor.dtype for tensor in state.values()}
    sft.main(make_context(tmp_path / "broken", parameters))
    weights = [path / folder.OUTPUT / "model/model.safetensors" for path in (tmp_path / "broken", tmp_path / "whole")]
    assert hash_file(weights[0]) == hash_file(weights[1])


def test_accumulation_changes_the_memory_and_not_the_loss(
    tiny_model_folder: Path, train_data: str, tmp_path: Path
) -> None:
    for name, size, accumulation in (("once", 6, 1), ("parts", 2, 3)):
        parameters = parameters_of(
            tiny_model_folder, train_data, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation
        )
        sft.main(make_context(tmp_path / name, parameters))
    once, parts = (values_by_step(tmp_path / name, "train/loss") for name in ("once", "parts"))
    assert once == pytest.approx(parts, rel=1e-4)


def test_recomputed_activations_change_nothing(
    tiny_model_folder: Path, train_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

    calls, forward = Counter[str](), Qwen2MLP.forward
    for name, is_on in (("kept", False), ("recomputed", True)):

        def counted(layer: Qwen2MLP, x: torch.Tensor, name: str = name) -> torch.Tensor:
            calls[name] += layer.training
            return forward(layer, x)

        monkeypatch.setattr(Qwen2MLP, "forward", counted)
        parameters = parameters_of(tiny_model_folder, train_data, gradient_checkpointing=is_on)
        sft.main(make_context(tmp_path / name, parameters))
    kept, recomputed = (values_by_step(tmp_path / name, "train/loss") for name in ("kept", "recomputed"))
    assert kept == pytest.approx(recomputed, rel=1e-5)
    assert calls["recomputed"] == 2 * calls["kept"], "each layer runs again in the backward pass"


def test_bf16_learns_on_a_cpu_and_full_weights_stay_float32(
    tiny_model_folder: Path, train_data: str, tmp_path: Path
) -> None:
    sft.main(make_context(tmp_path / "run", parameters_of(tiny_model_folder, train_data, "full", precision="bf16")))
    losses = values_by_step(tmp_path / "run", "train/loss")
    assert losses[12] < losses[1]
    saved = load_file(tmp_path / "run" / folder.OUTPUT / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_the_best_weights_are_taken_and_patience_ends_the_run(
    tiny_model_folder: Path, tmp_path: Path, train_data: str
) -> None:
    parameters = parameters_of(
        tiny_model_folder,
        train_data,
        num_train_epochs=30,
        learning_rate=3e-2,
        eval_steps=1,
        load_best=True,
        early_stopping_patience=3,
    )
    wrong = [{**QUESTIONS[0], "answer": "Lyon"}, {**QUESTIONS[1], "answer": "none"}]
    parameters["validation_data"] = write_rows(tmp_path / "validation.jsonl", wrong)
    sft.main(make_context(tmp_path / "run", parameters))
    evaluated = values_by_step(tmp_path / "run", "eval/loss")
    best = min(evaluated, key=lambda step: evaluated[step])
    assert max(evaluated) == best + 3 < 90
    saved = load_file(tmp_path / "run" / folder.OUTPUT / "model" / "adapter_model.safetensors")
    sealed = load_file(tmp_path / "run" / folder.CHECKPOINTS / f"step-{best:08d}" / "weights.safetensors")
    renamed = {name.replace(".default.", "."): tensor for name, tensor in sealed.items()}
    assert all(torch.equal(tensor, renamed[name.removeprefix("base_model.model.")]) for name, tensor in saved.items())


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_rows(
    tiny_model_folder: Path, train_data: str, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_model_folder, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ProgramError, match=r"the loss of step 1 is nan.*train\.jsonl line") as caught:
        sft.main(make_context(tmp_path / "run", parameters_of(base, train_data)))
    assert caught.value.exit_code == exits.DIVERGED
    assert not (tmp_path / "run" / folder.OUTPUT / folder.MANIFEST).exists()


def test_a_loss_that_leaps_ends_the_run_and_names_the_rows(
    tiny_model_folder: Path, train_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = training._loss_sum, iter(range(1000))

    def leaping(*given: Any) -> torch.Tensor:
        return honest(*given) * (100 if next(calls) == 8 else 1)  # the first call tries the longest batch

    monkeypatch.setattr(training, "_loss_sum", leaping)
    with pytest.raises(ProgramError, match=r"loss of step 8 is .* times that.*train\.jsonl line") as caught:
        sft.main(make_context(tmp_path / "run", parameters_of(tiny_model_folder, train_data)))
    assert caught.value.exit_code == exits.DIVERGED


def test_a_batch_that_does_not_fit_is_told_before_the_first_step(
    tiny_model_folder: Path, train_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(training, "_loss_sum", no_memory)
    with pytest.raises(ProgramError, match=r"2 samples of .* tokens do not fit") as caught:
        sft.main(make_context(tmp_path / "run", parameters_of(tiny_model_folder, train_data)))
    assert caught.value.field == "per_device_train_batch_size"
    assert not values_by_step(tmp_path / "run", "train/loss")


def test_weights_and_clipping_are_measured(tiny_model_folder: Path, train_data: str, tmp_path: Path) -> None:
    parameters = parameters_of(tiny_model_folder, train_data, max_grad_norm=1e-3)
    sft.main(make_context(tmp_path / "run", parameters))
    norms, shares = (values_by_step(tmp_path / "run", name) for name in ("weights/norm", "train/clipped_share"))
    assert norms[12] > norms[1] > 0
    assert set(shares.values()) == {1.0}


def test_long_samples_are_split_without_loss(tiny_model_folder: Path, tmp_path: Path) -> None:
    rows = [QUESTIONS[0], {"question": "Long?", "answer": "Very long answer. " * 60}]
    data = write_rows(tmp_path / "train.jsonl", rows)
    sft.main(make_context(tmp_path / "run", parameters_of(tiny_model_folder, data, length_policy="split", max_steps=1)))
    told = [event["message"] for event in events_of(tmp_path / "run", "phase") if event["name"] == "data"]
    assert int(told[0].split(": ")[1].split()[0]) > 4
    assert "(split): 0.0% of the answer tokens are lost" in events_of(tmp_path / "run", "warning")[0]["message"]


def test_validation_samples_are_answered_and_scored(tiny_model_folder: Path, train_data: str, tmp_path: Path) -> None:
    parameters = parameters_of(tiny_model_folder, train_data, num_train_epochs=40, learning_rate=1e-2)
    parameters["validation_data"] = train_data
    sft.main(make_context(tmp_path / "run", parameters))
    manifest = json.loads((tmp_path / "run" / folder.OUTPUT / folder.MANIFEST).read_text(encoding="utf-8"))
    assert manifest["metrics"]["eval/rougeL"] > 0.9
    assert len(events_of(tmp_path / "run", "sample")) == len(QUESTIONS)


def test_long_samples_are_cut_or_dropped_and_the_loss_of_answers_is_told(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    rows = [QUESTIONS[0], {"question": "Long?", "answer": "Very long answer. " * 60}]
    data = write_rows(tmp_path / "train.jsonl", rows)
    for policy, samples in (("truncate", 2), ("drop", 1)):
        run_folder = tmp_path / policy
        sft.main(make_context(run_folder, parameters_of(tiny_model_folder, data, length_policy=policy, max_steps=1)))
        assert any(f"{samples} samples" in event["message"] for event in events_of(run_folder, "phase"))
        warning = events_of(run_folder, "warning")[0]
        assert warning["code"] == "samples_too_long"
        assert "1 samples are longer than 64 tokens" in warning["message"]


@pytest.mark.parametrize(
    ("change", "field", "word"),
    [
        ({"base_model": None}, "base_model", "lacks the parameter"),
        ({"method": "prompt"}, "method", "full, lora, qlora"),
        ({"hyperparameters": {"learning_rat": 1}}, "learning_rat", "did you mean learning_rate"),
        ({"hyperparameters": {"load_best": True}}, "load_best", "needs validation data"),
        ({"hyperparameters": {**FAST, "target_modules": ["no_proj"]}}, "target_modules", "q_proj"),
    ],
)
def test_wrong_parameters_are_refused_in_words(
    tiny_model_folder: Path, train_data: str, tmp_path: Path, change: dict[str, Any], field: str, word: str
) -> None:
    with pytest.raises(ProgramError, match=word) as caught:
        sft.main(make_context(tmp_path / "run", {**parameters_of(tiny_model_folder, train_data), **change}))
    assert caught.value.field == field


def test_a_row_without_an_answer_is_refused_with_its_line(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", [QUESTIONS[0], {"messages": [{"role": "user", "content": "x"}]}])
    with pytest.raises(ProgramError, match=r"train\.jsonl line 2 has no assistant message"):
        sft.main(make_context(tmp_path / "run", parameters_of(tiny_model_folder, data)))


@pytest.mark.parametrize(
    ("change", "word"),
    [({"auto_map": {"AutoModel": "x.Y"}}, "own code"), ({"architectures": ["Trainer"]}, "no causal model")],
)
def test_models_that_bring_code_or_are_unknown_are_not_loaded(
    tiny_model_folder: Path, train_data: str, tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    base = shutil.copytree(tiny_model_folder, tmp_path / "base")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    with pytest.raises(ProgramError, match=word):
        sft.main(make_context(tmp_path / "run", parameters_of(base, train_data)))


@pytest.mark.slow
def test_sigterm_seals_a_checkpoint_and_a_restart_finishes(
    tiny_model_folder: Path, train_data: str, tmp_path: Path
) -> None:
    parameters = parameters_of(tiny_model_folder, train_data, max_steps=200_000)
    spec = RunSpec("fine_tune", "runner.programs.train.sft", parameters)
    (tmp_path / folder.SPEC).write_text(json.dumps(spec.to_json()), encoding="utf-8")
    command = [sys.executable, "-m", "runner.programs.train.sft", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / folder.METRICS).exists() or len(events_of(tmp_path, "metric")) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    log, _ = process.communicate(timeout=10)
    assert process.returncode == EXIT_STOPPED
    sealed = newest_sealed(tmp_path / folder.CHECKPOINTS)
    assert sealed is not None
    assert "Traceback" not in log
    step = int(sealed.name.removeprefix("step-"))
    parameters["hyperparameters"]["max_steps"] = step + 2
    (tmp_path / folder.SPEC).write_text(json.dumps(spec.to_json()), encoding="utf-8")
    log = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert f"resumed from the checkpoint of step {step}" in log
    assert is_whole(tmp_path / folder.OUTPUT)
