"""Every failure of the native API in one form: HTTP status + ``{"error": {code, message, field, request_id}}``."""

from __future__ import annotations

import logging
from typing import Any

from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from rest_framework.response import Response

from clavier.api.common.refusals import domain_error, request_id, set_headers
from clavier.core.errors import DomainError, NotFound, quoted

logger = logging.getLogger(__name__)


def handle(exc: Exception, context: dict[str, Any]) -> Response:
    """The answer to any exception of a view; what nobody foresaw is logged and answered as a 500."""
    request = context["request"]
    error = domain_error(exc, context)
    if error is None:
        logger.error("request %s failed: %s %s", request_id(request), request.method, request.path, exc_info=exc)
        return Response(internal_error(request), status=500)
    response = Response(error_body(error, request), status=error.status)
    set_headers(response, error, exc)
    return response


def error_body(error: DomainError, request: Any) -> dict[str, Any]:
    """The body of a failure; ``problems`` only where there are several."""
    body: dict[str, Any] = {
        "code": error.code,
        "message": error.message,
        "field": error.field,
        "request_id": request_id(request),
    }
    if len(error.problems) > 1:
        body["problems"] = [
            {"field": problem.field, "code": problem.code, "message": problem.message} for problem in error.problems
        ]
    return {"error": body}


@csrf_exempt
def not_found_view(request: HttpRequest, exception: Exception | None = None) -> JsonResponse:
    """404 for every path below /api/ that is no route, whoever asks."""
    hint = " Routes have no slash at the end." if request.path.endswith("/") else ""
    error = NotFound(
        f"There is no route {quoted(request.path)}.{hint} GET /api/schema lists all of them.", code="no_such_endpoint"
    )
    return JsonResponse(error_body(error, request), status=404)


def internal_error(request: Any) -> dict[str, Any]:
    """What the user is told of a failure of ours: nothing but the id under which it is logged."""
    message = "The platform failed to answer. Try again; if it stays, tell the operator the request_id."
    return {"error": {"code": "internal", "message": message, "field": None, "request_id": request_id(request)}}
