"""The runs of replicas: the platform's servers, and servers of users in containers of their own."""

from __future__ import annotations

from uuid import UUID

from django.conf import settings

from clavier.accounts.access import creator_of
from clavier.core.errors import Unprocessable
from clavier.files.folders import disk_path, own_folder
from clavier.images.access import image_of_run
from clavier.quotas.models import Node
from clavier.runs.outputs import run_folder
from clavier.runs.own_code import Inputs, OwnCode, command_parts
from inference_app.models import ServiceVersion
from models_app.models import ModelVersion
from runner.contract import folder
from runner.contract.run_spec import Limits, Mount, Resources, RunSpec

PROGRAM = "runner.programs.serve.replica"


def run_spec_of(version: ServiceVersion) -> RunSpec:
    """The server's program and input: llama.cpp on a CPU, vLLM where the version asks for GPUs; ours for scores.

    Raises ValueError for a version without a model.
    """
    if version.model_version is None:
        raise ValueError(f"{version} has no model")
    model, adapter = folders_of(version.model_version)
    resources = Resources(**version.resources)
    return RunSpec(
        kind="replica",
        program=PROGRAM,
        parameters={
            "server": server_of(version.model_version, resources),
            "model": model,
            "adapter": adapter,
            "served_name": version.service.name,
            "context_tokens": version.context_tokens,
            "parallel": version.parallel,
            "render_hash": version.model_version.render_hash,
        },
        environment=version.own_code.get("environment", {}),
        mounts=tuple(Mount(path) for path in (model, adapter) if path),
        resources=resources,
        priority=10,
        limits=Limits(time_limit_s=None, stop_grace_s=10),
        ready_file=True,
    )


def server_of(model: ModelVersion, resources: Resources) -> str:
    """Which of ``runner.programs.serve.replica`` answers."""
    if model.task == "reward":
        return "scoring"
    return "vllm" if resources.has_gpu else "llama.cpp"


def folders_of(version: ModelVersion) -> tuple[str, str | None]:
    """The model's folder, and the adapter's where the version is one."""
    if version.format == "adapter" and version.base_version is not None:
        return str(version.base_version.path), str(version.path)
    return str(version.path), None


def own_server_spec(version: ServiceVersion, run_id: UUID) -> RunSpec:
    """The owner's own server. Raises NotFound, Invalid, Conflict for what is gone meanwhile."""
    owner = creator_of(version.service)
    code = OwnCode.from_json(version.own_code)
    model: str | None
    adapter: str | None
    model, adapter = (None, None)
    if version.model_version and version.model_version.format != "image":
        model, adapter = folders_of(version.model_version)
    volumes = [
        Mount(str(disk_path(owner, own_folder(owner, volume["src"], field="volumes"))), target=volume["dst"])
        for volume in version.volumes
    ]
    paths = [path for path in (model, adapter, volume_folder(version)) if path]
    inputs = Inputs(
        model_dir=adapter or model,
        mounts=(*(Mount(path) for path in paths), *volumes),
        input_dir=volume_folder(version),
    )
    more = {"socket": str(run_folder(run_id) / folder.SOCKET), "port": str(next(iter(version.image_ports), ""))}
    parts = command_parts(owner, code, run_id=run_id, inputs=inputs, hyperparameters=version.hyperparameters, more=more)
    return RunSpec(
        kind="replica",
        program=None,
        parameters={"ports": version.image_ports},
        argv=parts.argv,
        environment={"CLAVIER_SOCKET": more["socket"], "CLAVIER_PORT": more["port"], **parts.environment},
        mounts=parts.mounts,
        work=parts.work,
        start_in=parts.start_in,
        image=image_of_run(version.image_version, field="image") if version.image_version else None,
        resources=Resources(**version.resources),
        priority=10,
        limits=Limits(time_limit_s=None, stop_grace_s=10),
        ready_file=True,
        serve_port=next(iter(version.image_ports), 0),
    )


def volume_folder(version: ServiceVersion) -> str | None:
    """Where the folder of ``volume_path`` lies on the disk."""
    if not version.volume_path:
        return None
    owner = creator_of(version.service)
    return str(disk_path(owner, own_folder(owner, version.volume_path, field="volume_path")))


def require_servable(version: ServiceVersion) -> None:
    """Raises Unprocessable for a version that can be saved but not started here, and says why."""
    if version.request_method == "grpc":
        raise Unprocessable(
            f"{version}: the gateway forwards HTTP, not gRPC. Use request_method rest, or keep the service a draft.",
            code="grpc_not_served",
            field="request_method",
        )
    group = version.options.get("resource_group") or "default"
    nodes = Node.objects.filter(resource_group__name=group, executor__in=settings.CONTAINER_EXECUTORS)
    if (version.is_own_server or version.volumes) and not nodes.exists():
        what = "an own server" if version.is_own_server else "volumes at paths of their own"
        raise Unprocessable(
            f"{version}: {what} needs a container, and the resource group {group!r} has no node that runs them. Choose "
            "another group, or keep the service a draft.",
            code="needs_container",
            field="image" if version.is_own_server else "volumes",
        )
