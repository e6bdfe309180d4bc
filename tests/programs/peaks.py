"""The peak memory of a real training in a fork of this process, beside what the estimator says of it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from runner.programs.lib.events import ProgramContext
from tests.programs.recipes import make_context

MIB = 2**20


def peak_above_start_mib(main: Callable[[ProgramContext], None], run_folder: Path, parameters: dict[str, Any]) -> float:
    """Train in a fork; its highest resident memory less what it started with, in MiB."""
    answer: Any = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(
        target=_train_and_tell, args=(main, run_folder, parameters, answer)
    )
    child.start()
    child.join()
    assert child.exitcode == 0
    return float(answer.get())


def _train_and_tell(
    main: Callable[[ProgramContext], None], run_folder: Path, parameters: dict[str, Any], answer: Any
) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far counts from here on
    before = _status_mib("VmRSS")
    main(make_context(run_folder, parameters))
    answer.put(_status_mib("VmHWM") - before)


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024
