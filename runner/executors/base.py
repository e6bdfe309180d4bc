"""What every executor offers. It starts, lists, stops and removes attempts by name, and knows nothing of Django."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from runner.contract.run_spec import Resources, RunSpec


class ExecutorError(Exception):
    """The executor itself failed (engine down, disk full). Never the program's fault; the caller tries again."""


class LaunchRefused(Exception):
    """This attempt can never be started as asked (program missing, folder missing). The message is for the user."""


@dataclass(frozen=True, slots=True)
class Gang:
    """Where a container of a multi-node run meets the others: PyTorch's ``torchrun`` rendezvous.

    ``network``: a network of this run (executors with containers make and remove it), shared by all ranks.
    ``master_address``: rank 0's address for the other ranks. ``master_port``: where its store listens.
    """

    rank: int
    size: int
    network: str
    master_address: str
    master_port: int = 29400


@dataclass(frozen=True, slots=True)
class Launch:
    """One container to start. ``name``: unique for ever; ``owner_id``: the tenant's number, >= 1.

    The name is the attempt's id; further ranks of a multi-node run append ``.RANK``. ``gpus``: UUIDs of the booked
    devices (GPU-... or MIG-...). ``resources``: this container's own, when its role asks for other than the spec's.
    """

    name: str
    run_folder: Path
    spec: RunSpec
    owner_id: int
    labels: dict[str, str]
    gpus: tuple[str, ...] = ()
    resources: Resources | None = None
    gang: Gang | None = None

    @property
    def rank(self) -> int:
        """0 for a run of one container."""
        return self.gang.rank if self.gang else 0

    @property
    def wanted(self) -> Resources:
        """What this container may use."""
        return self.resources or self.spec.resources


Cause = Literal["exit", "stopped", "time_limit", "out_of_memory", "lost", "command_not_found", "image_unavailable"]


@dataclass(frozen=True, slots=True)
class Observation:
    """What the executor knows of one attempt now.

    ``state``: ``starting`` (known, not yet running), ``running``, ``exited``.
    ``exit_code``: the program's, 128+n when a signal n ended it, None when unknown (the wrapper itself was killed).
    ``cause``: why it exited: ``exit`` by itself, ``stopped`` on request, ``time_limit``, ``out_of_memory``,
    ``lost`` (killed by nobody we know, the host rebooted, the wrapper died), ``command_not_found``,
    ``image_unavailable`` (it can not be had, or not be run here).
    Times are seconds since the epoch. ``warning``: worth telling the user, though the end stands as it is.
    """

    name: str
    state: Literal["starting", "running", "exited"]
    spec_digest: str
    exit_code: int | None = None
    cause: Cause | None = None
    started_at: float | None = None
    ended_at: float | None = None
    max_memory_mib: int | None = None
    warning: str = ""


class Executor(Protocol):
    """The contract; ``tests/runner/executors/test_contract.py`` runs over every implementation."""

    def start(self, launch: Launch) -> None:
        """Start the attempt; idempotent by name (a second call adopts what the first one started, never starts twice).

        Raises LaunchRefused, ExecutorError.
        """

    def list(self) -> list[Observation]:
        """Every attempt not yet removed, in one call. Raises ExecutorError; an empty list is real news."""

    def stop(self, name: str, grace_s: float) -> None:
        """Ask an attempt to end: TERM to all its processes, KILL after the grace. Returns at once; idempotent.

        A name that is not known is remembered for a week: ``start`` then starts nothing under it, and the attempt is
        listed as ``stopped``. So what a stop could not find can not start behind it. Raises ExecutorError.
        """

    def remove(self, name: str) -> None:
        """Forget an exited attempt. Its run folder stays. Idempotent; refuses (ExecutorError) while it runs."""


@runtime_checkable
class Ringing(Protocol):
    """What executors offer that can tell of an end at once. Rings are a hint; only ``list`` says what is."""

    def rings(self) -> Iterator[None]:
        """Blocks, and yields whenever an attempt may have ended. Ends, or raises ExecutorError, without its engine."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A container image which an executor keeps for this installation. ``id``: ``sha256:...``."""

    id: str
    size_bytes: int


class ImageStore(Protocol):
    """What executors with images offer to those who count and collect images."""

    def images(self) -> list[StoredImage]:
        """The images kept for this installation, in one call. Raises ExecutorError."""

    def has_image(self, image_id: str) -> bool:
        """Whether the image can be used without loading it. Raises ExecutorError."""

    def remove_image(self, image_id: str) -> None:
        """No longer keep an image; idempotent. Raises ExecutorError while something uses it."""
