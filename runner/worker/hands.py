"""Starts, stops and removes containers beside the reconciler's passes: who waits for an engine is its own runs only."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Hashable
from typing import Protocol
from uuid import UUID

from django.db import connections

from clavier.runs.folders import count_folder
from runner.executors.base import ExecutorError
from runner.worker import jobs
from runner.worker.engines import Engine, executor

logger = logging.getLogger(__name__)

#: Calls of one kind that one engine gets at the same time.
THREADS = 4
#: What is not taken is asked for again by the next pass.
MOST_WAITING = 1000


class Lane(Protocol):
    """Does things for one engine in its own time."""

    def put(self, key: Hashable, action: Callable[[], None]) -> None:
        """Have it done, unless the same is still to be done."""


class InTurn:
    """A lane without threads: who puts something in does it; errors are the caller's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def put(self, key: Hashable, action: Callable[[], None]) -> None:
        """Do it now."""
        action()


class ThreadLane:
    """A few threads, which live while there is something to do."""

    def __init__(self, name: str, threads: int = THREADS) -> None:
        self._name, self._most = name, threads
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, Callable[[], None]] = {}
        self._busy: set[Hashable] = set()
        self._threads = 0

    def put(self, key: Hashable, action: Callable[[], None]) -> None:
        """Have it done, unless the same waits or is being done."""
        with self._lock:
            if key in self._waiting or key in self._busy or len(self._waiting) >= MOST_WAITING:
                return
            self._waiting[key] = action
            if self._threads == self._most:
                return
            self._threads += 1
        threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        """Until nothing waits. What an action raises is logged: the next pass asks for it again."""
        try:
            while (found := self._take()) is not None:
                key, action = found
                try:
                    action()
                except Exception:
                    logger.exception("%s: %s failed; it is tried again", self._name, key)
                finally:
                    with self._lock:
                        self._busy.discard(key)
        finally:
            connections.close_all()

    def _take(self) -> tuple[Hashable, Callable[[], None]] | None:
        """What has waited longest; None, and one thread less, when nothing does."""
        with self._lock:
            if not self._waiting:
                self._threads -= 1
                return None
            key = next(iter(self._waiting))
            self._busy.add(key)
            return key, self._waiting.pop(key)


class Hands:
    """What a reconciler has done for it. Launches have lanes of their own: loading must not keep a stop waiting."""

    def __init__(self, lane: Callable[[str], Lane] = InTurn) -> None:
        self._make_lane = lane
        self._lanes: dict[Hashable, Lane] = {}
        self._stopped_at: dict[str, float] = {}

    def launch(self, attempt_id: str, engines: Collection[Engine]) -> None:
        """Start an attempt on its engines; one of them that hangs keeps nobody waiting who does not need it."""
        lane = self._lane("start on", *sorted(set(engines)))
        lane.put(attempt_id, lambda: jobs.launch(attempt_id, is_due=True))

    def stop(self, engine: Engine, name: str, grace_s: float) -> None:
        """Ask a container to end, or never to start."""

        def act() -> None:
            executor(engine).stop(name, grace_s)
            self._stopped_at[name] = time.monotonic()

        self._end(engine, f"stop {name}", act)

    def remove(self, engine: Engine, name: str) -> None:
        """Have an ended container forgotten, whose end stands in the database."""
        self._end(engine, f"remove {name}", lambda: executor(engine).remove(name))

    def count(self, run_id: UUID) -> None:
        """Charge what a run has left on the disk; walking a large folder takes its time."""
        self._lane("count").put(run_id, lambda: count_folder(run_id))

    def stopped_at(self, name: str) -> float | None:
        """When (on the steady clock) an engine took our last stop of a name; None: it has not."""
        return self._stopped_at.get(name)

    def forget_all_but(self, names: Collection[str]) -> None:
        """Only of these it matters when they were stopped."""
        for name in list(self._stopped_at):
            if name not in names:
                self._stopped_at.pop(name, None)

    def _end(self, engine: Engine, what: str, action: Callable[[], None]) -> None:
        def act() -> None:
            try:
                action()
            except ExecutorError as error:
                logger.warning("%s on %s failed: %s; it is tried again", what, engine, error)

        self._lane("end on", engine).put(what, act)

    def _lane(self, what: str, *engines: Engine) -> Lane:
        key = (what, engines)
        if key not in self._lanes:
            self._lanes[key] = self._make_lane(" ".join([what, *map(str, engines)]))
        return self._lanes[key]
