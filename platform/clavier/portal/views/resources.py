"""The page of resources: limits, groups, GPUs, and what runs hold."""

from __future__ import annotations

from django.http import HttpResponse

from clavier.portal.contexts.resources import resources as context
from clavier.portal.pages import PortalRequest, page, show


@page("GET")
def resources(request: PortalRequest) -> HttpResponse:
    """Everything at once."""
    return show(request, "portal/resources.html", context(request.actor))


@page("GET")
def resources_body(request: PortalRequest) -> HttpResponse:
    """The same as it is now."""
    return show(request, "portal/_resources.html", context(request.actor))
