"""Deploy, start, stop and delete services; bring replicas back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from clavier.accounts.access import access_object, require_change, require_write
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Invalid, NotFound, Unprocessable, quoted
from clavier.runs.models import Attempt, Run
from clavier.runs.services import checked_resources, delete_run, stop_run, submit_run
from clavier.runs.states import EndReason, RunState
from inference_app.models import InferenceService, Replica, ServiceVersion, service_name_validator
from models_app.models import ModelVersion
from models_app.services import access_model_version, require_task, require_usable
from runner.contract import exits
from runner.contract.run_spec import Limits, Mount, Resources, RunSpec

logger = logging.getLogger(__name__)

PROGRAM = "runner.programs.serve.replica"
DEFAULT_RESOURCES = {"cpu_milli": 500, "memory_mib": 2048, "gpus": 0}
DEFAULT_CONTEXT_TOKENS = 2048
MIN_CONTEXT_TOKENS = 16
MAX_CONTEXT_TOKENS = 1_048_576
MAX_RESTARTS = 8
FIRST_BACK_OFF_S = 1
LONGEST_BACK_OFF_S = 120
#: A replica that has served this long starts counting its restarts from zero again.
HEALTHY_AFTER = timedelta(minutes=10)
#: Ends that come back every time: starting again would not help.
PERMANENT_EXITS = (exits.USER_ERROR, exits.RENDER_MISMATCH)


def create_service(
    *,
    actor: Actor,
    name: str,
    model_version: UUID | str,
    num_replicas: int = 1,
    context_tokens: int | None = None,
    parallel: int = 4,
    resources: Mapping[str, Any] | None = None,
    description: str = "",
    submitted: Mapping[str, Any] | None = None,
    version_submitted: Mapping[str, Any] | None = None,
    start: bool = True,
) -> InferenceService:
    """A service with one version; a draft unless ``start``. ``submitted``: what its client wrote of the service.

    Raises Invalid, Conflict, NotFound, Forbidden.
    """
    require_write(actor)
    check_service_name(name)
    version = access_model_version(actor, model_version)
    require_usable(version)
    require_task(version, "generation", purpose="a chat service")
    longest = longest_context(version)
    context_tokens = min(DEFAULT_CONTEXT_TOKENS, longest) if context_tokens is None else context_tokens
    require_in_range("num_replicas", num_replicas, 1, 64)
    require_in_range("context_tokens", context_tokens, MIN_CONTEXT_TOKENS, longest)
    require_in_range("parallel", parallel, 1, 256)
    with transaction.atomic():
        if InferenceService.objects.filter(tenant_id=actor.tenant_id, name=name).exists():
            raise Conflict(f"A service {quoted(name)} exists.", code="already_exists", field="name")
        service = InferenceService.objects.create(
            tenant_id=actor.tenant_id,
            created_by_id=actor.user_id,
            name=name,
            description=description,
            submitted=dict(submitted or {}),
        )
        ServiceVersion.objects.create(
            service=service,
            number=1,
            model_version=version,
            num_replicas=num_replicas,
            context_tokens=context_tokens,
            parallel=parallel,
            resources=checked_resources({**DEFAULT_RESOURCES, **(resources or {})}),
            submitted=dict(version_submitted or {}),
        )
        if start:
            start_service(actor=actor, service=service)
    return service


def start_service(*, actor: Actor, service: InferenceService) -> InferenceService:
    """Start every replica that does not run. Raises Conflict when it is started already, Forbidden."""
    require_change(actor, service, noun="service")
    with transaction.atomic():
        if service.desired_state == "running" and live_runs_of(service):
            raise Conflict(f"The service {service} is started already.", code="already_started")
        if live_runs_of(service):
            raise Conflict(f"The service {service} is still stopping; try again in a moment.", code="stopping")
        service.desired_state = "running"
        service.save(update_fields=["desired_state", "updated_at"])
        for version in service.versions.select_related("model_version__base_version"):
            for index in range(version.num_replicas):
                replica, _ = Replica.objects.get_or_create(service_version=version, index=index)
                replica.restarts = 0
                start_replica(replica)
    return service


def stop_service(*, actor: Actor, service: InferenceService) -> InferenceService:
    """Stop every replica. Raises Conflict when it is not started, Forbidden."""
    require_change(actor, service, noun="service")
    with transaction.atomic():
        if service.desired_state != "running":
            raise Conflict(f"The service {service} is not started.", code="already_ended")
        service.desired_state = "stopped"
        service.save(update_fields=["desired_state", "updated_at"])
        for run in live_runs_of(service):
            stop_run(run=run, actor_name=actor.username)
    return service


def delete_service(*, actor: Actor, service: InferenceService) -> None:
    """Delete a service that is not started, with its logs. Raises Conflict while replicas live, Forbidden."""
    require_change(actor, service, noun="service")
    with transaction.atomic():
        if live_runs_of(service):
            raise Conflict(f"The service {service} has live replicas; stop it first.", code="in_use")
        runs = list(Run.objects.filter(kind="replica", subject_id=service.pk))
        service.delete()
        for run in runs:
            delete_run(run=run)


def access_service(actor: Actor, service_id: UUID | str) -> InferenceService:
    """The actor's tenant's service. Raises NotFound."""
    return access_object(InferenceService.objects.select_related("created_by"), actor, service_id, noun="service")


def on_run_finished(run: Run) -> None:
    """A replica's run has ended: unless that was wanted or would come back, start it again after a back-off."""
    replica = Replica.objects.select_related("service_version__service").filter(run=run).first()
    if replica is None or replica.service_version.service.desired_state != "running":
        return
    if run.state == RunState.STOPPED or run.end_reason == EndReason.INVALID_SPEC:
        return
    last = Attempt.objects.filter(run=run).order_by("-number").first()
    if last is not None and last.exit_code in PERMANENT_EXITS:
        return
    served = timezone.now() - run.started_at if run.started_at else timedelta(0)
    replica.restarts = 1 if served > HEALTHY_AFTER else replica.restarts + 1
    if replica.restarts > MAX_RESTARTS:
        return
    try:
        start_replica(replica, after_s=min(FIRST_BACK_OFF_S * 2 ** (replica.restarts - 1), LONGEST_BACK_OFF_S))
    except (NotFound, Unprocessable) as refusal:  # its group or every large node is gone; the run must still end
        logger.warning("%s is not started again: %s", replica, refusal.message)


