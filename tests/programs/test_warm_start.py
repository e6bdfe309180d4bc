"""The real zygote: what has imported everything, and what its forks find and compute."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.contract import folder
from runner.contract.run_spec import Mount, RunSpec
from runner.executors import warm
from runner.executors.base import Launch
from runner.programs.train import sft
from tests.programs.recipes import QUESTIONS, events_of, make_context, write_rows
from tests.runner.executors.bench import make_launch, wait_until_exited
from tests.runner.executors.local_bench import told
from tests.runner.executors.warm_executor import WarmExecutor, zygote_of

pytestmark = pytest.mark.slow
KNOBS = {"max_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 4, "lora_r": 4, "seed": 5}
#: Whoever holds a path of the zygote's own home would write where no program may.
FOUND_IN_MEMORY = """
import gc, json, os, sys, tempfile
from pathlib import PurePath
import numpy, torch
def is_strange(value): return issubclass(type(value), (str, PurePath)) and "/.warm/" in str(value)
held = [sorted(str(name) for name, value in one.items() if is_strange(value))
        for one in gc.get_objects() if type(one) is dict and any(map(is_strange, list(one.values())))]
import huggingface_hub.constants as hub
loaded = [name in sys.modules for name in ("transformers", "trl", "peft")]
threads = [len(os.listdir("/proc/self/task")), torch.get_num_threads()]
drawn = numpy.random.rand()
print(json.dumps({"held": held, "cache": hub.HF_HOME, "loaded": loaded, "threads": threads, "drawn": drawn,
                  "seed": torch.initial_seed(), "temporary": tempfile.gettempdir()}))
"""


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmExecutor]:
    """One zygote with everything, for all tests here."""
    made = WarmExecutor(tmp_path_factory.mktemp("warm") / "control", preload=warm.PRELOAD)
    yield made
    made.cool_down()


def test_forks_hold_nothing_of_the_zygote_and_are_seeded_anew(executor: WarmExecutor, tmp_path: Path) -> None:
    first, second = (told(executor, make_launch(tmp_path, name, FOUND_IN_MEMORY)) for name in ("a", "b"))
    assert first["loaded"] == [True] * 3
    assert (first["held"], first["threads"]) == ([], [1, 1])
    assert first["cache"].startswith(str(tmp_path / "runs/a/work"))
    assert second["temporary"] == str(tmp_path / "runs/b/work/tmp")
    assert first["drawn"] != second["drawn"]
    assert first["seed"] == second["seed"]  # the library's own default, as in every new process


def test_a_warm_training_computes_bit_for_bit_what_another_process_does(
    executor: WarmExecutor, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        path.chmod(0o644)
    parameters: dict[str, Any] = {
        "base_model": str(tmp_path / "model"), "method": "lora", "hyperparameters": KNOBS,
        "train_data": write_rows(tmp_path / "rows.jsonl", QUESTIONS), "validation_data": None,
    }  # fmt: skip
    (tmp_path / "rows.jsonl").chmod(0o644)
    mounts = (Mount(parameters["base_model"]), Mount(parameters["train_data"]))
    spec = RunSpec("fine_tune", "runner.programs.train.sft", parameters, mounts=mounts)
    launch = Launch("training", tmp_path / "runs" / "training", spec, 7, {})
    launch.run_folder.mkdir(parents=True)
    (launch.run_folder / folder.SPEC).write_text(json.dumps(spec.to_json()))
    executor.start(launch)
    assert wait_until_exited(executor, "training", 60).exit_code == 0, (launch.run_folder / "log.txt").read_text()
    assert zygote_of(executor) is not None
    here = make_context(tmp_path / "here", parameters)
    sft.main(here)
    losses = [
        [event["train/loss"] for event in events_of(one, "metric")] for one in (launch.run_folder, here.run_folder)
    ]
    assert losses[0] == losses[1]
    weights = "output/model/adapter_model.safetensors"
    assert (launch.run_folder / weights).read_bytes() == (here.run_folder / weights).read_bytes()
