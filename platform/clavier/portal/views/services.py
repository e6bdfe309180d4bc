"""Pages of inference services."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.shortcuts import redirect

from clavier.core.errors import DomainError
from clavier.portal.contexts import services as contexts
from clavier.portal.forms.services import ServiceForm
from clavier.portal.listing import listing
from clavier.portal.logs import log_chunk, whole_log
from clavier.portal.pages import PortalRequest, add_problems, feed, page, show
from clavier.quotas.capacity import groups_with_capacity
from inference_app import queries, services
from inference_app.models import InferenceService


@page("GET")
def service_list(request: PortalRequest) -> HttpResponse:
    """All services, with search."""
    return show(request, "portal/service_list.html", _list(request))


@page("GET")
def service_rows(request: PortalRequest) -> HttpResponse:
    """The rows of the list as they are now."""
    return show(request, "portal/_service_rows.html", _list(request))


@page("GET", "POST")
def service_new(request: PortalRequest) -> HttpResponse:
    """The form that deploys a version, and what it creates."""
    initial = {"model_version": request.GET.get("model_version", "")}
    form = ServiceForm(request.POST or None, initial=initial, groups=groups_with_capacity(request.actor))
    status = 200
    if request.method == "POST":
        status = 400
        if form.is_valid():
            try:
                return redirect("portal:service", _create(request, form).pk)
            except DomainError as error:
                add_problems(form, error)
                status = error.status
    return show(request, "portal/service_form.html", contexts.service_new(request.actor, form), status=status)


@page("GET")
def service_detail(request: PortalRequest, service_id: UUID) -> HttpResponse:
    """One service: replicas, endpoint, log."""
    return show(request, "portal/service_detail.html", contexts.service_detail(request, request.actor, service_id))


@page("GET")
def service_status(request: PortalRequest, service_id: UUID) -> HttpResponse:
    """The head of a service's page; a new state loads the whole page again."""
    context = contexts.service_detail(request, request.actor, service_id)
    if request.GET.get("state") != context.row.state:
        return HttpResponse(status=204, headers={"HX-Refresh": "true"})
    return show(request, "portal/_service_status.html", context)


@page("GET")
def service_chat(request: PortalRequest, service_id: UUID) -> HttpResponse:
    """Ask one to three services the same question."""
    return show(request, "portal/service_chat.html", contexts.chat(request, request.actor, service_id))


@feed
def service_log(request: PortalRequest, service_id: UUID, run_id: UUID) -> HttpResponse:
    """A replica's log from a byte offset on."""
    return log_chunk(request, contexts.run_of_service(request.actor, service_id, run_id))


@page("GET")
def service_log_file(request: PortalRequest, service_id: UUID, run_id: UUID) -> StreamingHttpResponse:
    """A replica's whole log as a file."""
    return whole_log(contexts.run_of_service(request.actor, service_id, run_id), f"replica-{run_id}")


@page("POST")
def service_start(request: PortalRequest, service_id: UUID) -> HttpResponseRedirect:
    """Start every replica."""
    services.start_service(actor=request.actor, service=services.access_service(request.actor, service_id))
    return redirect("portal:service", service_id)


@page("POST")
def service_stop(request: PortalRequest, service_id: UUID) -> HttpResponseRedirect:
    """Stop every replica."""
    services.stop_service(actor=request.actor, service=services.access_service(request.actor, service_id))
    return redirect("portal:service", service_id)


@page("POST")
def service_delete(request: PortalRequest, service_id: UUID) -> HttpResponseRedirect:
    """Delete a stopped service."""
    services.delete_service(actor=request.actor, service=services.access_service(request.actor, service_id))
    return redirect("portal:services")


def _list(request: PortalRequest) -> contexts.ServiceList:
    found = queries.visible_services(request.actor, search=request.GET.get("search", ""))
    return contexts.service_list(listing(request, found))


def _create(request: PortalRequest, form: ServiceForm) -> InferenceService:
    names = ("name", "model_version", "description", "num_replicas", "context_tokens", "parallel")
    return services.create_service(
        actor=request.actor,
        resources=form.resources(),
        options=form.where(),
        start="save" not in request.POST,
        **form.own_server(),
        **{name: form.cleaned_data[name] for name in names},
    )
