"""The benchmark for GPUs runs on a CPU too, so that it works on the day when there is a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_sides_of_the_benchmark_learn_the_same() -> None:
    command = [sys.executable, "-m", "bench.gpu", "--tiny", "--steps", "4"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["measure"] for line in lines] == ["product_peak", "parity", "speed", "speed", "ratio"]
    assert lines[1]["worst_relative_difference"] < 1e-4
    assert {line["side"] for line in lines[2:4]} == {"ours", "trl"}
    assert all(line["tokens_per_s"] > 0 and 0 <= line["share_of_peak"] < 1 for line in lines[2:4])
