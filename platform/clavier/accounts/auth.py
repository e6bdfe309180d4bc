"""From a credential to an Actor, and what a locked-out login is told."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models import Model, OuterRef, Subquery
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
    key, role = _key_and_role(key_digest(secret))
    now = timezone.now()
    if key is None:
        raise NotAuthenticated("The bearer token is not a key of this platform.", code="invalid_token")
    if key.revoked_at is not None:
        raise NotAuthenticated("The API key was revoked. Make a new one under Settings.", code="invalid_token")
    if key.expires_at is not None and key.expires_at <= now:
        raise NotAuthenticated("The API key has expired. Make a new one under Settings.", code="invalid_token")
    if role is None or not key.user.is_active or not key.tenant.is_active:
        raise NotAuthenticated("The API key's user or tenant is no longer active.", code="invalid_token")
    if key.last_used_at is None or now - key.last_used_at > LAST_USED_RESOLUTION:
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=now)
    limits = {"scopes": frozenset(key.scopes), "api_key_id": key.pk}
    return key.user, build_actor(key.user, key.tenant, role, limits)


def _key_and_role(digest: str) -> tuple[ApiKey | None, str | None]:
    """A key with its user and tenant, and the user's role there.

    Asked in each request of a program, so the SQL is made once a process: to make it takes ten times as long as to run
    it.
    """
    sql, compiler = _compiled(connection.alias)
    with connection.cursor() as cursor:
        cursor.execute(sql, [digest])
        row = cursor.fetchone()
    if row is None:
        return None, None
    # Only the cursor's values are turned into Python's here; nothing is asked.
    values = iter(next(iter(compiler.results_iter([[row]]))))
    key, user, tenant = (_instance(model, values) for model in (ApiKey, User, Tenant))
    key.user, key.tenant = user, tenant
    return key, next(values)


@cache
def _compiled(database: str) -> tuple[str, Any]:
    """The SQL of ``_key_and_role``, and what converts its rows: all columns of key, user and tenant, then the role."""
    role = Membership.objects.filter(tenant=OuterRef("tenant"), user=OuterRef("user")).values("role")[:1]
    columns = [
        prefix + field.attname
        for prefix, model in (("", ApiKey), ("user__", User), ("tenant__", Tenant))
        for field in model._meta.concrete_fields
    ]
    keys = ApiKey.objects.using(database).order_by().filter(digest="").annotate(role=Subquery(role))
    compiler = keys.values_list(*columns, "role").query.get_compiler(database)
    sql, parameters = compiler.as_sql()
    if parameters != ("",):
        raise ValueError(f"one parameter was expected: {sql} {parameters}")
    return sql, compiler


def _instance(model: type[Model], values: Any) -> Any:
    """A row of the table, from as many values as it has columns."""
    names = [field.attname for field in model._meta.concrete_fields]
    return model.from_db(connection.alias, names, [next(values) for _ in names])


def actor_of_user(user: User) -> Actor | None:
    """The actor of a signed-in user: in the default tenant, else in the first one; None without any."""
    memberships = Membership.objects.select_related("tenant").filter(user=user, tenant__is_active=True)
    membership = memberships.order_by("-is_default", "pk").first()
    return build_actor(user, membership.tenant, membership.role) if membership else None


def build_actor(user: User, tenant: Tenant, role: str, limits: Mapping[str, Any] | None = None) -> Actor:
    """The actor of a user with a role in a tenant. ``limits``: those of the key that was shown."""
    return Actor(
        user_id=user.pk,
        username=user.username,
        tenant_id=tenant.pk,
        tenant_name=tenant.name,
        role=role,  # type: ignore[arg-type]
        is_operator=user.is_staff,
        **(limits or {}),
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
