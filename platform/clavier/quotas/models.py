"""Pools of nodes and GPUs, caps, use, and the open reservations that add up to it."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import F, Q

#: Always reserved in this order, so that two transactions never wait for each other crosswise.
#: ``gpus``: whole ones; ``vgpus``: shares of GPUs; ``mig_devices``: slices that the hardware keeps apart.
RESOURCES = ("running_runs", "cpu_milli", "memory_mib", "gpus", "vgpus", "mig_devices")
SCOPES = ("tenant", "user", "node")
OWNER_SCOPES = ("tenant", "user")
#: What a resource group may set a default and a limit for; the names are those of a run's ``Resources``.
AMOUNTS = ("cpu_milli", "memory_mib", "gpus", "gpu_cores_percent", "gpu_memory_mib", "mig_devices")


def check_amounts(value: Any) -> None:
    """Raises ValidationError unless the value is ``{amount: whole number >= 0}`` with the names of AMOUNTS."""
    if not isinstance(value, dict):
        raise ValidationError('Give an object such as {"cpu_milli": 4000}.')
    for name, amount in value.items():
        if name not in AMOUNTS:
            raise ValidationError(f"{name!r} is none of {', '.join(AMOUNTS)}.")
        if not isinstance(amount, int) or isinstance(amount, bool) or amount < 0:
            raise ValidationError(f"{name}: {amount!r} is no whole number from 0.")


class ResourceGroup(models.Model):
    """A named pool of nodes (zone) to which runs are sent."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=63, unique=True)
    description = models.CharField(max_length=200, blank=True)
    is_active = models.BooleanField(default=True, help_text="Off: runs go on, no new run is accepted.")
    is_open = models.BooleanField(default=True, help_text="Everyone may use it. Off: only those with a grant.")
    default_resources = models.JSONField(
        default=dict, blank=True, validators=[check_amounts], help_text="What one container gets that asks for nothing."
    )
    run_limits = models.JSONField(
        default=dict, blank=True, validators=[check_amounts], help_text="The most that one container may ask for."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """A default above its limit could never be had. Raises ValidationError."""
        if not isinstance(self.default_resources, dict) or not isinstance(self.run_limits, dict):
            return  # the fields' own validators have said so
        for name, amount in self.default_resources.items():
            limit = self.run_limits.get(name)
            if isinstance(amount, int) and isinstance(limit, int) and amount > limit:
                raise ValidationError(
                    {"default_resources": f"{name}: the default {amount} is above the limit {limit}."}
                )


class ResourceGroupGrant(models.Model):
    """One tenant or one user may use a group that is not open."""

    resource_group = models.ForeignKey(ResourceGroup, on_delete=models.CASCADE, related_name="grants")
    tenant = models.ForeignKey("accounts.Tenant", on_delete=models.CASCADE, null=True, blank=True, related_name="+")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(tenant=None, user__isnull=False) | Q(tenant__isnull=False, user=None),
                name="grant_to_a_tenant_or_a_user",
            ),
            models.UniqueConstraint(
                fields=["resource_group", "tenant"], condition=Q(user=None), name="grant_to_tenant_once"
            ),
            models.UniqueConstraint(
                fields=["resource_group", "user"], condition=Q(tenant=None), name="grant_to_user_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.resource_group} for {self.tenant or self.user}"


class Node(models.Model):
    """A machine of a resource group and the executor that starts runs on it. Its caps are Usage rows."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=63, unique=True)
    resource_group = models.ForeignKey(ResourceGroup, on_delete=models.PROTECT, related_name="nodes")
    executor = models.CharField(max_length=40)
    engine_url = models.CharField(max_length=200, blank=True, help_text="Blank: the executor's default engine.")
    engine_network = models.CharField(
        max_length=100, blank=True, help_text="A network that several engines share. Blank: none."
    )
    assigns_gpus = models.BooleanField(
        default=False,
        help_text="The executor (a cluster) chooses devices itself: GPUs are counted, not booked by UUID.",
    )
    is_schedulable = models.BooleanField(default=True, help_text="Off: runs go on, no new run is sent here.")
    last_seen_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class Gpu(models.Model):
    """A GPU, or a MIG device of one, that runs can be given by its UUID.

    Whole GPUs and MIG devices have one holder. A share of a GPU (``allows_sharing``) is counted here at admission and
    not enforced by the hardware: a program may use more time or memory than it was booked with. Only MIG devices
    are kept apart by the hardware. A GPU that is the parent of MIG devices is never booked itself.
    """

    uuid = models.CharField(
        max_length=80, primary_key=True, help_text="GPU-... or MIG-..., as nvidia-smi -L prints it."
    )
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="gpu_devices")
    index = models.PositiveSmallIntegerField(default=0)
    name = models.CharField(max_length=100, blank=True)
    memory_mib = models.PositiveIntegerField()
    mig_profile = models.CharField(max_length=20, blank=True, help_text="Such as 1g.10gb. Blank: a whole GPU.")
    parent_uuid = models.CharField(max_length=80, blank=True, help_text="Of a MIG device: the GPU that it is cut from.")
    allows_sharing = models.BooleanField(default=False, help_text="Shares of it may be booked: counted, not enforced.")
    is_healthy = models.BooleanField(default=True, help_text="Off: its holders go on, it is not booked again.")
    is_present = models.BooleanField(default=True, editable=False, help_text="Off: its machine no longer lists it.")
    cores_used = models.PositiveSmallIntegerField(default=0, editable=False, help_text="Percent of its time.")
    memory_used_mib = models.PositiveIntegerField(default=0, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["node__name", "index", "uuid"]
        verbose_name = "GPU"
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(cores_used__gte=0, cores_used__lte=100), name="gpu_cores_in_range"),
            models.CheckConstraint(
                condition=Q(memory_used_mib__gte=0, memory_used_mib__lte=F("memory_mib")), name="gpu_memory_in_range"
            ),
            models.CheckConstraint(condition=Q(memory_mib__gt=0), name="gpu_has_memory"),
        ]

    def __str__(self) -> str:
        return f"{self.uuid} on {self.node_id}"


class GpuBooking(models.Model):
    """What one container (attempt and rank) holds of one GPU; open while ``released_at`` is null.

    A whole booking takes 100 percent and all of the memory.
    """

    gpu = models.ForeignKey(Gpu, on_delete=models.PROTECT, related_name="bookings")
    attempt_id = models.UUIDField(db_index=True)
    rank = models.PositiveSmallIntegerField(default=0)
    is_whole = models.BooleanField()
    cores_percent = models.PositiveSmallIntegerField()
    memory_mib = models.PositiveIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)
    released_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "GPU booking"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["attempt_id", "rank", "gpu"], name="gpu_booking_once"),
            models.UniqueConstraint(
                fields=["gpu"], condition=Q(released_at=None, is_whole=True), name="gpu_one_whole_holder"
            ),
        ]
        indexes: ClassVar = [models.Index(F("gpu"), condition=Q(released_at=None), name="gpu_booking_open")]

    def __str__(self) -> str:
        return f"{self.cores_percent} % and {self.memory_mib} MiB of {self.gpu_id} for attempt {self.attempt_id}"


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


class QuotaWindow(models.Model):
    """When a tenant or user may start runs; outside it no new run is admitted, running ones go on. No row: always."""

    scope = models.CharField(max_length=10, choices=[(scope, scope) for scope in OWNER_SCOPES])
    scope_id = models.UUIDField()
    valid_from = models.DateTimeField(null=True, blank=True, help_text="Blank: since ever.")
    valid_until = models.DateTimeField(null=True, blank=True, help_text="Blank: for ever.")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["scope", "scope_id"], name="quota_window_once"),
            models.CheckConstraint(condition=Q(scope__in=OWNER_SCOPES), name="quota_window_scope_known"),
            models.CheckConstraint(
                condition=Q(valid_from=None) | Q(valid_until=None) | Q(valid_from__lt=F("valid_until")),
                name="quota_window_in_order",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.scope} {self.scope_id}: {self.valid_from or '...'} to {self.valid_until or '...'}"


class TenantShare(models.Model):
    """A tenant's nominal part of a resource group, for the fair share of the scheduler.

    No row: nothing nominal, and the tenant may borrow what others leave idle.
    """

    resource_group = models.ForeignKey(ResourceGroup, on_delete=models.CASCADE, related_name="shares")
    tenant = models.ForeignKey("accounts.Tenant", on_delete=models.CASCADE, related_name="+")
    cpu_milli = models.PositiveBigIntegerField(default=0)
    memory_mib = models.PositiveBigIntegerField(default=0)
    gpus = models.PositiveIntegerField(default=0)
    may_borrow = models.BooleanField(default=True, help_text="Off: never more than the nominal part.")

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["resource_group", "tenant"], name="tenant_share_once")]

    def __str__(self) -> str:
        return f"{self.tenant} of {self.resource_group}: {self.cpu_milli} m, {self.memory_mib} MiB, {self.gpus} GPUs"
