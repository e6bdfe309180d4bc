"""From a browser's request to an actor, and from a refusal to a page or an answer for a script."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, cast

from django.contrib.auth.views import redirect_to_login
from django.forms import Form
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods
from django_htmx.middleware import HtmxDetails

from clavier.accounts.auth import actor_of_user
from clavier.accounts.models import User
from clavier.core.actor import Actor
from clavier.core.errors import DomainError, Forbidden, NotAuthenticated

P = ParamSpec("P")

#: Fields that forms show in another unit than services take.
SHOWN_AS = {
    "cpu_milli": "cpu_cores",
    "memory_mib": "memory_gib",
    "gpu_memory_mib": "gpu_memory_gib",
    "mig_profile": "gpu_kind",
    "mig_devices": "gpus",
}


class PortalRequest(HttpRequest):
    """A request of a signed-in member of a tenant."""

    actor: Actor
    htmx: HtmxDetails
    request_id: str


View = Callable[Concatenate[PortalRequest, P], HttpResponseBase]
DjangoView = Callable[Concatenate[HttpRequest, P], HttpResponseBase]


def page(*methods: str) -> Callable[[View[P]], DjangoView[P]]:
    """A view for people: sign-in first, then the actor; a refusal becomes a page that says what to do."""
    return _view(methods, refuse=_error_page)


def feed(view: View[P]) -> DjangoView[P]:
    """A GET view for the pages' scripts: a refusal becomes JSON."""
    return _view(("GET",), refuse=_error_json)(view)


def show(request: PortalRequest, template: str, context: object, *, status: int = 200) -> HttpResponse:
    """A page from its one context object, as ``page`` in the template."""
    return render(request, template, {"page": context}, status=status)


def add_problems(form: Form, error: DomainError) -> None:
    """Put a refusal beside the fields at fault; what belongs to no field of the form goes above it."""
    for problem in error.problems or [error]:
        # Services name a part of a value by its path: hyperparameters.lora_r, resources.cpu_milli.
        name = (problem.field or "").rpartition(".")[2]
        name = SHOWN_AS.get(name, name)
        if name in form.fields:
            form.add_error(name, _without_path(problem.message, problem.field or ""))
        else:
            form.add_error(None, problem.message)


def _without_path(message: str, path: str) -> str:
    """``hyperparameters.lora_r: 0 is ...`` beside the field ``lora_r`` is ``0 is ...``."""
    return message.removeprefix(f"{path}: ") if path else message


def _view(
    methods: tuple[str, ...], *, refuse: Callable[[HttpRequest, DomainError], HttpResponse]
) -> Callable[[View[P]], DjangoView[P]]:
    def decorate(view: View[P]) -> DjangoView[P]:
        @require_http_methods(list(methods or ("GET",)))
        @wraps(view)
        def wrapped(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            signed_in = cast(PortalRequest, request)
            try:
                signed_in.actor = _actor(request)
                return view(signed_in, *args, **kwargs)
            except DomainError as error:
                return refuse(request, error)

        return wrapped

    return decorate


def _actor(request: HttpRequest) -> Actor:
    if not isinstance(request.user, User):
        raise NotAuthenticated("Sign in first.")
    actor = actor_of_user(request.user)
    if actor is None:
        raise Forbidden("You are a member of no active tenant. Ask an operator to add you to one.")
    return actor


def _error_page(request: HttpRequest, error: DomainError) -> HttpResponse:
    if isinstance(error, NotAuthenticated):
        if getattr(request, "htmx", False):
            return HttpResponse(status=204, headers={"HX-Refresh": "true"})
        # A form posted after the session ended can not be repeated: come back to the page that showed it.
        return redirect_to_login(request.get_full_path() if request.method == "GET" else "/")
    return render(request, "portal/error.html", {"error": error}, status=error.status)


def _error_json(request: HttpRequest, error: DomainError) -> HttpResponse:
    body = {"code": error.code, "message": error.message, "request_id": getattr(request, "request_id", None)}
    return JsonResponse({"error": body}, status=error.status)
