"""One container of an attempt on its engine: made or adopted, compared with its profile, started at most once."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from runner.executors.base import ExecutorError, Launch, LaunchRefused
from runner.executors.docker_attempt import AttemptFolder, Intent, was_started
from runner.executors.docker_client import Engine, EngineRefused
from runner.executors.docker_profile import ProfileMismatch, assert_profile
from runner.executors.verdict import Verdict

_CREATE_PATIENCE_S = 15.0
_BAD_REQUEST = 400


class Containers:
    """Containers of one installation. Whoever makes or starts one holds the attempt's lock."""

    def __init__(self, engine: Engine, install_id: str) -> None:
        self._engine = engine
        self._install_id = install_id

    @property
    def label(self) -> str:
        """What every container of this installation carries."""
        return f"clavier.install={self._install_id}"

    def all(self) -> dict[str, dict[str, Any]]:
        """The engine's line on each container by attempt name, in one call. Raises ExecutorError.

        One that bears our label and no attempt's name (somebody made it of a copied label) is nobody's attempt.
        """
        named = ((found["Labels"].get("clavier.name"), found) for found in self._engine.containers(self.label))
        return {name: found for name, found in named if name}

    def find(self, name: str) -> dict[str, Any] | None:
        """All of the container of an attempt; None when there is none of ours. Raises ExecutorError."""
        facts = self._engine.inspect(container_name(name))
        return facts if facts is not None and self.is_ours(facts) else None

    def is_ours(self, container: dict[str, Any]) -> bool:
        """Whether this installation made it."""
        return (container["Config"]["Labels"] or {}).get("clavier.install") == self._install_id

    def refuse_stranger(self, container: dict[str, Any], launch: Launch) -> None:
        """Raise LaunchRefused when this is not the container of this very launch."""
        labels = container["Config"]["Labels"] or {}
        if not self.is_ours(container) or labels.get("clavier.name") != launch.name:
            raise LaunchRefused(f"A container {container_name(launch.name)} of somebody else is on this engine.")
        if labels.get("clavier.spec") != launch.spec.digest():
            raise LaunchRefused(f"Attempt name {launch.name} was already used for other work; use a new name.")

    def adopt_or_create(
        self, launch: Launch, payload: dict[str, Any], image: dict[str, Any], known: dict[str, Any] | None
    ) -> dict[str, Any]:
        """A created container whose profile was compared. Raises LaunchRefused, ExecutorError, ProfileMismatch."""
        if self._engine.facts.unfit:
            raise ExecutorError(self._engine.facts.unfit)
        if known is not None:
            with suppress(ProfileMismatch):
                assert_profile(known, payload, image, self._engine.facts.runtime)
                return known
            self._engine.remove(known["Id"])  # made by another version or hand, never started
        try:
            created = self._engine.create(container_name(launch.name), payload)
        except EngineRefused as refusal:
            if refusal.status == _BAD_REQUEST:
                raise LaunchRefused(f"The engine refuses this container: {refusal.explanation}") from refusal
            raise
        container = self._inspect_patiently(created or container_name(launch.name))
        self.refuse_stranger(container, launch)
        try:
            assert_profile(container, payload, image, self._engine.facts.runtime)
        except ProfileMismatch:
            if not was_started(container["State"]):
                self._engine.remove(container["Id"])
            raise
        return container

    def start(self, folder: AttemptFolder, intent: Intent, container: dict[str, Any]) -> None:
        """Start it once. What the engine itself can not start is infrastructure: the attempt is over, in words."""
        if was_started(container["State"]):
            return
        reason = str(container["State"]["Error"])
        if not reason:
            try:
                self._engine.start(container["Id"])
                return
            except EngineRefused as refusal:
                reason = refusal.explanation
        if "could not select device driver" in reason:
            reason += " (GPUs need the NVIDIA container toolkit on the engine's machine)"
        message = f"The engine can not start the container: {reason}"
        folder.record_end(intent, Verdict("lost", None, message))
        raise ExecutorError(message)

    def _inspect_patiently(self, container: str) -> dict[str, Any]:
        """A container whose name is taken may not be visible yet, for seconds. Raises ExecutorError."""
        deadline = time.monotonic() + _CREATE_PATIENCE_S
        while (facts := self._engine.inspect(container)) is None:
            if time.monotonic() > deadline:
                raise ExecutorError(f"Container {container} was created and can not be found.")
            time.sleep(0.1)
        return facts


def container_name(name: str) -> str:
    """The name of an attempt's container, one for ever."""
    return f"clavier-{name}"
