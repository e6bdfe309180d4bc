"""Deploy, start, stop and delete services; bring replicas back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from clavier.accounts.access import access_object, creator_of, require_change, require_write
from clavier.core.actor import Actor
from clavier.core.errors import Conflict, Invalid, NotFound, Unprocessable, quoted
from clavier.runs.models import Attempt, Run
from clavier.runs.options import with_options
from clavier.runs.services import delete_run, stop_run, submit_run
from clavier.runs.states import EndReason, RunState
from inference_app.models import InferenceService, Replica, ServiceVersion, service_name_validator
from inference_app.specs import own_server_spec, require_servable, run_spec_of
from inference_app.versions import checked_versions, named_as, require_one_task, require_shares
from runner.contract import exits

logger = logging.getLogger(__name__)

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
    versions: Sequence[Mapping[str, Any]] | None = None,
    description: str = "",
    submitted: Mapping[str, Any] | None = None,
    start: bool = True,
    **version: Any,
) -> InferenceService:
    """A service with its versions; a draft unless ``start``. ``submitted``: what its client wrote of the service.

    ``versions``: the fields of ``versions.VERSION_FIELDS`` for each; a service of one version may give them as
    arguments. Raises InvalidFields with every bad field at once (``rates_not_100`` when shares do not sum to 100),
    Conflict, NotFound, Forbidden, Unprocessable for what can not be served here.
    """
    require_write(actor)
    check_service_name(name)
    if versions is not None and version:
        message = f"versions: give {', '.join(sorted(version))} inside of them, not beside."
        raise Invalid(message, code="conflicting_fields", field="versions")
    columns = checked_versions(actor, [version] if versions is None else versions, is_list=versions is not None)
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
        for number, given in enumerate(columns, start=1):
            ServiceVersion.objects.create(service=service, number=number, **given)
        if start:
            start_service(actor=actor, service=service, is_list=versions is not None)
    return service


def add_service_version(*, actor: Actor, service: InferenceService, **version: Any) -> ServiceVersion:
    """One more version, without traffic until ``set_traffic`` gives it some; it starts when the service is started.

    Raises InvalidFields, NotFound, Forbidden, Unprocessable.
    """
    require_change(actor, service, noun="service")
    columns = checked_versions(actor, [{**version, "traffic_percent": 100}], is_list=False)[0]
    with transaction.atomic():
        locked = InferenceService.objects.select_for_update().get(pk=service.pk)
        known = locked.versions.select_related("model_version")
        there = [version.model_version for version in known if not version.is_own_server]
        added = [] if columns["own_code"].get("command") else [columns["model_version"]]
        require_one_task([*there, *added])
        highest = locked.versions.aggregate(highest=Max("number"))["highest"] or 0
        made = ServiceVersion.objects.create(service=locked, number=highest + 1, **{**columns, "traffic_percent": 0})
        if locked.desired_state == "running":
            require_servable(made)
            start_replicas(made)
    return made


def set_traffic(*, actor: Actor, service: InferenceService, shares: Mapping[int, int]) -> InferenceService:
    """Give each version (by number) its share of the requests; versions that are not named get none.

    Raises Invalid (``rates_not_100``), NotFound, Forbidden.
    """
    require_change(actor, service, noun="service")
    with transaction.atomic():
        versions = {version.number: version for version in service.versions.select_for_update()}
        for number in shares:
            if number not in versions:
                raise NotFound(f"The service {service} has no version {number}.", field="traffic")
        require_shares(list(shares.values()), field="traffic")
        for number, version in versions.items():
            version.traffic_percent = shares.get(number, 0)
            version.save(update_fields=["traffic_percent"])
    return service


def start_service(*, actor: Actor, service: InferenceService, is_list: bool = False) -> InferenceService:
    """Start every replica that does not run. ``is_list``: fields are called ``versions[0].name`` rather than ``name``.

    Raises Conflict when it is started already, Forbidden, Unprocessable.
    """
    require_change(actor, service, noun="service")
    with transaction.atomic():
        if service.desired_state == "running" and live_runs_of(service):
            raise Conflict(f"The service {service} is started already.", code="already_started")
        if live_runs_of(service):
            raise Conflict(f"The service {service} is still stopping; try again in a moment.", code="stopping")
        service.desired_state = "running"
        service.save(update_fields=["desired_state", "updated_at"])
        for version in service.versions.select_related("model_version__base_version", "image_version"):
            with named_as(f"versions[{version.number - 1}]." if is_list else ""):
                require_servable(version)
                start_replicas(version)
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


def start_replicas(version: ServiceVersion) -> None:
    """A run for each replica of a version."""
    for index in range(version.num_replicas):
        replica, _ = Replica.objects.get_or_create(service_version=version, index=index)
        replica.restarts = 0
        start_replica(replica)


def start_replica(replica: Replica, *, after_s: float = 0) -> None:
    """Submit a run that serves the replica's version."""
    version = replica.service_version
    service = version.service
    run_id = uuid4()
    spec = own_server_spec(version, run_id) if version.is_own_server else run_spec_of(version)
    replica.run = submit_run(
        actor=creator_of(service),
        kind="replica",
        name=str(replica),
        subject_id=service.pk,
        spec=with_options(spec, version.options),
        run_id=run_id,
        not_before=timezone.now() + timedelta(seconds=after_s) if after_s else None,
    )
    replica.save()


def live_runs_of(service: InferenceService) -> list[Run]:
    """Runs of the service that have not ended."""
    return [run for run in Run.objects.filter(kind="replica", subject_id=service.pk) if not run.is_final]


def check_service_name(name: str) -> None:
    """Raises Invalid (``bad_name``)."""
    try:
        service_name_validator(name)
    except ValidationError as error:
        raise Invalid(f"name {quoted(name)}: {error.messages[0]}", code="bad_name", field="name") from error
