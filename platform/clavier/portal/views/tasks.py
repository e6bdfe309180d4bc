"""Pages of fine-tuning tasks."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.shortcuts import redirect
from django.utils.http import content_disposition_header

from clavier.core.errors import DomainError, NotFound
from clavier.portal.contexts import searches as search_contexts
from clavier.portal.contexts import tasks as contexts
from clavier.portal.forms.configs import ConfigForm, search_values, task_values
from clavier.portal.forms.searches import SearchForm
from clavier.portal.forms.tasks import TaskForm
from clavier.portal.listing import listing, whole_number
from clavier.portal.logs import log_chunk, whole_log
from clavier.portal.pages import PortalRequest, add_problems, feed, page, show
from clavier.quotas.capacity import groups_with_capacity
from finetune_app import queries, services
from finetune_app.doctor import examine_task
from finetune_app.from_config import config_text, configured, still_says
from finetune_app.models import FineTuneTask
from inference_app.queries import scoring_model


@page("GET")
def task_list(request: PortalRequest) -> HttpResponse:
    """All tasks, with filter and search."""
    return show(request, "portal/task_list.html", _list(request))


@page("GET")
def task_rows(request: PortalRequest) -> HttpResponse:
    """The rows of the list as they are now."""
    return show(request, "portal/_task_rows.html", _list(request))


@page("GET", "POST")
def task_new(request: PortalRequest) -> HttpResponse:
    """The form of a new task, and what it creates."""
    groups = groups_with_capacity(request.actor)
    if request.method == "GET":
        initial = {name: value for name, value in request.GET.items() if name in TaskForm.base_fields}
        form = TaskForm(initial=initial, groups=groups)
        return show(request, "portal/task_form.html", contexts.task_new(request.actor, form))
    form = TaskForm(request.POST, groups=groups)
    status = 400
    if form.is_valid():
        try:
            return redirect("portal:task", _create(request, form).pk)
        except DomainError as error:
            add_problems(form, error)
            status = error.status
    return show(request, "portal/task_form.html", contexts.task_new(request.actor, form), status=status)


@page("POST")
def task_config(request: PortalRequest) -> HttpResponse:
    """The form of a new task, or of a search, filled from a YAML training configuration."""
    source, groups = ConfigForm(request.POST, request.FILES), groups_with_capacity(request.actor)
    source.is_valid()
    try:
        text = config_text(request.actor, source.text(), source.cleaned_data["config_file"])
        made = configured(request.actor, text, find_scorer=scoring_model)
    except DomainError as error:
        add_problems(source, error)
        context = contexts.task_new(request.actor, TaskForm(groups=groups), source)
        return show(request, "portal/task_form.html", context, status=error.status)
    if made.search:
        search = SearchForm(initial=search_values(text, made), groups=groups)
        return show(request, "portal/search_form.html", search_contexts.search_new(request.actor, search))
    form = TaskForm(initial=task_values(text, made), groups=groups)
    return show(request, "portal/task_form.html", contexts.task_new(request.actor, form))


@page("POST")
def task_estimate(request: PortalRequest) -> HttpResponse:
    """What the task of the form would need, as a part of its page."""
    form = TaskForm(request.POST)
    form.is_valid()  # a name is not needed yet; what is missing the service names
    given = form.cleaned_data
    try:
        found = services.estimate_fine_tune_task(
            actor=request.actor,
            recipe=given.get("recipe", ""),
            method=given.get("method", ""),
            base_model=given.get("base_model") or None,
            train_dataset=given.get("train_dataset", ""),
            reward_model=given.get("reward_model") or None,
            tokenizer=given.get("tokenizer", ""),
            hyperparameters=form.hyperparameters(),
            resources=form.resources(),
            options=form.where(),
        )
    except DomainError as error:
        return show(request, "portal/_estimate.html", contexts.TaskEstimate(None, error.message))
    return show(request, "portal/_estimate.html", contexts.TaskEstimate(found.as_json() if found else None))


@page("GET")
def task_detail(request: PortalRequest, task_id: UUID) -> HttpResponse:
    """One task: progress, curve, log, timeline."""
    task = services.access_fine_tune_task(request.actor, task_id)
    rank = whole_number(request, "rank", 0)
    return show(request, "portal/task_detail.html", contexts.task_detail(request.actor, task, rank))


@page("GET")
def task_status(request: PortalRequest, task_id: UUID) -> HttpResponse:
    """The head of a task's page; a new state loads the whole page again."""
    task = services.access_fine_tune_task(request.actor, task_id)
    status = contexts.task_status(request.actor, task)
    if request.GET.get("state") != (status.state or ""):
        return HttpResponse(status=204, headers={"HX-Refresh": "true"})
    return show(request, "portal/_task_status.html", status)


