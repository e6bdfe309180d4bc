"""Helpers to start a serving program as the executor does and to talk to what it serves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.contract import folder
from runner.contract.run_spec import RunSpec
from runner.programs.serve.readiness import Endpoint, ServerClient

REPOSITORY = Path(__file__).parents[2]


@dataclass(slots=True)
class Started:
    """A program that runs."""

    run_folder: Path
    process: subprocess.Popen[bytes]

    def ready(self, time_limit_s: float = 60.0) -> dict[str, Any]:
        """The content of ready.json, as soon as it is there."""
        deadline = time.monotonic() + time_limit_s
        while time.monotonic() < deadline:
            if (self.run_folder / folder.READY).is_file():
                value: dict[str, Any] = json.loads((self.run_folder / folder.READY).read_text(encoding="utf-8"))
                return value
            assert self.process.poll() is None, self.log()
            time.sleep(0.02)
        raise AssertionError(f"not ready after {time_limit_s} s: {self.log()}")

    def client(self) -> ServerClient:
        """A client with the key out of ready.json."""
        ready = self.ready()
        return ServerClient(Endpoint(**ready["endpoint"]), ready["api_key"])

    def stop(self) -> tuple[int, float]:
        """Send SIGTERM; returns the exit code and how many seconds it took."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30), time.monotonic() - started

    def log(self) -> str:
        """What the program printed."""
        return (self.run_folder / folder.LOG).read_text(encoding="utf-8")


@contextmanager
def started(
    program: str, run_folder: Path, parameters: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Iterator[Started]:
    """Run a program on a run folder beside the block; it is gone after the block."""
    run_folder.mkdir(parents=True, exist_ok=True)
    spec = RunSpec(kind="replica", program=program, parameters=dict(parameters))
    (run_folder / folder.SPEC).write_text(json.dumps(spec.to_json()), encoding="utf-8")
    with open(run_folder / folder.LOG, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", program, str(run_folder)],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Started(run_folder, process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()


def last_error(run_folder: Path) -> dict[str, Any]:
    """The last error event."""
    lines = (run_folder / folder.METRICS).read_text(encoding="utf-8").splitlines()
    errors: list[dict[str, Any]] = [event for event in map(json.loads, lines) if event["kind"] == "error"]
    return errors[-1]
