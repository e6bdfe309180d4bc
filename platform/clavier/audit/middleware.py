"""Each request's user, address and id in the entries that it causes."""

from __future__ import annotations

from collections.abc import Callable

from auditlog.context import set_extra_data
from django.http import HttpRequest, HttpResponse


def audit(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Open the log's context. The address is the socket's (see core.middleware), never a header of the client's."""

    def middleware(request: HttpRequest) -> HttpResponse:
        about = {
            "actor": request.user,  # lazy: a request that changes nothing does not ask who it is
            "remote_addr": request.META.get("REMOTE_ADDR") or None,
            "cid": getattr(request, "request_id", None),
        }
        with set_extra_data(about):
            return get_response(request)

    return middleware
