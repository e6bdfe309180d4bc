"""Several processes: the losses of one, weights that are shared out, answers that are drawn apart, and a common end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.contract import exits
from runner.programs.lib import distributed
from runner.programs.lib.artifacts import hash_file
from runner.programs.lib.events import ProgramError, Stopped
from runner.programs.train import classify, rl
from tests.programs.cases import CASES, result_of
from tests.programs.recipes import StoppingReporter, events_of, fork_processes, make_context, values_by_step

pytestmark = pytest.mark.slow

#: What the files of sft, preference and pretrain do not run in two processes.
IN_PROCESSES = ["classify", "seq2seq", "reward"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


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


@pytest.mark.parametrize("case", ["rl", "rl by grpo", "rl by rloo"])
def test_two_processes_answer_and_learn_as_one(
    case: str, order: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_ppo, main = case == "rl", rl.main
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


@contextmanager
def broken_loss(factor: float, first_pass: int, seen: list[str]) -> Iterator[None]:
    """In the second process the loss of one pass is multiplied; ``seen`` takes the rows of that pass."""
    import transformers

    step, passes = transformers.Trainer.training_step, []

    def training_step(self: Any, *args: Any, **options: Any) -> torch.Tensor:
        passes.append(1)
        loss = step(self, *args, **options)
        if distributed.rank() != 1 or len(passes) != first_pass:
            return loss
        seen.extend(self.session.last_rows)
        return loss * factor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.Trainer, "training_step", training_step)
        yield


@pytest.mark.parametrize(("factor", "what"), [(float("nan"), "is nan"), (1e6, "times that")])
def test_rows_of_another_process_are_named_by_the_first(factor: float, what: str, order: Any, tmp_path: Path) -> None:
    def diverge(context: Any) -> None:
        """Every process ends; it tells what it was told, and the second one its rows."""
        seen: list[str] = []
        with broken_loss(factor, 5, seen), pytest.raises(ProgramError, match=f"the loss of step 3 .*{what}") as caught:
            classify.main(context)
        assert caught.value.exit_code == exits.DIVERGED
        told = [caught.value.message.split("these rows: ")[1].split(", "), seen]
        (context.run_folder / f"told-{distributed.rank()}.json").write_text(json.dumps(told))

    fork_processes(diverge, tmp_path / "run", order("classify", gradient_accumulation_steps=2, learning_rate=1e-4), 2)
    (named, _), (told, rows) = (json.loads((tmp_path / f"run/told-{rank}.json").read_text()) for rank in (0, 1))
    assert len(rows) == 2
    assert named == told
    assert named == rows if factor != factor else set(rows) < set(named[:4])


def test_a_process_without_probabilities_ends_the_others(order: Any, tmp_path: Path) -> None:
    """For PPO and for GRPO: the second process can draw nothing at the second step."""
    draws: list[int] = []
    multinomial = torch.multinomial

    def draw(*args: Any, **options: Any) -> torch.Tensor:
        draws.append(1)
        if distributed.rank() == 1 and len(draws) > 4:
            raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")
        return multinomial(*args, **options)

    def diverge(context: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "multinomial", draw)
            with pytest.raises(ProgramError, match=r"no answer can be drawn at step 2: .*rows: train\.jsonl line"):
                rl.main(context)

    for case in ("rl", "rl by grpo"):
        fork_processes(diverge, tmp_path / case, order(case, "lora"), 2)


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
