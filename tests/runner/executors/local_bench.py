"""Helpers for the tests of the local executor."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runner.executors.base import Launch, Observation
from runner.executors.control import Isolation
from runner.executors.local_process import LocalProcessExecutor
from tests.runner.executors.bench import wait_until_exited

USER = 200_007
SYSTEM_PYTHON = "/usr/bin/python3"
GRANDCHILD = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("grandchild", "w").write("up")
        time.sleep(600)
    os._exit(0)
time.sleep(600)
"""
ISOLATIONS: list[Isolation] = ["platform_user"]
if os.geteuid() == 0:
    ISOLATIONS += ["own_user", "private_namespaces"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give programs a user of their own")


def run(executor: LocalProcessExecutor, launch: Launch) -> tuple[Observation, str]:
    """The end of an attempt and its log."""
    executor.start(launch)
    ended = wait_until_exited(executor, launch.name)
    return ended, (launch.run_folder / "log.txt").read_text()


def told(executor: LocalProcessExecutor, launch: Launch) -> Any:
    """The JSON which the program of a launch printed."""
    ended, log = run(executor, launch)
    assert ended.exit_code == 0, log
    return json.loads(log)


def helpers_of(executor: LocalProcessExecutor, name: str) -> tuple[int, int]:
    """Process ids of an attempt's wrapper and of its keeper."""
    started = json.loads((executor._control / name / "started.json").read_text())
    wrapper = int(started["wrapper"])
    keeper = int(Path(f"/proc/{wrapper}/task/{wrapper}/children").read_text().split()[0])
    return wrapper, keeper


def weaken(executor: LocalProcessExecutor, isolation: Isolation) -> None:
    """Have the executor do without private namespaces; use it with ``open_folder``."""
    if isolation == "private_namespaces":
        pytest.skip("this host allows no private namespaces")
    executor._isolation = isolation


def alive_in(folder: Path) -> list[str]:
    """Command lines of processes whose current folder is below this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd").startswith(str(folder)):
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found
