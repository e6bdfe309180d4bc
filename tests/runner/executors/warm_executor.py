"""A local executor whose Python programs, also those of ``python -c``, are forks of a zygote that is ready."""

from __future__ import annotations

import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.executors import warm
from runner.executors.base import Launch
from runner.executors.control import Order
from runner.executors.launching import REPOSITORY
from runner.executors.local_process import LocalProcessExecutor

#: Importing all that programs need takes long on a busy machine.
PATIENCE_S = 100.0
PROBE = "tests.runner.executors.probe"
#: What programs of the platform have in their environment, and the probe is one.
MODULES = {"PYTHONPATH": str(REPOSITORY), "PYTHONSAFEPATH": "1"}


class WarmExecutor(LocalProcessExecutor):
    """It makes its zygote before the first launch, so that no launch of it is cold by chance."""

    def __init__(self, control_folder: Path, idle_s: float = 60.0, preload: str = PROBE, **options: Any) -> None:
        super().__init__(control_folder, warm_idle_s=idle_s, preload=preload, **options)

    def start(self, launch: Launch) -> None:
        if self._can_be_warm(launch) and not (self._control / warm.FOLDER / warm.SOCKET).exists():
            self.make_zygote(launch)
        super().start(launch)

    def make_zygote(self, launch: Launch) -> None:
        """Have a zygote that can serve this launch; returns when it listens."""
        assert self._zygotes is not None
        self._zygotes.make(self._order(launch).environment)
        deadline = time.monotonic() + PATIENCE_S
        while not (self._control / warm.FOLDER / warm.SOCKET).exists():
            assert time.monotonic() < deadline, (self._control / warm.FOLDER / warm.LOG).read_text()
            time.sleep(0.02)

    def _can_be_warm(self, launch: Launch) -> bool:
        return launch.spec.argv[:2] == (sys.executable, "-c") or super()._can_be_warm(launch)

    def _order(self, launch: Launch) -> Order:
        order = super()._order(launch)
        if launch.spec.argv[:2] != (sys.executable, "-c"):
            return order
        argv = (sys.executable, "-m", PROBE, *launch.spec.argv[2:])
        return replace(order, argv=argv, environment=order.environment | MODULES)


def zygote_of(executor: LocalProcessExecutor) -> int | None:
    """The process that listens for an executor's orders; None when there is none."""
    try:
        with warm._connected(executor._control / warm.FOLDER) as connection:
            return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
    except OSError:
        return None
