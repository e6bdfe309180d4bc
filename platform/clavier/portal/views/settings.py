"""The settings page: API keys, members, limits."""

from __future__ import annotations

from typing import cast
from uuid import UUID

from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect

from clavier.accounts import services
from clavier.core.actor import Role
from clavier.core.errors import DomainError
from clavier.portal.contexts import settings as contexts
from clavier.portal.forms.settings import ApiKeyForm, MemberForm, ObjectStoreForm
from clavier.portal.pages import PortalRequest, add_problems, page, show
from models_app.object_stores import access_object_store, create_object_store, delete_object_store


@page("GET")
def settings(request: PortalRequest) -> HttpResponse:
    """Everything at once."""
    return show(request, "portal/settings.html", contexts.settings(request.actor))


@page("POST")
def key_new(request: PortalRequest) -> HttpResponse:
    """Make a key; its secret is in this one answer only."""
    form = ApiKeyForm(request.POST)
    status = 400
    if form.is_valid():
        try:
            _, secret = services.create_own_api_key(
                actor=request.actor,
                name=form.cleaned_data["name"],
                scopes=form.cleaned_data["scopes"],
                expires_at=form.expires_at(),
            )
        except DomainError as error:
            add_problems(form, error)
            status = error.status
        else:
            response = show(request, "portal/settings.html", contexts.settings(request.actor, secret=secret))
            response["Cache-Control"] = "no-store"
            return response
    return show(request, "portal/settings.html", contexts.settings(request.actor, key_form=form), status=status)


@page("POST")
def key_revoke(request: PortalRequest, key_id: UUID) -> HttpResponseRedirect:
    """Revoke an own key at once."""
    services.revoke_own_api_key(actor=request.actor, key_id=key_id)
    return redirect("portal:settings")


@page("POST")
def store_new(request: PortalRequest) -> HttpResponse:
    """Keep an object store with its keys."""
    form = ObjectStoreForm(request.POST)
    status = 400
    if form.is_valid():
        try:
            create_object_store(actor=request.actor, **form.cleaned_data)
            return redirect("portal:settings")
        except DomainError as error:
            add_problems(form, error)
            status = error.status
    return show(request, "portal/settings.html", contexts.settings(request.actor, store_form=form), status=status)


@page("POST")
def store_delete(request: PortalRequest, store_id: UUID) -> HttpResponseRedirect:
    """Forget an object store; what came from it stays."""
    delete_object_store(actor=request.actor, store=access_object_store(request.actor, store_id))
    return redirect("portal:settings")


@page("POST")
def member_new(request: PortalRequest) -> HttpResponse:
    """Add a user to the tenant."""
    form = MemberForm(request.POST)
    status = 400
    if form.is_valid():
        role = cast(Role, form.cleaned_data["role"])
        try:
            services.invite_member(actor=request.actor, username=form.cleaned_data["username"], role=role)
            return redirect("portal:settings")
        except DomainError as error:
            add_problems(form, error)
            status = error.status
    return show(request, "portal/settings.html", contexts.settings(request.actor, member_form=form), status=status)


@page("POST")
def member_role(request: PortalRequest, username: str) -> HttpResponseRedirect:
    """Change a member's role."""
    role = cast(Role, request.POST.get("role", ""))
    services.change_role(actor=request.actor, username=username, role=role)
    return redirect("portal:settings")


@page("POST")
def member_remove(request: PortalRequest, username: str) -> HttpResponseRedirect:
    """Take a member out of the tenant."""
    services.remove_member(actor=request.actor, username=username)
    return redirect("portal:settings")
