"""Pages of hyperparameter searches."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect

from clavier.core.errors import DomainError
from clavier.portal.contexts import searches as contexts
from clavier.portal.forms.searches import SearchForm
from clavier.portal.listing import listing
from clavier.portal.pages import PortalRequest, add_problems, page, show
from clavier.quotas.capacity import groups_with_capacity
from finetune_app.from_config import still_says
from finetune_app.models import HyperparameterSearch
from finetune_app.search import access_search, create_search, delete_search, stop_search, visible_searches
from inference_app.queries import scoring_model


@page("GET")
def search_list(request: PortalRequest) -> HttpResponse:
    """All searches, found by name."""
    searches = visible_searches(request.actor)
    if request.GET.get("search"):
        searches = searches.filter(name__icontains=request.GET["search"])
    return show(request, "portal/search_list.html", contexts.search_list(listing(request, searches)))


@page("GET", "POST")
def search_new(request: PortalRequest) -> HttpResponse:
    """The form of a new search, and what it creates."""
    groups = groups_with_capacity(request.actor)
    if request.method == "GET":
        return show(request, "portal/search_form.html", contexts.search_new(request.actor, SearchForm(groups=groups)))
    form, status = SearchForm(request.POST, groups=groups), 400
    if form.is_valid():
        try:
            return redirect("portal:search", _create(request, form).pk)
        except DomainError as error:
            add_problems(form, error)
            status = error.status
    return show(request, "portal/search_form.html", contexts.search_new(request.actor, form), status=status)


@page("GET")
def search_detail(request: PortalRequest, search_id: UUID) -> HttpResponse:
    """One search with its trials; a script asks for the part that changes."""
    found = contexts.search_detail(request.actor, access_search(request.actor, search_id))
    part = "portal/_search_trials.html" if request.htmx else "portal/search_detail.html"
    return show(request, part, found)


@page("POST")
def search_stop(request: PortalRequest, search_id: UUID) -> HttpResponseRedirect:
    """Start no further trial, stop those that run."""
    stop_search(actor=request.actor, search=access_search(request.actor, search_id))
    return redirect("portal:search", search_id)


@page("POST")
def search_delete(request: PortalRequest, search_id: UUID) -> HttpResponseRedirect:
    """Forget a search; its trials stay as tasks."""
    delete_search(actor=request.actor, search=access_search(request.actor, search_id))
    return redirect("portal:searches")


def _create(request: PortalRequest, form: SearchForm) -> HyperparameterSearch:
    given, task = form.cleaned_data, form.task()
    search = {
        "space": form.space(),
        "metric": given["metric"],
        "maximize": bool(given["maximize"]),
        "num_trials": given["num_trials"],
    }
    config = given["config"]
    if config and still_says(request.actor, config, task, search, find_scorer=scoring_model):
        task["config"] = config
    return create_search(
        actor=request.actor,
        name=given["name"],
        num_parallel=given["num_parallel"],
        pruner=given["pruner"],
        pruning_warmup_steps=given["pruning_warmup_steps"],
        **search,
        **task,
    )
