"""Pages of evaluations."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.shortcuts import redirect

from clavier.core.errors import DomainError
from clavier.portal.contexts import evaluations as contexts
from clavier.portal.forms.evaluations import EvaluationForm
from clavier.portal.listing import listing
from clavier.portal.logs import log_chunk, whole_log
from clavier.portal.pages import PortalRequest, add_problems, feed, page, show
from clavier.quotas.capacity import groups_with_capacity
from evaluation_app import queries, services
from evaluation_app.models import EvaluationTask


@page("GET")
def evaluation_list(request: PortalRequest) -> HttpResponse:
    """All evaluations, with search."""
    return show(request, "portal/evaluation_list.html", _list(request))


@page("GET")
def evaluation_rows(request: PortalRequest) -> HttpResponse:
    """The rows of the list as they are now."""
    return show(request, "portal/_evaluation_rows.html", _list(request))


@page("GET", "POST")
def evaluation_new(request: PortalRequest) -> HttpResponse:
    """The form of a new evaluation, and what it creates."""
    initial = {"model_version": request.GET.get("model_version", "")}
    form = EvaluationForm(request.POST or None, initial=initial, groups=groups_with_capacity(request.actor))
    status = 200
    if request.method == "POST":
        status = 400
        if form.is_valid():
            try:
                return redirect("portal:evaluation", _create(request, form).pk)
            except DomainError as error:
                add_problems(form, error)
                status = error.status
    context = contexts.evaluation_new(request.actor, form)
    return show(request, "portal/evaluation_form.html", context, status=status)


@page("GET")
def evaluation_detail(request: PortalRequest, task_id: UUID) -> HttpResponse:
    """One evaluation: scores, and the answers side by side."""
    task = services.access_evaluation_task(request.actor, task_id)
    context = contexts.evaluation_detail(request, request.actor, task)
    return show(request, "portal/evaluation_detail.html", context)


@page("GET")
def evaluation_status(request: PortalRequest, task_id: UUID) -> HttpResponse:
    """The head of an evaluation's page; a new state loads the whole page again."""
    task = services.access_evaluation_task(request.actor, task_id)
    context = contexts.evaluation_detail(request, request.actor, task)
    if request.GET.get("state") != (context.state or ""):
        return HttpResponse(status=204, headers={"HX-Refresh": "true"})
    return show(request, "portal/_evaluation_status.html", context)


@feed
def evaluation_log(request: PortalRequest, task_id: UUID) -> HttpResponse:
    """The log from a byte offset on."""
    return log_chunk(request, services.access_evaluation_task(request.actor, task_id).run_id)


@page("GET")
def evaluation_log_file(request: PortalRequest, task_id: UUID) -> StreamingHttpResponse:
    """The whole log as a file."""
    task = services.access_evaluation_task(request.actor, task_id)
    return whole_log(task.run_id, task.name)


@page("POST")
def evaluation_stop(request: PortalRequest, task_id: UUID) -> HttpResponseRedirect:
    """Stop a live evaluation."""
    task = services.access_evaluation_task(request.actor, task_id)
    services.stop_evaluation_task(actor=request.actor, task=task)
    return redirect("portal:evaluation", task_id)


@page("POST")
def evaluation_retry(request: PortalRequest, task_id: UUID) -> HttpResponseRedirect:
    """Run a failed or stopped evaluation again."""
    task = services.access_evaluation_task(request.actor, task_id)
    services.retry_evaluation_task(actor=request.actor, task=task)
    return redirect("portal:evaluation", task_id)


@page("POST")
def evaluation_delete(request: PortalRequest, task_id: UUID) -> HttpResponseRedirect:
    """Delete an evaluation with its results."""
    task = services.access_evaluation_task(request.actor, task_id)
    services.delete_evaluation_task(actor=request.actor, task=task)
    return redirect("portal:evaluations")


def _create(request: PortalRequest, form: EvaluationForm) -> EvaluationTask:
    names = ("name", "model_version", "dataset_version", "metrics", "max_new_tokens", "limit", "description")
    return services.create_evaluation_task(
        actor=request.actor,
        resources=form.resources(),
        options=form.where(),
        **{name: form.cleaned_data[name] for name in names},
    )


def _list(request: PortalRequest) -> contexts.EvaluationList:
    tasks = queries.visible_evaluations(request.actor, search=request.GET.get("search", ""))
    return contexts.evaluation_list(listing(request, tasks))
