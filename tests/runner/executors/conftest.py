"""Executors under test, each in a world of its own which is emptied afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from runner.executors.base import Executor
from runner.executors.local_process import LocalProcessExecutor
from tests.docker_engine import docker_daemon
from tests.runner.executors.bench import FACTORIES, Bench, DockerBench, docker_bench, wait_until_exited
from tests.runner.executors.warm_executor import WarmExecutor

__all__ = ["docker_daemon"]


def _end_all(executor: Executor) -> None:
    for observation in executor.list():
        executor.stop(observation.name, 0)
    for observation in executor.list():
        wait_until_exited(executor, observation.name)
        executor.remove(observation.name)
    if isinstance(executor, LocalProcessExecutor):
        executor.cool_down()


def _kinds(*, only_real: bool = False) -> list[ParameterSet]:
    return [
        pytest.param(kind, marks=[pytest.mark.docker] if kind == "docker_engine" else [])
        for kind, (_, runs_programs) in sorted(FACTORIES.items())
        if runs_programs or not only_real
    ]


def _bench(request: pytest.FixtureRequest, folder: Path) -> Iterator[Bench]:
    bench = FACTORIES[request.param][0](folder, request)
    yield bench
    _end_all(bench.executor())


@pytest.fixture(params=_kinds())
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Every executor."""
    yield from _bench(request, tmp_path)


@pytest.fixture(params=_kinds(only_real=True))
def real_bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Every executor that runs real programs."""
    yield from _bench(request, tmp_path)


@pytest.fixture(params=["cold", "warm"])
def local(request: pytest.FixtureRequest) -> type[LocalProcessExecutor]:
    """Makes local executors which start Python programs cold or warm."""
    return WarmExecutor if request.param == "warm" else LocalProcessExecutor


@pytest.fixture
def executor(local: type[LocalProcessExecutor], tmp_path: Path) -> Iterator[LocalProcessExecutor]:
    """A local executor."""
    executor = local(tmp_path / "control")
    yield executor
    _end_all(executor)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach. Each new session of pytest closes the folder above all of its own again."""
    with tempfile.TemporaryDirectory(prefix="clavier-open-") as place:
        Path(place).chmod(0o755)
        yield Path(place)


@pytest.fixture
def private(executor: LocalProcessExecutor) -> LocalProcessExecutor:
    """A local executor on a host that allows private namespaces."""
    if executor.isolation() != "private_namespaces":
        pytest.skip("this host allows no private namespaces")
    return executor


@pytest.fixture
def docker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DockerBench]:
    """A bench on the session's own Docker Engine."""
    bench = docker_bench(tmp_path, request)
    yield bench
    _end_all(bench.executor())
