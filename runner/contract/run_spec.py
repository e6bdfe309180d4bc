"""The complete, immutable description of a run: written once at submission, read by executor and program."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

RunKind = Literal["fine_tune", "evaluation", "model_import", "replica"]
RUN_KINDS: tuple[RunKind, ...] = ("fine_tune", "evaluation", "model_import", "replica")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run holds while it lives. ``cpu_milli``: thousandths of a core. ``memory_mib``: MiB."""

    cpu_milli: int = 1000
    memory_mib: int = 2048
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run is ended by the platform. ``time_limit_s`` None: never. ``stop_grace_s``: TERM, wait, then KILL."""

    time_limit_s: int | None = 24 * 3600
    stop_grace_s: int = 10
    max_processes: int = 512
    max_file_mib: int = 200 * 1024


@dataclass(frozen=True, slots=True)
class Mount:
    """A host folder or file that the program may read (``writable``: and write) under its host path."""

    source: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run.

    ``program``: a module below ``runner.programs`` started as ``python -m <program> RUN_FOLDER``, or None with
    ``argv`` for a user's own command. ``parameters`` is the program's own input (documented in each program).
    ``ready_file``: the run counts as PREPARING until the program has written ``work/ready.json``.
    """

    kind: RunKind
    program: str | None
    parameters: dict[str, Any]
    argv: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    resources: Resources = field(default_factory=Resources)
    resource_group: str = "default"
    priority: int = 0
    limits: Limits = field(default_factory=Limits)
    image: str | None = None
    needs_network: bool = False
    ready_file: bool = False
    retries: int = 2

    def to_json(self) -> dict[str, Any]:
        """A plain dict that ``from_json`` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RunSpec:
        """The spec of a stored dict. Raises TypeError on unknown or missing keys."""
        data = dict(value)
        data["resources"] = Resources(**data["resources"])
        data["limits"] = Limits(**data["limits"])
        data["mounts"] = tuple(Mount(**mount) for mount in data["mounts"])
        data["argv"] = tuple(data["argv"])
        return cls(**data)

    def digest(self) -> str:
        """sha256 over the canonical JSON: two attempts with the same digest are the same work."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()
