"""What became of an attempt: from the engine's line on its container, its files and, once it has ended, one inspect."""

from __future__ import annotations

import time
from typing import Any

from runner.executors.base import Observation
from runner.executors.docker_attempt import (
    AttemptFolder,
    Intent,
    end_facts,
    judge,
    observation_of,
    started_at,
)
from runner.executors.docker_client import Engine

#: How much longer than its grace a container may live whose wrapper does not end it.
_SAFETY_MARGIN_S = 5.0


class Observer:
    """Remembers when containers were started, which an engine's list does not tell."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._started: dict[str, float] = {}
        self._seen_since: dict[str, float] = {}
        self._stop_seen_since: dict[str, float] = {}

    def forget(self, name: str) -> None:
        """The attempt is gone."""
        for known in (self._started, self._seen_since, self._stop_seen_since):
            known.pop(name, None)

    def observe(self, folder: AttemptFolder, container: dict[str, Any] | None, *, was_made: bool) -> Observation | None:
        """One attempt; None when it is gone. ``was_made``: its container had been created. Raises ExecutorError."""
        name, intent, result = folder.path.name, folder.intent(), folder.result()
        if intent is not None and result is not None:
            return observation_of(name, result)
        if container is None:
            if intent is None or was_made:
                return None
            return Observation(name, "starting", intent.spec_digest)
        state, digest = container["State"], container["Labels"].get("clavier.spec", "")
        if state == "created":
            return Observation(name, "starting", digest)
        if state == "removing":
            return None
        if state in ("exited", "dead"):
            facts = self._engine.inspect(container["Id"])
            return None if facts is None else settle(folder, facts)
        return self._running(folder, intent, container, digest)

    def _running(
        self, folder: AttemptFolder, intent: Intent | None, container: dict[str, Any], digest: str
    ) -> Observation | None:
        """A running attempt; killed here when its wrapper should have ended it long ago."""
        name = folder.path.name
        began = self._started.get(name)
        if began is None:
            facts = self._engine.inspect(container["Id"])
            if facts is None:
                return None
            # A clock of the engine that goes wrong must not make a run look older than it is.
            began = self._started[name] = max(started_at(facts["State"]), folder.created_at())
        if intent is not None and self._is_overdue(folder, intent):
            self._engine.signal(container["Id"], "KILL")
        return Observation(name, "running", digest, started_at=began)

    def _is_overdue(self, folder: AttemptFolder, intent: Intent) -> bool:
        """Its wrapper should have ended it long ago; by the steady clock, since nobody can set that one."""
        name, now = folder.path.name, time.monotonic()
        lived_s = now - self._seen_since.setdefault(name, now)
        if intent.time_limit_s is not None and lived_s > intent.time_limit_s + intent.stop_grace_s + _SAFETY_MARGIN_S:
            return True
        stop = folder.stop_request()
        return stop is not None and now - self._stop_seen_since.setdefault(name, now) > stop[1] + _SAFETY_MARGIN_S


def settle(folder: AttemptFolder, container: dict[str, Any]) -> Observation:
    """The end of a container (all that the engine says of it) with its wrapper's report, written down once."""
    intent, state = folder.intent(), container["State"]
    if intent is None:
        digest, code = container["Config"]["Labels"].get("clavier.spec", ""), int(state["ExitCode"])
        return Observation(folder.path.name, "exited", digest, exit_code=code, cause="lost")
    if (known := folder.result()) is not None:
        return observation_of(folder.path.name, known)
    report = folder.read_report()
    verdict = judge(intent, report, state, is_stop_asked=folder.stop_request() is not None)
    return observation_of(folder.path.name, folder.record_end(intent, verdict, end_facts(report, state)))
