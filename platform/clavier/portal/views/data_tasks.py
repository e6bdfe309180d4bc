"""Pages of runs that make or measure dataset versions, and of data plugins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.forms import Form
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.urls import reverse

from clavier.accounts.access import require_change, require_write
from clavier.core.errors import DomainError
from clavier.portal.contexts import data_tasks as contexts
from clavier.portal.forms.data_tasks import FetchForm, GenerateForm, OverlapForm, PluginForm, TokensForm
from clavier.portal.listing import listing, whole_number
from clavier.portal.pages import PortalRequest, add_problems, page, show
from datasets_app.models import Dataset, DatasetVersion
from datasets_app.overlaps import measure_overlap
from datasets_app.plugins import access_plugin, create_plugin, delete_plugin, plugins_of, run_plugin
from datasets_app.queries import access_dataset, access_dataset_version
from datasets_app.tasks import access_data_task, delete_data_task, stop_data_task
from models_app.data_sources import fetch_version
from models_app.token_counts import count_tokens


@page("GET")
def dataset_work(request: PortalRequest, dataset_id: UUID) -> HttpResponse:
    """Fetch, make and measure versions of a dataset; what ran so far."""
    dataset = access_dataset(request.actor, dataset_id)
    context = contexts.dataset_work(request.actor, dataset, whole_number(request, "version", 0))
    return show(request, "portal/dataset_work.html", context)


@page("GET")
def dataset_task_rows(request: PortalRequest, dataset_id: UUID) -> HttpResponse:
    """The tasks alone, for the page that waits for them."""
    dataset = access_dataset(request.actor, dataset_id)
    return show(request, "portal/_data_tasks.html", contexts.task_rows(request.actor, dataset))


@page("POST")
def dataset_fetch(request: PortalRequest, dataset_id: UUID) -> HttpResponse:
    """Fetch a file."""
    dataset = access_dataset(request.actor, dataset_id)
    require_change(request.actor, dataset, noun="data set")
    form = FetchForm(request.POST, auto_id="fetch_%s")
    start = lambda: fetch_version(actor=request.actor, dataset=dataset, **form.cleaned_data)  # noqa: E731
    return _started(request, dataset, 0, "fetch", form, start)


@page("POST")
def dataset_generate(request: PortalRequest, dataset_id: UUID) -> HttpResponse:
    """Run a plugin."""
    dataset = access_dataset(request.actor, dataset_id)
    require_change(request.actor, dataset, noun="data set")
    form = GenerateForm(request.POST, auto_id="generate_%s")
    start = lambda: run_plugin(actor=request.actor, dataset=dataset, **form.asked())  # noqa: E731
    return _started(request, dataset, 0, "generate", form, start)


@page("POST")
def version_tokens(request: PortalRequest, version_id: UUID) -> HttpResponse:
    """Count tokens."""
    version = _writable(request, version_id)
    form = TokensForm(request.POST, auto_id="tokens_%s")
    start = lambda: count_tokens(actor=request.actor, version=version, **form.cleaned_data)  # noqa: E731
    return _started(request, version.dataset, version.number, "tokens", form, start)


@page("POST")
def version_overlap(request: PortalRequest, version_id: UUID) -> HttpResponse:
    """Look for leakage."""
    version = _writable(request, version_id)
    form = OverlapForm(request.POST, auto_id="overlap_%s")
    start = lambda: measure_overlap(actor=request.actor, version=version, **form.asked())  # noqa: E731
    return _started(request, version.dataset, version.number, "overlap", form, start)


@page("POST")
def data_task_stop(request: PortalRequest, task_id: UUID) -> HttpResponseRedirect:
    """Stop a task's run."""
    task = stop_data_task(actor=request.actor, task=access_data_task(request.actor, task_id))
    return redirect("portal:dataset_work", task.dataset_id)


@page("POST")
def data_task_delete(request: PortalRequest, task_id: UUID) -> HttpResponseRedirect:
    """Forget a task."""
    task = access_data_task(request.actor, task_id)
    dataset_id = task.dataset_id
    delete_data_task(actor=request.actor, task=task)
    return redirect("portal:dataset_work", dataset_id)


@page("GET")
def data_plugins(request: PortalRequest) -> HttpResponse:
    """All plugins."""
    context = contexts.PluginList(listing(request, plugins_of(request.actor)), request.actor.may_write)
    return show(request, "portal/data_plugin_list.html", context)


@page("GET", "POST")
def data_plugin_new(request: PortalRequest) -> HttpResponse:
    """The form of a plugin, and what it registers."""
    form, status = PluginForm(request.POST or None), 200
    if request.method == "POST":
        require_write(request.actor)
        status = 400
        if form.is_valid():
            try:
                create_plugin(actor=request.actor, **form.columns())
                return redirect("portal:data_plugins")
            except DomainError as error:
                add_problems(form, error)
                status = error.status
    return show(request, "portal/data_plugin_form.html", contexts.plugin_new(request.actor, form), status=status)


@page("POST")
def data_plugin_delete(request: PortalRequest, plugin_id: UUID) -> HttpResponseRedirect:
    """Forget a plugin."""
    delete_plugin(actor=request.actor, plugin=access_plugin(request.actor, plugin_id))
    return redirect("portal:data_plugins")


def _writable(request: PortalRequest, version_id: UUID) -> DatasetVersion:
    version = access_dataset_version(request.actor, version_id)
    require_write(request.actor)
    return version


def _started(
    request: PortalRequest, dataset: Dataset, number: int, name: str, form: Form, start: Callable[[], Any]
) -> HttpResponse:
    """Back to the page, where the task is; or the page with what was wrong beside the field."""
    status = 400
    if form.is_valid():
        try:
            start()
            return redirect(f"{reverse('portal:dataset_work', args=[dataset.pk])}?version={number}#tasks")
        except DomainError as error:
            add_problems(form, error)
            status = error.status
    context = contexts.dataset_work(request.actor, dataset, number, **{name: form})
    return show(request, "portal/dataset_work.html", context, status=status)
