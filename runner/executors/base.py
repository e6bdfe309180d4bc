"""What every executor offers. It starts, lists, stops and removes attempts by name, and knows nothing of Django."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from runner.contract.run_spec import RunSpec


class ExecutorError(Exception):
    """The executor itself failed (engine down, disk full). Never the program's fault; the caller tries again."""


class LaunchRefused(Exception):
    """This attempt can never be started as asked (program missing, folder missing). The message is for the user."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One attempt to start. ``name``: the attempt's id, unique for ever; ``owner_id``: the tenant's number, >= 1."""

    name: str
    run_folder: Path
    spec: RunSpec
    owner_id: int
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Observation:
    """What the executor knows of one attempt now.

    ``state``: ``starting`` (known, not yet running), ``running``, ``exited``.
    ``exit_code``: the program's, 128+n when a signal n ended it, None when unknown (the wrapper itself was killed).
    ``cause``: why it exited: ``exit`` by itself, ``stopped`` on request, ``time_limit``, ``out_of_memory``,
    ``lost`` (killed by nobody we know, the host rebooted, the wrapper died), ``command_not_found``.
    Times are seconds since the epoch.
    """

    name: str
    state: Literal["starting", "running", "exited"]
    spec_digest: str
    exit_code: int | None = None
    cause: Literal["exit", "stopped", "time_limit", "out_of_memory", "lost", "command_not_found"] | None = None
    started_at: float | None = None
    ended_at: float | None = None
    max_memory_mib: int | None = None


class Executor(Protocol):
    """The contract; ``tests/runner/executors/test_contract.py`` runs over every implementation."""

    def start(self, launch: Launch) -> None:
        """Start the attempt; idempotent by name (a second call adopts what the first one started, never starts twice).

        Raises LaunchRefused, ExecutorError.
        """

    def list(self) -> list[Observation]:
        """Every attempt not yet removed, in one call. Raises ExecutorError; an empty list is real news."""

    def stop(self, name: str, grace_s: float) -> None:
        """Ask an attempt to end: TERM to all its processes, KILL after the grace. Returns at once; idempotent."""

    def remove(self, name: str) -> None:
        """Forget an exited attempt. Its run folder stays. Idempotent; refuses (ExecutorError) while it runs."""
