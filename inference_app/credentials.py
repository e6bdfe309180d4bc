"""Who asks the gateway: a bearer key, or the portal's session with its CSRF token."""

from __future__ import annotations

from http.cookies import SimpleCookie
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.sessions.backends.db import SessionStore
from django.http import HttpRequest, HttpResponse
from rest_framework.authentication import CSRFCheck

from clavier.accounts.auth import actor_of_key, actor_of_user
from clavier.accounts.models import User
from clavier.core.actor import Actor
from clavier.core.errors import Forbidden, NotAuthenticated


def actor_of_headers(scope: Any, headers: dict[bytes, bytes]) -> Actor:
    """The actor of a bearer key, else of the session cookie. Raises NotAuthenticated, Forbidden."""
    header = headers.get(b"authorization", b"").decode("latin-1")
    if header:
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise NotAuthenticated("The Authorization header must be 'Bearer <token>'.", code="invalid_token")
        return actor_of_key(secret.strip())[1]
    return actor_of_session(scope, headers)


def actor_of_session(scope: Any, headers: dict[bytes, bytes]) -> Actor:
    """The signed-in user of the portal; a POST must carry the CSRF token, so that no other site can ask."""
    cookies = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
    session_cookie = cookies.get(settings.SESSION_COOKIE_NAME)
    if session_cookie is None:
        raise NotAuthenticated("No credentials were given. Send 'Authorization: Bearer <api key>'.")
    request = HttpRequest()
    request.method = scope["method"]
    request.COOKIES = {name: morsel.value for name, morsel in cookies.items()}
    request.META = {
        "HTTP_" + n.decode("latin-1").upper().replace("-", "_"): v.decode("latin-1") for n, v in headers.items()
    }
    request.META |= {"SERVER_NAME": "localhost", "SERVER_PORT": "80", "wsgi.url_scheme": scope.get("scheme", "http")}
    request.session = SessionStore(session_cookie.value)
    user = get_user(request)
    if not isinstance(user, User):
        raise NotAuthenticated("The session has expired; sign in again.", code="session_expired")
    if request.method != "GET":
        require_csrf(request)
    actor = actor_of_user(user)
    if actor is None:
        raise Forbidden("You are a member of no active tenant. Ask an operator to add you to one.")
    return actor


def require_csrf(request: HttpRequest) -> None:
    """Raises Forbidden unless the X-CSRFToken header fits the cookie."""
    check = CSRFCheck(lambda request: HttpResponse())
    check.process_request(request)
    if check.process_view(request, lambda request: HttpResponse(), (), {}) is not None:
        raise Forbidden("The CSRF token is missing or wrong; reload the page.", code="csrf_failed")
