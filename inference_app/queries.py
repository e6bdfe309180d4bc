"""What is shown of services, and where a request goes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Prefetch, QuerySet

from clavier.core.actor import Actor
from clavier.core.errors import DomainError, Invalid, NotFound, quoted
from clavier.runs.models import Run
from clavier.runs.outputs import read_json
from clavier.runs.queries import progress
from clavier.runs.states import LIVE_STATES, RunState
from clavier.runs.waiting import explain
from inference_app.dialing import has_socket, owners_of
from inference_app.models import InferenceService, Replica, ServiceVersion
from models_app.models import ModelVersion
from runner.contract import folder

#: Below it ports belong to the system.
FIRST_FREE_PORT = 1024
SERVICE_STATES = ("DRAFT", "CREATING", "READY", "DEGRADED", "STOPPING", "STOPPED", "FAILED")


class NoHealthyReplica(DomainError):
    """The service exists but nothing can answer now (503)."""

    status = 503
    default_code = "no_healthy_replica"


@dataclass(frozen=True, slots=True)
class Upstream:
    """One live server; ``api_key`` is known to the gateway only.

    It listens on the socket in its run's folder, made by one of ``owners``; or, where that path would be too long, on a
    ``port`` of this machine.
    """

    service: str
    served_name: str
    api_key: str
    run_id: UUID
    owners: frozenset[int]
    port: int | None = None


def visible_services(actor: Actor, *, search: str = "") -> QuerySet[InferenceService]:
    """The tenant's services with versions, replicas and their runs."""
    replicas = Prefetch("replicas", Replica.objects.select_related("run").order_by("index"))
    versions = ServiceVersion.objects.select_related("model_version__model").prefetch_related(replicas)
    services = InferenceService.objects.filter(tenant_id=actor.tenant_id).select_related("created_by", "tenant")
    if search:
        services = services.filter(name__icontains=search)
    return services.prefetch_related(Prefetch("versions", versions.order_by("number")))


def access_service_version(actor: Actor, version_id: str) -> ServiceVersion:
    """A version of one of the tenant's services. Raises NotFound."""
    versions = ServiceVersion.objects.select_related("service__created_by", "model_version__model")
    is_id = version_id.isascii() and version_id.isdigit() and len(version_id) <= 18
    found = versions.filter(service__tenant_id=actor.tenant_id, pk=int(version_id)).first() if is_id else None
    if found is None:
        raise NotFound(f"There is no service version {quoted(version_id)}.", field="id")
    return found


def state_of(service: InferenceService) -> str:
    """One of SERVICE_STATES, from what is wanted and what lives."""
    if service.desired_state == "draft":
        return "DRAFT"
    runs = [replica.run for version in service.versions.all() for replica in version.replicas.all() if replica.run]
    live = [run for run in runs if run.state in LIVE_STATES]
    if service.desired_state == "stopped":
        return "STOPPING" if live else "STOPPED"
    ready = sum(run.state == RunState.RUNNING for run in runs)
    if ready and ready == len(runs):
        return "READY"
    if ready:
        return "DEGRADED"
    return "CREATING" if live else "FAILED"


def replicas_of(service: InferenceService) -> QuerySet[Replica]:
    """The service's replicas with their newest runs, by version and index."""
    replicas = Replica.objects.filter(service_version__service=service).select_related("run", "service_version")
    return replicas.order_by("service_version__number", "index")


def replica_at(service: InferenceService, index: int, version: int | None = None) -> Replica | None:
    """A replica by its index, of the newest version unless one is named."""
    replicas = replicas_of(service).filter(index=index)
    return (replicas.filter(service_version__number=version) if version else replicas).last()


def replica_facts(replica: Replica) -> dict[str, Any]:
    """One replica with what its server reported."""
    run = replica.run
    ready = read_json(run.pk, folder.READY) if run and run.state == RunState.RUNNING else None
    return {
        "index": replica.index,
        "run_id": run.pk if run else None,
        "node": node_of(run),
        "state": run.state if run else None,
        "message": run.message if run else "",
        "why": explain(run).why,
        "restarts": replica.restarts,
        "engine": (ready or {}).get("engine"),
        "parity": (ready or {}).get("parity"),
        "started_at": run.started_at if run else None,
        "progress": progress(run.pk) if run and run.state == RunState.PREPARING else {},
    }


def node_of(run: Run | None) -> str | None:
    """The name of the node on which the run's newest attempt is, or was."""
    attempt = run.attempts.select_related("node").order_by("-number").first() if run else None
    return attempt.node.name if attempt else None


