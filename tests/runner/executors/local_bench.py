"""Helpers for the tests of the local executor."""

from __future__ import annotations

import json
import os
import tempfile
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


def weaken(executor: LocalProcessExecutor, isolation: Isolation, folder: Path) -> None:
    """Have the executor do without private namespaces; then pytest's closed folders must be open."""
    if isolation == "private_namespaces":
        pytest.skip("this host allows no private namespaces")
    executor._isolation = isolation
    open_the_way(folder)


def open_the_way(folder: Path) -> None:
    """Let every user pass pytest's own folders above a test's."""
    temporary = Path(tempfile.gettempdir())
    for each in (folder, *folder.parents):
        if each != temporary and each.is_relative_to(temporary):
            each.chmod(0o755)


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
