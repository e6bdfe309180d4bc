"""Abstract bases; no tables of their own."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Self

from django.conf import settings
from django.db import models

if TYPE_CHECKING:
    from clavier.core.actor import Actor


class TenantOwnedQuerySet(models.QuerySet["TenantOwned"]):
    """Rows of tenants."""

    def visible_to(self, actor: Actor) -> Self:
        """What the actor may see: everything of the own tenant."""
        return self.filter(tenant_id=actor.tenant_id)


class TenantOwned(models.Model):
    """A row that belongs to one tenant and was created by one user."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey("accounts.Tenant", on_delete=models.PROTECT, related_name="+")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = TenantOwnedQuerySet.as_manager()

    class Meta:
        abstract = True
