"""Bar P14: what the platform adds to a training, as wall time and as logs (``python -m bench.train --platform``)."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.train import make_base, say, spread
from runner.contract import folder
from runner.contract.run_spec import Limits, Mount, Resources, RunSpec
from runner.executors.base import Launch
from runner.executors.local_process import LocalProcessExecutor

STEPS, PATIENCE_S = 100, 900.0
WORDS = ("piano", "keys", "capital", "France", "answer", "question", "short", "sentence", "please", "return")


def measure_platform(rounds: int) -> None:
    """The same program by hand and through the executor in turn; then the share of its logs."""
    with tempfile.TemporaryDirectory(prefix="clavier-bench-") as place:
        home = Path(place)
        make_base(home, "small")
        write_rows(home / "train.jsonl")
        (home / "base/model.safetensors").chmod(0o644)  # read by the program's own user
        executor = LocalProcessExecutor(home / "control", environment={"OMP_NUM_THREADS": "1"})
        walls: dict[str, list[float]] = {"by_hand": [], "platform": []}
        for number in range(rounds):
            for side in ("by_hand", "platform") if number % 2 == 0 else ("platform", "by_hand"):
                run_folder = home / f"{side}-{number}"
                spec = make_run(run_folder, home)
                began = time.perf_counter()
                if side == "by_hand":
                    by_hand(run_folder)
                else:
                    through_executor(executor, Launch(run_folder.name, run_folder, spec, 1, {}))
                walls[side].append(time.perf_counter() - began)
        by_hand_s, platform_s = (spread(walls[side]) for side in ("by_hand", "platform"))
        say("small", "platform", rounds=rounds, by_hand_s=by_hand_s, platform_s=platform_s,
            ratio=round(platform_s[0] / by_hand_s[0], 4))  # fmt: skip
        say("small", "logging", **logging_share(home))


def write_rows(path: Path) -> None:
    """Questions and answers of a few hundred tokens."""
    chance = random.Random(3)
    rows = [
        {"question": " ".join(chance.choices(WORDS, k=40)), "answer": " ".join(chance.choices(WORDS, k=25))}
        for _ in range(64)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(run_folder: Path, home: Path) -> RunSpec:
    """A run folder with its spec."""
    run_folder.mkdir()
    knobs = {"max_steps": STEPS, "per_device_train_batch_size": 4, "logging_steps": 10}
    parameters = {
        "base_model": str(home / "base"), "method": "lora", "train_data": str(home / "train.jsonl"),
        "validation_data": None, "hyperparameters": knobs,
    }  # fmt: skip
    spec = RunSpec(
        "fine_tune", "runner.programs.train.sft", parameters, resources=Resources(1000, 8192),
        limits=Limits(time_limit_s=int(PATIENCE_S)),
        mounts=(Mount(str(home / "base")), Mount(str(home / "train.jsonl"))),
    )  # fmt: skip
    (run_folder / folder.SPEC).write_text(json.dumps(spec.to_json()), encoding="utf-8")
    return spec


def by_hand(run_folder: Path) -> None:
    """As a user would start it in a shell. Raises CalledProcessError."""
    command = [sys.executable, "-m", "runner.programs.train.sft", str(run_folder)]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)


def through_executor(executor: LocalProcessExecutor, launch: Launch) -> None:
    """As the worker starts it, up to when its end is seen. Raises SystemExit where it did not end well."""
    executor.start(launch)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        seen = next(one for one in executor.list() if one.name == launch.name)
        if seen.state == "exited":
            executor.remove(launch.name)
            if seen.exit_code != 0:
                raise SystemExit(f"the program ended with {seen.exit_code}: {launch.run_folder / folder.LOG}")
            return
        time.sleep(0.05)
    raise SystemExit("the program did not end in time")


def logging_share(home: Path) -> dict[str, Any]:
    """CPU time of logs and events in percent of that of all steps, with a line each 10 steps and each step."""
    return {f"percent_with_a_line_each_{every}": round(100 * logging_of(home, every), 3) for every in (10, 1)}


def logging_of(home: Path, every: int) -> float:
    """The share of one run."""
    from runner.programs.lib import training
    from runner.programs.lib.events import ProgramContext, Reporter
    from runner.programs.train import sft

    spent = {"logs": 0.0, "steps": 0.0}

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*given: Any) -> Any:
            began = time.process_time()
            try:
                return method(*given)
            finally:
                spent[name] += time.process_time() - began

        return measured

    run_folder = home / f"logs-{every}"
    spec = make_run(run_folder, home)
    spec.parameters["hyperparameters"]["logging_steps"] = every
    methods = {"_log": "logs", "_one_step": "steps"}
    before = {name: getattr(training._Training, name) for name in methods}
    for name, part in methods.items():
        setattr(training._Training, name, timed(part, before[name]))
    try:
        sft.main(ProgramContext(run_folder, spec, Reporter(run_folder)))
    finally:
        for name, method in before.items():
            setattr(training._Training, name, method)
    return spent["logs"] / spent["steps"]
