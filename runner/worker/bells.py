"""Ring when an attempt may have ended, so that the loop of the reconciler need not wait for its next turn."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from runner.executors.base import Executor, Ringing
from runner.worker.engines import Engine

logger = logging.getLogger(__name__)

#: An engine that went away is asked again after so many seconds; meanwhile the loop's own turns have to do.
AGAIN_S = 1.0


class Bells:
    """One listening thread for each engine that can ring. They touch no database."""

    def __init__(self) -> None:
        self._rung = threading.Event()
        self._listening: dict[Engine, threading.Thread] = {}

    def attend(self, executors: Mapping[Engine, Executor]) -> None:
        """Listen to these from now on; to those that are listened to already nothing changes."""
        for engine, executor in executors.items():
            if engine not in self._listening and isinstance(executor, Ringing):
                thread = threading.Thread(target=self._listen, args=(engine, executor), name=f"bell of {engine}")
                thread.daemon = True
                self._listening[engine] = thread
                thread.start()

    def wait(self, at_least_s: float, at_most_s: float) -> bool:
        """Until one has rung since the last call, between so and so many seconds; whether one has."""
        time.sleep(at_least_s)
        has_rung = self._rung.wait(max(0.0, at_most_s - at_least_s))
        self._rung.clear()
        return has_rung

    def _listen(self, engine: Engine, executor: Ringing) -> None:
        """For ever: its engine may come back."""
        while True:
            try:
                for _ in executor.rings():
                    self._rung.set()
            except Exception as error:  # only the bell: whether the engine answers is found out by the passes
                logger.debug("the bell of %s is silent: %s", engine, error)
            time.sleep(AGAIN_S)
