"""What lists of accounts are made from."""

from __future__ import annotations

from django.db.models import QuerySet

from clavier.accounts.models import ApiKey, Membership, Tenant
from clavier.core.actor import Actor
from clavier.core.errors import NotFound


def own_api_keys(actor: Actor) -> QuerySet[ApiKey]:
    """The actor's keys in its tenant, newest first."""
    return ApiKey.objects.filter(user_id=actor.user_id, tenant_id=actor.tenant_id)


def members(actor: Actor) -> QuerySet[Membership]:
    """The members of the actor's tenant."""
    return Membership.objects.filter(tenant_id=actor.tenant_id).select_related("user", "tenant").order_by("pk")


def own_tenant(actor: Actor) -> Tenant:
    """The actor's tenant. Raises NotFound when it was deleted meanwhile."""
    found = Tenant.objects.filter(pk=actor.tenant_id).first()
    if found is None:
        raise NotFound("The tenant is gone.")
    return found
