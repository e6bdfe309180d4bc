"""What a visitor sees when something went wrong on our side."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


def server_error(request: HttpRequest) -> HttpResponse:
    """The page of a 500, with the request id under which it was logged."""
    return render(request, "500.html", status=500)
