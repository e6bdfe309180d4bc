"""The networks of containers: none for most, one of its own for each multi-node run, one to the outside for imports."""

from __future__ import annotations

from runner.executors.base import Launch, LaunchRefused
from runner.executors.docker_client import Engine
from runner.executors.docker_profile import NO_NETWORK

KIND = "clavier.network"
_OF_A_RUN, _OUTSIDE = "run", "outside"
#: Containers that reach the outside must not reach each other.
_NO_TALK = {"com.docker.network.bridge.enable_icc": "false"}


class Networks:
    """Networks of one installation on one engine. ``install_label``: ``clavier.install=...``."""

    def __init__(self, engine: Engine, install_id: str) -> None:
        self._engine = engine
        self._install_id = install_id

    def ensure(self, launch: Launch) -> tuple[str, str]:
        """The network of a launch, made if need be, and the container's name in it.

        A network of that name which is not ours (an operator's overlay over several engines) is used as it is.
        Raises ExecutorError, LaunchRefused.
        """
        gang = launch.gang
        if gang is not None and launch.spec.needs_network:
            raise LaunchRefused("A run of several containers has a network of its own and none to the outside.")
        if gang is not None:
            self._ensure(gang.network, _OF_A_RUN, launch.labels.get("run", ""), internal=True, options={})
            return gang.network, gang.master_address if gang.rank == 0 else f"rank-{gang.rank}"
        if launch.spec.needs_network:
            name = f"clavier-{self._install_id[:12]}-outside"
            self._ensure(name, _OUTSIDE, "", internal=False, options=_NO_TALK)
            return name, ""
        return NO_NETWORK, ""

    def clean(self, used: set[str]) -> None:
        """Remove the networks of runs that no attempt needs. Raises ExecutorError."""
        for network in self._engine.networks(f"clavier.install={self._install_id}"):
            if network["Labels"].get(KIND) == _OF_A_RUN and network["Name"] not in used:
                self._engine.remove_network(network["Name"])

    def _ensure(self, name: str, kind: str, run: str, *, internal: bool, options: dict[str, str]) -> None:
        if self._engine.network(name) is None:
            labels = {"clavier.install": self._install_id, KIND: kind, "clavier.run": run}
            self._engine.create_network(name, labels, internal=internal, options=options)
