"""Caps, use, and the open reservations that add up to it."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.db.models import F, Q

#: Always reserved in this order, so that two transactions never wait for each other crosswise.
RESOURCES = ("running_runs", "cpu_milli", "memory_mib", "gpus")
SCOPES = ("tenant", "user", "node")


class ResourceGroup(models.Model):
    """A named pool of nodes (zone) to which runs are sent."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=63, unique=True)
    description = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class Node(models.Model):
    """A machine of a resource group and the executor that starts runs on it. Its caps are Usage rows."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=63, unique=True)
    resource_group = models.ForeignKey(ResourceGroup, on_delete=models.PROTECT, related_name="nodes")
    executor = models.CharField(max_length=40)
    is_schedulable = models.BooleanField(default=True, help_text="Off: runs go on, no new run is sent here.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class Usage(models.Model):
    """How much of one resource a tenant, a user or a node has in use, and its cap. No row: no cap."""

    scope = models.CharField(max_length=10, choices=[(scope, scope) for scope in SCOPES])
    scope_id = models.UUIDField()
    resource = models.CharField(max_length=20, choices=[(resource, resource) for resource in RESOURCES])
    used = models.BigIntegerField(default=0, editable=False)
    cap = models.BigIntegerField(help_text="cpu_milli: thousandths of a core. memory_mib: MiB. The others: a count.")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["scope", "scope_id", "resource"], name="usage_once"),
            models.CheckConstraint(condition=Q(used__gte=0), name="usage_not_negative"),
            models.CheckConstraint(condition=Q(cap__gte=0), name="usage_cap_not_negative"),
        ]

    def __str__(self) -> str:
        return f"{self.resource} of {self.scope} {self.scope_id}: {self.used}/{self.cap}"


class Reservation(models.Model):
    """A part of one Usage row that a live attempt holds; open while ``released_at`` is null."""

    attempt_id = models.UUIDField(db_index=True)
    usage = models.ForeignKey(Usage, on_delete=models.PROTECT, related_name="reservations")
    amount = models.BigIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)
    released_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["attempt_id", "usage"], name="reservation_once"),
            models.CheckConstraint(condition=Q(amount__gt=0), name="reservation_positive"),
        ]
        indexes: ClassVar = [models.Index(F("usage"), condition=Q(released_at=None), name="reservation_open")]

    def __str__(self) -> str:
        return f"{self.amount} of {self.usage_id} for attempt {self.attempt_id}"
