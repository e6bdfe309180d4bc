"""Abstract bases; no tables of their own."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models


class TenantOwned(models.Model):
    """A row of one tenant, created by one user. Lists filter by the actor's tenant in queries.py."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey("accounts.Tenant", on_delete=models.PROTECT, related_name="+")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        abstract = True