def start_replica(replica: Replica, *, after_s: float = 0) -> None:
    """Submit a run that serves the replica's version."""
    version = replica.service_version
    service = version.service
    owner = Actor(service.created_by_id, service.created_by.username, service.tenant_id, service.tenant.name, "owner")
    replica.run = submit_run(
        actor=owner,
        kind="replica",
        name=str(replica),
        subject_id=service.pk,
        spec=run_spec_of(version),
        not_before=timezone.now() + timedelta(seconds=after_s) if after_s else None,
    )
    replica.save()


def run_spec_of(version: ServiceVersion) -> RunSpec:
    """The server's program and input: llama.cpp on a CPU, vLLM where the version asks for GPUs."""
    model, adapter = folders_of(version.model_version)
    resources = Resources(**version.resources)
    return RunSpec(
        kind="replica",
        program=PROGRAM,
        parameters={
            "server": "vllm" if resources.has_gpu else "llama.cpp",
            "model": model,
            "adapter": adapter,
            "served_name": version.service.name,
            "context_tokens": version.context_tokens,
            "parallel": version.parallel,
        },
        mounts=tuple(Mount(path) for path in (model, adapter) if path),
        resources=resources,
        priority=10,
        limits=Limits(time_limit_s=None, stop_grace_s=10),
        ready_file=True,
    )


def folders_of(version: ModelVersion) -> tuple[str, str | None]:
    """The model's folder, and the adapter's where the version is one."""
    if version.format == "adapter" and version.base_version is not None:
        return str(version.base_version.path), str(version.path)
    return str(version.path), None


def live_runs_of(service: InferenceService) -> list[Run]:
    """Runs of the service that have not ended."""
    return [run for run in Run.objects.filter(kind="replica", subject_id=service.pk) if not run.is_final]


def longest_context(version: ModelVersion) -> int:
    """How many tokens prompt and answer may have together: what the model was built for."""
    model = version.base_version if version.format == "adapter" and version.base_version else version
    return int(model.facts.get("context_tokens") or MAX_CONTEXT_TOKENS)


def require_in_range(field: str, value: int, lowest: int, highest: int) -> None:
    """Raises Invalid (``out_of_range``)."""
    if not lowest <= value <= highest:
        raise Invalid(f"{field} {value} is not from {lowest} to {highest}.", code="out_of_range", field=field)


def check_service_name(name: str) -> None:
    """Raises Invalid (``bad_name``)."""
    try:
        service_name_validator(name)
    except ValidationError as error:
        raise Invalid(f"name {quoted(name)}: {error.messages[0]}", code="bad_name", field="name") from error
