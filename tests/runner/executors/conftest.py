"""Executors under test, each in a world of its own which is emptied afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.executors.base import Executor
from runner.executors.local_process import LocalProcessExecutor
from tests.runner.executors.bench import FACTORIES, Bench, wait_until_exited


def _end_all(executor: Executor) -> None:
    for observation in executor.list():
        executor.stop(observation.name, 0)
    for observation in executor.list():
        wait_until_exited(executor, observation.name)


def _bench(kind: str, folder: Path) -> Iterator[Bench]:
    bench = FACTORIES[kind](folder)
    yield bench
    _end_all(bench.executor())


@pytest.fixture(params=sorted(FACTORIES))
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Every executor."""
    yield from _bench(request.param, tmp_path)


@pytest.fixture(params=[kind for kind in sorted(FACTORIES) if FACTORIES[kind](Path()).runs_programs])
def real_bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Every executor that runs real programs."""
    yield from _bench(request.param, tmp_path)


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalProcessExecutor]:
    """A local executor."""
    executor = LocalProcessExecutor(tmp_path / "control")
    yield executor
    _end_all(executor)


@pytest.fixture
def private(executor: LocalProcessExecutor) -> LocalProcessExecutor:
    """A local executor on a host that allows private namespaces."""
    if executor.isolation() != "private_namespaces":
        pytest.skip("this host allows no private namespaces")
    return executor