def choose_upstreams(actor: Actor, model: str, path: str = "chat/completions") -> list[Upstream]:
    """Live replicas for ``service`` or ``service@version``, the first choice first (by traffic share, then chance).

    ``path``: of the request, behind ``/openai/v1/``. Raises NotFound (``model_not_found``), Invalid (``wrong_task``: a
    score of a model that writes, or the other way round), NoHealthyReplica.
    """
    versions = versions_of(actor, model)
    service = versions[0].service
    for version in versions:
        require_answers(version, path)
    for version in by_traffic(versions, explicit=bool(model.partition("@")[2])):
        running = [r.run for r in version.replicas.all() if r.run and r.run.state == RunState.RUNNING]
        random.shuffle(running)
        make = own_upstream if version.is_own_server else upstream_of
        upstreams = [upstream for run in running if (upstream := make(service, run)) is not None]
        if upstreams:
            return upstreams
    raise NoHealthyReplica(
        f"The service {quoted(model)} is {state_of(service)}; no replica answers now.", field="model"
    )


def scores(version: ServiceVersion) -> bool:
    """Whether one of our own servers answers with scores, not with texts."""
    model = version.model_version
    return model is not None and model.task == "reward" and not version.is_own_server


def require_answers(version: ServiceVersion, path: str) -> None:
    """Raises Invalid (``wrong_task``) where a version's server of ours does not answer requests of this path."""
    if version.is_own_server or scores(version) == (path == "pooling"):
        return
    what, instead = ("scores", "pooling") if scores(version) else ("writes", "chat/completions")
    raise Invalid(
        f"The service {quoted(version.service.name)} {what}; ask it by POST /openai/v1/{instead}.",
        code="wrong_task",
        field="model",
    )


def scoring_model(actor: Actor, service: str, *, field: str) -> ModelVersion:
    """The model that scores in ``service`` or ``service@version``, whether a replica answers now or not.

    Raises NotFound (``model_not_found``), Invalid (``wrong_task``, ``ambiguous``).
    """
    versions = versions_of(actor, service, field=field)
    models = {version.number: version.model_version for version in versions if scores(version)}
    scorers = {number: model for number, model in models.items() if model is not None}
    if len(scorers) < len(versions):
        message = f"{field}: the service {quoted(service)} does not score by a reward model of the platform."
        raise Invalid(message, code="wrong_task", field=field)
    if len({model.pk for model in scorers.values()}) > 1:
        known = ", ".join(f"{service}@{number}" for number in sorted(scorers))
        raise Invalid(f"{field}: say which version scores: {known}.", code="ambiguous", field=field)
    return next(iter(scorers.values()))


def versions_of(actor: Actor, model: str, *, field: str = "model") -> list[ServiceVersion]:
    """The versions of ``service``, or the one of ``service@version``. Raises NotFound (``model_not_found``)."""
    name, _, number = model.partition("@")
    service = visible_services(actor).filter(name=name).first()
    versions = list(service.versions.all()) if service else []
    if number:
        versions = [version for version in versions if str(version.number) == number]
    if not versions:
        raise NotFound(
            f"There is no service {quoted(model)} for this key. GET /openai/v1/models lists what there is.",
            code="model_not_found",
            field=field,
        )
    return versions


def by_traffic(versions: list[ServiceVersion], *, explicit: bool) -> list[ServiceVersion]:
    """The versions in a random order weighted by their share; without a share only when asked for by number."""
    pool = [version for version in versions if explicit or version.traffic_percent > 0]
    return sorted(pool, key=lambda version: random.random() ** (1 / max(version.traffic_percent, 1)), reverse=True)


def upstream_of(service: InferenceService, run: Run) -> Upstream | None:
    """Where one of our own servers listens; None before it has said so, or when it says what can not be.

    What ready.json says of the place counts only so far: the tenant's program may have written it.
    """
    ready = read_json(run.pk, folder.READY)
    if ready is None or not isinstance(ready.get("endpoint"), dict):
        return None
    named = [ready.get(name) for name in ("served_name", "api_key")]
    port = ready["endpoint"].get("port")
    if not all(isinstance(name, str) for name in named) or not (port is None or is_usable_port(run, port)):
        return None
    owners = owners_of(service.tenant.number)
    return Upstream(service.name, str(named[0]), str(named[1]), run.pk, owners, port)


def is_usable_port(run: Run, port: Any) -> bool:
    """A port of this machine that our own program, outside of any container, can have chosen."""
    is_ours = run.spec["program"] is not None and settings.CLAVIER_EXECUTOR not in settings.CONTAINER_EXECUTORS
    return is_ours and isinstance(port, int) and not isinstance(port, bool) and FIRST_FREE_PORT <= port < 65536


def own_upstream(service: InferenceService, run: Run) -> Upstream | None:
    """Where an own server is reached: the one place that the platform gave it, whatever its container wrote."""
    owners = owners_of(service.tenant.number)
    return Upstream(service.name, service.name, "", run.pk, owners) if has_socket(run.pk, owners) else None


def served_models(actor: Actor) -> list[dict[str, Any]]:
    """The OpenAI list: each started service as a model."""
    return [
        {"id": service.name, "object": "model", "created": int(service.created_at.timestamp()), "owned_by": "clavier"}
        for service in visible_services(actor)
        if service.desired_state == "running"
    ]
