"""Helpers to run training recipes in the test's own process and to read what they wrote."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runner.contract import folder
from runner.contract.run_spec import RunSpec
from runner.programs.lib.distributed import joined
from runner.programs.lib.events import ProgramContext, Reporter

QUESTIONS = (
    {"question": "What is the capital?", "answer": "Paris is the capital."},
    {"question": "How many keys?", "answer": "There are eighty-eight keys."},
    {"question": "钢琴有多少个键？", "answer": "八十八个。"},
    {"question": "Please answer.", "answer": "One short sentence."},
    {"question": "Add first and second", "answer": "return first + second"},
    {"question": "Who are you?", "answer": "You are a helpful assistant."},
)

#: Eight preferences in the three shapes of document 003; short answers are preferred to long ones.
PREFERENCES = (
    {"prompt": "What is the capital?", "chosen": "Paris.", "rejected": "It is a capital, and one more capital."},
    {"prompt": "How many keys?", "chosen": "Eighty-eight.", "rejected": "The piano has keys, many keys."},
    {"prompt": "钢琴有多少个键？", "chosen": "八十八个。", "rejected": "钢琴有键，请用一句话回答。"},
    {
        "prompt": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who are you?"}],
        "chosen": [{"role": "assistant", "content": "An assistant."}],
        "rejected": [{"role": "assistant", "content": "You are a helpful assistant of the capital."}],
    },
    {
        "prompt": "Translate: Hello",
        "responses": [
            {"content": "第一个问题的回答是什么", "score": 0.1},
            {"content": "你好", "score": 0.9},
            {"content": "您好", "score": 0.7},
        ],
    },
    {"prompt": "Add them", "chosen": "first + second", "rejected": "def add(first, second): return nothing"},
    {
        "prompt": "Name a city",
        "chosen": "Paris",
        "rejected": "France is a city of the piano",
        "system_prompt": "Short.",
    },
    {"prompt": "Please answer.", "chosen": "Yes.", "rejected": "Please answer the question in one short sentence."},
)

#: Eight texts of three classes.
TEXTS = (
    {"text": "The piano has eighty-eight keys", "label": "music"},
    {"text": "The capital of France is Paris", "label": "places"},
    {"text": "钢琴有八十八个键", "label": "music"},
    {"text": "法国的首都是巴黎", "label": "places"},
    {"text": "def add(first, second)", "label": "code"},
    {"text": "keys of the piano", "label": "music"},
    {"text": "Paris, a capital", "label": "places"},
    {"text": "return first + second", "label": "code"},
)
#: Eight translations.
PAIRS = (
    {"source": "Hello", "target": "你好"},
    {"source": "The piano", "target": "钢琴"},
    {"source": "The capital", "target": "首都"},
    {"source": "Paris", "target": "巴黎"},
    {"source": "a question", "target": "问题"},
    {"source": "a model", "target": "模型"},
    {"source": "a task", "target": "任务"},
    {"source": "a service", "target": "服务"},
)


class StoppingReporter(Reporter):
    """Calls ``at_step`` when the metrics of that step are reported: for stops and crashes at a known place."""

    def __init__(self, run_folder: Path, step: int, at_step: Callable[[], None]) -> None:
        super().__init__(run_folder)
        self._stop_step, self._at_step = step, at_step

    def metric(self, step: int, total_steps: int, epoch: float, values: Mapping[str, float]) -> None:
        super().metric(step, total_steps, epoch, values)
        if step == self._stop_step:
            self._at_step()


def make_context(run_folder: Path, parameters: dict[str, Any], report: Reporter | None = None) -> ProgramContext:
    """The context of a run folder, which is made where it is missing."""
    run_folder.mkdir(parents=True, exist_ok=True)
    return ProgramContext(run_folder, RunSpec("fine_tune", None, parameters), report or Reporter(run_folder))


def write_rows(path: Path, rows: object) -> str:
    """Write rows as JSONL and return the path as text, as specs hold it."""
    assert isinstance(rows, list | tuple)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def events_of(run_folder: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind."""
    lines = (run_folder / folder.METRICS).read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def values_by_step(run_folder: Path, name: str) -> dict[int, float]:
    """A metric by step; for a step that was reported twice the last one counts."""
    return {event["step"]: event[name] for event in events_of(run_folder, "metric") if name in event}


def run_in_processes(program: str, run_folder: Path, parameters: dict[str, Any], num_processes: int) -> str:
    """Run a program through the launcher that the platform uses (torchrun; gloo on a CPU); its log."""
    run_folder.mkdir(exist_ok=True)
    spec = RunSpec("fine_tune", program, {**parameters, "num_processes": num_processes})
    (run_folder / folder.SPEC).write_text(json.dumps(spec.to_json()), encoding="utf-8")
    command = [sys.executable, "-m", program, str(run_folder)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def fork_processes(
    main: Callable[[ProgramContext], None], run_folder: Path, parameters: dict[str, Any], num_processes: int
) -> None:
    """Train in forks of this process that know of each other as torchrun's do; its libraries are imported already."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    processes = [
        multiprocessing.get_context("fork").Process(
            target=_train_as_one_of, args=(main, run_folder, parameters, rank, num_processes, port)
        )
        for rank in range(num_processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * num_processes


def _train_as_one_of(
    main: Callable[[ProgramContext], None],
    run_folder: Path,
    parameters: dict[str, Any],
    rank: int,
    num_processes: int,
    port: int,
) -> None:
    known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in known.items()} | {"MASTER_ADDR": "127.0.0.1"}
    main(joined(make_context(run_folder, parameters)))
