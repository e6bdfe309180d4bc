"""What the pages of inference services show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.http import HttpRequest

from clavier.core.actor import Actor
from clavier.core.errors import DomainError, NotFound
from clavier.portal.contexts.choices import Option, image_options, model_options
from clavier.portal.forms.services import ServiceForm
from clavier.portal.listing import Listing
from datasets_app.models import DatasetVersion
from datasets_app.preview import read_rows
from inference_app.models import InferenceService, ServiceVersion
from inference_app.queries import replica_facts, scores, state_of, visible_services
from inference_app.services import access_service
from inference_app.versions import SERVED_TASKS

LIVE = ("CREATING", "STOPPING", "DEGRADED")
MOST_SIDE_BY_SIDE = 3
SAMPLE_QUESTIONS = 6
MAX_QUESTION_CHARACTERS = 200
COMPLETIONS_PATH = "/openai/v1/chat/completions"
POOLING_PATH = "/openai/v1/pooling"
#: Where the question is in a row of each kind.
QUESTION_COLUMNS = {
    "instruction": "instruction",
    "question_answer": "question",
    "question_reference": "question",
    "prompt_completion": "prompt",
}


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """A service in a list."""

    service: InferenceService
    state: str
    is_live: bool
    version: ServiceVersion | None
    num_ready: int
    num_replicas: int
    #: It answers with scores, not with texts.
    scores: bool


@dataclass(frozen=True, slots=True)
class ServiceList:
    """The list of services."""

    listing: Listing[InferenceService]
    rows: list[ServiceRow]
    is_live: bool


@dataclass(frozen=True, slots=True)
class ServiceNew:
    """The form of a new service."""

    form: ServiceForm
    models: list[Option]
    images: list[Option]


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """A version of a service and its replicas."""

    version: ServiceVersion
    replicas: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ServiceDetail:
    """A service's whole page."""

    row: ServiceRow
    versions: list[VersionFacts]
    endpoint: str
    log_run_id: UUID | None
    may_change: bool
    can_start: bool
    can_stop: bool


@dataclass(frozen=True, slots=True)
class Chat:
    """One to three services that answer the same question. ``others``: what may stand beside, and whether it does."""

    first: ServiceRow
    services: list[ServiceRow]
    others: list[tuple[ServiceRow, bool]]
    questions: list[str]
    completions_path: str


def service_list(listing: Listing[InferenceService]) -> ServiceList:
    """The rows of one page."""
    rows = [service_row(service) for service in listing.rows]
    return ServiceList(listing, rows, any(row.is_live for row in rows))


def service_row(service: InferenceService) -> ServiceRow:
    """One row; versions, replicas and runs are there already."""
    versions = list(service.versions.all())
    runs = [replica.run for version in versions for replica in version.replicas.all()]
    state = state_of(service)
    return ServiceRow(
        service=service,
        state=state,
        is_live=state in LIVE,
        version=versions[-1] if versions else None,
        num_ready=sum(run is not None and run.state == "RUNNING" for run in runs),
        num_replicas=sum(version.num_replicas for version in versions),
        scores=any(map(scores, versions)),
    )


def service_new(actor: Actor, form: ServiceForm) -> ServiceNew:
    """The form with what can be chosen."""
    return ServiceNew(form, model_options(actor, *SERVED_TASKS), image_options(actor))


def service_detail(request: HttpRequest, actor: Actor, service_id: UUID) -> ServiceDetail:
    """A service with the facts of its replicas."""
    service = shown_service(actor, service_id)
    row = service_row(service)
    versions = [
        VersionFacts(version, [replica_facts(replica) for replica in version.replicas.all()])
        for version in service.versions.all()
    ]
    run_ids = [replica["run_id"] for facts in versions for replica in facts.replicas if replica["run_id"]]
    return ServiceDetail(
        row=row,
        versions=versions,
        endpoint=request.build_absolute_uri(POOLING_PATH if row.scores else COMPLETIONS_PATH),
        log_run_id=run_ids[0] if run_ids else None,
        may_change=actor.may_write and (actor.manages_tenant or service.created_by_id == actor.user_id),
        can_start=row.state in ("DRAFT", "STOPPED", "FAILED"),
        can_stop=row.state in ("CREATING", "READY", "DEGRADED"),
    )


def chat(request: HttpRequest, actor: Actor, service_id: UUID) -> Chat:
    """The chat of a service beside those that ``?with=`` names."""
    first = service_row(shown_service(actor, service_id))
    if first.scores:
        raise NotFound("This service scores replies and does not chat; its page shows how to ask it.")
    ready = [service_row(s) for s in visible_services(actor).filter(desired_state="running").exclude(pk=service_id)]
    ready = [row for row in ready if row.num_ready and not row.scores]
    wanted = request.GET.getlist("with")[: MOST_SIDE_BY_SIDE - 1]
    beside = [row for row in ready if str(row.service.pk) in wanted]
    version = first.version.model_version if first.version else None
    return Chat(
        first=first,
        services=[first, *beside],
        others=[(row, row in beside) for row in ready],
        questions=sample_questions(version.dataset_version) if version else [],
        completions_path=COMPLETIONS_PATH,
    )


def shown_service(actor: Actor, service_id: UUID) -> InferenceService:
    """A service with versions, replicas and runs. Raises NotFound."""
    found = visible_services(actor).filter(pk=service_id).first()
    return found or access_service(actor, service_id)


def run_of_service(actor: Actor, service_id: UUID, run_id: UUID) -> UUID:
    """The run when it is a present replica of the service. Raises NotFound."""
    service = shown_service(actor, service_id)
    runs = {replica.run_id for version in service.versions.all() for replica in version.replicas.all()}
    if run_id not in runs:
        raise NotFound("This replica is gone; load the page again.")
    return run_id


def sample_questions(version: DatasetVersion | None) -> list[str]:
    """Questions from all over the data on which a model was trained: neighbours often ask the same."""
    if version is None:
        return []
    stride = max(1, version.num_samples // SAMPLE_QUESTIONS)
    numbers = range(0, version.num_samples, stride)[:SAMPLE_QUESTIONS]
    try:
        rows = [row for number in numbers for row in read_rows(version, number, 1)]
    except DomainError:
        return []
    questions = [question_of(version.kind, row) for row in rows]
    return [question for question in questions if 0 < len(question) <= MAX_QUESTION_CHARACTERS]


def question_of(kind: str, row: dict[str, Any]) -> str:
    """What a user asked in a row; empty when the kind has no questions."""
    if kind == "messages":
        return next((str(turn["content"]) for turn in row["messages"] if turn["role"] == "user"), "")
    parts = [row.get(QUESTION_COLUMNS.get(kind, "")), row.get("input") if kind == "instruction" else ""]
    return "\n".join(str(part) for part in parts if part)
