"""One way to launch work on any executor: a real one runs ``source``, the fake one plays ``outcome``.

A new executor joins the contract suite with one factory in ``FACTORIES``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol
from uuid import uuid4

import pytest

from runner.contract.run_spec import Limits, Resources, RunSpec
from runner.executors.base import Executor, Launch, Observation
from runner.executors.docker_engine import DockerEngineExecutor
from runner.executors.fake import FakeExecutor, Outcome
from runner.executors.local_process import LocalProcessExecutor
from tests.docker_engine import DockerDaemon, program_binds
from tests.runner.executors.warm_executor import WarmExecutor

#: Each start appends one line, durably and alone, so that two starts can never look like one.
COUNTED = """
import fcntl, os
with open("starts", "a") as stream:
    fcntl.flock(stream, fcntl.LOCK_EX)
    stream.write("started\\n"); stream.flush(); os.fsync(stream.fileno())
"""
PATIENCE_S = 30.0


class Bench(Protocol):
    """What the contract suite needs of an executor under test."""

    runs_programs: ClassVar[bool]

    def executor(self) -> Executor:
        """An executor on the same world as all others of this bench; also in another process."""

    def script(self, name: str, outcome: Outcome) -> None:
        """Tell a fake what the program will do; a real one runs it."""

    def starts(self, launch: Launch) -> int:
        """How many times the program of this attempt was started, seen from outside."""


@dataclass
class LocalBench:
    folder: Path
    runs_programs: ClassVar[bool] = True

    def executor(self) -> Executor:
        return LocalProcessExecutor(self.folder / "control")

    def script(self, name: str, outcome: Outcome) -> None:
        return

    def starts(self, launch: Launch) -> int:
        path = launch.run_folder / "work" / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0


@dataclass
class WarmBench(LocalBench):
    def executor(self) -> Executor:
        return WarmExecutor(self.folder / "control")


@dataclass
class FakeBench:
    folder: Path
    runs_programs: ClassVar[bool] = False

    def executor(self) -> Executor:
        return FakeExecutor(self.folder / "state")

    def script(self, name: str, outcome: Outcome) -> None:
        FakeExecutor(self.folder / "state").will(name, outcome)

    def starts(self, launch: Launch) -> int:
        return FakeExecutor(self.folder / "state").starts(launch.name)


@dataclass
class DockerBench:
    folder: Path
    engine_url: str
    image: str
    install_id: str = field(default_factory=lambda: uuid4().hex)
    runs_programs: ClassVar[bool] = True

    def executor(self, **options: Any) -> DockerEngineExecutor:
        return DockerEngineExecutor(
            self.folder / "control",
            install_id=self.install_id,
            engine_url=self.engine_url,
            program_image=self.image,
            program_python=sys.executable,
            program_binds=program_binds(),
            **options,
        )

    def script(self, name: str, outcome: Outcome) -> None:
        return

    def starts(self, launch: Launch) -> int:
        path = launch.run_folder / "work" / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0


def docker_bench(folder: Path, request: pytest.FixtureRequest) -> DockerBench:
    """A bench on the session's own engine."""
    daemon: DockerDaemon = request.getfixturevalue("docker_daemon")
    return DockerBench(folder, daemon.url, daemon.images.python)


#: name -> how to make a bench in a folder, and whether it runs real programs.
FACTORIES: dict[str, tuple[Callable[[Path, pytest.FixtureRequest], Bench], bool]] = {
    "fake": (lambda folder, _: FakeBench(folder), FakeBench.runs_programs),
    "local_process": (lambda folder, _: LocalBench(folder), LocalBench.runs_programs),
    "local_process, warm": (lambda folder, _: WarmBench(folder), WarmBench.runs_programs),
    "docker_engine": (docker_bench, DockerBench.runs_programs),
}


def make_launch(folder: Path, name: str, source: str = "", argv: tuple[str, ...] = (), **spec: Any) -> Launch:
    """An attempt that runs Python ``source`` (or ``argv``) for owner 7 in a run folder of its own."""
    run_folder = folder / "runs" / name
    run_folder.mkdir(parents=True, exist_ok=True)
    spec.setdefault("limits", Limits(time_limit_s=60, stop_grace_s=1))
    spec.setdefault("resources", Resources())
    run = RunSpec("fine_tune", None, {}, argv=argv or (sys.executable, "-c", source), **spec)
    return Launch(name, run_folder, run, owner_id=7, labels={"run": name})


def seen(executor: Executor, name: str) -> Observation | None:
    """What ``list`` says of one attempt."""
    return next((observation for observation in executor.list() if observation.name == name), None)


def wait_until_exited(executor: Executor, name: str, patience_s: float = PATIENCE_S) -> Observation:
    """The final observation of an attempt. Fails the test when it does not come."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        observation = seen(executor, name)
        if observation is not None and observation.state == "exited":
            return observation
        time.sleep(0.02)
    raise AssertionError(f"{name} has not exited within {patience_s} s: {seen(executor, name)}")


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Poll until the condition holds. Fails the test when it does not."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for: {what}"
        time.sleep(0.02)
