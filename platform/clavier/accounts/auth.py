"""From a credential to an Actor, and what a locked-out login is told."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils import timezone

from clavier.accounts.models import ApiKey, Membership, Tenant, User
from clavier.core.actor import Actor
from clavier.core.errors import Forbidden, NotAuthenticated

KEY_PREFIX = "clv_"
LAST_USED_RESOLUTION = timedelta(minutes=1)


def key_digest(secret: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def actor_of_key(secret: str) -> tuple[User, Actor]:
    """The user and actor of a bearer. Raises NotAuthenticated (``invalid_token``)."""
    key = ApiKey.objects.select_related("user", "tenant").filter(digest=key_digest(secret)).first()
    now = timezone.now()
    if key is None:
        raise NotAuthenticated("The bearer token is not a key of this platform.", code="invalid_token")
    if key.revoked_at is not None:
        raise NotAuthenticated("The API key was revoked. Make a new one under Settings.", code="invalid_token")
    if key.expires_at is not None and key.expires_at <= now:
        raise NotAuthenticated("The API key has expired. Make a new one under Settings.", code="invalid_token")
    membership = Membership.objects.select_related("tenant").filter(tenant=key.tenant, user=key.user).first()
    if membership is None or not key.user.is_active or not key.tenant.is_active:
        raise NotAuthenticated("The API key's user or tenant is no longer active.", code="invalid_token")
    if key.last_used_at is None or now - key.last_used_at > LAST_USED_RESOLUTION:
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=now)
    return key.user, build_actor(key.user, membership, scopes=frozenset(key.scopes), api_key=key)


def actor_of_user(user: User) -> Actor | None:
    """The actor of a signed-in user: in the default tenant, else in the first one; None without any."""
    memberships = Membership.objects.select_related("tenant").filter(user=user, tenant__is_active=True)
    membership = memberships.order_by("-is_default", "pk").first()
    return build_actor(user, membership) if membership else None


def build_actor(
    user: User, membership: Membership, *, scopes: frozenset[str] | None = None, api_key: ApiKey | None = None
) -> Actor:
    """The actor of a membership."""
    limits = {} if scopes is None else {"scopes": scopes}
    return Actor(
        user_id=user.pk,
        username=user.username,
        tenant_id=membership.tenant_id,
        tenant_name=membership.tenant.name,
        role=membership.role,  # type: ignore[arg-type]
        is_operator=user.is_staff,
        api_key_id=api_key.pk if api_key else None,
        **limits,
    )


def operator_in_tenant(request: HttpRequest, tenant: Tenant) -> Actor:
    """The operator of an admin request acting for a tenant, with the rights of its owner. Raises Forbidden."""
    user = request.user
    if not isinstance(user, User) or not user.is_staff:
        raise Forbidden("Only operators act for other tenants.")
    return Actor(
        user_id=user.pk,
        username=user.username,
        tenant_id=tenant.pk,
        tenant_name=tenant.name,
        role="owner",
        is_operator=True,
    )


def locked_out_response(request: HttpRequest, credentials: dict[str, Any] | None = None, *args: Any) -> HttpResponse:
    """429 with Retry-After after too many wrong passwords: a page for people, JSON for programs."""
    wait_s = int(settings.AXES_COOLOFF_TIME * 3600)
    message = f"Too many wrong passwords. Please try again in {wait_s // 60} minutes."
    response: HttpResponse
    if "application/json" in request.headers.get("Accept", "") or request.content_type == "application/json":
        error = {"code": "too_many_attempts", "message": message, "field": None}
        error["request_id"] = getattr(request, "request_id", None)
        response = JsonResponse({"error": error}, status=429)
    else:
        response = render(request, "registration/locked.html", {"message": message}, status=429)
    response["Retry-After"] = str(wait_s)
    return response