@feed
def task_metrics(request: PortalRequest, task_id: UUID) -> JsonResponse:
    """``{events, next_offset}`` from a byte offset on."""
    task = services.access_fine_tune_task(request.actor, task_id)
    events, next_offset = queries.metrics(task, whole_number(request, "offset", 0))
    return JsonResponse({"events": events, "next_offset": next_offset})


@feed
def task_log(request: PortalRequest, task_id: UUID) -> HttpResponse:
    """The log from a byte offset on."""
    task = services.access_fine_tune_task(request.actor, task_id)
    return log_chunk(request, task.run_id)


@page("GET")
def task_log_file(request: PortalRequest, task_id: UUID) -> StreamingHttpResponse:
    """The whole log as a file."""
    task = services.access_fine_tune_task(request.actor, task_id)
    return whole_log(task.run_id, task.name, whole_number(request, "rank", 0))


@page("GET")
def task_config_file(request: PortalRequest, task_id: UUID) -> HttpResponse:
    """The YAML that the task was made from."""
    task = services.access_fine_tune_task(request.actor, task_id)
    if not task.config:
        raise NotFound("The task was not made from a YAML configuration.", code="no_config")
    headers = {"Content-Disposition": content_disposition_header(True, f"{task.name}.yaml") or "attachment"}
    return HttpResponse(task.config, content_type="application/yaml; charset=utf-8", headers=headers)


@page("POST")
def task_start(request: PortalRequest, task_id: UUID) -> HttpResponseRedirect:
    """Start a saved task."""
    task = services.access_fine_tune_task(request.actor, task_id)
    services.start_fine_tune_task(actor=request.actor, task=task)
    return redirect("portal:task", task_id)


@page("POST")
def task_stop(request: PortalRequest, task_id: UUID) -> HttpResponseRedirect:
    """Stop a live task."""
    task = services.access_fine_tune_task(request.actor, task_id)
    services.stop_fine_tune_task(actor=request.actor, task=task)
    return redirect("portal:task", task_id)


@page("POST")
def task_remedy(request: PortalRequest, task_id: UUID) -> HttpResponseRedirect:
    """Run a failed task again with the change that the run doctor proposes."""
    task = services.access_fine_tune_task(request.actor, task_id)
    _, remedy = examine_task(task) or (None, None)
    services.retry_fine_tune_task(actor=request.actor, task=task, **(remedy.as_json() if remedy else {}))
    return redirect("portal:task", task_id)


@page("POST")
def task_retry(request: PortalRequest, task_id: UUID) -> HttpResponseRedirect:
    """Run a failed or stopped task again."""
    task = services.access_fine_tune_task(request.actor, task_id)
    services.retry_fine_tune_task(actor=request.actor, task=task)
    return redirect("portal:task", task_id)


@page("POST")
def task_delete(request: PortalRequest, task_id: UUID) -> HttpResponseRedirect:
    """Delete a task with its runs and logs."""
    task = services.access_fine_tune_task(request.actor, task_id)
    services.delete_fine_tune_task(actor=request.actor, task=task)
    return redirect("portal:tasks")


def _list(request: PortalRequest) -> contexts.TaskList:
    state = request.GET.get("state", "")
    tasks = queries.visible_tasks(request.actor, state=state, search=request.GET.get("search", ""))
    return contexts.task_list(listing(request, tasks, "state"), state)


def _create(request: PortalRequest, form: TaskForm) -> FineTuneTask:
    given, task = form.cleaned_data, form.task()
    config = given["config"]
    if config and not still_says(request.actor, config, task, find_scorer=scoring_model):
        config = ""
    return services.create_fine_tune_task(
        actor=request.actor,
        name=given["name"],
        description=given["description"],
        output_model_name=given["output_model_name"],
        start="save" not in request.POST,
        config=config,
        **task,
    )
