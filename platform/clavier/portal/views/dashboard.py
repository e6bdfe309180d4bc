"""The first page."""

from __future__ import annotations

from django.http import HttpResponse

from clavier.portal.contexts.dashboard import dashboard as context
from clavier.portal.pages import PortalRequest, page, show


@page("GET")
def dashboard(request: PortalRequest) -> HttpResponse:
    """Counts, recent tasks, the state of the system."""
    return show(request, "portal/dashboard.html", context(request.actor))


@page("GET")
def dashboard_body(request: PortalRequest) -> HttpResponse:
    """The same as it is now."""
    return show(request, "portal/_dashboard.html", context(request.actor))
