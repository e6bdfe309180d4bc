"""Asks all engines for their lists at once, so that one that hangs keeps nobody else waiting."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from runner.executors.base import Executor, ExecutorError, Observation
from runner.worker.engines import Engine

logger = logging.getLogger(__name__)

#: A pass waits so long for an engine, and no longer for one that has not answered the pass before.
PATIENCE_S = 2.0


class Question(threading.Thread):
    """One list call. ``answer``: None while there is none, and for an engine that failed."""

    def __init__(self, engine: Engine, executor: Executor) -> None:
        super().__init__(name=f"list {engine}", daemon=True)
        self.engine, self.executor = engine, executor
        self.asked_at = time.monotonic()
        self.answer: list[Observation] | None = None
        self.error: str = ""

    def run(self) -> None:
        """In a thread of its own; it touches no database."""
        try:
            self.answer = self.executor.list()
        except ExecutorError as error:
            self.error = str(error)
        except Exception as error:  # a broken executor must not look like an empty one
            logger.exception("the list of %s failed", self.engine)
            self.error = str(error)


class Listings:
    """Keeps the questions that are still open. ``asked_at``: when what an engine answered last was asked.

    ``silent``: why there is no answer, of the engines that gave none last.
    """

    def __init__(self) -> None:
        self.asked_at: dict[Engine, float] = {}
        self.silent: dict[Engine, str] = {}
        self._open: dict[Engine, Question] = {}

    def ask(
        self, executors: Mapping[Engine, Executor], patience_s: float = PATIENCE_S
    ) -> dict[Engine, list[Observation]]:
        """The lists of the engines that answered; of the others nothing may be concluded."""
        fresh = [Question(engine, executors[engine]) for engine in executors if engine not in self._open]
        for question in fresh:
            self._open[question.engine] = question
            question.start()
        deadline = time.monotonic() + patience_s
        for question in fresh:
            question.join(max(0.0, deadline - time.monotonic()))
        answered: dict[Engine, list[Observation]] = {}
        for engine, question in list(self._open.items()):
            if question.is_alive():
                self._tell(engine, "it has not answered yet")
                continue
            del self._open[engine]
            if question.answer is None:
                self._tell(engine, question.error)
            else:
                answered[engine] = question.answer
                self.asked_at[engine] = question.asked_at
                self.silent.pop(engine, None)
        return answered

    def _tell(self, engine: Engine, what: str) -> None:
        """Once, until it answers again."""
        if engine not in self.silent:
            logger.warning("executor %s does not answer: %s", engine, what)
        self.silent[engine] = what
