"""What a visitor sees when something went wrong on our side."""

from __future__ import annotations

import sys

from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from clavier.core.disk import is_disk_full


def server_error(request: HttpRequest) -> HttpResponse:
    """The page of a 500, with the request id under which it was logged; a full disk is a 507."""
    return render(request, "500.html", status=507 if is_disk_full(sys.exc_info()[1]) else 500)


def bad_request(request: HttpRequest, exception: Exception) -> JsonResponse:
    """400 for what Django refuses before any view: a Host that is none of ours, a cookie that was tampered with."""
    if isinstance(exception, DisallowedHost):
        code, message = "bad_host", "The Host header names another site. Ask for an address of this platform."
    else:
        code, message = "bad_request", "The request is malformed."
    error = {"code": code, "message": message, "field": None, "request_id": getattr(request, "request_id", None)}
    return JsonResponse({"error": error}, status=400)
