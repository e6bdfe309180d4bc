"""The complete, immutable description of a run: written once at submission, read by executor and program."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from runner.contract.folder import WORK

RunKind = Literal["fine_tune", "evaluation", "model_import", "image_import", "data", "replica"]
RUN_KINDS: tuple[RunKind, ...] = ("fine_tune", "evaluation", "model_import", "image_import", "data", "replica")


@dataclass(frozen=True, slots=True)
class Resources:
    """What one container of a run holds while it lives. ``cpu_milli``: thousandths of a core; ``memory_mib``: MiB.

    Of GPUs it asks for one of three: ``gpus`` whole ones; or a share of one, ``gpu_cores_percent`` of its time and
    ``gpu_memory_mib`` of its memory (counted at admission; nothing in the hardware enforces it); or ``mig_devices``
    slices of ``mig_profile`` (such as ``1g.10gb``), which the hardware keeps apart.
    """

    cpu_milli: int = 1000
    memory_mib: int = 2048
    gpus: int = 0
    gpu_cores_percent: int = 0
    gpu_memory_mib: int = 0
    mig_profile: str = ""
    mig_devices: int = 0
    shm_mib: int = 64

    @property
    def has_gpu(self) -> bool:
        """Any part of any GPU."""
        return bool(self.gpus or self.gpu_cores_percent or self.gpu_memory_mib or self.mig_devices)


@dataclass(frozen=True, slots=True)
class Role:
    """``count`` equal containers of a multi-node run, such as one ``master`` and three ``worker``s."""

    name: str
    count: int
    resources: Resources


@dataclass(frozen=True, slots=True)
class Image:
    """A container image by its id (``sha256:...``, the digest of its configuration), never by a tag.

    ``archive``: host path of the tar to load where an engine lacks the image; None: an engine has it or refuses.
    """

    id: str
    archive: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run is ended by the platform. ``time_limit_s`` None: never. ``stop_grace_s``: TERM, wait, then KILL."""

    time_limit_s: int | None = 24 * 3600
    stop_grace_s: int = 10
    max_processes: int = 512
    max_file_mib: int = 200 * 1024


@dataclass(frozen=True, slots=True)
class Mount:
    """A host folder or file that the program may read (``writable``: and write) under its host path.

    ``target``: another path, which only a container can have.
    """

    source: str
    writable: bool = False
    target: str = ""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """What lies at ``path`` below ``work/`` before the program starts; one of the others says what, none: a folder.

    ``copy_of``: a host folder, copied, so that the program may change it. ``link_to``: a host path that is mounted
    too. ``text``: the words of a small file.
    """

    path: str
    copy_of: str | None = None
    link_to: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run.

    ``roles``: a multi-node run, started all at once or not at all; rank 0 is the first container of the first role.
    Empty: one container with ``resources``. ``preemptible``: it goes on from a sealed checkpoint after a stop, so it
    may be stopped when capacity that it borrowed is wanted back.
    ``program``: a module below ``runner.programs`` started as ``python -m <program> RUN_FOLDER``, or None with
    ``argv`` for a user's own command. ``parameters`` is the program's own input (documented in each program).
    ``work``: what is laid out in the run folder's ``work/`` before the first start; ``start_in``: the folder, relative
    to the run folder, in which the program starts.
    ``node_names``: only these nodes (empty: any of the group).
    ``ready_file``: the run counts as PREPARING until the program has written ``work/ready.json``. For a user's own
    server, which does not, its container does so once the server answers on ``serve_port`` of the container's loopback
    (0: on ``work/server.sock``, which the server makes itself).
    """

    kind: RunKind
    program: str | None
    parameters: dict[str, Any]
    argv: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    work: tuple[WorkItem, ...] = ()
    start_in: str = WORK
    resources: Resources = field(default_factory=Resources)
    roles: tuple[Role, ...] = ()
    resource_group: str = "default"
    priority: int = 0
    is_urgent: bool = False
    preemptible: bool = False
    node_names: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    image: Image | None = None
    needs_network: bool = False
    ready_file: bool = False
    serve_port: int = 0
    retries: int = 2

    @property
    def num_containers(self) -> int:
        """Containers that the run starts together."""
        return sum(role.count for role in self.roles) or 1

    def containers(self) -> tuple[Role, ...]:
        """Role and resources of each container, by rank (every ``count`` is 1)."""
        roles = self.roles or (Role("master", 1, self.resources),)
        return tuple(Role(role.name, 1, role.resources) for role in roles for _ in range(role.count))

    def to_json(self) -> dict[str, Any]:
        """A plain dict that ``from_json`` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RunSpec:
        """The spec of a stored dict, also of an older version with fewer keys. Raises TypeError on unknown keys."""
        data = dict(value)
        data["resources"] = Resources(**data["resources"])
        data["limits"] = Limits(**data["limits"])
        data["mounts"] = tuple(Mount(**mount) for mount in data["mounts"])
        data["roles"] = tuple(
            Role(role["name"], role["count"], Resources(**role["resources"])) for role in data.get("roles", ())
        )
        data["work"] = tuple(WorkItem(**item) for item in data.get("work", ()))
        data["image"] = Image(**data["image"]) if data.get("image") else None
        for name in ("argv", "node_names"):
            data[name] = tuple(data.get(name, ()))
        return cls(**data)

    def digest(self) -> str:
        """sha256 over the canonical JSON: two attempts with the same digest are the same work."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()
