"""What was answered to requests that carried an Idempotency-Key."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import models


class IdempotentRequest(models.Model):
    """One such request; while ``status`` is null its first copy is still being worked on."""

    tenant = models.ForeignKey("accounts.Tenant", on_delete=models.CASCADE, related_name="+")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    key = models.CharField(max_length=255)
    route = models.CharField(max_length=300, help_text="Method and path.")
    body_digest = models.CharField(max_length=64)
    status = models.PositiveSmallIntegerField(null=True, blank=True)
    response = models.JSONField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["tenant", "user", "key"], name="idempotency_key_once"),
        ]

    def __str__(self) -> str:
        return f"{self.key}: {self.route}"
