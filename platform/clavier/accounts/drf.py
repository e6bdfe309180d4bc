"""The credentials of a REST request: an API key, or the portal's session with CSRF."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from clavier.accounts.auth import actor_of_key, actor_of_user
from clavier.accounts.models import User
from clavier.audit.records import act_as, record
from clavier.core.actor import Actor
from clavier.core.errors import Forbidden, NotAuthenticated

if TYPE_CHECKING:  # DRF's views read the settings that name this module
    from rest_framework.views import APIView


class ApiKeyAuthentication(BaseAuthentication):
    """``Authorization: Bearer clv_...``; sets ``request.auth`` to the Actor."""

    def authenticate(self, request: Request) -> tuple[User, Actor] | None:
        """The user and actor, None without a bearer. Raises NotAuthenticated."""
        header = request.headers.get("Authorization", "")
        scheme, _, secret = header.partition(" ")
        if not header:
            return None
        if scheme.lower() != "bearer" or not secret.strip():
            raise NotAuthenticated("The Authorization header must be 'Bearer <token>'.", code="invalid_token")
        user, actor = actor_of_key(secret.strip())
        act_as(user)
        if user.is_staff:
            record(user, "key_use", actor=user, method=request.method, path=request.path, key=str(actor.api_key_id))
        return user, actor

    def authenticate_header(self, request: Request) -> str:
        """The WWW-Authenticate header of a 401."""
        return 'Bearer realm="clavier"'


class SessionLogin(SessionAuthentication):
    """The portal's session, with CSRF; sets ``request.auth`` to the Actor."""

    def authenticate(self, request: Request) -> tuple[User, Actor] | None:
        """The signed-in user and actor, or None."""
        found = super().authenticate(request)
        if found is None:
            return None
        user: User = found[0]
        actor = actor_of_user(user)
        if actor is None:
            raise Forbidden("You are a member of no active tenant. Ask an operator to add you to one.")
        return user, actor


class HasTenant(BasePermission):
    """Signed in, with an actor that may at least read."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Raises NotAuthenticated or Forbidden."""
        if not isinstance(request.auth, Actor):
            if settings.SESSION_COOKIE_NAME in request.COOKIES and "Authorization" not in request.headers:
                raise NotAuthenticated("Your session has ended; please sign in again.", code="session_expired")
            raise NotAuthenticated("No credentials were given. Send 'Authorization: Bearer <api key>' or sign in.")
        if "read" not in request.auth.scopes:
            raise Forbidden("This API key has no scope 'read'.", code="scope_missing")
        return True
